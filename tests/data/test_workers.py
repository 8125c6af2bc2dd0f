"""Workers that hang, die, or find no room end the loading with an error."""

import gc
import os
import signal
import threading
import time

import pytest
import torch

from ldm_lightning.data import workers
from ldm_lightning.data.workers import WorkerError, WorkerLoader, check_shared_memory


@pytest.fixture(autouse=True, scope="module")
def quick_ends():
    """Do not wait five seconds for a worker that is going to be killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
        yield
        gc.collect()  # ends the workers of loaders that an error has left


class Numbers(torch.utils.data.Dataset):
    """Sample i is i; ``act`` is called first."""

    def __init__(self, act=lambda _: None):
        self.act = act

    def __getitem__(self, index):
        self.act(index)
        return index


def join(samples):
    return {"image": torch.tensor(samples), "key": [str(sample) for sample in samples]}


def loader(act=lambda _: None, *, num_workers=1, timeout_seconds=60.0):
    return WorkerLoader(
        Numbers(act),
        batch_sampler=[[0, 1], [2, 3], [4]],
        collate=join,
        num_workers=num_workers,
        timeout_seconds=timeout_seconds,
        persistent=False,
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_come_in_order_and_workers_share_them(num_workers):
    batches = list(loader(num_workers=num_workers))
    assert [batch["image"].tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert [batch["key"] for batch in batches] == [["0", "1"], ["2", "3"], ["4"]]
    assert all(batch["image"].is_shared() == (num_workers > 0) for batch in batches)


def test_a_worker_that_hangs_is_waited_for_so_long_and_no_longer():
    def hang(index):
        if index == 2:
            threading.Event().wait()

    batches = iter(loader(hang, timeout_seconds=1.0))
    assert next(batches)["image"].tolist() == [0, 1]
    with pytest.raises(WorkerError, match="data.worker_timeout_seconds"):
        next(batches)


@pytest.mark.parametrize("killed_by", [signal.SIGBUS, signal.SIGKILL])
def test_a_worker_that_dies_is_an_error_at_once_after_an_earlier_fit_too(killed_by):
    list(loader())  # torch's handler is installed
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # as a Trainer leaves it

    def die(index):
        if index == 2:
            os.kill(os.getpid(), killed_by)

    start = time.monotonic()
    with pytest.raises(WorkerError, match="data.num_workers"):
        list(loader(die, timeout_seconds=20.0))
    assert time.monotonic() - start < 10


def test_a_batch_without_room_is_an_error_of_its_worker(monkeypatch):
    def full(_tensor):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(OSError, match=str(workers.SHARED_MEMORY)):
        list(loader())


def test_the_room_is_checked_before_workers_start(monkeypatch):
    monkeypatch.setattr(workers, "_free_bytes", lambda folder: 64_000_000)
    fits = {"num_workers": 2, "num_groups": 1}
    check_shared_memory(12_000_000, **fits)  # (2 * 2 + 1) * 12 = 60 MB
    check_shared_memory(10**12, num_workers=0, num_groups=1)
    with pytest.raises(WorkerError, match=r"64 MB.* 65 MB"):
        check_shared_memory(13_000_000, **fits)
    with pytest.raises(WorkerError, match=" 120 MB"):
        check_shared_memory(12_000_000, num_workers=2, num_groups=2)
