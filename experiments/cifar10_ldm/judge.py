"""A CIFAR-10 classifier that judges samples: its features took no part in making them.

    python experiments/cifar10_ldm/judge.py train --data DIR --weights FILE
    python experiments/cifar10_ldm/judge.py measure --weights FILE --data DIR --samples DIR \
        --prior DIR --out judge.json

The embedded tiny network also trained the first stage, so a distance in its features is a judgment
by the teacher. This one shares neither architecture (plain, six convolutions, no residuals), nor
width, nor seed with it, and no loss or metric of the package uses it. Its Fréchet distance is not
FID. The data are a folder of `train-*.tar` and `test-*.tar` with `KEY.jpg` (32 x 32) and `KEY.cls`.
"""

import argparse
import json
import time
from pathlib import Path
from typing import TypedDict

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_lightning.builders.hardware import native_bf16
from ldm_lightning.data.images.decoding import decode_image
from ldm_lightning.data.images.folder_batches import folder_batches
from ldm_lightning.data.images.folder_listing import list_images
from ldm_lightning.data.shards.shard_set import LocalShards
from ldm_lightning.data.shards.tar_source import TarSource
from ldm_lightning.metrics.accumulators import fit_gaussian
from ldm_lightning.metrics.frechet import frechet_distance, reference_statistics
from ldm_lightning.metrics.reference_cache import ReferenceStatistics
from ldm_lightning.storage.hashing import hash_tensors
from ldm_lightning.utils.image import from_uint8, to_uint8

SIZE = 32  # pixels
SHIFT = 3  # pixels: the largest random shift in either direction
NUM_CLASSES = 10
# Channels of each convolution, and whether it is followed by a maximum over 2 x 2 pixels.
LAYERS = ((24, False), (48, True), (128, True), (128, False), (256, True), (256, False))
FEATURE_DIM = LAYERS[-1][0]


class Judge(nn.Module):
    """Plain convolutions with batch normalization, on images [B, 3, 32, 32] in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, halve in LAYERS:
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
            if halve:  # before the rest, which then has a quarter of the pixels
                layers.append(nn.MaxPool2d(2))
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURE_DIM, NUM_CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """Mean of the last map, which feeds the head: float32 [B, 256]."""
        return self.body(images).float().mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Class logits [B, 10]."""
        return self.head(self.features(images))


def open_split(folder: Path, split: str) -> TarSource:
    """Index one split, ``train`` or ``val`` (the test set), of the data."""
    store = LocalShards()
    samples = store.index(store.find(str(folder), split=split)).samples
    source = TarSource(samples, store, root=str(folder), split=split)
    if source.num_classes != NUM_CLASSES:
        raise ValueError(f"{folder} has {source.num_classes} classes, expected {NUM_CLASSES}.")
    return source


def read_images(source: TarSource, rows: list[int]) -> tuple[Tensor, Tensor]:
    """Read uint8 images [N, 3, 32, 32] and their classes [N]."""
    images = [decode_image(source.read(row), channels=3, name=source.name(row)) for row in rows]
    return torch.stack(images), torch.tensor([source.annotations(row)[0] for row in rows])


