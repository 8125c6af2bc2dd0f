"""A loader whose worker processes cannot make a run wait for ever.

Workers hand batches over in shared memory, which containers often limit to 64 MB. Left to itself, a
worker finds out in a thread that can only print: the batch is lost and the main process waits for
it without end. So the room is checked before workers start, a batch is put into shared memory where
a failure is an error of the worker, and every wait has a bound.
"""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils import signal_handling

# Nothing is written here by name.
SHARED_MEMORY = Path("/dev/shm")  # nosec B108
"""Where Linux keeps shared memory; other systems have no such bound."""

BATCHES_AHEAD = 2
"""Batches that each worker prepares before they are asked for."""

TIMEOUT_SECONDS = 1800.0
"""Longest wait for a batch unless a setting says otherwise; fetching a shard takes minutes."""

MB = 1e6

Collate = Callable[[list[Any]], dict[str, Any] | None]


class WorkerError(OSError):
    """A worker process does not answer, has died, or has no room; the message says what to do."""


def use_one_thread(_worker: int) -> None:
    """Keep a worker process from starting as many threads as there are cores."""
    torch.set_num_threads(1)


@dataclass(frozen=True)
class ShareBatch:
    """Joins samples and, in a worker process, puts the tensors of the batch into shared memory.

    Args:
        collate: Joins samples to a batch.
    """

    collate: Collate

    def __call__(self, samples: list[Any]) -> dict[str, Any] | None:
        """Return the batch of ``collate``.

        Raises:
            WorkerError: If shared memory is full.
        """
        batch = self.collate(samples)
        if batch is None or get_worker_info() is None:
            return batch
        tensors = [value for value in batch.values() if isinstance(value, Tensor)]
        try:
            for tensor in tensors:
                tensor.share_memory_()
        except (RuntimeError, OSError) as err:
            num_bytes = sum(tensor.nbytes for tensor in tensors)
            raise WorkerError(
                f"A batch of {num_bytes / MB:.0f} MB has no place in {SHARED_MEMORY}, where "
                f"{_free_bytes(SHARED_MEMORY) / MB:.0f} MB are free. {REMEDY}"
            ) from err
        return batch


class WorkerLoader(DataLoader):
    """Loads batches in worker processes, or in this one where there are none.

    Args:
        dataset: Gives samples by key.
        batch_sampler: Chooses the keys of each batch.
        collate: Joins samples to a batch; None where there is none.
        num_workers: Worker processes; 0 loads in this process.
        timeout_seconds: Longest wait for a worker.
        persistent: Keep the workers from one pass to the next.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_sampler: Iterable[Sequence[Any]],
        collate: Collate,
        num_workers: int,
        timeout_seconds: float,
        persistent: bool,
    ) -> None:
        super().__init__(
            dataset,
            batch_sampler=batch_sampler,  # type: ignore[arg-type]
            collate_fn=ShareBatch(collate),
            num_workers=num_workers,
            prefetch_factor=BATCHES_AHEAD if num_workers else None,
            timeout=timeout_seconds if num_workers else 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=use_one_thread,
            persistent_workers=persistent and num_workers > 0,
        )

    def __iter__(self) -> Iterator[dict[str, Any] | None]:  # type: ignore[override]
        """Yield the batches.

        Raises:
            WorkerError: If a worker does not answer in time, or has died.
        """
        if self.num_workers:
            _hear_of_dead_workers()
        try:
            yield from super().__iter__()
        except RuntimeError as err:
            if "DataLoader timed out" in str(err):
                raise WorkerError(
                    f"No worker has brought a batch in {self.timeout:g} s. Is a disk or a server "
                    "slow? Give a larger data.worker_timeout_seconds, or data.num_workers=0 to see "
                    "where it waits."
                ) from err
            if str(err).startswith("DataLoader worker"):  # killed: out of memory, mostly
                raise WorkerError(
                    f"{str(err).splitlines()[0]} Its log or the kernel's says why; memory that ran "
                    "out is the usual cause: give fewer data.num_workers or a smaller batch."
                ) from err
            raise


def _hear_of_dead_workers() -> None:
    """Let torch install its handler of SIGCHLD again where a Trainer has taken it away.

    Torch does so once a process, and a Trainer puts back the handlers that it found before a fit:
    after that, a dead worker would be waited for until the timeout.
    """
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL:
        signal_handling._SIGCHLD_handler_set = False


def check_shared_memory(batch_bytes: int, *, num_workers: int, num_groups: int) -> None:
    """Require room for the batches that workers keep ready.

    Args:
        batch_bytes: Size of a batch; where several loaders are alive at a time, of one of each.
        num_workers: Worker processes of each loader.
        num_groups: Processes of this machine that each have such loaders.

    Raises:
        WorkerError: Naming the folder, what is needed and what is free.
    """
    if num_workers == 0 or not SHARED_MEMORY.is_dir():
        return
    # One more: the batch that is being used.
    needed = num_groups * (num_workers * BATCHES_AHEAD + 1) * batch_bytes
    if needed > (free := _free_bytes(SHARED_MEMORY)):
        raise WorkerError(
            f"{SHARED_MEMORY} has {free / MB:.0f} MB free, but the batches of "
            f"{num_groups * num_workers} worker process(es) a loader may need {needed / MB:.0f} "
            f"MB. {REMEDY}"
        )


REMEDY = (
    "Give the container more (docker run --shm-size=8g), data.num_workers=0, or smaller "
    "data.batch_size and data.val_batch_size."
)


def _free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize
