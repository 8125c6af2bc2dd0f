"""Writing a file so that a reader sees the old content or the new, never half of it."""

import os
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
