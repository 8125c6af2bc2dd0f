"""Decode and crop photographs in one thread, beside torchvision's ImageFolder and v2 transforms.

The files are drawn here: noise whose amplitude falls with frequency as in photographs (1/f), its
channels alike, as JPEG. Both sides read the same files. Ours resizes with a bicubic filter,
torchvision by its default with a bilinear one, both without aliasing.
"""

import io
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.ours import OURS
from benchmarks.results import Row
from benchmarks.timing import Spread, time_in_turn
from ldm_lightning.data.image_module import ImageDataModule
from ldm_lightning.data.images.image_folder import image_folder_data_module
from ldm_lightning.data.order.sampling import SampleKey
from ldm_lightning.data.shards.webdataset import webdataset_data_module

PART = "input_pipeline"
SIZES = ((500, 375), (1024, 768), (2048, 1536))  # width, height
RESOLUTION = 256
NUM_FILES = 12
JPEG_QUALITY = 90
ENCODED: dict[str, Any] = {
    "val_fraction": 0.05,
    "resolution": RESOLUTION,
    "image_channels": 3,
    "train_crop": "random_resized",
    "crop_scale": (0.8, 1.0),
    "flip": True,
    "eval_crop": "center",
    "val_crops_per_image": 1,
    "max_bad_fraction": 0.0,
    "batch_size": 1,
    "val_batch_size": 1,
    "num_workers": 0,
    "max_val_images": None,
    "seed": 0,
}


def rows(*, quick: bool) -> list[Row]:
    """Every comparison of this part."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker process
    try:
        with tempfile.TemporaryDirectory() as folder:
            return [
                row
                for size in SIZES
                for row in _rows_of_size(Path(folder), size, num_rounds=4 if quick else 10)
            ]
    finally:
        torch.set_num_threads(num_threads)


def _rows_of_size(folder: Path, size: tuple[int, int], *, num_rounds: int) -> list[Row]:
    setting = f"{size[0]}x{size[1]} JPEG to {RESOLUTION} px, one thread"
    root = folder / f"{size[0]}"
    mean_bytes = write_files(root, size)
    crop = v2.RandomResizedCrop(RESOLUTION, scale=(0.8, 1.0), antialias=True)
    ways: dict[str, Callable[[], object]] = {
        OURS: _reader(_folder_module(root)),
        "v2 on Pillow images": _torchvision_reader(
            root, [crop, v2.RandomHorizontalFlip(), v2.PILToTensor()]
        ),
        "v2 on tensors": _torchvision_reader(root, [v2.ToImage(), crop, v2.RandomHorizontalFlip()]),
        "shards": _reader(_shard_module(root)),
    }
    timings = time_in_turn(ways, num_rounds=num_rounds)
    seconds = {way: timings.spread(way).median / NUM_FILES for way in ways}
    facts = {
        "mean_file_bytes": mean_bytes,
        "images_per_s_and_core": {way: 1 / value for way, value in seconds.items()},
    }
    compared = [
        Row(
            part=PART,
            what=f"decode and crop / ImageFolder and {other}",
            setting=setting,
            value=timings.ratio(OURS, other),
            num_rounds=timings.num_rounds,
            goal=1.0,
            seconds=seconds,
            facts=facts,
        )
        for other in ("v2 on Pillow images", "v2 on tensors")
    ]
    milliseconds = [value / NUM_FILES * 1e3 for value in timings.seconds["shards"]]
    return [
        *compared,
        Row(
            part=PART,
            what="an image of a tar shard, decoded and cropped",
            setting=setting,
            value=Spread.of(milliseconds),
            num_rounds=timings.num_rounds,
            goal=None,
            seconds={"shards": seconds["shards"]},
            facts=facts,
            unit="ms",
        ),
    ]


def write_files(root: Path, size: tuple[int, int]) -> float:
    """Write two classes of photograph-like JPEGs, the same as a shard, and one to hold out.

    Returns:
        Mean size of a file in bytes.
    """
    total = 0
    for folder in ("train/a", "train/b", "val/a"):
        (root / folder).mkdir(parents=True)
    with tarfile.open(root / "train-0.tar", "w") as shard:
        for number in range(NUM_FILES):
            content = photograph_like(size, seed=number)
            total += len(content)
            (root / "train" / "ab"[number % 2] / f"{number}.jpg").write_bytes(content)
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    (root / "val/a/0.jpg").write_bytes(content)
    with tarfile.open(root / "val-0.tar", "w") as shard:
        shard.addfile(info, io.BytesIO(content))
    return total / NUM_FILES


def photograph_like(size: tuple[int, int], *, seed: int) -> bytes:
    """A JPEG of 1/f noise, mostly gray.

    Source: Field 1987, "Relations between the statistics of natural images and the response
    properties of cortical cells": amplitude falls as 1/f.
    """
    width, height = size
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf  # the mean is set below
    layers = []
    for _ in range(3):
        phase = np.exp(2j * np.pi * generator.random(frequency.shape))
        layer = np.fft.irfft2(phase / frequency, s=(height, width))
        layers.append(layer / layer.std())
    shared, *own = layers
    channels = np.stack([shared, 0.9 * shared + 0.3 * own[0], 0.9 * shared + 0.3 * own[1]], -1)
    buffer = io.BytesIO()
    pixels = np.clip(128 + 50 * channels, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _folder_module(root: Path) -> ImageDataModule:
    return image_folder_data_module(root=f"{root}/train", val_root=f"{root}/val", **ENCODED)


def _shard_module(root: Path) -> ImageDataModule:
    return webdataset_data_module(
        root=f"{root}/train-0.tar",
        val_root=f"{root}/val-0.tar",
        shuffle_shards=None,
        shard_cache_dir=f"{root}/cache",
        shard_cache_gib=1.0,
        **ENCODED,
    )


def _reader(module: ImageDataModule) -> Callable[[], object]:
    dataset = module.train_dataset
    assert len(dataset) == NUM_FILES
    return lambda: [dataset[SampleKey(0, index)] for index in range(NUM_FILES)]


def _torchvision_reader(root: Path, transforms: list[torch.nn.Module]) -> Callable[[], object]:
    dataset = ImageFolder(f"{root}/train", v2.Compose(transforms))
    assert len(dataset) == NUM_FILES
    return lambda: [dataset[index] for index in range(NUM_FILES)]
