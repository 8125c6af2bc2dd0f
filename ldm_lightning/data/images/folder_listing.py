"""The images below a folder: which files are read, and why others are not."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldm_lightning.data.images.formats import IMAGE_SUFFIXES, is_clutter, is_image_name, suffix_of
from ldm_lightning.data.left_out import LeftOut, suffix_reason


@dataclass(frozen=True)
class FolderListing:
    """Content of a folder and its subfolders.

    Attributes:
        root: The folder.
        names: Paths of the images, relative to it, with forward slashes, sorted.
        inodes: Number of each image's file in its file system [N]; the same for two links to it.
        folders: Real paths of all folders that were looked into.
        empty_classes: Folders directly below the root that hold no image, sorted.
        left_out: Files that are not read. Hidden files and those of file managers do not count.
    """

    root: Path
    names: list[str]
    inodes: np.ndarray
    folders: frozenset[str]
    empty_classes: list[str]
    left_out: LeftOut


def list_images(root: Path, *, key: str) -> FolderListing:
    """List the images below a folder.

    A folder that two paths lead to is read once, under the path without symbolic links.

    Args:
        root: The folder.
        key: What errors call the setting it was given by.

    Raises:
        ValueError: If there is no such folder, or no image in it, or a name is not UTF-8.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise ValueError(f"{key}={root} {what}. Expected a folder of images.")
    left_out, visited = LeftOut(), set[str]()
    found: list[tuple[str, int]] = []
    for name, entry in _walk(root, visited, left_out):
        if not is_image_name(name):
            left_out.add(suffix_reason(suffix_of(name)), name)
        elif not _leads_to(entry.is_file):
            left_out.add("broken links" if entry.is_symlink() else "no regular files", name)
        else:
            found.append((name, _inode(entry)))
    if not found:
        passed_over = f" Not read: {left_out}." if left_out.num_files else ""
        raise ValueError(
            f"No image below {key}={root}. Expected files that end in {', '.join(IMAGE_SUFFIXES)}, "
            f"directly or in sub-folders.{passed_over}"
        )
    found.sort()
    names = [name for name, _ in found]
    for name in names:
        if not name.isascii() and name != os.fsencode(name).decode("utf-8", "replace"):
            raise ValueError(f"The name {name!r} below {key}={root} is not UTF-8; rename the file.")
    return FolderListing(
        root=root,
        names=names,
        inodes=np.array([inode for _, inode in found], dtype=np.uint64),
        folders=frozenset(visited),
        empty_classes=_empty_classes(root, names),
        left_out=left_out,
    )


def _walk(
    root: Path, visited: set[str], left_out: LeftOut
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield every file below a folder with its relative name, real folders before linked ones."""
    real, linked = deque([""]), deque[str]()
    while real or linked:
        folder = real.popleft() if real else linked.popleft()
        path = os.path.join(root, folder)
        if (place := os.path.realpath(path)) in visited:
            left_out.add("folders that are read under another path", folder)
            continue
        visited.add(place)
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as err:
            left_out.add(f"folders that cannot be opened ({err.strerror})", folder)
            continue
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if is_clutter(entry.name):
                continue
            if not _leads_to(entry.is_dir):
                yield name, entry
            elif entry.is_symlink():
                linked.append(name)
            else:
                real.append(name)


def _leads_to(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link that leads to itself
        return False


def _inode(entry: os.DirEntry[str]) -> int:
    return entry.stat().st_ino if entry.is_symlink() else entry.inode()


def _empty_classes(root: Path, names: list[str]) -> list[str]:
    """Folders directly below the root without an image, where there are some with images."""
    filled = {name.split("/", 1)[0] for name in names if "/" in name}
    if not filled:
        return []
    with os.scandir(root) as entries:
        folders = {entry.name for entry in entries if _leads_to(entry.is_dir)}
    return sorted(name for name in folders - filled if not is_clutter(name))
