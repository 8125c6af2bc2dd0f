"""Tar shards in the WebDataset layout: members ``KEY.jpg``, ``KEY.cls``, ``KEY.txt``, ``KEY.json``.

A tar holds each member in one piece, so its headers are read once and every image is then found by
its offset. That makes shards a map-style data set, with the exact counts and the resuming at any
batch of any other; differs from the streaming pipelines usual for this layout, which know neither.
Shards behind a URL are fetched whole into a bounded folder on a local disk and read there, because
an object store answers a read in tens of milliseconds; with ``shuffle_shards`` each process fetches
only its share of them. Shards must be uncompressed.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from ldm_lightning.data.images.decoding import MAX_FILE_BYTES, UnreadableImageError
from ldm_lightning.data.images.formats import IMAGE_SUFFIXES
from ldm_lightning.data.images.module import encoded_data_module
from ldm_lightning.data.images.separation import (
    check_separate_shards,
    check_split,
    is_validation_name,
)
from ldm_lightning.data.images.settings import ImageSettings
from ldm_lightning.data.left_out import say_what_is_not_read
from ldm_lightning.data.module import ImageDataModule, LoadingSettings
from ldm_lightning.data.order.shard_order import ShardShuffle
from ldm_lightning.data.shards.remote_shards import GIB, RemoteShards, is_remote
from ldm_lightning.data.shards.shard_cache import ShardCache
from ldm_lightning.data.shards.shard_set import (
    LocalShards,
    ShardStore,
    file_name,
    sample_name,
    shards_of_split,
)
from ldm_lightning.data.shards.tar_index import NO_SPAN, Span, TarSample
from ldm_lightning.data.value_range import ValueRange
from ldm_lightning.data.workers import TIMEOUT_SECONDS
from ldm_lightning.storage.content import FileHashes, combined_hash
from ldm_lightning.storage.small_files import parse_json

MAX_CAPTION_BYTES = 2**20


class TarSource:
    """Images in tar shards by index, in the order of the shards.

    Args:
        samples: The images, shard by shard.
        store: Where the shards lie.
        root: What the user gave as root.
        split: Which split these images are.
        classes: Names of the classes by id; None takes ``classes.json`` beside the first shard.
    """

    data_name = "webdataset"

    def __init__(
        self,
        samples: list[TarSample],
        store: ShardStore,
        *,
        root: str,
        split: str,
        classes: list[str] | None = None,
    ) -> None:
        self.store = store
        self.root = root
        self.split = split
        labels = [sample.label for sample in samples if sample.label is not None]
        # A class is known for all images or counts for none, so that every batch looks the same.
        self.num_classes = max(labels) + 1 if len(labels) == len(samples) else None
        self.label_gap = _label_gap(samples, len(labels))
        self.class_names = _class_names(store, samples[0].shard, self.num_classes, classes)
        if self.class_names is not None:
            self.num_classes = len(self.class_names)
        # Arrays, because worker processes would each copy millions of small objects bit by bit.
        self.shards = list(dict.fromkeys(sample.shard for sample in samples))
        shard_numbers = {shard: number for number, shard in enumerate(self.shards)}
        self._keys = np.array([sample.key.encode() for sample in samples])
        self._shard_of = np.array([shard_numbers[sample.shard] for sample in samples])
        self._firsts = np.searchsorted(self._shard_of, range(len(self.shards) + 1))
        self._images = np.array([sample.image for sample in samples])  # [N, 2]: offset, size
        self._texts = np.array([sample.text or NO_SPAN for sample in samples])
        self._records = np.array([sample.record or NO_SPAN for sample in samples])
        self._labels = np.array([-1 if s.label is None else s.label for s in samples])
        self.identified_by = store.identified_by(self.shards)
        self._identity: str | None = None

    def __len__(self) -> int:
        return len(self._keys)

    def name(self, index: int) -> str:
        """Name of the shard's file and key of the sample."""
        return sample_name(self.shards[self._shard_of[index]], self._keys[index].decode())

    def identity(self) -> str:
        """Short hash of the shards' names and contents, of which samples these are, and of classes.

        A shard's content covers its samples' names, images, labels and captions.
        """
        if self._identity is None:
            names = [file_name(shard) for shard in self.shards]
            self._identity = combined_hash(
                json.dumps([names, self.num_classes, self.class_names]).encode(),
                *self.store.contents(self.shards),
                self._shard_of.astype("<i8").tobytes(),
                self._images.astype("<i8").tobytes(),
            )
        return self._identity

    def read(self, index: int) -> bytes:
        """Return the encoded image."""
        return self._read_span(index, self._images[index], max_bytes=MAX_FILE_BYTES)

    def annotations(self, index: int) -> tuple[int | None, str | None]:
        """Return the label, and the caption: the text member, or ``caption`` of the JSON member."""
        caption = None
        if self._texts[index, 0] >= 0:
            content = self._read_span(index, self._texts[index], max_bytes=MAX_CAPTION_BYTES)
            caption = content.decode("utf-8", "replace").strip()
        elif self._records[index, 0] >= 0:
            content = self._read_span(index, self._records[index], max_bytes=MAX_CAPTION_BYTES)
            caption = _caption_of(content, self.name(index))
        return (None if self.num_classes is None else int(self._labels[index])), caption

    def class_counts(self) -> list[int] | None:
        """Images of each class, where there are classes."""
        if self.num_classes is None:
            return None
        return np.bincount(self._labels, minlength=self.num_classes).tolist()

    def near(self, index: int) -> range:
        """Return the images of the same shard."""
        shard = self._shard_of[index]
        return range(int(self._firsts[shard]), int(self._firsts[shard + 1]))

    def shuffle(self, num_together: int) -> ShardShuffle:
        """Describe how to go through the shards, so many at a time."""
        return ShardShuffle(
            sizes=[int(end - first) for first, end in pairwise(self._firsts)],
            num_together=num_together,
            fetch_ahead=lambda numbers: self.store.fetch_ahead([self.shards[n] for n in numbers]),
            check_room=self.store.check_room,
        )

    def _read_span(self, index: int, span: np.ndarray, *, max_bytes: int) -> bytes:
        if span[1] > max_bytes:
            raise UnreadableImageError(
                f"Cannot read {self.name(index)}: a member of {int(span[1]):,} bytes is larger "
                f"than the limit of {max_bytes:,}."
            )
        with self.store.open(self.shards[self._shard_of[index]]) as file:
            file.seek(int(span[0]))
            return file.read(int(span[1]))


