"""However one process of a run ends, all of them end soon, and the terminal says why.

``process`` returns when nobody holds the pipe any more, so that what it waits for is the end of all
processes, those that read images included.
"""

import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from ldm_lightning.checkpoints.checkpoint import load_checkpoint
from ldm_lightning.distributed.processes import GRACE_SECONDS, PARENT
from tests.cli.run import ROOT, process, summary_of, tiny

SABOTAGED = "callbacks.codebook_alarm._target_=tests.cli.sabotage.Sabotage"


KILLED = re.compile(r"Process 1 ended first: .*SIGKILL")


@dataclass(frozen=True)
class Ended:
    """How a sabotaged run ended."""

    code: int
    said: str
    output: str
    seconds: float  # from the sabotage to the end of the last process
    run: Path


def sabotaged(folder: Path, rank: int, how: str, *launcher: str, **changes) -> Ended:
    """Train on two processes, of which one fails after two updates."""
    settings = {"trainer": "ddp_cpu", "data.num_workers": 1, "validation.every_steps": 4}
    words = [*tiny("vqvae_f8", **(settings | changes)), SABOTAGED, f"output_dir={folder / 'run'}"]
    environment = {
        "PYTHONPATH": str(ROOT),
        "SABOTAGE_RANK": str(rank),
        "SABOTAGE_HOW": how,
        "SABOTAGE_FILE": str(folder / "when"),
    }
    arguments = [*(launcher or ("-m",)), "ldm_lightning.train", *words]
    ended = process(arguments, folder, env=environment, timeout=90)
    seconds = time.time() - float((folder / "when").read_text())
    assert not processes_with(str(folder / "when"))
    return Ended(ended.code, ended.said, ended.output, seconds, folder / "run")


def processes_with(text: str) -> list[str]:
    """Living processes that have the text in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if text in path.read_text(errors="replace") and path.parent.name != str(os.getpid()):
                found.append(path.parent.name)
        except OSError:
            continue
    return found


BUSY_SECONDS = 20.0
"""What a busy machine may add: workers look for their parent every five seconds, too."""


def torchrun() -> tuple[str, ...]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = ("--master-addr", "127.0.0.1", "--master-port", str(port))
    return ("-m", "torch.distributed.run", "--nproc-per-node", "2", *address, "-m")


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_is_named(tmp_path):
    ended = sabotaged(tmp_path, 1, "SIGKILL")
    assert ended.code == 1
    assert KILLED.search(ended.said)
    assert ended.seconds < GRACE_SECONDS + BUSY_SECONDS
    summary = summary_of(ended.run)
    assert summary["state"] == "failed"
    assert KILLED.search(summary["reason"])


@pytest.mark.slow
def test_the_others_end_with_the_process_that_started_them(tmp_path):
    ended = sabotaged(tmp_path, 0, "SIGKILL")
    assert ended.code == -9
    assert "killed" in ended.said
    assert ended.seconds < GRACE_SECONDS + BUSY_SECONDS


@pytest.mark.slow
def test_an_error_in_one_process_is_told_first_and_as_the_reason(tmp_path):
    ended = sabotaged(tmp_path, 1, "raise")
    assert ended.code == 1
    kind, error = "ValueError", "photograph_17.jpg is no image"
    own, echo = f"Process 1: {kind}: {error}", f"Process 1 ended first: {kind}: {error}"
    assert 0 <= ended.said.find(own) < ended.said.find(echo)
    assert " peer" not in ended.output  # the echoes of the other processes
    assert ended.seconds < GRACE_SECONDS + BUSY_SECONDS
    assert echo in summary_of(ended.run)["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_hangs_ends_the_run_after_the_timeout(tmp_path, rank):
    ended = sabotaged(tmp_path, rank, "SIGSTOP", **{"trainer.timeout_seconds": 4})
    assert ended.code == (1 if rank else -9)
    assert "trainer.timeout_seconds" in ended.said
    assert 4 < ended.seconds < 4 + 3 * GRACE_SECONDS + BUSY_SECONDS


@pytest.mark.slow
def test_under_torchrun_too_a_failed_process_ends_the_run(tmp_path):
    ended = sabotaged(tmp_path, 1, "raise", *torchrun())
    assert ended.code == 1
    assert ended.seconds < 2 * GRACE_SECONDS + BUSY_SECONDS
    assert "Process 1: ValueError: photograph_17.jpg" in ended.said


@pytest.mark.slow
def test_one_signal_lets_all_processes_save_and_end(tmp_path):
    """It arrives at the second process; the first is told by it."""
    ended = sabotaged(tmp_path, 1, "SIGTERM", max_steps=40)
    assert ended.code == 143
    assert ended.said.count("Stopping") == 1
    assert "Traceback" not in ended.output
    assert ended.seconds < BUSY_SECONDS
    assert summary_of(ended.run)["state"] == "interrupted"
    stored = load_checkpoint(ended.run / "checkpoints" / "last.ckpt")
    assert stored["global_step"] == 3
    assert PARENT not in os.environ
