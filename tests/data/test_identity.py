"""Everything that is kept of images is kept under what they hold: every store, every kind of data.

The names, sizes and times of the files stay as they are wherever a file system allows that.
"""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_lightning.autoencoder.normalizer import statistics_path
from ldm_lightning.data.images.folder_listing import list_images
from ldm_lightning.data.images.image_folder import image_folder_data_module
from ldm_lightning.data.latents.module import LatentDataModule
from ldm_lightning.data.module import MapDataModule
from ldm_lightning.data.samples import image_facts
from ldm_lightning.data.shards.webdataset import webdataset_data_module
from ldm_lightning.evaluation.cache import EvaluationCache
from ldm_lightning.evaluation.folders import measured_facts, reference_facts
from ldm_lightning.metrics.features import tiny_features
from ldm_lightning.metrics.first_stage import FirstStageMetrics
from ldm_lightning.metrics.reference_cache import TensorCache
from ldm_lightning.storage import content
from ldm_lightning.storage.content import FileHashes
from ldm_lightning.storage.hashing import hash_json
from tests.data.images.test_image_folder import SETTINGS as FOLDER_SETTINGS
from tests.data.latents.test_module import encode, write_split, writer
from tests.data.shards.test_webdataset import SETTINGS as SHARD_SETTINGS
from tests.storage.test_content import change_unseen

COUNTS = {"train": 6, "val": 4}
SETTINGS = {"val_fraction": 0.5, "resolution": 8, "batch_size": 2, "flip": False}


def bmp(number: int) -> bytes:
    """An image whose file has the same size whatever it shows."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "BMP")
    return buffer.getvalue()


# Kinds of data, written as numbers say: pixels of an image follow from its number


def write_flat(root: Path, *, first: int) -> None:
    for split, count in COUNTS.items():
        for number in range(count):
            put(root / split / f"{number}.bmp", bmp(first + number))


def write_classes(root: Path, *, first: int) -> None:
    for split, count in COUNTS.items():
        for number in range(count):
            put(root / split / "ab"[number % 2] / f"{number}.bmp", bmp(first + number))


def write_tars(root: Path, *, first: int) -> None:
    for split, count in COUNTS.items():
        put(root / f"{split}-0.tar", tar(first, count))


def tar(first: int, count: int, *, label: int = 0, caption: str = "a") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as shard:
        for number in range(count):
            pixels = Image.open(io.BytesIO(bmp(first + number)))
            encoded = io.BytesIO()
            pixels.save(encoded, "WEBP", lossless=True)
            padded = encoded.getvalue().ljust(1024, b"\0")
            for suffix, data in (
                ("webp", padded),
                ("cls", str((number + label) % 2).encode()),
                ("txt", caption.encode()),
            ):
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(data)
                shard.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def put(path: Path, data: bytes) -> None:
    """Write a file, or put other bytes into one without a trace in its size and time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        change_unseen(path, data)
    else:
        path.write_bytes(data)


def open_folder(root: Path, cache: Path) -> MapDataModule:
    settings = FOLDER_SETTINGS | SETTINGS | {"val_root": str(root / "val")}
    return image_folder_data_module(root=str(root / "train"), cache_dir=str(cache), **settings)


def open_tars(root: Path, cache: Path, *, scheme: str = "") -> MapDataModule:
    settings = SHARD_SETTINGS | SETTINGS | {"shard_cache_dir": str(cache / "shards")}
    return webdataset_data_module(root=f"{scheme}{root}", cache_dir=str(cache), **settings)


def open_remote(root: Path, cache: Path) -> MapDataModule:
    return open_tars(root, cache, scheme="file://")


WRITE = {"flat": write_flat, "classes": write_classes, "tars": write_tars, "remote": write_tars}
OPEN = {"flat": open_folder, "classes": open_folder, "tars": open_tars, "remote": open_remote}


# Kinds of change


