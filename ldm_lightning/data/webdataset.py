"""Tar shards in the WebDataset layout: members ``KEY.jpg``, ``KEY.cls``, ``KEY.txt``, ``KEY.json``.

A tar holds each member in one piece, so its headers are read once and every image is then found by
its offset. That makes shards a map-style data set, with the order, the resuming and the share of
each process of any other; differs from the streaming pipelines usual for this layout. Shards must
be uncompressed local files.
"""

import json
from pathlib import Path

import numpy as np

from ldm_lightning.data.encoded import check_split, encoded_data_module, is_validation_name
from ldm_lightning.data.module import ImageDataModule
from ldm_lightning.data.shards import (
    IMAGE_SUFFIXES,
    NO_SPAN,
    TarSample,
    find_shards,
    index_shard,
    sample_name,
    shards_of_split,
)


class TarSource:
    """Images in tar shards by index, in the order of the shards.

    Args:
        samples: The images.
        root: What the user gave as root.
        split: Which split these images are.
    """

    data_name = "webdataset"

    def __init__(self, samples: list[TarSample], *, root: str, split: str) -> None:
        self.root = root
        self.split = split
        labels = [sample.label for sample in samples if sample.label is not None]
        # A class is known for all images or counts for none, so that every batch looks the same.
        self.num_classes = max(labels) + 1 if len(labels) == len(samples) else None
        self.class_names = _read_class_names(Path(samples[0].shard).parent, self.num_classes)
        if self.class_names is not None:
            self.num_classes = len(self.class_names)
        # Arrays, because worker processes would each copy millions of small objects bit by bit.
        self._shards = sorted({sample.shard for sample in samples})
        shard_numbers = {shard: number for number, shard in enumerate(self._shards)}
        self._keys = np.array([sample.key.encode() for sample in samples])
        self._shard_of = np.array([shard_numbers[sample.shard] for sample in samples])
        self._images = np.array([sample.image for sample in samples])  # [N, 2]: offset, size
        self._texts = np.array([sample.text or NO_SPAN for sample in samples])
        self._records = np.array([sample.record or NO_SPAN for sample in samples])
        self._labels = np.array([-1 if s.label is None else s.label for s in samples])

    def __len__(self) -> int:
        return len(self._keys)

    def name(self, index: int) -> str:
        """Name of the shard's file and key of the sample."""
        return sample_name(self._shards[self._shard_of[index]], self._keys[index].decode())

    def size_bytes(self, index: int) -> int:
        """Size of the encoded image."""
        return int(self._images[index, 1])

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

    def _read_span(self, index: int, span: np.ndarray) -> bytes:
        with open(self._shards[self._shard_of[index]], "rb") as file:
            file.seek(int(span[0]))
            return file.read(int(span[1]))


def _caption_of(content: bytes, name: str) -> str | None:
    try:
        record = json.loads(content)
    except ValueError as err:
        raise ValueError(f"{name}.json is not valid JSON: {err}.") from err
    caption = record.get("caption") if isinstance(record, dict) else None
    return None if caption is None else str(caption)


def _read_class_names(folder: Path, num_classes: int | None) -> list[str] | None:
    """Names from ``classes.json``, a list beside the shards, where there is one."""
    path = folder / "classes.json"
    if num_classes is None or not path.is_file():
        return None
    names = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(names, list) or len(names) < num_classes:
        raise ValueError(f"{path} must be a list of at least {num_classes} class names.")
    return [str(name) for name in names]


def _index(shards: list[Path], root: str) -> list[TarSample]:
    samples = [sample for shard in shards for sample in index_shard(shard)]
    if not samples:
        raise ValueError(
            f"The {len(shards)} shard(s) of {root} hold no image. Expected members that end in "
            f"{', '.join(IMAGE_SUFFIXES)}."
        )
    return samples


def _split_samples(
    root: str, val_root: str | None, val_share: float
) -> tuple[list[TarSample], list[TarSample]]:
    """Return the samples to train on and those to validate on."""
    train_shards = find_shards(root, split="train")
    if val_root is not None:
        val_shards = find_shards(val_root, split="val")
    else:
        folder = Path(root).expanduser()
        val_shards = shards_of_split(sorted(folder.glob("*.tar")), "val") if folder.is_dir() else []
        if not val_shards or set(val_shards) == set(train_shards):
            samples = _index(train_shards, root)
            held_out = [is_validation_name(sample_name(s.shard, s.key), val_share) for s in samples]
            val_samples = [s for s, out in zip(samples, held_out, strict=True) if out]
            train_samples = [s for s, out in zip(samples, held_out, strict=True) if not out]
            check_split(len(train_samples), len(val_samples), root=root, val_share=val_share)
            return train_samples, val_samples
    if shared := {path.resolve() for path in train_shards} & {p.resolve() for p in val_shards}:
        raise ValueError(
            f"{min(shared)} belongs to data.root and to data.val_root; validation images must not "
            "be trained on."
        )
    return _index(train_shards, root), _index(val_shards, val_root or root)


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
    batch_size: int,
    val_batch_size: int,
    num_workers: int,
    max_val_images: int | None,
    seed: int,
) -> ImageDataModule:
    """Build the data module; keys as in conf/data/webdataset.yaml.

    Raises:
        ValueError: If shards are missing or damaged, or a setting is out of range.
    """
    train_samples, val_samples = _split_samples(root, val_root, val_share)
    return encoded_data_module(
        TarSource(train_samples, root=root, split="train"),
        TarSource(val_samples, root=val_root or root, split="val"),
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
    )
