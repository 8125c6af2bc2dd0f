"""Sensitivity of the Fréchet distance on the tiny features to pictures larger than 32 pixels.

    python -m experiments.tiny_features.embedding --images DIR

Compares three ways to embed a 64-pixel picture: its 32-pixel patches alone, the picture reduced to
32 pixels alone, and the packaged rule (half of each). Each row is the Fréchet distance between all
photographs and a changed version of them; `halves` is the distance between two random halves, which
is noise. Writes `embedding.csv`.
"""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from experiments.tiny_features.photographs import blur, jpeg, noise, round8
from ldm_lightning.nn.tiny_features import TinyFeatures
from ldm_lightning.utils.image import from_uint8

SIZE = 64


def patches_only(features: TinyFeatures, images: Tensor) -> Tensor:
    """Mean embedding of the four patches."""
    tiles = images.unfold(2, 32, 32).unfold(3, 32, 32).permute(0, 2, 3, 1, 4, 5)
    return features.embedding(tiles.reshape(-1, 3, 32, 32)).view(len(images), -1, 128).mean(dim=1)


def whole_only(features: TinyFeatures, images: Tensor) -> Tensor:
    """Embedding of the reduced picture."""
    return features.embedding(F.avg_pool2d(images, 2))


def packaged(features: TinyFeatures, images: Tensor) -> Tensor:
    """The rule of `TinyFeatures.embedding`."""
    return features.embedding(images)


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to the rows of [N, D] and [M, D]."""
    a, b = a.double(), b.double()
    cov_a, cov_b = a.T.cov(), b.T.cov()
    cross = torch.linalg.eigvals(cov_a @ cov_b).real.clamp_min(0).sqrt().sum()
    means = (a.mean(0) - b.mean(0)).square().sum()
    return max(0.0, float(means + cov_a.trace() + cov_b.trace() - 2 * cross))


def read(path: Path) -> Tensor:
    """A photograph reduced to 64 pixels, [1, 3, 64, 64]."""
    image = resize(Image.open(path).convert("RGB"), SIZE)
    return from_uint8(pil_to_tensor(center_crop(image, [SIZE, SIZE])))[None]


def exchange_quarters(images: Tensor) -> Tensor:
    """Exchange the four quarters diagonally: patches as before, composition broken."""
    return images.roll((SIZE // 2, SIZE // 2), dims=(2, 3))


def each(damage: Callable[[Tensor, float], Tensor], images: Tensor, amount: float) -> Tensor:
    """Damage picture by picture, rounded to 8 bits."""
    return torch.cat([round8(damage(image[None], amount)) for image in images])


@torch.inference_mode()
def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description="Compare embeddings of 64-pixel pictures.")
    parser.add_argument("--images", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    features = TinyFeatures.pretrained()
    paths = [p for p in sorted(args.images.iterdir()) if min(Image.open(p).size) >= SIZE]
    images = torch.cat([read(path) for path in paths])
    print(f"{len(images)} photographs")
    changed = {
        "blur, sigma 0.5": each(blur, images, 0.5),
        "blur, sigma 1": each(blur, images, 1.0),
        "JPEG, quality 50": each(jpeg, images, 50),
        "JPEG, quality 10": each(jpeg, images, 10),
        "noise, 10 of 255": each(noise, images, 10),
        "quarters exchanged": exchange_quarters(images),
    }
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    rows = []
    for embed in (patches_only, whole_only, packaged):
        real = embed(features, images)
        first, second = real[order].chunk(2)
        row = {"embedding": embed.__name__, "halves": frechet(first, second)}
        row["variance"] = float(real.double().T.cov().trace())
        for name, pictures in changed.items():
            row[name] = frechet(real, embed(features, pictures))
        rows.append(row)
        print(row)
    with (args.output / "embedding.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow([f"{v:.3f}" if isinstance(v, float) else v for v in row.values()])


if __name__ == "__main__":
    main()
