"""Train the tiny feature network on CIFAR-10; write weights and record into the package.

    python experiments/tiny_features/train.py --data DIR

DIR holds `train-*.tar` and `test-*.tar` with `KEY.jpg` (32 x 32) and `KEY.cls` (0-9). Plain SGD,
one learning-rate peak, random crops and flips. The accuracy in the record is that of the shipped
file: normalization folded into the convolutions, weights rounded to 16 bits, no test-time
augmentation.
"""

import argparse
import json
import tarfile
import time
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_lightning.nn import tiny_features
from ldm_lightning.nn.tiny_features import TinyClassifier, TinyFeatures
from ldm_lightning.utils.image import from_uint8

SHIFT = 4  # pixels: the largest random shift in either direction

Network = TypeVar("Network", bound=nn.Module)


def read_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Read the tars of one split: images uint8 [N, 3, 32, 32] and labels int64 [N]."""
    images, labels = {}, {}
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, kind = member.name.rsplit(".", 1)
                content = tar.extractfile(member)
                if content is None:
                    raise SystemExit(f"{path}: {member.name} is no file.")
                if kind == "jpg":
                    images[key] = np.asarray(Image.open(content).convert("RGB"))
                elif kind == "cls":
                    labels[key] = int(content.read())
    if not images or images.keys() != labels.keys():
        raise SystemExit(f"{folder}: expected {split}-*.tar with one KEY.cls for each KEY.jpg.")
    keys = sorted(images)
    stacked = torch.from_numpy(np.stack([images[key] for key in keys]))
    return stacked.permute(0, 3, 1, 2).contiguous(), torch.tensor([labels[key] for key in keys])


def data_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all tars."""
    digest = sha256()
    for path in sorted(folder.glob("*.tar")):
        digest.update(path.name.encode() + sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def with_batch_norm(module: Network) -> Network:
    """Put batch normalization behind every convolution of ``module``, in place."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d):
            conv = nn.Conv2d(child.in_channels, child.out_channels, 3, padding=1, bias=False)
            setattr(module, name, nn.Sequential(conv, nn.BatchNorm2d(child.out_channels)))
        else:
            with_batch_norm(child)
    return module


def folded_weights(network: TinyClassifier) -> dict[str, Tensor]:
    """Weights of the plain `TinyClassifier` that computes what ``network`` does in eval mode."""
    weights = {f"head.{name}": tensor.detach() for name, tensor in network.head.named_parameters()}
    for name, module in network.named_modules():
        match list(module.children()):
            case [nn.Conv2d() as conv, nn.BatchNorm2d() as norm]:
                mean, variance = map(norm.get_buffer, ("running_mean", "running_var"))
                scale = norm.weight * (variance + norm.eps).rsqrt()
                weights[f"{name}.weight"] = (conv.weight * scale[:, None, None, None]).detach()
                weights[f"{name}.bias"] = (norm.bias - mean * scale).detach()
    return weights


def augmented(padded: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Random shift and horizontal flip: images [B, 3, 32, 32] in [-1, 1] from padded uint8 ones."""
    size = padded.shape[-1] - 2 * SHIFT
    top, left = torch.randint(2 * SHIFT + 1, (2, len(rows)), generator=generator)
    flip = torch.rand(len(rows), generator=generator) < 0.5
    across = torch.arange(size).expand(len(rows), size)
    across = torch.where(flip[:, None], size - 1 - across, across) + left[:, None]
    down = torch.arange(size) + top[:, None]
    # [B, H, W, 3] from advanced indices around a slice
    images = padded[rows[:, None, None], :, down[:, :, None], across[:, None, :]]
    return from_uint8(images.permute(0, 3, 1, 2))  # channels_last in memory


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images whose most likely class is their own."""
    network.eval()
    hits = 0
    for chunk, truth in zip(images.split(500), labels.split(500), strict=True):
        hits += int((network(from_uint8(chunk)).argmax(dim=1) == truth).sum())
    return hits / len(images)


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up over the first fifth, then linear to zero; ``progress`` in [0, 1]."""
    return peak * min(progress / 0.2, (1 - progress) / 0.8)


def train(args: argparse.Namespace, images: Tensor, labels: Tensor) -> TinyClassifier:
    """Train for ``args.epochs`` epochs and return the network, with its normalization layers."""
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    network = with_batch_norm(TinyClassifier()).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.0, momentum=0.9, nesterov=True, weight_decay=args.weight_decay
    )
    padded = F.pad(images.float(), (SHIFT,) * 4, mode="reflect").to(torch.uint8)
    steps_per_epoch = len(images) // args.batch_size
    num_steps, step, start = args.epochs * steps_per_epoch, 0, time.monotonic()
    for epoch in range(args.epochs):
        order = torch.randperm(len(images), generator=generator)
        for rows in order[: steps_per_epoch * args.batch_size].split(args.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate((step + 1) / num_steps, args.learning_rate)
            batch = augmented(padded, rows, generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                logits = network(batch)
            loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % 25 == 0:
                elapsed = time.monotonic() - start
                eta = elapsed / step * (num_steps - step) / 60
                print(
                    f"epoch {epoch + 1}/{args.epochs} step {step}/{num_steps} loss "
                    f"{loss.item():.3f} {step * args.batch_size / elapsed:.0f} images/s, {eta:.1f} "
                    "min left",
                    flush=True,
                )
    return network


def main() -> None:
    """Train, fold, round, measure, write."""
    parser = argparse.ArgumentParser(description="Train the tiny feature network on CIFAR-10.")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of train-*.tar, test-*.tar"
    )
    parser.add_argument("--output", type=Path, default=tiny_features.WEIGHTS_PATH.parent)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=0.3, help="the peak")
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    train_images, train_labels = read_split(args.data, "train")
    test_images, test_labels = read_split(args.data, "test")
    print(f"{len(train_images)} training and {len(test_images)} test images")

    start = time.monotonic()
    network = train(args, train_images, train_labels)
    minutes = (time.monotonic() - start) / 60

    path = args.output / tiny_features.WEIGHTS_PATH.name
    halves = {k: v.half().contiguous() for k, v in folded_weights(network).items()}
    save_file(halves, path)
    shipped = TinyFeatures.pretrained(path)
    record = {
        "what": "tiny feature network: residual classifier trained on CIFAR-10",
        "command": "python experiments/tiny_features/train.py --data DIR",
        "settings": {k: v for k, v in sorted(vars(args).items()) if k not in ("data", "output")},
        "data": "CIFAR-10 as JPEG tars, 50000 training and 10000 test images",
        "data_sha256": data_digest(args.data),
        "num_train_images": len(train_images),
        "num_test_images": len(test_images),
        "test_accuracy": accuracy(shipped, test_images, test_labels),
        "test_accuracy_before_folding_and_rounding": accuracy(network, test_images, test_labels),
        "train_minutes": round(minutes, 1),
        "num_parameters": sum(tensor.numel() for tensor in shipped.parameters()),
        "file_bytes": path.stat().st_size,
        "weights_hash": shipped.weights_hash,
        "torch": torch.__version__,
    }
    record_path = args.output / tiny_features.RECORD_PATH.name
    record_path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
