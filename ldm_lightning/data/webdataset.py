"""Tar shards in the WebDataset layout: members ``KEY.jpg``, ``KEY.cls``, ``KEY.txt``, ``KEY.json``.

A tar holds each member in one piece, so its headers are read once and every image is then found by
its offset. That makes shards a map-style data set, with the exact counts and the resuming at any
batch of any other; differs from the streaming pipelines usual for this layout, which know neither.
Shards behind a URL are fetched whole into a bounded folder on a local disk and read there, because
an object store answers a read in tens of milliseconds; with ``shuffle_shards`` each process fetches
only its share of them. Shards must be uncompressed.
"""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np

from ldm_lightning.data.encoded import check_split, encoded_data_module, is_validation_name
from ldm_lightning.data.module import ImageDataModule
from ldm_lightning.data.remote_shards import GIB, RemoteShards, is_remote
from ldm_lightning.data.shard_cache import ShardCache
from ldm_lightning.data.shard_order import ShardShuffle
from ldm_lightning.data.shards import (
    IMAGE_SUFFIXES,
    NO_SPAN,
    LocalShards,
    ShardStore,
    TarSample,
    file_name,
    sample_name,
    shards_of_split,
)
from ldm_lightning.utils.content import FileHashes, combined_hash


class TarSource:
    """Images in tar shards by index, in the order of the shards.

    Args:
        samples: The images, shard by shard.
        store: Where the shards lie.
        root: What the user gave as root.
        split: Which split these images are.
    """

    data_name = "webdataset"

    def __init__(
        self, samples: list[TarSample], store: ShardStore, *, root: str, split: str
    ) -> None:
        self.store = store
        self.root = root
        self.split = split
        labels = [sample.label for sample in samples if sample.label is not None]
        # A class is known for all images or counts for none, so that every batch looks the same.
        self.num_classes = max(labels) + 1 if len(labels) == len(samples) else None
        self.class_names = _read_class_names(store, samples[0].shard, self.num_classes)
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
        return self._read_span(index, self._images[index])

    def annotations(self, index: int) -> tuple[int | None, str | None]:
        """Return the label, and the caption: the text member, or ``caption`` of the JSON member."""
        caption = None
        if self._texts[index, 0] >= 0:
            content = self._read_span(index, self._texts[index])
            caption = content.decode("utf-8", "replace").strip()
        elif self._records[index, 0] >= 0:
            caption = _caption_of(self._read_span(index, self._records[index]), self.name(index))
        return (None if self.num_classes is None else int(self._labels[index])), caption

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

    def _read_span(self, index: int, span: np.ndarray) -> bytes:
        with self.store.open(self.shards[self._shard_of[index]]) as file:
            file.seek(int(span[0]))
            return file.read(int(span[1]))


def _caption_of(content: bytes, name: str) -> str | None:
    try:
        record = json.loads(content)
    except ValueError as err:
        raise ValueError(f"{name}.json is not valid JSON: {err}.") from err
    caption = record.get("caption") if isinstance(record, dict) else None
    return None if caption is None else str(caption)


def _read_class_names(store: ShardStore, shard: str, num_classes: int | None) -> list[str] | None:
    """Names from ``classes.json``, a list beside the shards, where there is one."""
    content = None if num_classes is None else store.read_beside(shard, "classes.json")
    if content is None or num_classes is None:
        return None
    names = json.loads(content)
    if not isinstance(names, list) or len(names) < num_classes:
        raise ValueError(
            f"classes.json beside {shard} must be a list of at least {num_classes} class names."
        )
    return [str(name) for name in names]


def _index(store: ShardStore, shards: list[str], root: str) -> list[TarSample]:
    samples = store.index(shards)
    if not samples:
        raise ValueError(
            f"The {len(shards)} shard(s) of {root} hold no image. Expected members that end in "
            f"{', '.join(IMAGE_SUFFIXES)}."
        )
    return samples