def _caption_of(content: bytes, name: str) -> str | None:
    caption = parse_json(content, dict, name=f"{name}.json").get("caption")
    return None if caption is None else str(caption)


def _label_gap(samples: list[TarSample], num_labeled: int) -> str:
    """Say how many samples have a label, and which has none; empty where all or none have one."""
    if num_labeled in (0, len(samples)):
        return ""
    lacking = next(sample for sample in samples if sample.label is None)
    return (
        f"{num_labeled} of {len(samples)} have a label; missing for "
        f"{sample_name(lacking.shard, lacking.key)}"
    )


def _class_names(
    store: ShardStore, shard: str, num_classes: int | None, classes: list[str] | None
) -> list[str] | None:
    """The given names, or those of ``classes.json``, a list beside the shards, where there is one.

    Raises:
        ValueError: If they are fewer than the labels of the images ask for.
    """
    if num_classes is None:
        return None
    names, source = classes, "data.classes"
    if names is None:
        content = store.read_beside(shard, "classes.json")
        if content is None:
            return None
        source = f"classes.json beside {shard}"
        names = parse_json(content, list, name=source)
    if not isinstance(names, list) or len(names) < num_classes:
        raise ValueError(
            f"{source} must be a list of at least {num_classes} class names, for the labels 0 to "
            f"{num_classes - 1}."
        )
    return [str(name) for name in names]


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
