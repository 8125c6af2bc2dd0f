"""A job of a sweep as its user sees it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ldm_lightning.jobs.sweep.job_process import LOG
from ldm_lightning.jobs.sweep.jobs import Job
from ldm_lightning.jobs.sweep.reached import DONE, Reached, reached
from ldm_lightning.utils.units import format_seconds


@dataclass(frozen=True)
class Status:
    """State of a job.

    Attributes:
        job: The job.
        state: ``waiting``, ``running``, or the state of its run once nobody works on it.
        reached: What its folder says.
    """

    job: Job
    state: str
    reached: Reached

    @property
    def is_done(self) -> bool:
        """True if there is nothing left to do."""
        return self.state in DONE

    @property
    def progress(self) -> str:
        """Updates done, of how many; of a chain, in which step."""
        parts = [self.reached.part] if self.reached.part else []
        if self.reached.max_steps is not None:
            parts.append(f"{self.reached.step} of {self.reached.max_steps}")
        return " ".join(parts)

    @property
    def metric(self) -> str:
        """The monitored metric, where it was measured."""
        if self.reached.value is None:
            return ""
        return f"{self.reached.monitor} {self.reached.value:.4g}"

    @property
    def note(self) -> str:
        """Reason why it is not done, with the path of its log."""
        if self.is_done or self.state in ("waiting", "running"):
            return ""
        reason = " ".join(self.reached.reason.split()) or "stopped before its end"
        return f"{reason} ({shown_log(self.job)})"

    @property
    def cells(self) -> tuple[str, ...]:
        """One row of a table, without the job's overrides."""
        time = format_seconds(self.reached.seconds) if self.reached.seconds else ""
        return (self.state, self.progress, time, self.metric, self.note)

    @property
    def line(self) -> str:
        """One line that says all of it."""
        parts = (self.progress, self.metric, self.note)
        return f"{self.job.name} {self.state}: {', '.join(part for part in parts if part)}"


def shown_log(job: Job) -> Path:
    """Path of a job's log, relative where that is shorter."""
    log, here = job.folder / LOG, Path.cwd()
    return log.relative_to(here) if log.is_relative_to(here) else log


def status_at_rest(job: Job) -> Status:
    """The status of a job that no process of this sweep works on."""
    found = reached(job.folder)
    state = found.state or "waiting"
    # A run that was killed together with its sweep could not say so.
    return Status(job, "interrupted" if state == "running" else state, found)
