"""Hashes of what files hold, by which images, shards and all that is made of them are known.

Names, sizes and times do not identify a file: a set that is encoded anew as BMP keeps names and
sizes, and ``cp -p`` and rsync set times back. So every file is read once, and its hash is
remembered with what the file system says of it: size, time of the last change of the content and
of the file's own entry (which no tool can set back), and its number on the disk. While these stay,
later starts only ask for them.

A set is read at the start of what uses it, not beside the training: what differs is said before
the waiting begins, and a training reads every file in its first epoch anyway. The hash is SHA-256,
cut to 16 bytes: with the instructions that current processors have for it, it is as fast as any
other of ``hashlib`` (BLAKE2 took three times as long), and the disk is slower than either.
"""

import hashlib
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from ldm_lightning.storage.content_store import HASH_BYTES, ContentStore, KnownContents
from ldm_lightning.utils.progress import long_task

logger = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 20
NUM_THREADS = 16  # a network disk answers many at once
FILES_A_TASK = 64
SAVE_SECONDS = 30.0
SETTLED_NS = 2_000_000_000
"""A file that changed less than this before it was read may change again at the same time of a
coarse clock, so its hash is not remembered."""

UNREADABLE = bytes(HASH_BYTES)
"""Stands for the content of a file that cannot be read."""

NO_FILE = (-1, -1, -1, -1)


class _Content(NamedTuple):
    """One file as it was read; ``hash`` holds only while ``state`` does."""

    position: int
    state: tuple[int, int, int, int]
    hash: bytes
    may_be_kept: bool


