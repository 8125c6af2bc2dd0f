"""Training and validation images are different ones: what is refused, and the words to use."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ldm_lightning.data.images.folder_listing import FolderListing
from ldm_lightning.utils.random import derive_seed

# Names of folders that hold a split: train, train2017, training_images; Validation, test-A.
_TRAIN = re.compile(r"train(ing)?([^a-z].*)?")
_VAL = re.compile(r"(val(id(ation)?)?|eval(uation)?|test(ing)?|dev)([^a-z].*)?")
_PREFERRED = ("val", "eval", "test", "dev")  # which of them to propose for data.val_root


def check_no_splits_inside(listing: FolderListing) -> None:
    """Refuse to train on a folder that holds the folders of a training and a validation split.

    Raises:
        ValueError: With the words to use instead.
    """
    children: dict[str, set[str]] = {}
    for folder in {name.rpartition("/")[0] for name in listing.names}:
        parts = folder.split("/") if folder else []
        for depth, part in enumerate(parts):
            children.setdefault("/".join(parts[:depth]), set()).add(part)
    for parent in sorted(children):
        if (words := split_words(listing.root / parent, children[parent])) is not None:
            raise ValueError(
                f"data.root={listing.root} holds the folders of a training and of a validation "
                f"split. Give {words}"
            )


def split_words(place: Path, folders: Iterable[str]) -> str | None:
    """The words that choose the splits among the folders in a place; None where there are none."""
    train = sorted(name for name in folders if _TRAIN.fullmatch(name.lower()))
    val = sorted((name for name in folders if _VAL.fullmatch(name.lower())), key=_rank)
    if not train or not val:
        return None
    return f"data.root={place / train[0]} data.val_root={place / val[0]}"


def check_separate(train: FolderListing, val: FolderListing) -> None:
    """Refuse a validation folder that shares a folder or a file with the training folder.

    Raises:
        ValueError: Naming what both hold.
    """
    roots = f"data.root={train.root} and data.val_root={val.root}"
    train_root, val_root = train.root.resolve(), val.root.resolve()
    if train_root == val_root:
        raise ValueError(
            f"{roots} are the same folder; validation images must not be trained on. Leave "
            "data.val_root out to hold out data.val_fraction of it, or give another folder."
        )
    if val_root.is_relative_to(train_root):
        raise ValueError(
            f"{roots}: the second lies within the first, so that validation images would be "
            "trained on. Give two folders side by side, such as data.root=ROOT/train "
            "data.val_root=ROOT/val."
        )
    if train_root.is_relative_to(val_root):
        raise ValueError(
            f"{roots}: the first lies within the second, so that training images would be "
            "validated on. Give two folders side by side, such as data.root=ROOT/train "
            "data.val_root=ROOT/val."
        )
    if shared := train.folders & val.folders:
        raise ValueError(
            f"{roots} both lead to {min(shared)}, through a symbolic link; remove the link from "
            "one of them."
        )
    if files := _same_files(train, val):
        raise ValueError(
            f"{roots} both hold the same file, under the names {files[0]} and {files[1]} (a link); "
            "validation images must not be trained on. Remove the links from one of them."
        )


def check_separate_shards(train: Sequence[str], val: Sequence[str]) -> None:
    """Refuse shards that belong to both splits, whatever links lead there.

    Raises:
        ValueError: Naming one of them.
    """
    train_places = {_place(shard): shard for shard in train}
    for shard in val:
        if (other := train_places.get(_place(shard))) is not None:
            alias = f" (as {other})" if other != shard else ""
            raise ValueError(
                f"{shard} belongs to data.root and to data.val_root{alias}; validation images must "
                "not be trained on. Give patterns that do not overlap, such as "
                "data.root='DIR/train-*.tar' data.val_root='DIR/val-*.tar'."
            )


def is_validation_name(name: str, val_fraction: float) -> bool:
    """Return whether a file without a split of its own is held out.

    A hash of the name decides, so a file never changes sides when others are added or removed.
    """
    return derive_seed("validation split", name) < val_fraction * 2**63


def check_split(num_train: int, num_val: int, *, root: str, val_fraction: float) -> None:
    """Stop where one side of a split by ``val_fraction`` is empty.

    Raises:
        ValueError: If either number is 0.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"data.val_fraction must lie between 0 and 1, got {val_fraction}.")
    if num_train == 0 or num_val == 0:
        raise ValueError(
            f"Holding out data.val_fraction={val_fraction:g} of {num_train + num_val} images under "
            f"{root} leaves {num_train} to train on and {num_val} to validate on. Add images, "
            "change data.val_fraction, or give data.val_root."
        )


def first_names(listing: FolderListing) -> Sequence[str]:
    """The name that decides about each image's split: of several links to a file, the first."""
    _, first, inverse, counts = np.unique(
        listing.inodes, return_index=True, return_inverse=True, return_counts=True
    )
    names = list(listing.names)
    for index in np.flatnonzero(counts[inverse] > 1):
        other = listing.names[first[inverse[index]]]
        if _is_same(listing.root / other, listing.root / names[index]):
            names[index] = other
    return names


def _same_files(train: FolderListing, val: FolderListing) -> tuple[str, str] | None:
    """Names of a file that both hold; inode numbers are only a hint, as file systems differ."""
    shared = np.flatnonzero(np.isin(train.inodes, val.inodes))
    train_of = {int(train.inodes[index]): index for index in shared}
    for index in np.flatnonzero(np.isin(val.inodes, train.inodes)):
        pair = train.names[train_of[int(val.inodes[index])]], val.names[index]
        if _is_same(train.root / pair[0], val.root / pair[1]):
            return pair
    return None


def _place(shard: str) -> tuple[int, int] | str:
    """Identity of a shard's file: a number of a local one, the address of another."""
    path = shard.removeprefix("file://")
    if "://" in path:
        return shard
    try:
        facts = os.stat(path)
    except OSError:  # reading it will say why
        return os.path.realpath(path)
    return facts.st_dev, facts.st_ino


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _rank(name: str) -> tuple[int, str]:
    kinds = [kind for kind in _PREFERRED if name.lower().startswith(kind)]
    return _PREFERRED.index(kinds[0]), name
