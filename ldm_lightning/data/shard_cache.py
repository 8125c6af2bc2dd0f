"""A bounded local copy of shards that lie elsewhere: fetched whole, kept while there is room.

All processes of a machine share one folder, and a file lock lets one of them fetch a shard while
the others that need it wait. The shards that were read longest ago make room. A process that is
killed leaves nothing that another takes for a shard.
"""

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fsspec.core import url_to_fs

from ldm_lightning.data.shards import file_name

logger = logging.getLogger(__name__)

NUM_ATTEMPTS = 5  # with waits that double: a fetch is given up after 15 s of waiting
FIRST_WAIT_S = 1.0
ROOM_POLL_S = 0.2


class RemoteShard(NamedTuple):
    """A shard that is not on a local disk.

    Attributes:
        url: Where it lies.
        num_bytes: Its size.
        version: What its store calls this content, such as an ETag, or else when it was changed;
            empty where it says nothing.
        validator: What ``version`` is: ``version``, ``time and size``; ``size`` where it is empty.
    """

    url: str
    num_bytes: int
    version: str
    validator: str

    @property
    def stem(self) -> str:
        """Name in the cache: another one for other content at the same place."""
        identity = hashlib.sha256("\n".join(map(str, self)).encode()).hexdigest()[:16]
        return f"{identity}_{file_name(self.url)}"


class ShardUnavailableError(ValueError):
    """A shard that cannot be fetched; not to be passed over like a damaged image."""


class ShardCache:
    """Whole shards in a folder of at most ``max_bytes``.

    Args:
        folder: On a disk of this machine; made where missing.
        max_bytes: Bound on the shards in it, those being fetched included.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def open(self, shard: RemoteShard) -> BinaryIO:
        """Open a shard, fetched now where it is not here; it may be read even when it has gone.

        Raises:
            ShardUnavailableError: If it cannot be fetched.
        """
        path = self.folder / shard.stem
        while True:
            try:
                file = path.open("rb")
            except FileNotFoundError:
                self.fetch(shard)
                continue
            if os.fstat(file.fileno()).st_size == shard.num_bytes:
                os.utime(file.fileno())
                return file
            file.close()  # a power cut can leave a name without its content
            path.unlink(missing_ok=True)

    def fetch(self, shard: RemoteShard) -> None:
        """Copy a shard here unless it is here; while one process does, others wait.

        Raises:
            ShardUnavailableError: If that fails for good.
        """
        path = self.folder / shard.stem
        with self.locked(shard.stem):
            if path.exists():
                return
            # The size in its name is room that nobody else may take.
            part = self.folder / f"{shard.stem}.{shard.num_bytes}.part"
            while not self._reserve(part, shard.num_bytes):
                time.sleep(ROOM_POLL_S)
            try:
                _copy(shard, part)
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)

    def discard(self, shard: RemoteShard) -> None:
        """Forget the copy of a shard."""
        (self.folder / shard.stem).unlink(missing_ok=True)

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Do something in one process or thread at a time."""
        with self._lock_path(name).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                # Closing is not enough: a worker forked meanwhile holds the same lock open.
                fcntl.flock(lock, fcntl.LOCK_UN)

    def _reserve(self, part: Path, num_bytes: int) -> bool:
        """Begin a file where there is room for it or room can be made."""
        with self.locked("room"):
            parts = [other for other in self.folder.glob("*.part") if not self._abandoned(other)]
            taken = sum(int(other.name.split(".")[-2]) for other in parts)
            kept = sorted(self._kept())
            free = self.max_bytes - taken - sum(size for _, size, _ in kept)
            for _, size, path in kept:
                if free >= num_bytes:
                    break
                path.unlink(missing_ok=True)
                free += size
            if free >= num_bytes:
                part.touch()
            return free >= num_bytes

    def _kept(self) -> Iterator[tuple[int, int, Path]]:
        """When each shard was read last, its size and its place."""
        for path in self.folder.glob("*.tar"):
            with suppress(FileNotFoundError):  # a torn copy that was removed meanwhile
                stat = path.stat()
                yield stat.st_mtime_ns, stat.st_size, path

    def _abandoned(self, part: Path) -> bool:
        """Remove a file whose process was killed while fetching it; says whether it was."""
        with self._lock_path(part.name.rsplit(".", 2)[0]).open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            part.unlink(missing_ok=True)
            fcntl.flock(lock, fcntl.LOCK_UN)
            return True

    def _lock_path(self, name: str) -> Path:
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name


def _copy(shard: RemoteShard, path: Path) -> None:
    """Fetch a shard, several times if need be.

    Raises:
        ShardUnavailableError: If it is missing, forbidden, or every attempt failed.
    """
    for attempt in range(NUM_ATTEMPTS):
        try:
            # Asked for anew each time: a forked worker must not use its parent's connection.
            filesystem, remote_path = url_to_fs(shard.url)
            filesystem.get_file(remote_path, str(path))
            if (num_bytes := path.stat().st_size) == shard.num_bytes:
                return
            reason = f"{num_bytes} of {shard.num_bytes} bytes came"
        except (FileNotFoundError, PermissionError) as err:
            raise ShardUnavailableError(
                f"The shard {shard.url} cannot be fetched: {type(err).__name__}: {err}."
            ) from err
        except Exception as err:  # file systems raise what their libraries raise
            reason = f"{type(err).__name__}: {err}"
        if attempt + 1 < NUM_ATTEMPTS:
            wait_s = FIRST_WAIT_S * 2**attempt
            logger.warning("Fetching %s failed (%s); again in %g s.", shard.url, reason, wait_s)
            time.sleep(wait_s)
    raise ShardUnavailableError(
        f"The shard {shard.url} could not be fetched in {NUM_ATTEMPTS} attempts, the last: "
        f"{reason}. Check the network and the shard, then continue the run with resume=."
    )
