"""Any folder of images, flat or with sub-folders for classes."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ldm_lightning.data.class_names import check_class_names, class_names_of, shortened
from ldm_lightning.data.image_module import ImageDataModule
from ldm_lightning.data.images.decoding import MAX_FILE_BYTES
from ldm_lightning.data.images.folder_listing import FolderListing, list_images
from ldm_lightning.data.images.module import encoded_data_module
from ldm_lightning.data.images.separation import (
    check_no_splits_inside,
    check_separate,
    check_split,
    first_names,
    is_validation_name,
)
from ldm_lightning.data.images.settings import ImageSettings
from ldm_lightning.data.left_out import say_what_is_not_read
from ldm_lightning.data.loading import LoadingSettings
from ldm_lightning.data.value_range import ValueRange
from ldm_lightning.data.workers import TIMEOUT_SECONDS
from ldm_lightning.storage.content import FileHashes, combined_hash
from ldm_lightning.storage.files import read_regular
from ldm_lightning.utils.launch import launched

log = logging.getLogger(__name__)


class FolderSource:
    """Image files by index, sorted by relative name.

    Where all images lie in sub-folders, the first sub-folder's name is the class.

    Args:
        root: The folder.
        names: Paths of the files, relative to it.
        class_names: Sorted names of the classes; None where there are none.
        split: Which split these files are.
        hashes: Knows what the files hold.
        label_gap: Why there are no classes, where another split has some.
    """

    data_name = "image_folder"
    identified_by = "content"

    def __init__(
        self,
        root: Path,
        names: list[str],
        *,
        class_names: list[str] | None,
        split: str,
        hashes: FileHashes,
        label_gap: str = "",
    ) -> None:
        self.label_gap = label_gap
        self.root = str(root)
        self._hashes = hashes
        self._identity: str | None = None
        self.split = split
        # One array, because worker processes would each copy millions of strings bit by bit.
        self._names = np.array([name.encode() for name in names])
        self.class_names = class_names
        self.num_classes = len(class_names) if class_names else None
        self._label_of = {name: label for label, name in enumerate(class_names or [])}

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Path relative to the root, with forward slashes."""
        return self._names[index].decode()

    def identity(self) -> str:
        """Short hash of names, contents and classes, as they were at the first call."""
        if self._identity is None:
            names = [self.name(index) for index in range(len(self))]
            self._identity = combined_hash(
                json.dumps([names, self.class_names]).encode(),
                self._hashes.of(self.root, names).tobytes(),
            )
        return self._identity

    def read(self, index: int) -> bytes:
        """Return the file's content."""
        return read_regular(Path(self.root, self.name(index)), max_bytes=MAX_FILE_BYTES)

    def near(self, index: int) -> range:
        """Return all images: one file is as quick to read as another."""
        return range(len(self))

    def class_counts(self) -> list[int] | None:
        """Images of each class, where there are classes."""
        if self.class_names is None:
            return None
        labels = [self.annotations(index)[0] for index in range(len(self))]
        return np.bincount(np.array(labels, dtype=int), minlength=len(self.class_names)).tolist()

    def annotations(self, index: int) -> tuple[int | None, str | None]:
        """Return the class of the image, where there are classes, and no caption."""
        if self.class_names is None:
            return None, None
        return self._label_of[self.name(index).split("/", 1)[0]], None


def _sources(
    root: str,
    val_root: str | None,
    val_fraction: float,
    *,
    classes: Sequence[str] | None,
    hashes: FileHashes,
) -> tuple[FolderSource, FolderSource]:
    """List the images to train on and those to validate on, with their classes."""
    class_names = None if classes is None else [str(name) for name in classes]
    listing = list_images(Path(root).expanduser(), key="data.root")
    check_no_splits_inside(listing)
    if val_root is None:
        val_listing = listing
        held_out = [is_validation_name(name, val_fraction) for name in first_names(listing)]
        train_names, val_names = (
            [name for name, out in zip(listing.names, held_out, strict=True) if out == wanted]
            for wanted in (False, True)
        )
        check_split(len(train_names), len(val_names), root=root, val_fraction=val_fraction)
    else:
        val_listing = list_images(Path(val_root).expanduser(), key="data.val_root")
        check_separate(listing, val_listing)
        train_names, val_names = listing.names, val_listing.names
    say_what_is_not_read(listing.left_out, f"data.root={root}")
    if val_root is not None:
        say_what_is_not_read(val_listing.left_out, f"data.val_root={val_root}")
    if class_names is None:
        class_names = class_names_of(listing.names)
        _say_what_is_no_class(listing)
    else:
        check_class_names(class_names, listing.names, root=root)
    # Validation images keep their labels where all of them are of classes that are trained on.
    known = set(class_names or [])
    unknown = [name for name in val_names if name.split("/", 1)[0] not in known]
    label_gap = ""
    if class_names and unknown:
        label_gap = (
            f"{len(val_names) - len(unknown)} of {len(val_names)} are of a class that is trained "
            f"on; not {unknown[0]}"
        )
    val_class_names = None if unknown else class_names
    return (
        FolderSource(
            listing.root, train_names, class_names=class_names, split="train", hashes=hashes
        ),
        FolderSource(
            val_listing.root,
            val_names,
            class_names=val_class_names,
            split="val",
            hashes=hashes,
            label_gap=label_gap,
        ),
    )


def image_folder_data_module(
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
    batch_size: int,
    val_batch_size: int,
    num_workers: int,
    max_val_images: int | None,
    seed: int,
    cache_dir: str | None = None,
    worker_timeout_seconds: float = TIMEOUT_SECONDS,
) -> ImageDataModule:
    """Build the data module; keys as in conf/data/image_folder.yaml.

    Raises:
        ValueError: If a folder is missing or empty, training and validation images are not kept
            apart, or a setting is out of range.
    """
    train_source, val_source = _sources(
        root, val_root, val_fraction, classes=classes, hashes=FileHashes(cache_dir)
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
    )


def _say_what_is_no_class(listing: FolderListing) -> None:
    if listing.empty_classes and launched().is_first:
        log.warning(
            "data.root=%s: %d folder(s) hold no image and are no classes: %s.",
            listing.root,
            len(listing.empty_classes),
            shortened(listing.empty_classes),
        )
