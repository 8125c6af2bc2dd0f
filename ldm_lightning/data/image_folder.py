"""Any folder of images, flat or with sub-folders for classes."""

import json
import os
from pathlib import Path

import numpy as np

from ldm_lightning.data.decoding import MAX_FILE_BYTES
from ldm_lightning.data.encoded import check_split, encoded_data_module, is_validation_name
from ldm_lightning.data.module import ImageDataModule
from ldm_lightning.utils.content import FileHashes, combined_hash
from ldm_lightning.utils.files import read_regular

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


class FolderSource:
    """Image files by index, sorted by relative name.

    Where all images lie in sub-folders, the first sub-folder's name is the class.

    Args:
        root: The folder.
        names: Paths of the files, relative to it.
        class_names: Sorted names of the classes; None where there are none.
        split: Which split these files are.
        hashes: Knows what the files hold.
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
    ) -> None:
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

    def annotations(self, index: int) -> tuple[int | None, str | None]:
        """Return the class of the image, where there are classes, and no caption."""
        if self.class_names is None:
            return None, None
        return self._label_of[self.name(index).split("/", 1)[0]], None


def list_images(root: Path, *, key: str) -> list[str]:
    """Sorted names of the images below a folder, relative to it; what is hidden is ignored.

    Args:
        root: The folder.
        key: What errors call the setting it was given by.

    Raises:
        ValueError: If there is no such folder, or no image in it.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise ValueError(f"{key}={root} {what}. Expected a folder of images.")
    names = []
    visited: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        if (place := os.path.realpath(folder)) in visited:
            subfolders.clear()  # a link that leads back
            continue
        visited.add(place)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for file in files:
            if not file.startswith(".") and file.lower().endswith(SUFFIXES):
                names.append((Path(folder) / file).relative_to(root).as_posix())
    if not names:
        raise ValueError(
            f"No image below {key}={root}. Expected files that end in {', '.join(SUFFIXES)}, "
            "directly or in sub-folders."
        )
    for name in names:
        if not name.isascii() and name != os.fsencode(name).decode("utf-8", "replace"):
            raise ValueError(f"The name {name!r} below {key}={root} is not UTF-8; rename the file.")
    return sorted(names)


def class_names_of(names: list[str]) -> list[str] | None:
    """Sorted first folders of the names; None where an image lies in none or all lie in one."""
    if not all("/" in name for name in names):
        return None
    classes = sorted({name.split("/", 1)[0] for name in names})
    return classes if len(classes) > 1 else None


def image_folder_data_module(
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
    cache_dir: str | None = None,
) -> ImageDataModule:
    """Build the data module; keys as in conf/data/image_folder.yaml.

    Raises:
        ValueError: If a folder is missing or empty, or a setting is out of range.
    """
    folder = Path(root).expanduser()
    names = list_images(folder, key="data.root")
    class_names = class_names_of(names)
    if val_root is None:
        val_folder = folder
        val_names = [name for name in names if is_validation_name(name, val_share)]
        train_names = [name for name in names if not is_validation_name(name, val_share)]
        check_split(len(train_names), len(val_names), root=root, val_share=val_share)
    else:
        val_folder = Path(val_root).expanduser()
        if val_folder.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"data.val_root={val_root} lies within data.root={root}; validation images must "
                "not be trained on."
            )
        train_names, val_names = names, list_images(val_folder, key="data.val_root")
    # Validation images keep their labels where all of them are of classes that are trained on.
    known = {name.split("/", 1)[0] for name in val_names} <= set(class_names or [])
    val_class_names = class_names if known else None
    hashes = FileHashes(cache_dir)
    return encoded_data_module(
        FolderSource(folder, train_names, class_names=class_names, split="train", hashes=hashes),
        FolderSource(
            val_folder, val_names, class_names=val_class_names, split="val", hashes=hashes
        ),
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