def augmented(padded: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Random shift and horizontal flip: images [B, 3, 32, 32] in [-1, 1] from padded uint8 ones."""
    corners = torch.randint(2 * SHIFT + 1, (len(rows), 2), generator=generator).tolist()
    cut = torch.stack(
        [
            padded[row, :, y : y + SIZE, x : x + SIZE]
            for row, (y, x) in zip(rows.tolist(), corners, strict=True)
        ]
    )
    mirror = torch.rand(len(rows), 1, 1, 1, generator=generator) < 0.5
    images = from_uint8(torch.where(mirror, cut.flip(3), cut))
    return images.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def look(judge: Judge, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features [N, 256] and most likely classes [N] of uint8 images, in float32."""
    judge.eval()
    parts = [judge.features(from_uint8(batch)) for batch in images.split(500)]
    features = torch.cat(parts)
    return features, judge.head(features).argmax(dim=1)


def fit(args: argparse.Namespace, images: Tensor, labels: Tensor) -> Judge:
    """Train by SGD with one peak of the learning rate; stop after ``args.max_steps`` if given."""
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    judge = Judge().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        judge.parameters(), lr=0.0, momentum=0.9, nesterov=True, weight_decay=args.weight_decay
    )
    padded = F.pad(images.float(), (SHIFT,) * 4, mode="reflect").to(torch.uint8)
    steps_per_epoch = len(images) // args.batch_size
    num_steps, step, start = args.epochs * steps_per_epoch, 0, time.monotonic()
    bf16 = native_bf16("cpu")
    for _ in range(args.epochs):
        order = torch.randperm(len(images), generator=generator)
        for rows in order[: steps_per_epoch * args.batch_size].split(args.batch_size):
            progress = (step + 1) / num_steps
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * min(progress / 0.2, (1 - progress) / 0.8)
            batch = augmented(padded, rows, generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = judge(batch)
            loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % args.print_every_steps == 0:
                left = (time.monotonic() - start) / step * (num_steps - step) / 60
                print(
                    f"step {step}/{num_steps} loss {loss.item():.3f}, {left:.1f} min left",
                    flush=True,
                )
            if step == args.max_steps:
                return judge
    return judge


def train(args: argparse.Namespace) -> None:
    """Train, measure on the test set, write weights with their record in the header."""
    sources = [open_split(args.data, split) for split in ("train", "val")]
    images, labels = read_images(sources[0], list(range(len(sources[0]))))
    test_images, test_labels = read_images(sources[1], list(range(len(sources[1]))))
    print(f"{len(images)} training and {len(test_images)} test images", flush=True)
    start = time.monotonic()
    judge = fit(args, images, labels)
    minutes = (time.monotonic() - start) / 60
    weights = {name: tensor.contiguous() for name, tensor in judge.state_dict().items()}
    names = ("seed", "epochs", "batch_size", "learning_rate", "weight_decay", "max_steps")
    record = {
        "test_accuracy": share(look(judge, test_images)[1] == test_labels),
        "num_train_images": len(images),
        "num_test_images": len(test_images),
        "train_minutes": round(minutes, 1),
        "bf16": native_bf16("cpu"),
        "num_parameters": sum(parameter.numel() for parameter in judge.parameters()),
        "weights_hash": hash_tensors(weights),
        "settings": {name: getattr(args, name) for name in names},
        "torch": torch.__version__,
    }
    args.weights.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, args.weights, metadata={"record": json.dumps(record)})
    print(json.dumps(record, indent=2))


def load_judge(path: Path) -> tuple[Judge, dict[str, object]]:
    """Load a trained judge and its record."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; make it with `judge.py train`.")
    with safe_open(path, framework="pt") as file:
        record = json.loads((file.metadata() or {}).get("record", "{}"))
    judge = Judge()
    judge.load_state_dict(load_file(path))
    return judge.to(memory_format=torch.channels_last).eval(), record


def read_folder(folder: Path) -> tuple[Tensor, list[int | None]]:
    """Images of a folder of ``ldm_lightning.sample``, or of any folder, and requested classes.

    Returns:
        uint8 [N, 3, 32, 32], and for each image its entry of ``labels.json``, None without one.

    Raises:
        ValueError: If images are missing or not 32 x 32, or the labels do not fit them.
    """
    root = folder / "images" if (folder / "images").is_dir() else folder
    names = list_images(root, key="the folder ").names
    batches = []
    for batch in folder_batches(root, names, channels=3, batch_size=500):
        if batch.shape[2:] != (SIZE, SIZE):
            raise ValueError(
                f"{root} holds {batch.shape[2]} x {batch.shape[3]} images; the judge sees 32 x 32."
            )
        batches.append(to_uint8(batch))
    path = folder / "labels.json"
    labels = json.loads(path.read_text(encoding="utf-8"))["labels"] if path.is_file() else None
    if labels is None:
        return torch.cat(batches), [None] * len(names)
    numbers = [Path(name).stem for name in names]
    if any(not number.isdecimal() or int(number) >= len(labels) for number in numbers):
        raise ValueError(f"{path} has {len(labels)} entries, which do not number the images.")
    return torch.cat(batches), [labels[int(number)] for number in numbers]


def share(hits: Tensor) -> float:
    """Mean of booleans."""
    return float(hits.double().mean())


class ClassAccuracy(TypedDict):
    """Fraction of samples read as their class, with Wilson's 95 % interval, and by class."""

    accuracy: float
    wilson_95: list[float]
    num_labeled: int
    by_class: dict[str, float]


class Judged(TypedDict):
    """All that is measured of one set of images; ``read_shares`` are of all of them, by class."""

    fd_judge: float
    num_images: int
    small_sample: bool
    class_accuracy: ClassAccuracy | None
    read_shares: dict[str, float]