class FileHashes:
    """Hashes of files, each file read once.

    Args:
        cache_dir: Folder of everything cached, in which they are remembered; None remembers
            nothing.
    """

    def __init__(self, cache_dir: str | Path | None = None) -> None:
        self._store = None
        if cache_dir is not None:
            self._store = ContentStore(Path(cache_dir).expanduser() / "contents")

    def of(self, folder: str | Path, names: Sequence[str]) -> np.ndarray:
        """Hash files; those that are new or changed are read, under a bar with the time left.

        Of several processes that ask for the same files one reads them and the others wait, as far
        as the cache's folder lets them know of one another.

        Args:
            folder: That the names are relative to.
            names: Of files; no name twice.

        Returns:
            uint8 [N, HASH_BYTES], in the order of the names; ``UNREADABLE`` where a file is
            missing, cannot be read or is no regular file.
        """
        root = os.path.realpath(folder)
        states = _in_threads(lambda some: [_state(root, names[i]) for i in some], len(names))
        found = np.array(states, dtype=np.int64).reshape(len(names), len(NO_FILE))
        hashes, unknown = self._recall(root, names, found)
        if not len(unknown):
            return hashes
        if self._store is None:
            self._read(root, names, found, hashes, unknown)
            return hashes
        with self._store.turn(root):
            hashes, unknown = self._recall(root, names, found)  # another may just have read them
            self._read(root, names, found, hashes, unknown)
        return hashes

    def _recall(
        self, root: str, names: Sequence[str], states: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Known contents of files in these states, and the positions of those to be read."""
        hashes = np.zeros((len(names), HASH_BYTES), dtype=np.uint8)
        is_known = states[:, 0] < 0  # nothing to read
        known = None if self._store is None else self._store.load(root)
        if known is not None and len(known.names):
            rows = known.rows(names)
            same = (rows >= 0) & (known.states[rows] == states).all(axis=1)
            hashes[same] = known.hashes[rows[same]]
            is_known |= same
        return hashes, np.flatnonzero(~is_known)

    def _read(
        self,
        root: str,
        names: Sequence[str],
        states: np.ndarray,
        hashes: np.ndarray,
        positions: np.ndarray,
    ) -> None:
        """Read files and fill in their hashes; keep them, now and then before the end too."""
        total, start = int(states[positions, 0].sum()), time.monotonic()
        kept: list[_Content] = []
        saved = start
        try:
            with long_task("identifying files", total=total, unit="bytes") as advance:
                for content in _contents(root, names, positions):
                    hashes[content.position] = np.frombuffer(content.hash, dtype=np.uint8)
                    advance(int(states[content.position, 0]))
                    if content.may_be_kept:
                        kept.append(content)
                    if time.monotonic() - saved > SAVE_SECONDS:
                        self._keep(root, names, kept)
                        kept, saved = [], time.monotonic()
        finally:
            self._keep(root, names, kept)
        seconds = time.monotonic() - start
        if seconds > 1:
            logger.info(
                "Read %d files of %s, to know what they hold: %.4g MB in %.1f s (%.0f MB/s).",
                len(positions),
                root,
                total / 1e6,
                seconds,
                total / 1e6 / seconds,
            )

    def _keep(self, root: str, names: Sequence[str], contents: Sequence[_Content]) -> None:
        if self._store is None or not contents:
            return
        self._store.add(
            root,
            KnownContents(
                [names[content.position] for content in contents],
                np.array([content.state for content in contents], dtype=np.int64),
                np.array([list(content.hash) for content in contents], dtype=np.uint8),
            ),
        )


def hash_stream(file: BinaryIO, *, stop: threading.Event | None = None) -> bytes:
    """Hash the rest of an open file to ``HASH_BYTES`` bytes, as ``FileHashes`` does.

    Args:
        file: Open for reading bytes.
        stop: Ends the reading early, with a hash of nothing in particular.
    """
    hasher = hashlib.sha256()
    while block := file.read(BLOCK_BYTES):
        hasher.update(block)
        if stop is not None and stop.is_set():
            break
    return hasher.digest()[:HASH_BYTES]


def combined_hash(*parts: bytes) -> str:
    """Hash parts in their order to 16 hexadecimal digits."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(len(part).to_bytes(8, "little"))  # so that none runs over into the next
        hasher.update(part)
    return hasher.hexdigest()[:16]


def _state(root: str, name: str) -> tuple[int, int, int, int]:
    try:
        found = os.stat(os.path.join(root, name))
    except OSError:
        return NO_FILE
    return _row(found) if stat.S_ISREG(found.st_mode) else NO_FILE


def _row(found: os.stat_result) -> tuple[int, int, int, int]:
    # numbers of files use 64 bits without a sign on some file systems
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino & (2**63 - 1)


def _contents(root: str, names: Sequence[str], positions: np.ndarray) -> Iterator[_Content]:
    """Read files in threads, in any order."""
    stop = threading.Event()

    def read(some: np.ndarray) -> list[_Content]:
        return [_content(root, names[i], int(i), stop) for i in some if not stop.is_set()]

    with _pool() as pool:
        try:
            for future in as_completed(_submitted(pool, read, positions)):
                yield from future.result()
        finally:
            stop.set()  # Ctrl-C need not wait for a shard of gigabytes


def _content(root: str, name: str, position: int, stop: threading.Event) -> _Content:
    try:
        with open(os.path.join(root, name), "rb", buffering=0) as file:
            now = time.time_ns()
            before = _row(os.fstat(file.fileno()))
            found = hash_stream(file, stop=stop)
            after = _row(os.fstat(file.fileno()))
    except OSError:
        return _Content(position, NO_FILE, UNREADABLE, may_be_kept=False)
    settled = max(before[1], before[2]) < now - SETTLED_NS
    may_be_kept = before == after and settled and not stop.is_set()
    return _Content(position, before, found, may_be_kept)


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(NUM_THREADS)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _submitted(
    pool: ThreadPoolExecutor, work: Callable[[np.ndarray], list], positions: np.ndarray
) -> list[Future]:
    """Hand out positions, many small files or one large one at a time."""
    size = max(1, min(FILES_A_TASK, len(positions) // (4 * NUM_THREADS)))
    parts = [positions[first : first + size] for first in range(0, len(positions), size)]
    return [pool.submit(work, part) for part in parts]


def _in_threads(work: Callable[[np.ndarray], list], count: int) -> list:
    """Results for positions 0 to ``count - 1``, in order."""
    with _pool() as pool:
        futures = _submitted(pool, work, np.arange(count))
        return [result for future in futures for result in future.result()]