def _sources(
    root: str, val_root: str | None, val_share: float, cache: ShardCache, hashes: FileHashes
) -> tuple[TarSource, TarSource]:
    """Return the images to train on and those to validate on."""
    store = _store_of(root, cache, hashes)
    val_store = store if val_root is None else _store_of(val_root, cache, hashes)
    shards = store.find(root, split="train")
    if val_root is None:
        val_shards = shards_of_split(store.list_folder(root), "val")
        if not val_shards or set(val_shards) == set(shards):
            return _held_out(store, shards, root, val_share)
        val_store = _store_of(root, cache, hashes)
        val_shards = val_store.find(root, split="val")
    else:
        val_shards = val_store.find(val_root, split="val")
    if shared := {_place(shard) for shard in shards} & {_place(shard) for shard in val_shards}:
        raise ValueError(
            f"{min(shared)} belongs to data.root and to data.val_root; validation images must not "
            "be trained on."
        )
    val_root = val_root or root
    return (
        TarSource(_index(store, shards, root), store, root=root, split="train"),
        TarSource(_index(val_store, val_shards, val_root), val_store, root=val_root, split="val"),
    )


def _held_out(
    store: ShardStore, shards: list[str], root: str, val_share: float
) -> tuple[TarSource, TarSource]:
    """Hold out a share of the images of all shards."""
    store.check_room(
        len(shards), "Holding out data.val_share of all shards instead of giving data.val_root"
    )
    samples = _index(store, shards, root)
    held_out = [is_validation_name(sample_name(s.shard, s.key), val_share) for s in samples]
    val_samples = [s for s, out in zip(samples, held_out, strict=True) if out]
    train_samples = [s for s, out in zip(samples, held_out, strict=True) if not out]
    check_split(len(train_samples), len(val_samples), root=root, val_share=val_share)
    return (
        TarSource(train_samples, store, root=root, split="train"),
        TarSource(val_samples, store, root=root, split="val"),
    )


def _store_of(root: str, cache: ShardCache, hashes: FileHashes) -> ShardStore:
    return RemoteShards(cache) if is_remote(root) else LocalShards(hashes)


def _place(shard: str) -> str:
    """Where a shard lies, whatever links lead there."""
    return shard if is_remote(shard) else str(Path(shard).resolve())


def webdataset_data_module(
    *,
    root: str,
    val_root: str | None,
    val_share: float,
    resolution: int | tuple[int, int],
    image_channels: int,
    train_crop: str,
    crop_scale: tuple[float, float],
    flip: bool,
    eval_crop: str,
    val_crops_per_image: int,
    max_bad_share: float,
    shuffle_shards: int | None,
    shard_cache_dir: str,
    shard_cache_gib: float,
    batch_size: int,
    val_batch_size: int,
    num_workers: int,
    max_val_images: int | None,
    seed: int,
    cache_dir: str | None = None,
) -> ImageDataModule:
    """Build the data module; keys as in conf/data/webdataset.yaml.

    Raises:
        ValueError: If shards are missing or damaged, or a setting is out of range.
    """
    cache = ShardCache(Path(shard_cache_dir).expanduser(), max_bytes=int(shard_cache_gib * GIB))
    hashes = FileHashes(cache_dir)
    train_source, val_source = _sources(root, val_root, val_share, cache, hashes)
    if shuffle_shards is None:
        train_source.store.check_room(
            len(train_source.shards), "Shuffling all images (data.shuffle_shards=null)"
        )
    return encoded_data_module(
        train_source,
        val_source,
        resolution=resolution,
        image_channels=image_channels,
        train_crop=train_crop,
        crop_scale=crop_scale,
        flip=flip,
        eval_crop=eval_crop,
        val_crops_per_image=val_crops_per_image,
        max_bad_share=max_bad_share,
        batch_size=batch_size,
        val_batch_size=val_batch_size,
        num_workers=num_workers,
        max_val_images=max_val_images,
        seed=seed,
        shuffle=None if shuffle_shards is None else train_source.shuffle(shuffle_shards),
    )
