"""Store of files' contents on disk: one file for each folder of images or shards.

    CACHE_DIR/contents/files_HASH.npz    names, states and hashes; HASH stands for the folder
    CACHE_DIR/contents/files_HASH.lock   held by the process that reads these files

Everything in it can be made again, so a damaged file counts as none, and what was used longest ago
makes room.
"""

import fcntl
import hashlib
import logging
import os
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ldm_lightning.storage.files import atomic_writer
from ldm_lightning.storage.locking import try_lock

logger = logging.getLogger(__name__)

HASH_BYTES = 16
STATE_NUMBERS = 4
MAX_BYTES = 1 << 30  # about ten million files
MAX_WAIT_S = 3600.0  # for another process that reads the same files
POLL_S = 0.1

SEPARATOR = b"\0"  # no file's name holds it


@dataclass(frozen=True)
class KnownContents:
    """Contents of some files of one folder.

    Attributes:
        names: Relative to the folder, N of them.
        states: Size, times of change of the content and of the entry in ns, number on the disk:
            int64 [N, 4].
        hashes: uint8 [N, HASH_BYTES].
    """

    names: list[str]
    states: np.ndarray
    hashes: np.ndarray

    def __post_init__(self) -> None:
        for values, width in ((self.states, STATE_NUMBERS), (self.hashes, HASH_BYTES)):
            if values.shape != (len(self.names), width):
                raise ValueError(f"Expected [{len(self.names)}, {width}], got {values.shape}.")

    def rows(self, names: Sequence[str]) -> np.ndarray:
        """Row of each name, -1 where there is none: int64 [N]."""
        row_of = {name: row for row, name in enumerate(self.names)}
        return np.array([row_of.get(name, -1) for name in names], dtype=np.int64)


class ContentStore:
    """A bounded folder of ``KnownContents``.

    Args:
        folder: Made when something is first kept. Where it cannot be made or written, nothing is
            kept, which is said once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, root: str) -> KnownContents | None:
        """Known contents of a folder's files; None without a readable record."""
        path = self._path(root)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                content = stored["names"].tobytes()
                names = content.split(SEPARATOR) if content else []
                known = KnownContents(
                    [os.fsdecode(name) for name in names],
                    stored["states"].astype(np.int64),
                    stored["hashes"].astype(np.uint8),
                )
        except FileNotFoundError:
            return None
        except OSError as error:
            _say_not_kept(self.folder, str(error.strerror or error))
            return None
        except (ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
            logger.warning("%s is not used (%s): the files are read again.", path, error)
            return None
        with suppress(OSError):
            os.utime(path)  # it was used
        return known

    def add(self, root: str, new: KnownContents) -> None:
        """Keep what was found, beside what is known of other files that are still there."""
        known = self.load(root)
        if known is not None:
            is_new = set(new.names)
            rows = [
                row
                for row, name in enumerate(known.names)
                if name not in is_new and os.path.lexists(os.path.join(root, name))
            ]
            new = KnownContents(
                [known.names[row] for row in rows] + new.names,
                np.concatenate([known.states[rows], new.states]),
                np.concatenate([known.hashes[rows], new.hashes]),
            )
        try:
            self._write(self._path(root), new)
            self._make_room(self._path(root))
        except OSError as error:
            _say_not_kept(self.folder, str(error.strerror or error))

    @contextmanager
    def turn(self, root: str) -> Iterator[None]:
        """Let one process at a time read the files of a folder; a killed one gives way at once.

        Where there are no locks, or the other process takes longer than ``MAX_WAIT_S``, each reads
        for itself.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self._path(root).with_suffix(".lock").open("wb")
        except OSError as error:
            _say_not_kept(self.folder, str(error.strerror or error))
            yield
            return
        with file:
            _wait_for(file, root)
            try:
                yield
            finally:
                with suppress(OSError):
                    # Closing is not enough where a process was forked meanwhile.
                    fcntl.flock(file, fcntl.LOCK_UN)

    def _path(self, root: str) -> Path:
        name = hashlib.sha256(os.fsencode(root)).hexdigest()[:32]
        return self.folder / f"files_{name}.npz"

    def _write(self, path: Path, known: KnownContents) -> None:
        with atomic_writer(path) as file:
            names = SEPARATOR.join(map(os.fsencode, known.names))
            np.savez(
                file,
                names=np.frombuffer(names, dtype=np.uint8),
                states=known.states,
                hashes=known.hashes,
            )

    def _make_room(self, newest: Path) -> None:
        """Delete what was used longest ago until at most ``MAX_BYTES`` are left."""
        found = []
        for path in self.folder.glob("files_*.npz"):
            with suppress(OSError):
                state = path.stat()
                found.append((state.st_mtime_ns, state.st_size, path))
        surplus = sum(size for _, size, _ in found) - MAX_BYTES
        for _, size, path in sorted(found):
            if surplus <= 0:
                break
            if path != newest:
                path.unlink(missing_ok=True)
                surplus -= size


def _wait_for(file: BinaryIO, root: str) -> None:
    """Lock a file; gives up where there are no locks or another process has it for too long."""
    deadline, is_told = time.monotonic() + MAX_WAIT_S, False
    try:
        while not try_lock(file):
            if time.monotonic() > deadline:
                logger.warning("Another process has held %s for %g s.", file.name, MAX_WAIT_S)
                return
            if not is_told:
                logger.info("Another process reads the files of %s; this one waits for it.", root)
                is_told = True
            time.sleep(POLL_S)
    except OSError as error:
        logger.debug("%s cannot be locked: %s", file.name, error)


@cache
def _say_not_kept(folder: Path, reason: str) -> None:
    """Said once: every start reads all files again."""
    logger.warning(
        "What files hold cannot be remembered in %s (%s): they are read again at each start. Give "
        "cache_dir=DIR, a folder that can be written.",
        folder,
        reason,
    )
