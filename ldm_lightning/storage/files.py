"""Reading regular files alone, and writing so that a reader sees the old content or the new."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ldm_lightning.storage.locking import NOT_SUPPORTED, try_lock


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` and move it there once it is completely on disk.

    When the block or the disk fails, ``path`` keeps what it held and the temporary file is removed.
    Processes that write the same file at the same time do not meet: the last one to finish wins.

    Args:
        path: The file to create or replace.

    Yields:
        The temporary file, open for writing bytes.
    """
    with _temporary(path) as file:
        temporary = Path(file.name)
        try:
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
    with _temporary(target) as reserved:
        temporary = Path(reserved.name)
        link = temporary.with_suffix(".link")
        link.unlink(missing_ok=True)  # of a killed process that had the same place
        try:
            os.link(source, link)
            os.replace(link, target)
            linked = True
        except OSError:
            linked = False
        # Where both names already mean one file, POSIX lets the rename do nothing and keep it.
        link.unlink(missing_ok=True)
        temporary.unlink(missing_ok=True)
    if linked:
        _sync_folder(target.parent)
        return
    with source.open("rb") as reader, atomic_writer(target) as writer:
        while block := reader.read(1 << 24):
            writer.write(block)


@contextmanager
def _temporary(path: Path) -> Iterator[BinaryIO]:
    """Open an empty file beside ``path`` that belongs to this process as long as it is open.

    Its places are numbered, and each is locked by the process that has it, so that what a killed
    one left is used again by the next: there are never more files than there were writers at once.
    Where the file system has no locks, a name of its own keeps processes apart instead.
    """
    number = 0
    while True:
        temporary = path.with_name(f".{path.name}.{number}.tmp")
        with open(temporary, "r+b", opener=_open_or_create) as file:
            try:
                is_free = try_lock(file)
            except OSError as error:
                if error.errno not in NOT_SUPPORTED:
                    raise
                temporary.unlink(missing_ok=True)
                break
            if not is_free:
                number += 1
            elif _is_at(file, temporary):
                file.truncate(0)
                yield file
                return
    own = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    with own.open("wb") as file:
        yield file


def _open_or_create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o666)


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Return whether an open file still has a name, or was moved before it was locked."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    """Put a rename on disk; without this a power cut may undo it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
