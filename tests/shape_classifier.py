"""Reads the class of images of the embedded shapes, and so tells whether samples obey their labels.

    python tests/shape_classifier.py --weights FILE                     # train once, about a minute
    python tests/shape_classifier.py --weights FILE --samples DIR --out result.json

A tool of the test suite: a network of its own, which no loss and no metric of the package uses. It
is trained on textured 32-pixel shapes that are turned, shifted, blurred and made noisy, so that it
also reads what a first stage has softened. DIR is a folder of ``ldm_lightning.sample`` (the label
of image i is entry i of ``labels.json``) or any folder of images; with ``--labels-from names`` the
class is what the relative name begins with (``circle/7.png``, ``circle_7.png``).
"""

import argparse
import json
import math
import re
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn import functional as F

from ldm_lightning.builders.hardware import native_bf16
from ldm_lightning.data.images.folder_batches import folder_batches
from ldm_lightning.data.images.folder_listing import list_images
from ldm_lightning.data.order.sampling import SampleKey
from ldm_lightning.data.shapes.module import CLASS_NAMES, VERSION, Shapes
from ldm_lightning.utils.image import from_uint8

SIZE = 32  # pixels
SETTINGS = {  # what the weights are a function of; kept with them
    "shapes_version": VERSION,
    "num_train_images": 12_000,
    "num_test_images": 2_000,
    "epochs": 10,
    "batch_size": 128,
    "peak_learning_rate": 4e-3,
    "seed": 0,
}
TEST_BLUR = 0.8  # standard deviation in pixels: about what a first stage with f = 4 does to an edge


class ShapeClassifier(nn.Sequential):
    """Logits [B, classes] of images [B, 3, 32, 32] in [-1, 1]."""

    def __init__(self) -> None:
        widths = (24, 48, 64, 96)
        layers: list[nn.Module] = []
        for index, width in enumerate(widths):
            layers += [
                nn.Conv2d(3 if index == 0 else widths[index - 1], width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            if index < 3:
                layers.append(nn.MaxPool2d(2))
        super().__init__(*layers, nn.Flatten(), nn.Linear(widths[-1] * 16, len(CLASS_NAMES)))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(standardized(images))


def standardized(images: Tensor) -> Tensor:
    """Every image with channel means 0 and one standard deviation of 1 over its channels."""
    centered = images - images.mean(dim=(2, 3), keepdim=True)
    return centered / (centered.square().mean(dim=(1, 2, 3), keepdim=True).sqrt() + 1e-3)


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [B, C, H, W] in pixels, mirrored at the borders."""
    radius = math.ceil(3 * sigma)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).expand(images.shape[1], 1, 1, -1)
    padded = F.pad(images, (radius,) * 4, mode="reflect")
    groups = images.shape[1]
    return F.conv2d(F.conv2d(padded, taps, groups=groups), taps.transpose(2, 3), groups=groups)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """A batch turned by quarters, mirrored, shifted; half of it blurred; with a little noise."""
    turns, mirror, down, across = torch.randint(60, (4,), generator=generator).tolist()
    images = images.rot90(turns, dims=(2, 3))
    if mirror % 2:
        images = images.flip(3)
    padded = F.pad(images, (2,) * 4, mode="replicate")
    down, across = down % 5, across % 5
    images = padded[..., down : down + SIZE, across : across + SIZE]
    sigma = 0.3 + float(torch.rand((), generator=generator))
    half = len(images) // 2
    images = torch.cat([blurred(images[:half], sigma), images[half:]])
    level = torch.rand(len(images), 1, 1, 1, generator=generator) * 0.12
    return images + level * torch.randn(images.shape, generator=generator)


def draw(split: str, num_images: int) -> tuple[Tensor, Tensor]:
    """Draw textured shapes: uint8 [N, 3, 32, 32], and their classes [N]."""
    dataset = Shapes(
        resolution=(SIZE, SIZE), image_channels=3, textures=True, split=split, num_images=num_images
    )
    samples = [dataset[SampleKey(0, index)] for index in range(num_images)]
    return (
        torch.stack([sample["image"] for sample in samples]),
        torch.tensor([sample["label"] for sample in samples]),
    )


@torch.inference_mode()
def read_classes(network: nn.Module, images: Tensor) -> Tensor:
    """Most likely class of images [N, 3, 32, 32] in [-1, 1]: [N]."""
    network.eval()
    return torch.cat([network(batch).argmax(dim=1) for batch in images.split(500)])


def train(images: Tensor, labels: Tensor) -> ShapeClassifier:
    """Train on uint8 images [N, 3, 32, 32] and their classes [N]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SETTINGS["seed"])
        network = ShapeClassifier().to(memory_format=torch.channels_last).train()
    generator = torch.Generator().manual_seed(SETTINGS["seed"])
    batch_size = SETTINGS["batch_size"]
    steps_per_epoch = len(images) // batch_size
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=SETTINGS["peak_learning_rate"],
        total_steps=SETTINGS["epochs"] * steps_per_epoch,
        cycle_momentum=False,
    )
    bf16 = native_bf16("cpu")
    for _ in range(SETTINGS["epochs"]):
        order = torch.randperm(len(images), generator=generator)
        for rows in order[: steps_per_epoch * batch_size].split(batch_size):
            batch = augmented(from_uint8(images[rows]), generator)
            batch = batch.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = network(batch)
            loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def trained_classifier(path: Path) -> tuple[ShapeClassifier, dict]:
    """Load the classifier from ``path``, or train it and write it there.

    Returns:
        The network in eval mode, and its record: ``held_out_accuracy``,
        ``held_out_accuracy_blurred``, ``train_s``, ``settings``.

    Raises:
        ValueError: If the file holds a classifier that was trained otherwise.
    """
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {}).get("record", "{}"))
        if record.get("settings") != SETTINGS:
            raise ValueError(f"{path} was not made with these settings; delete it to train anew.")
        network = ShapeClassifier()
        network.load_state_dict(load_file(path))
        return network.to(memory_format=torch.channels_last).eval(), record
    start = time.monotonic()
    network = train(*draw("train", SETTINGS["num_train_images"]))
    train_s = time.monotonic() - start
    pixels, labels = draw("val", SETTINGS["num_test_images"])
    images = from_uint8(pixels)
    record = {
        "held_out_accuracy": share(read_classes(network, images) == labels),
        "held_out_accuracy_blurred": share(
            read_classes(network, blurred(images, TEST_BLUR)) == labels
        ),
        "blur_sigma": TEST_BLUR,
        "train_s": round(train_s, 1),
        "settings": SETTINGS,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, path, metadata={"record": json.dumps(record)})
    return network, record


