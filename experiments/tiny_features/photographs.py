"""Judgments of the tiny perceptual distance on photographs: by strength, and at equal PSNR.

    python experiments/tiny_features/photographs.py --images DIR

Part 1: does the distance rise with the strength of one kind of damage? Part 2: one pixel of shift,
white noise, JPEG compression and blur, adjusted per photograph to the same PSNR: which does the
distance find closest? Writes `strength.csv`, `equal_psnr.csv`, `photographs.json` and
`photographs.png` beside this file.
"""

import argparse
import csv
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from ldm_lightning.nn.tiny_features import TinyFeatures, feature_distance
from ldm_lightning.utils.image import from_uint8, to_uint8

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend must be chosen before)

CROP = 192  # pixels: MS-SSIM with five scales needs more than 160
STRENGTHS: dict[str, list[float]] = {  # from weak to strong
    "blur": [0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0],  # standard deviation of the Gaussian, pixels
    "JPEG": [92, 80, 65, 50, 35, 20, 10],  # Pillow's quality, chroma at half resolution
    "noise": [2, 4, 8, 12, 20, 32, 48],  # standard deviation, of 255
    "mosaic": [2, 3, 4, 6, 8, 12, 16],  # side of the blocks, pixels; each shows its mean
}
KINDS = ["shift", "noise", "JPEG", "blur"]  # the order hoped for
COLORS = {"shift": "#009E73", "noise": "#0072B2", "JPEG": "#E69F00", "blur": "#D55E00"}
COLORS["mosaic"] = "#CC79A7"
MARKERS = {"shift": "D", "noise": "s", "JPEG": "^", "blur": "o", "mosaic": "v"}


def round8(image: Tensor) -> Tensor:
    """The content of a saved file of an image in [-1, 1]."""
    return from_uint8(to_uint8(image))


def blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [1, 3, H, W], mirrored at the borders."""
    radius = min(int(4 * sigma + 1), CROP - 1)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).expand(3, 1, 1, -1)
    image = F.pad(image, (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(image, taps, groups=3), taps.transpose(2, 3), groups=3)


def jpeg(image: Tensor, quality: float) -> Tensor:
    """Compress and decompress [1, 3, H, W]."""
    buffer = io.BytesIO()
    pixels = np.ascontiguousarray(to_uint8(image)[0].permute(1, 2, 0).numpy())
    Image.fromarray(pixels).save(buffer, "JPEG", quality=int(quality), subsampling=2)
    decoded = torch.from_numpy(np.array(Image.open(buffer)))
    return from_uint8(decoded.permute(2, 0, 1)[None])


def noise(image: Tensor, level: float) -> Tensor:
    """Add white Gaussian noise of ``level`` out of 255; always the same draw."""
    draw = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    return image + draw * level / 127.5


def mosaic(image: Tensor, block: float) -> Tensor:
    """Replace blocks by their mean."""
    small = F.avg_pool2d(image, int(block))
    return small.repeat_interleave(int(block), dim=2).repeat_interleave(int(block), dim=3)


DAMAGE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "blur": blur,
    "JPEG": jpeg,
    "noise": noise,
    "mosaic": mosaic,
}


def psnr(image: Tensor, other: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of 8-bit versions, peak 255."""
    error = (to_uint8(image).double() - to_uint8(other).double()).square().mean()
    return float(10 * torch.log10(255**2 / error)) if error > 0 else float("inf")


def bisected(
    damage: Callable[[float], Tensor], image: Tensor, target: float, high: float
) -> Tensor:
    """Damage ``image`` until its PSNR is ``target``; ``high`` is the strongest amount tried."""
    low = 0.0
    for _ in range(24):
        middle = (low + high) / 2
        if middle < 1e-3 or psnr(image, damage(middle)) > target:
            low = middle
        else:
            high = middle
    return round8(damage(high))


def at_psnr(kind: str, image: Tensor, target: float) -> Tensor:
    """``image`` damaged to a PSNR of ``target``, or as near as this kind of damage comes.

    JPEG quality is whole: the best quality below the target is blended with the original.
    """
    if kind == "blur":
        return bisected(lambda sigma: blur(image, max(sigma, 0.05)), image, target, 40.0)
    if kind == "noise":
        return bisected(lambda level: noise(image, level), image, target, 200.0)
    for quality in range(95, 0, -1):
        coded = jpeg(image, quality)
        if psnr(image, coded) <= target:
            break
    return bisected(lambda share: image + share * (coded - image), image, target, 1.0)


