"""Reading regular files alone, and writing so that a reader sees the old content or the new."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` and move it there once it is completely on disk.

    When the block or the disk fails, ``path`` keeps what it held and the temporary file is removed.
    The temporary name is fixed, so that a killed process leaves at most one, which the next write
    reuses.

    Args:
        path: The file to create or replace. One process writes it at a time.

    Yields:
        The temporary file, open for writing bytes.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading bytes.

    What is no regular file is not opened: a FIFO waits for its writer for ever, and a device may
    act on being opened.

    Raises:
        OSError: If it is missing, no regular file, or cannot be opened.
    """
    _require_regular(os.stat(path), path)
    # Should it have become a FIFO since, the flag keeps this from waiting.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        _require_regular(os.fstat(descriptor), path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, *, max_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: As ``open_regular``, or if it is larger than ``max_bytes``.
    """
    with open_regular(path) as file:
        if (num_bytes := os.fstat(file.fileno()).st_size) > max_bytes:
            raise OSError(f"{path} has {num_bytes:,} bytes, more than the limit of {max_bytes:,}")
        return file.read(max_bytes)


def _require_regular(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        is_folder = stat.S_ISDIR(status.st_mode)
        kind = "a folder" if is_folder else "a FIFO, socket or device"
        raise OSError(f"{path} is {kind}, not a regular file")


def link_or_copy(source: Path, target: Path) -> None:
    """Let ``target`` hold what ``source`` holds now, atomically.

    A hard link costs no space. It is safe between files that are only ever replaced, never edited,
    as all those written by ``atomic_writer`` are. File systems without links get a copy.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        with source.open("rb") as reader, atomic_writer(target) as writer:
            while block := reader.read(1 << 24):
                writer.write(block)
        return
    os.replace(temporary, target)
    # Where both names already mean one file, POSIX lets the rename do nothing and keep the
    # temporary.
    temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Put a rename on disk; without this a power cut may undo it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
