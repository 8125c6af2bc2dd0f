"""A job as a process of its own: its command, its environment, its log, how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ldm_lightning.distributed.processes import STARTER, ended_by_signal
from ldm_lightning.jobs.sweep.jobs import Job
from ldm_lightning.jobs.sweep.reached import DONE, reached
from ldm_lightning.runs.overrides import key_of, path_override
from ldm_lightning.runs.run_folder import RunFolder

TAIL_BYTES = 4096
"""How much of a log is read to find its last line."""

LOG = "job.log"
"""What a job says, over all its starts; in its folder."""


@dataclass(frozen=True)
class Command:
    """The process of one job of a sweep.

    Attributes:
        module: Run by ``python -m``.
        options: Overrides of the sweep's command line that count for its jobs' Hydra.
    """

    module: str
    options: tuple[str, ...] = ()

    def overrides(self, job: Job) -> list[str]:
        """Return the command line that begins a job, or continues it.

        A continued job has its overrides stored. Those that name classes are given again, because a
        stored one is built only where its package allows it or the command names it.
        """
        own = list(job.overrides)
        if job.has_begun:
            own = [path_override("resume", job.folder), *filter(_names_classes, job.overrides)]
        folder = path_override("hydra.run.dir", job.folder)
        # An experiment that asks for -m by itself would make every job a sweep.
        return [sys.executable, "-m", self.module, *self.options, *own, "hydra.mode=RUN", folder]


def _names_classes(override: str) -> bool:
    """Tell whether an override names a class of the user's own, or a package that he trusts."""
    key = key_of(override)
    return key.rpartition(".")[2] == "_target_" or key == "trusted_packages"


class JobProcess:
    """Start a job.

    Args:
        job: Its folder is made.
        command: What to run.
        variables: Environment variables that it gets besides those of this process.

    Raises:
        OSError: If the disk is full, or the machine takes no more processes.
    """

    def __init__(self, job: Job, command: Command, variables: Mapping[str, str]) -> None:
        self.job = job
        job.folder.mkdir(parents=True, exist_ok=True)
        self._summary_before = _changed(job.folder / "summary.json")
        with (job.folder / LOG).open("ab") as log:
            self._log_before = log.tell()
            self._process = subprocess.Popen(
                command.overrides(job),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Unbuffered, so that its log can be followed, and is whole if it is killed.
                env={
                    **os.environ,
                    "PYTHONUNBUFFERED": "1",
                    **variables,
                    STARTER: str(os.getpid()),
                },
                # Ctrl-C in the terminal reaches the sweep alone, which then tells its jobs.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.returncode

    def has_ended(self) -> bool:
        """Return whether it has ended by now."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """Ask it to save and end."""
        self._process.terminate()

    def kill(self) -> None:
        """End it and the processes it has started, now."""
        if not self.has_ended():
            os.killpg(self._process.pid, signal.SIGKILL)

    def note_end(self, *, stopped: bool) -> None:
        """Write into ``summary.json`` how an ended job ended where it could not do so itself.

        Args:
            stopped: Whether the sweep has asked it to.

        Raises:
            OSError: If the disk is full.
            ValueError: If the summary is damaged.
        """
        summary = self.job.folder / "summary.json"
        state = reached(self.job.folder).state
        code = self._process.returncode
        said = _changed(summary) != self._summary_before and state not in (None, "running")
        if state in DONE or said:
            return
        if stopped:
            RunFolder.create(self.job.folder).update_summary({"state": "interrupted"})
            return
        reason = ended_by_signal(code) if code < 0 else self._last_line()
        RunFolder.create(self.job.folder).update_summary({"state": "failed", "reason": reason})

    def _last_line(self) -> str:
        """The last line of its log."""
        with (self.job.folder / LOG).open("rb") as log:
            log.seek(max(self._log_before, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "It said nothing.")


def _changed(path: Path) -> int | None:
    """Time of a file's last change; None where there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None