def read(path: Path) -> tuple[Tensor, Tensor]:
    """The central crop of a photograph and the one a pixel to its right: [1, 3, CROP, CROP]."""
    pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    top, left = ((side - CROP - 1) // 2 for side in pixels.shape[1:])
    window = from_uint8(pixels[None, :, top : top + CROP, left : left + CROP + 1])
    return window[..., :-1], window[..., 1:]


class Judge:
    """Distances to one photograph, whose features are computed once."""

    def __init__(self, features: TinyFeatures, image: Tensor) -> None:
        self.features, self.image, self.stages = features, image, features.stages(image)

    def tiny(self, other: Tensor) -> float:
        """Perceptual distance of the tiny feature network."""
        return float(feature_distance(self.features.stages(other), self.stages))

    def ms_ssim(self, other: Tensor) -> float:
        """1 - MS-SSIM."""
        unit, unit_other = (self.image + 1) / 2, (other + 1) / 2
        measure = multiscale_structural_similarity_index_measure
        return 1 - float(measure(unit_other, unit, data_range=1.0))


@dataclass(frozen=True)
class DamagedPhotograph:
    """One photograph under one kind of damage.

    Attributes:
        photograph: Its number.
        kind: Which of ``STRENGTHS``.
        spearman: Rank correlation of strength and distance.
        distances: Tiny perceptual distance at each strength, from weak to strong.
    """

    photograph: int
    kind: str
    spearman: float
    distances: list[float]

    def row(self) -> dict[str, float | str]:
        """One line of strength.csv."""
        return {
            "photograph": self.photograph,
            "kind": self.kind,
            "spearman": self.spearman,
            **{f"step_{i}": distance for i, distance in enumerate(self.distances, start=1)},
        }


def summarize(
    strength: list[DamagedPhotograph], equal: list[dict[str, float]], unrelated: list[float]
) -> dict[str, object]:
    """The figures of the README, from the rows of the two tables."""
    used = [row for row in equal if row["matched"]]
    return {
        "photographs": len(unrelated),
        "spearman_exactly_1": {
            kind: float(np.mean([one.spearman == 1 for one in strength if one.kind == kind]))
            for kind in STRENGTHS
        },
        "unrelated_photographs": {
            "mean": float(np.mean(unrelated)),
            "percentile_5": float(np.percentile(unrelated, 5)),
            "percentile_95": float(np.percentile(unrelated, 95)),
        },
        "equal_psnr": {
            "matched": len(used),
            **{name: ranking(used, name) for name in ("tiny", "ms_ssim")},
        },
    }


def ranking(used: list[dict[str, float]], name: str) -> dict[str, object]:
    """One distance's judgment of the kinds of damage at equal PSNR."""
    table = np.array([[row[f"{name}_{kind}"] for kind in KINDS] for row in used])
    closest, farthest = table.argmin(axis=1), table.argmax(axis=1)
    return {
        "median": dict(zip(KINDS, np.median(table, axis=0).round(4).tolist(), strict=True)),
        "closest": {kind: float(np.mean(closest == i)) for i, kind in enumerate(KINDS)},
        "farthest": {kind: float(np.mean(farthest == i)) for i, kind in enumerate(KINDS)},
        "shift_closest_and_blur_farthest": float(np.mean((closest == 0) & (farthest == 3))),
    }


def figure(strength: list[DamagedPhotograph], equal: list[dict[str, float]], path: Path) -> None:
    """Left: distance against strength. Right: both distances at equal PSNR."""
    _, axes = plt.subplots(1, 3, figsize=(13, 4), width_ratios=[1.25, 1, 1])
    for kind, values in STRENGTHS.items():
        rows = np.array([one.distances for one in strength if one.kind == kind])
        low, median, high = np.percentile(rows, [10, 50, 90], axis=0)
        steps = np.arange(1, len(values) + 1)
        axes[0].plot(steps, median, color=COLORS[kind], marker=MARKERS[kind], label=kind)
        axes[0].fill_between(steps, low, high, color=COLORS[kind], alpha=0.12, linewidth=0)
    axes[0].set(xlabel="step of strength (weak to strong)", ylabel="tiny perceptual distance")
    axes[0].set_title(
        "Distance rises with strength\n(median, 10th to 90th percentile)", fontsize=10
    )
    axes[0].legend(frameon=False)
    used = [row for row in equal if row["matched"]]
    for axis, name, label in (
        (axes[1], "tiny", "tiny perceptual distance"),
        (axes[2], "ms_ssim", "1 - MS-SSIM"),
    ):
        for place, kind in enumerate(KINDS):
            distances = np.array([row[f"{name}_{kind}"] for row in used])
            jitter = np.random.default_rng(0).uniform(-0.25, 0.25, len(distances))
            style = {"color": COLORS[kind], "marker": MARKERS[kind]}
            axis.scatter(place + jitter, distances, s=9, alpha=0.45, linewidths=0, **style)
            median = float(np.median(distances))
            axis.hlines(median, place - 0.35, place + 0.35, color="black", linewidth=2)
        axis.set_xticks(range(len(KINDS)), KINDS)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.set_title(f"{len(used)} photographs at equal PSNR\n(bar: median)", fontsize=10)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    plt.tight_layout()
    plt.savefig(path, dpi=110)


def write_csv(rows: Sequence[Mapping[str, float | str]], path: Path) -> None:
    """Write flat rows; numbers with six digits."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row.values()])


@torch.inference_mode()
def main() -> None:
    """Measure all photographs of a folder."""
    parser = argparse.ArgumentParser(description="Study the tiny perceptual distance.")
    parser.add_argument("--images", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--limit", type=int, default=100, help="use the first ones, by name")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    start = time.monotonic()
    features = TinyFeatures.pretrained()
    found = sorted(p for p in args.images.iterdir() if p.suffix.lower() in (".jpg", ".png"))
    paths = [path for path in found[: args.limit] if min(Image.open(path).size) > CROP]
    too_small = min(len(found), args.limit) - len(paths)
    print(f"{len(paths)} photographs; {too_small} left out: a side of {CROP} pixels or less")
    strength: list[DamagedPhotograph] = []
    equal: list[dict[str, float]] = []
    unrelated: list[float] = []
    before = read(paths[-1])[0]
    for number, path in enumerate(paths):
        image, shifted = read(path)
        judge = Judge(features, image)
        unrelated.append(judge.tiny(before))
        for kind, values in STRENGTHS.items():
            distances = [judge.tiny(round8(DAMAGE[kind](image, value))) for value in values]
            rho = float(spearmanr(np.arange(len(values)), distances).statistic)
            strength.append(DamagedPhotograph(number, kind, round(rho, 6), distances))
        target = psnr(image, shifted)
        versions = {kind: at_psnr(kind, image, target) for kind in KINDS[1:]}
        versions = {"shift": shifted} | versions
        row: dict[str, float] = {"photograph": number, "psnr_shift": target}
        row |= {f"psnr_{kind}": psnr(image, versions[kind]) for kind in KINDS[1:]}
        row["matched"] = int(all(abs(row[f"psnr_{kind}"] - target) <= 0.1 for kind in KINDS))
        row |= {f"tiny_{kind}": judge.tiny(versions[kind]) for kind in KINDS}
        equal.append(row | {f"ms_ssim_{kind}": judge.ms_ssim(versions[kind]) for kind in KINDS})
        before = image
        if number % 10 == 9:
            print(f"{number + 1} photographs, {time.monotonic() - start:.0f} s", flush=True)
    summary = summarize(strength, equal, unrelated)
    summary["left_out_as_too_small"] = too_small
    summary["minutes"] = round((time.monotonic() - start) / 60, 1)
    summary["weights_hash"] = features.weights_hash
    args.output.mkdir(parents=True, exist_ok=True)
    write_csv([one.row() for one in strength], args.output / "strength.csv")
    write_csv(equal, args.output / "equal_psnr.csv")
    text = json.dumps(summary, indent=2)
    (args.output / "photographs.json").write_text(text + "\n")
    figure(strength, equal, args.output / "photographs.png")
    print(text)


if __name__ == "__main__":
    main()
