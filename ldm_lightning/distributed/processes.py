"""The processes of one training run: start those that nobody has started, end all when one ends.

torchrun and srun start every process, and end all when one fails. Else this process starts the
others of its machine by running its own command again. Lightning would do so too, but ends a run
whose process died by killing the rest without an override about the cause.

How soon everything has ended after one process did: at once where the others wait for it, after
``GRACE_SECONDS`` where they compute, ``CAUSE_SECONDS`` after an error at the latest; after
``trainer.timeout_seconds`` where a process hangs instead.
"""

# Not torch's elastic launcher: where another process computes, it tells the cause after 32 s
# (torch 2.14 waits 30 s for SIGTERM, which a run holds back to save), it leaves the processes
# running when it is killed itself, and it ends Ctrl-C with 25 to 43 lines. Table: docs/code.md.

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ldm_lightning.cli import error_text
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.utils.errors import ContactLostError, is_loss_of_contact
from ldm_lightning.utils.launch import launched

if TYPE_CHECKING:
    import lightning.pytorch as pl

log = logging.getLogger(__name__)

GRACE_SECONDS = 5.0
"""How long a process may take to notice by itself that another one has ended."""

CAUSE_SECONDS = 9.0
"""How long after an error in one process all of them may go on."""

END_SECONDS = 30.0
"""How long the others may take to end after a run that went well or was stopped."""

POLL_SECONDS = 0.2

PARENT = "LDM_LIGHTNING_STARTED_BY"
"""Environment variable: process id of the process of this run that started this one."""

STARTER = "LDM_LIGHTNING_COMMANDED_BY"
"""Environment variable: process id of the sweep or chain that started this command."""


# What ended first


@contextmanager
def record_first_cause(run_folder: RunFolder) -> Iterator[None]:
    """Leave override of this process' error in the run folder, and read there what others left.

    A process learns of another's end by a broken connection; that is an echo, not the cause.

    Raises:
        ContactLostError: Instead of a broken connection; says which process ended, and why.
    """
    rank = launched().rank
    _note(run_folder, rank).unlink(missing_ok=True)  # of an earlier start
    try:
        yield
    except ContactLostError:
        raise
    except Exception as error:
        if not is_loss_of_contact(error):
            _write_note(run_folder, rank, error_text(error))
            raise
        cause = _first_cause(run_folder, patience=GRACE_SECONDS) or _unexplained(error)
        _end_parent(cause)
        raise ContactLostError(cause) from error


def _note(run_folder: RunFolder, rank: int | str) -> Path:
    return run_folder.path / f"failure_of_process_{rank}.txt"


def _write_note(run_folder: RunFolder, rank: int, text: str) -> None:
    """Write what ended a process, unless it has done so itself."""
    try:
        with _note(run_folder, rank).open("x", encoding="utf-8") as file:
            file.write(text + "\n")
    except OSError as error:
        log.debug("Cannot write the error message into %s: %s", run_folder.path, error)


def _first_cause(run_folder: RunFolder, *, patience: float) -> str | None:
    """Return the message of the first process that failed, waiting ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while True:
        notes = list(run_folder.path.glob(_note(run_folder, "*").name))
        if notes:
            first = min(notes, key=lambda note: note.stat().st_mtime)
            rank = first.stem.rpartition("_")[2]
            return f"Process {rank} ended first: {first.read_text(encoding='utf-8').strip()}"
        if time.monotonic() >= deadline:
            return None
        time.sleep(POLL_SECONDS)


def _unexplained(error: BaseException) -> str:
    return (
        "Another process of this run exited without an error message or no longer answers: it was "
        "killed, its machine failed, or it hangs (then see trainer.timeout_seconds). Torch says: "
        f"{str(error).splitlines()[0]}"
    )


# Starting and ending the others of this machine


@contextmanager
def every_process(trainer: pl.Trainer, run_folder: RunFolder) -> Iterator[None]:
    """Do what follows on every process of a run, and leave none behind.

    Args:
        trainer: Says how many there are; starts none itself, because its environment says that all
            are there.
        run_folder: Of the run; the others get the same.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.world_size == 1 or environment is None or environment.creates_processes_externally:
        yield
        return
    first_rank = environment.node_rank() * trainer.num_devices
    shared = {
        "MASTER_ADDR": environment.main_address,
        "MASTER_PORT": str(environment.main_port),
        "NODE_RANK": str(environment.node_rank()),
        "WORLD_SIZE": str(trainer.world_size),
    }
    own = {**shared, "LOCAL_RANK": "0", "RANK": str(first_rank)}
    for rank in range(first_rank + 1, first_rank + trainer.num_devices):
        _note(run_folder, rank).unlink(missing_ok=True)  # of an earlier start
    with _set_environment(own):
        others = {
            first_rank + local_rank: _start(local_rank, first_rank + local_rank, run_folder)
            for local_rank in range(1, trainer.num_devices)
        }
        yield from _watched(others, run_folder)


def _start(local_rank: int, rank: int, run_folder: RunFolder) -> subprocess.Popen[bytes]:
    """Run this process' command again as another rank."""
    overrides = [
        f'hydra.run.dir="{run_folder.path}"',
        f"hydra.job.name=train_process_{rank}",
        "hydra.output_subdir=null",
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "ldm_lightning.train", *sys.argv[1:], *overrides],
        env={
            **os.environ,
            "LOCAL_RANK": str(local_rank),
            "RANK": str(rank),
            PARENT: str(os.getpid()),
        },
    )


def _watched(
    others: Mapping[int, subprocess.Popen[bytes]], run_folder: RunFolder
) -> Iterator[None]:
    """Watch the others during the block, and end them after it."""
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(others, run_folder, over), daemon=True)
    watcher.start()
    patience = END_SECONDS
    try:
        yield
    except Exception as error:  # Ctrl-C and SIGTERM are none: the others have been told, and save
        patience = 0.0  # they wait for this process in vain
        if not is_loss_of_contact(error):
            raise
        _wait(others, GRACE_SECONDS, until=any)  # for one to say why
        _write_note_of(others, run_folder)
        cause = _first_cause(run_folder, patience=0.0) or _unexplained(error)
        raise ContactLostError(cause) from error
    finally:
        over.set()
        watcher.join()
        _end(others, patience)


def _watch(
    others: Mapping[int, subprocess.Popen[bytes]], run_folder: RunFolder, over: threading.Event
) -> None:
    """End this process too where one of the others has failed and it does not notice."""
    deadline = math.inf
    while not over.wait(POLL_SECONDS):
        now = time.monotonic()
        if any(other.poll() for other in others.values()):
            deadline = min(deadline, now + GRACE_SECONDS)
        elif any(_note(run_folder, rank).exists() for rank in others):  # its end may take long
            deadline = min(deadline, now + CAUSE_SECONDS)
        if now < deadline:
            continue
        if run_folder.read_summary().get("state") == "interrupted":
            return  # all were asked to stop; this process is ending by itself
        _write_note_of(others, run_folder)
        cause = _first_cause(run_folder, patience=0.0)
        log.error("%s", cause)
        if launched().is_first:
            run_folder.update_summary({"state": "failed", "reason": cause})
        _end(others, 0.0)
        os._exit(1)  # the main thread computes, or waits for what will not come


def _write_note_of(others: Mapping[int, subprocess.Popen[bytes]], run_folder: RunFolder) -> None:
    """Leave override for those that have failed and could not do so."""
    for rank, other in others.items():
        code = other.poll()
        if code is not None and code < 0:
            _write_note(run_folder, rank, ended_by_signal(code))
        elif code:
            _write_note(run_folder, rank, f"It ended with code {code}; what it said stands above.")


def ended_by_signal(code: int) -> str:
    """Describe a negative exit code."""
    hint = " (by hand, or because memory ran out)" if code == -signal.SIGKILL else ""
    return f"It was ended by {signal.Signals(-code).name}{hint}."


def _wait(
    others: Mapping[int, subprocess.Popen[bytes]],
    seconds: float,
    *,
    until: Callable[[Iterable[bool]], bool],
) -> None:
    """Wait until any or all of the others have ended, but no longer than that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if until(other.poll() is not None for other in others.values()):
            return
        time.sleep(POLL_SECONDS / 4)


def _end(others: Mapping[int, subprocess.Popen[bytes]], patience: float) -> None:
    """Wait for the others, and kill those that have not ended by then."""
    _wait(others, patience, until=all)
    for rank, other in others.items():
        if other.poll() is None:
            log.warning("Process %d (pid %d) has not ended, and is killed.", rank, other.pid)
            other.kill()
        other.wait()


@contextmanager
def _set_environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)  # Lightning removes WORLD_SIZE itself
            else:
                os.environ[name] = value


# In a process that was started here


def end_with_parent() -> None:
    """Let this process end when the one that started it does, however that ended.

    Where that is another process of its run, it ends at once; a job of a sweep and a step of a
    chain save first.
    """
    starter = os.environ.pop(STARTER, None)  # what this process starts has another one
    if PARENT in os.environ:
        threading.Thread(target=_watch_parent, daemon=True).start()
    elif starter is not None:
        threading.Thread(target=_watch_starter, args=(int(starter),), daemon=True).start()


def _watch_starter(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(POLL_SECONDS)
    log.error("What started this process (pid %d) was killed; this one saves and ends.", starter)
    os.kill(os.getpid(), signal.SIGTERM)


def _watch_parent() -> None:
    here, parent = launched(), int(os.environ[PARENT])
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    if here.local_rank == 1:  # one of them tells it
        log.error(
            "Process %d (pid %d) was killed; the others end too.",
            here.rank - here.local_rank,
            parent,
        )
    os._exit(1)


def _end_parent(cause: str) -> None:
    """Kill the process that started this one where it does not notice that the run is over.

    Stopped, or waiting for a disk, it could not see this one end either.
    """
    if PARENT not in os.environ:
        return
    time.sleep(2 * GRACE_SECONDS)  # _watch_parent ends this process with its parent
    parent = int(os.environ[PARENT])
    log.error("%s The process that started this one (pid %d) is killed.", cause, parent)
    os.kill(parent, signal.SIGKILL)
