"""A bounded local copy of shards that lie elsewhere: fetched whole, kept while there is room.

All processes of a machine share one folder, and a file lock lets one of them fetch a shard while
the others that need it wait. The shards that were read longest ago make room. A process that is
killed leaves nothing that another takes for a shard. Whatever else lies in the folder stays: shards
are kept in a folder of their own in it, under names that nothing else has.
"""

import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from filelock import FileLock, Timeout
from fsspec.core import url_to_fs

from ldm_lightning.data.shards.shard_set import file_name

logger = logging.getLogger(__name__)

NUM_ATTEMPTS = 5  # with waits that double: a fetch is given up after 15 s of waiting
FIRST_WAIT_S = 1.0
ROOM_POLL_S = 0.2
MAX_WAIT_S = 3600.0  # for another process that fetches a shard, or for room that others hold

OWN_FOLDER = "ldm_shards"
OWN_NAME = re.compile(r"[0-9a-f]{16}_.*")  # what RemoteShard.stem gives


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
        folder: On a disk of this machine; a folder of its own is made in it.
        max_bytes: Bound on the shards in it, those being fetched included.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self.folder = folder / OWN_FOLDER
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
            deadline = time.monotonic() + MAX_WAIT_S
            while not self._reserve(part, shard.num_bytes):
                if time.monotonic() > deadline:
                    raise ShardUnavailableError(
                        f"There was no room for the shard {shard.url} in {self.folder} in "
                        f"{MAX_WAIT_S:g} s: other processes fetch into it. Raise "
                        "data.shard_cache_gib or give another data.shard_cache_dir."
                    )
                time.sleep(ROOM_POLL_S)
            try:
                _copy(shard, part)
                with self.locked("room"):  # else it could be counted under both names
                    os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)

    def discard(self, shard: RemoteShard) -> None:
        """Forget the copy of a shard."""
        (self.folder / shard.stem).unlink(missing_ok=True)

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Do something in one process or thread at a time.

        Raises:
            ShardUnavailableError: If another one does it for too long.
        """
        lock = self._lock(name)
        try:
            held = lock.acquire(timeout=MAX_WAIT_S)
        except Timeout as err:
            raise ShardUnavailableError(
                f"Another process has held {lock.lock_file} for {MAX_WAIT_S:g} s; end it, or give "
                "another data.shard_cache_dir."
            ) from err
        with held:
            yield

    def _reserve(self, part: Path, num_bytes: int) -> bool:
        """Begin a file where there is room for it or room can be made."""
        with self.locked("room"):
            parts = [other for other in self._own("*.part") if not self._abandoned(other)]
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
        """Each shard's last reading time, size and path."""
        for path in self._own("*.tar"):
            with suppress(FileNotFoundError):  # a torn copy that was removed meanwhile
                stat = path.stat()
                yield stat.st_mtime_ns, stat.st_size, path

    def _own(self, pattern: str) -> Iterator[Path]:
        """Files that this cache made."""
        return (path for path in self.folder.glob(pattern) if OWN_NAME.fullmatch(path.name))

    def _abandoned(self, part: Path) -> bool:
        """Remove a file whose process was killed while fetching it; says whether it was."""
        try:
            with self._lock(part.name.rsplit(".", 2)[0]).acquire(blocking=False):
                part.unlink(missing_ok=True)
                return True
        except Timeout:
            return False

    def _lock(self, name: str) -> FileLock:
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / name)


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