def class_accuracy(
    classes: Tensor, wanted: list[int | None], names: list[str]
) -> ClassAccuracy | None:
    """Fraction of samples read as their class; None where no image has one."""
    rows = [row for row, label in enumerate(wanted) if label is not None]
    if not rows:
        return None
    labels = torch.tensor([wanted[row] for row in rows])
    hits = classes[rows] == labels
    return {
        "accuracy": share(hits),
        "wilson_95": list(binomtest(int(hits.sum()), len(rows)).proportion_ci(method="wilson")),
        "num_labeled": len(rows),
        "by_class": {names[k]: share(hits[labels == k]) for k in labels.unique().tolist()},
    }


def judged(
    judge: Judge,
    images: Tensor,
    wanted: list[int | None],
    reference: ReferenceStatistics,
    names: list[str],
) -> Judged:
    """Measure one set of uint8 images."""
    features, classes = look(judge, images)
    return {
        "fd_judge": float(frechet_distance(fit_gaussian(features), reference)),
        "num_images": len(images),
        "small_sample": len(images) < FEATURE_DIM,
        "class_accuracy": class_accuracy(classes, wanted, names),
        "read_shares": {name: share(classes == k) for k, name in enumerate(names)},
    }


def measure(args: argparse.Namespace) -> None:
    """Judge samples, images of the prior and as many training images against the test set."""
    judge, record = load_judge(args.weights)
    sets = {"samples": read_folder(args.samples)}
    if args.prior:
        sets["prior"] = read_folder(args.prior)
    # A Fréchet distance falls with the number of images: all sets get as many.
    num_images = min(len(images) for images, _ in sets.values())
    source, test_source = (open_split(args.data, split) for split in ("train", "val"))
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(args.seed))
    real, real_labels = read_images(source, order[:num_images].tolist())
    sets["train"] = real, real_labels.tolist()
    num_images = min(num_images, len(real))
    test_images, test_labels = read_images(test_source, list(range(len(test_source))))
    names = test_source.class_names or [str(k) for k in range(NUM_CLASSES)]
    features, classes = look(judge, test_images)
    reference = reference_statistics(fit_gaussian(features))
    found = {
        name: judged(judge, images[:num_images], wanted[:num_images], reference, names)
        for name, (images, wanted) in sets.items()
    }
    test_accuracy = share(classes == test_labels)
    result = {
        "sets": found,
        "test_accuracy": test_accuracy,
        "num_references": len(test_images),
        "one_of_classes": 1 / NUM_CLASSES,
        "folders": {"samples": str(args.samples), "prior": str(args.prior) if args.prior else None},
        "judge": record,
    }
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"judge: {test_accuracy:.2%} on {len(test_images)} test images")
    for name, one in found.items():
        accuracy = one["class_accuracy"]
        line = f"{name:<8} n = {num_images}, Fréchet distance to the test set {one['fd_judge']:.4g}"
        if accuracy is not None:
            low, high = accuracy["wilson_95"]
            line += f", class read {accuracy['accuracy']:.2%} [{low:.2%}, {high:.2%}]"
        print(line + (" (too few images to rank by)" if one["small_sample"] else ""))


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description="An independent CIFAR-10 judge of samples.")
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train", help="train the judge")
    training.add_argument("--epochs", type=int, default=9)
    training.add_argument("--batch-size", type=int, default=256)
    training.add_argument("--learning-rate", type=float, default=0.3, help="the peak")
    training.add_argument("--weight-decay", type=float, default=5e-4)
    training.add_argument("--seed", type=int, default=2024)
    training.add_argument("--max-steps", type=int, help="stop early, to time it")
    training.add_argument("--print-every-steps", type=int, default=25)
    training.set_defaults(run=train)
    measuring = commands.add_parser("measure", help="judge a folder of samples")
    measuring.add_argument("--samples", type=Path, required=True)
    measuring.add_argument("--prior", type=Path, help="a folder made with prior=true")
    measuring.add_argument("--out", type=Path, help="JSON file to write")
    measuring.add_argument("--seed", type=int, default=0, help="which training images")
    measuring.set_defaults(run=measure)
    for command in (training, measuring):
        command.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10 shards")
        command.add_argument("--weights", type=Path, required=True, help="safetensors file")
        command.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        args.run(args)
    except ValueError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
