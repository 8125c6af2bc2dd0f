"""Tar shards in the WebDataset layout: members ``KEY.jpg``, ``KEY.cls``, ``KEY.txt``, ``KEY.json``.

A tar holds each member in one piece, so its headers are read once and every image is then found by
its offset. That makes shards a map-style data set, with the exact counts and the resuming at any
batch of any other; differs from the streaming pipelines usual for this layout, which know neither.
Shards behind a URL are fetched whole into a bounded folder on a local disk and read there, because
an object store answers a read in tens of milliseconds; with ``shuffle_shards`` each process fetches
only its share of them. Shards must be uncompressed.
"""

from collections.abc import Sequence
from pathlib import Path

from ldm_lightning.data.image_module import ImageDataModule
from ldm_lightning.data.images.formats import IMAGE_SUFFIXES
from ldm_lightning.data.images.module import encoded_data_module
from ldm_lightning.data.images.separation import (
    check_separate_shards,
    check_split,
    is_validation_name,
)
from ldm_lightning.data.images.settings import ImageSettings
from ldm_lightning.data.left_out import say_what_is_not_read
from ldm_lightning.data.loading import LoadingSettings
from ldm_lightning.data.shards.remote_shards import GIB, RemoteShards, is_remote
from ldm_lightning.data.shards.shard_cache import ShardCache
from ldm_lightning.data.shards.shard_set import (
    LocalShards,
    ShardStore,
    sample_name,
    shards_of_split,
)
from ldm_lightning.data.shards.tar_index import Span, TarSample
from ldm_lightning.data.shards.tar_source import TarSource
from ldm_lightning.data.value_range import ValueRange
from ldm_lightning.data.workers import TIMEOUT_SECONDS
from ldm_lightning.storage.content import FileHashes


def _samples(store: ShardStore, shards: list[str], root: str, *, key: str) -> list[TarSample]:
    """The images of shards, after saying what is not read.

    Raises:
        ValueError: If there are none.
    """
    content = store.index(shards)
    left_out = content.left_out
    if not content.samples:
        passed_over = f" Not read: {left_out}." if left_out.num_files else ""
        raise ValueError(
            f"The {len(shards)} shard(s) of {root} hold no image. Expected members that end in "
            f"{', '.join(IMAGE_SUFFIXES)}.{passed_over}"
        )
    say_what_is_not_read(left_out, f"{key}={root}")
    return content.samples


def _sources(
    root: str,
    val_root: str | None,
    val_fraction: float,
    classes: list[str] | None,
    cache: ShardCache,
    hashes: FileHashes,
) -> tuple[TarSource, TarSource]:
    """Return the images to train on and those to validate on."""
    store = _store_of(root, cache, hashes)
    val_store = store if val_root is None else _store_of(val_root, cache, hashes)
    shards = store.find(root, split="train")
    if val_root is None:
        val_shards = shards_of_split(store.list_folder(root), "val")
        if not val_shards or set(val_shards) == set(shards):
            return _held_out(store, shards, root, val_fraction, classes)
        val_store = _store_of(root, cache, hashes)
        val_shards = val_store.find(root, split="val")
    else:
        val_shards = val_store.find(val_root, split="val")
    check_separate_shards(shards, val_shards)
    key, val_root = ("data.root", root) if val_root is None else ("data.val_root", val_root)
    samples = _samples(store, shards, root, key="data.root")
    val_samples = _samples(val_store, val_shards, val_root, key=key)
    return (
        TarSource(samples, store, root=root, split="train", classes=classes),
        TarSource(val_samples, val_store, root=val_root, split="val", classes=classes),
    )


def _held_out(
    store: ShardStore, shards: list[str], root: str, val_fraction: float, classes: list[str] | None
) -> tuple[TarSource, TarSource]:
    """Hold out a share of the images of all shards."""
    store.check_room(
        len(shards), "Holding out data.val_fraction of all shards instead of giving data.val_root"
    )
    samples = _samples(store, shards, root, key="data.root")
    first: dict[tuple[str, Span], str] = {}  # of several links to an image, the first one decides
    names = [first.setdefault((s.shard, s.image), sample_name(s.shard, s.key)) for s in samples]
    held_out = [is_validation_name(name, val_fraction) for name in names]
    val_samples = [s for s, out in zip(samples, held_out, strict=True) if out]
    train_samples = [s for s, out in zip(samples, held_out, strict=True) if not out]
    check_split(len(train_samples), len(val_samples), root=root, val_fraction=val_fraction)
    return (
        TarSource(train_samples, store, root=root, split="train", classes=classes),
        TarSource(val_samples, store, root=root, split="val", classes=classes),
    )


def _store_of(root: str, cache: ShardCache, hashes: FileHashes) -> ShardStore:
    return RemoteShards(cache) if is_remote(root) else LocalShards(hashes)


def webdataset_data_module(
    *,
    root: str,
    val_root: str | None,
    val_fraction: float,
    classes: Sequence[str] | None = None,
    value_range: Sequence[float] | None = None,
    resolution: int | tuple[int, int],
    image_channels: int,
    train_crop: str,
    crop_scale: tuple[float, float],
    flip: bool,
    eval_crop: str,
    val_crops_per_image: int,
    max_bad_fraction: float,
    shuffle_shards: int | None,
    shard_cache_dir: str,
    shard_cache_gib: float,
    batch_size: int,
    val_batch_size: int,
    num_workers: int,
    max_val_images: int | None,
    seed: int,
    cache_dir: str | None = None,
    worker_timeout_seconds: float = TIMEOUT_SECONDS,
) -> ImageDataModule:
    """Build the data module; keys as in conf/data/webdataset.yaml.

    Raises:
        ValueError: If shards are missing or damaged, or a setting is out of range.
    """
    class_names = None if classes is None else [str(name) for name in classes]
    cache = ShardCache(Path(shard_cache_dir).expanduser(), max_bytes=int(shard_cache_gib * GIB))
    hashes = FileHashes(cache_dir)
    train_source, val_source = _sources(root, val_root, val_fraction, class_names, cache, hashes)
    if shuffle_shards is None:
        train_source.store.check_room(
            len(train_source.shards), "Shuffling all images (data.shuffle_shards=null)"
        )
    return encoded_data_module(
        train_source,
        val_source,
        ImageSettings(
            resolution=resolution,
            image_channels=image_channels,
            value_range=ValueRange.of(value_range),
            train_crop=train_crop,
            crop_scale=crop_scale,
            flip=flip,
            eval_crop=eval_crop,
            val_crops_per_image=val_crops_per_image,
            max_bad_fraction=max_bad_fraction,
        ),
        LoadingSettings(
            batch_size=batch_size,
            val_batch_size=val_batch_size,
            num_workers=num_workers,
            seed=seed,
            max_val_images=max_val_images,
            worker_timeout_seconds=worker_timeout_seconds,
        ),
        shuffle=None if shuffle_shards is None else train_source.shuffle(shuffle_shards),
    )
