"""Locks that belong to a process and go with it, however it ends."""

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ldm_lightning.storage.process_ids import pid_exists

logger = logging.getLogger(__name__)

ATTEMPTS, PAUSE_SECONDS = 5, 0.02
"""A process that only looks whether a file is locked holds its lock for a moment."""

NOT_SUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems without locks answer, such as some of clusters."""

LONGEST_RECORD = 1024


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, as far as it is known."""

    pid: int | None = None
    host: str | None = None

    def __str__(self) -> str:
        """``Process 123 on node7``."""
        who = "Another process" if self.pid is None else f"Process {self.pid}"
        return who if self.host is None else f"{who} on {self.host}"


class LockedError(ValueError):
    """Another process holds the lock; ``holder`` says which."""

    def __init__(self, message: str, *, holder: Holder) -> None:
        super().__init__(message)
        self.holder = holder


def try_lock(file: IO[bytes]) -> bool:
    """Lock an open file for this process alone, or return False where another one has it.

    Processes that this one starts do not keep the lock: what Python forks closes its copy.

    Raises:
        OSError: If the file system has no locks: ``errno`` is one of ``NOT_SUPPORTED``.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def sole_holder(path: Path, *, what: str, remedy: str) -> Iterator[None]:
    """Hold the lock file ``path`` during the block; it is created where it is missing, and stays.

    Where the file system has no locks, a living process of this machine that is named in the file
    is refused all the same; of other machines a warning says that nothing keeps them out.

    Args:
        path: The lock file.
        what: What only one process may do, after "is": ``writing to RUN``.
        remedy: What to do instead, a sentence.

    Raises:
        LockedError: If another process holds it; names its pid and host where they are known.
        OSError: If the file cannot be opened for writing.
    """
    with path.open("a+b") as file:
        _forget_in_children(file)
        try:
            if not _lock_patiently(file):
                holder = _read_holder(file)
                raise LockedError(f"{holder} is {what} already. {remedy}", holder=holder)
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
            holder = _read_holder(file)
            if _lives_here(holder, seen=path.stat().st_mtime):
                raise LockedError(f"{holder} is {what} already. {remedy}", holder=holder) from error
            logger.warning(
                "%s cannot be locked (%s): nothing keeps processes of other machines from %s too. "
                "Start only one.",
                path,
                error.strerror,
                what,
            )
        _write_holder(file)
        try:
            yield
        finally:
            file.truncate(0)
            _remembered.discard(file)


def holder_of(path: Path) -> Holder | None:
    """The process that holds a lock file; None where nobody does, or it cannot be told."""
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read_holder(file)
            except OSError:
                holder = _read_holder(file)
                return holder if _lives_here(holder, seen=path.stat().st_mtime) else None
    except OSError:
        return None
    return None


def _lock_patiently(file: IO[bytes]) -> bool:
    for _ in range(ATTEMPTS - 1):
        if try_lock(file):
            return True
        time.sleep(PAUSE_SECONDS)
    return try_lock(file)


def _write_holder(file: IO[bytes]) -> None:
    file.truncate(0)
    file.write(f"{os.getpid()} {socket.gethostname()}\n".encode())
    file.flush()


def _read_holder(file: IO[bytes]) -> Holder:
    """Read the holder's entry; unknown where it is damaged or not written yet."""
    file.seek(0)
    pid, _, host = file.read(LONGEST_RECORD).decode("utf-8", errors="replace").partition(" ")
    return Holder(int(pid), host.strip() or None) if pid.isdecimal() else Holder()


def _lives_here(holder: Holder, *, seen: float) -> bool:
    """Return whether a holder is another living process of this machine."""
    if holder.pid is None or holder.host != socket.gethostname() or holder.pid == os.getpid():
        return False
    return pid_exists(holder.pid, seen=seen)


# A lock lives as long as any copy of the file it was taken through, and a fork copies all files: a
# loader's worker that outlives its killed trainer would keep the folder locked.
_remembered: set[IO[bytes]] = set()


def _forget_in_children(file: IO[bytes]) -> None:
    _remembered.add(file)


def _close_remembered() -> None:
    for file in _remembered:
        file.close()
    _remembered.clear()


os.register_at_fork(after_in_child=_close_remembered)