def other_pixels(kind: str, root: Path) -> None:
    WRITE[kind](root, first=100)


def touch(kind: str, root: Path) -> None:
    for path in files_of(root):
        os.utime(path)


def rewrite(kind: str, root: Path) -> None:
    for path in files_of(root):
        path.write_bytes(path.read_bytes())


def rename(kind: str, root: Path) -> None:
    for path in files_of(root):
        path.rename(path.with_stem(f"{path.stem}9"))


def relabel(kind: str, root: Path) -> None:
    if kind == "classes":
        for path in sorted(root.glob("*/b")):
            path.rename(path.with_name("c"))
    else:
        for split, count in COUNTS.items():
            put(root / f"{split}-0.tar", tar(0, count, label=1))


def recaption(kind: str, root: Path) -> None:
    for split, count in COUNTS.items():
        put(root / f"{split}-0.tar", tar(0, count, caption="b"))


def files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


SAME, OTHER = [touch, rewrite], [other_pixels, rename]
CHANGES: dict[str, list[Callable[[str, Path], None]]] = {
    "flat": SAME + OTHER,
    "classes": SAME + OTHER + [relabel],
    "tars": SAME + OTHER + [relabel, recaption],
    "remote": SAME + OTHER + [relabel, recaption],
}
CASES = [(kind, change) for kind, changes in CHANGES.items() for change in changes]


@pytest.fixture(autouse=True)
def _remembers_at_once(monkeypatch):
    monkeypatch.setattr(content, "SETTLED_NS", 0)


def keys_of(data: MapDataModule, tmp_path: Path) -> dict[str, str]:
    """Where each store keeps what it keeps of these data."""
    train = image_facts(data.train_dataset.without_augmentation(), data.indices("train"))
    return {
        "reference statistics": str(
            TensorCache(tmp_path, "frechet", {"data": data.protocol("val")}).path
        ),
        "evaluation": str(EvaluationCache(tmp_path, {"data": data.protocol("val")}).path),
        "normalizer": str(statistics_path(tmp_path, first_stage_hash="a", protocol=train)),
        "latent cache": hash_json(train),
        "resume check": loader_of(data).state_dict()["order"]["images"],
    }


def loader_of(data: MapDataModule):
    data.num_train_batches = 1
    return data.train_dataloader()


@pytest.mark.parametrize(
    ("kind", "change"), CASES, ids=lambda part: getattr(part, "__name__", part)
)
def test_every_store_follows_what_the_files_hold(kind, change, tmp_path):
    root, cache = tmp_path / "data", tmp_path / "cache"
    WRITE[kind](root, first=0)
    before = keys_of(OPEN[kind](root, cache), tmp_path)
    assert keys_of(OPEN[kind](root, cache), tmp_path) == before
    change(kind, root)
    after = keys_of(OPEN[kind](root, cache), tmp_path)
    differing = {name for name, key in before.items() if after[name] != key}
    assert differing == (set() if change in SAME else set(before))
    # ... and nothing of it depends on what was remembered
    assert keys_of(OPEN[kind](root, tmp_path / "new"), tmp_path) == after


def test_local_and_remote_shards_are_the_same_images(tmp_path):
    write_tars(tmp_path / "data", first=0)
    one, other = (OPEN[k](tmp_path / "data", tmp_path / k) for k in ("tars", "remote"))
    assert one.protocol("val")["images"] == other.protocol("val")["images"]
    assert one.protocol("val")["identified_by"] == "content"
    assert other.protocol("val")["identified_by"].startswith("content, ")


def measured(data: MapDataModule, cache: Path) -> dict[str, float]:
    """Figures of reconstructions that are darker than the images."""
    metrics = FirstStageMetrics(
        tiny_features(),
        latent_channels=1,
        num_codes=None,
        protocol=data.protocol("val"),
        cache_dir=cache,
    )
    metrics.reset()
    for batch in data.val_dataloader():
        metrics.reconstruction.update(batch["image"], batch["image"] * 0.5)
    return metrics.reconstruction.report().scalars