def share(hits: Tensor) -> float:
    """Mean of booleans."""
    return float(hits.double().mean())


def labels_of(names: list[str], folder: Path, labels_from: str) -> list[int | None]:
    """Requested class of each image; None where none was requested.

    Raises:
        ValueError: If a name begins with no class, or ``labels.json`` does not fit the images.
    """
    if labels_from == "names":
        beginnings = [re.split(r"[/_.-]", name, maxsplit=1)[0] for name in names]
        unknown = sorted(set(beginnings) - set(CLASS_NAMES))
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no class; the classes are {CLASS_NAMES}.")
        return [CLASS_NAMES.index(beginning) for beginning in beginnings]
    path = folder / "labels.json"
    if not path.is_file():
        return [None] * len(names)
    labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
    numbers = [Path(name).stem for name in names]
    if any(not number.isdecimal() or int(number) >= len(labels) for number in numbers):
        raise ValueError(f"{path} has {len(labels)} entries, which do not number the images.")
    return [labels[int(number)] for number in numbers]


def read_samples(network: nn.Module, folder: Path, labels_from: str) -> dict:
    """Read all images of a folder.

    Returns:
        ``num_images``; ``read_shares``: how often each class is read; and where labels are known
        ``num_labeled``, ``requested_class_read``, its ``wilson_95``, ``by_requested_class``.

    Raises:
        ValueError: If there is no image, one is not 32 x 32, or labels do not fit.
    """
    root = folder / "images" if (folder / "images").is_dir() else folder
    names = list_images(root, key="--samples").names
    batches = list(folder_batches(root, names, channels=3, batch_size=500))
    if wrong := [batch for batch in batches if batch.shape[2:] != (SIZE, SIZE)]:
        height, width = wrong[0].shape[2:]
        raise ValueError(f"{root} holds {height} x {width} images; {SIZE} x {SIZE} are read.")
    classes = read_classes(network, torch.cat(batches))
    result = {
        "num_images": len(names),
        "one_of_classes": 1 / len(CLASS_NAMES),
        "read_shares": {name: share(classes == k) for k, name in enumerate(CLASS_NAMES)},
    }
    given = labels_of(names, folder, labels_from)
    rows = [row for row, label in enumerate(given) if label is not None]
    if rows:
        wanted = torch.tensor([given[row] for row in rows])
        hits = classes[rows] == wanted
        result |= {
            "num_labeled": len(rows),
            "requested_class_read": share(hits),
            "wilson_95": list(binomtest(int(hits.sum()), len(rows)).proportion_ci(method="wilson")),
            "by_requested_class": {
                CLASS_NAMES[k]: share(hits[wanted == k]) for k in wanted.unique().tolist()
            },
        }
    return result


def report(record: dict, result: dict) -> str:
    """Say what was found."""
    lines = [
        f"held-out accuracy      {record['held_out_accuracy']:.2%}",
        f"  blurred by {record['blur_sigma']} pixels  {record['held_out_accuracy_blurred']:.2%}",
    ]
    if not result:
        return "\n".join(lines)
    lines += [
        f"images read            {result['num_images']}",
        f"1 / classes            {result['one_of_classes']:.2%}",
    ]
    if "num_labeled" in result:
        low, high = result["wilson_95"]
        lines.append(
            f"requested class read   {result['requested_class_read']:.2%} of "
            f"n = {result['num_labeled']}, 95 % within [{low:.2%}, {high:.2%}]"
        )
    for name, often in result["read_shares"].items():
        wanted = result.get("by_requested_class", {}).get(name)
        right = "" if wanted is None else f", right where requested {wanted:.2%}"
        lines.append(f"  {name:<10} read {often:.2%}{right}")
    return "\n".join(lines)


def main() -> None:
    """Train where needed, read the samples where given."""
    parser = argparse.ArgumentParser(description="Read the classes of sampled shapes.")
    parser.add_argument("--weights", type=Path, required=True, help="written if it is missing")
    parser.add_argument("--samples", type=Path, help="folder of samples or images")
    parser.add_argument("--labels-from", choices=("labels.json", "names"), default="labels.json")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        network, record = trained_classifier(args.weights)
        result = read_samples(network, args.samples, args.labels_from) if args.samples else {}
    except ValueError as error:
        raise SystemExit(str(error)) from error
    print(report(record, result))  # noqa: T201
    if args.out:
        content = {"samples": str(args.samples), **result, "classifier": record}
        args.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