@pytest.mark.parametrize("kind", WRITE)
def test_a_figure_is_that_of_the_images_it_was_measured_on(kind, tmp_path):
    root, cache = tmp_path / "data", tmp_path / "cache"
    WRITE[kind](root, first=0)
    old = measured(OPEN[kind](root, cache), cache)
    other_pixels(kind, root)
    new = measured(OPEN[kind](root, cache), cache)
    assert new == measured(OPEN[kind](root, tmp_path / "new"), tmp_path / "new")
    assert new["rfd_tiny"] != pytest.approx(old["rfd_tiny"], rel=1e-3)


@pytest.mark.parametrize("change", SAME + OTHER)
def test_two_compared_folders_are_named_by_what_they_hold(change, tmp_path):
    root = tmp_path / "data"
    write_flat(root, first=0)

    def facts():
        hashes, folder = FileHashes(tmp_path / "cache"), root / "val"
        names = list_images(folder, key="images").names
        return measured_facts(folder, names, hashes) | reference_facts(folder, names, hashes)

    before = facts()
    change("flat", root)
    after = facts()
    differing = {name for name in before if before[name] != after[name]}
    assert differing == (set() if change in SAME else {"measured_images", "images"})


# Latents of these images


def encoded(root: Path, folder: Path, cache: Path) -> LatentDataModule:
    """Latents as they are on disk, or made now."""
    images = open_folder(root, cache)
    for split in COUNTS:
        if not (folder / split).is_dir():
            write_split(writer(folder / split, images, split, flip=False), encode)
    settings = {"batch_size": 2, "val_batch_size": 2, "num_workers": 0, "max_val_images": None}
    return LatentDataModule(str(folder), seed=0, cache_dir=str(cache), **settings)


def test_latents_of_other_images_are_another_training(tmp_path):
    root, cache = tmp_path / "data", tmp_path / "cache"
    write_flat(root, first=0)
    before = encoded(root, tmp_path / "one", cache)
    touch("flat", root)
    touch("flat", tmp_path / "one")
    again = encoded(root, tmp_path / "one", cache)
    other_pixels("flat", root)
    after = encoded(root, tmp_path / "other", cache)
    assert before.protocol("val") == again.protocol("val") != after.protocol("val")
    states = [loader_of(data).state_dict()["order"]["images"] for data in (before, again, after)]
    assert states[0] == states[1] != states[2]
    index = json.loads((tmp_path / "other" / "train" / "index.json").read_text())
    assert index["provenance"]["images"] == open_folder(root, cache).protocol("train")["images"]


def test_a_latent_that_was_changed_is_found_when_a_training_begins(tmp_path):
    root, cache = tmp_path / "data", tmp_path / "cache"
    write_flat(root, first=0)
    encoded(root, tmp_path / "one", cache).identify()
    path = tmp_path / "one" / "val" / "00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    change_unseen(path, bytes(data))
    with pytest.raises(ValueError, match=r"val/00000\.safetensors"):
        encoded(root, tmp_path / "one", cache).identify()


def test_verified_shards_are_not_read_again(tmp_path, monkeypatch):
    root, cache = tmp_path / "data", tmp_path / "cache"
    write_flat(root, first=0)
    encoded(root, tmp_path / "one", cache).identify()

    def refuse(*_arguments, **_options):
        raise AssertionError("a file was read again")

    monkeypatch.setattr(content, "hash_stream", refuse)
    encoded(root, tmp_path / "one", cache).identify()


def test_a_batch_is_what_was_identified(tmp_path):
    write_tars(tmp_path / "data", first=0)
    batch = next(iter(loader_of(open_tars(tmp_path / "data", tmp_path / "cache"))))
    assert batch["image"].dtype == torch.float32
    assert batch["caption"] == ["a", "a"]
