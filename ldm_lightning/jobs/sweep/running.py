"""Run the jobs of a sweep that are not done, some at a time, each as a process of its own.

A job that fails or is killed does not touch the others. Ctrl-C and SIGTERM ask every job to save
and end; the second time all are killed. A sweep that is killed leaves no job behind: each looks for
it, and saves and ends without it (``ldm_lightning.distributed.processes.end_with_parent``).
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from ldm_lightning.jobs.sweep.display import SweepDisplay, print_statuses
from ldm_lightning.jobs.sweep.job_process import Command, JobProcess
from ldm_lightning.jobs.sweep.jobs import Job, differing_overrides, jobs_of
from ldm_lightning.jobs.sweep.reached import DONE, Reached, reached
from ldm_lightning.jobs.sweep.record import keep_record, only_one
from ldm_lightning.jobs.sweep.resources import Resources
from ldm_lightning.jobs.sweep.status import Status, shown_log, status_at_rest
from ldm_lightning.runs.run_folder import RunFolder

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Ended:
    """Outcome of a sweep.

    Attributes:
        statuses: One a job, in the order of the jobs.
        signal: That stopped the sweep; 0 where all jobs have ended by themselves.
        started: How many jobs were started; the others were done already, or not reached.
    """

    statuses: tuple[Status, ...]
    signal: int
    started: int

    @property
    def unfinished(self) -> tuple[Status, ...]:
        """The jobs that are not done, each once."""
        by_folder = {status.job.folder: status for status in self.statuses if not status.is_done}
        return tuple(by_folder.values())


def run_sweep(
    sweep_folder: Path,
    overrides_of_jobs: Sequence[Sequence[str]],
    *,
    command: Command,
    resources: Resources,
) -> Ended:
    """Run what is not done, show it meanwhile, and tell at the end how every job ended.

    Args:
        sweep_folder: Holds the jobs' folders.
        overrides_of_jobs: One a job; jobs with the same overrides are run once.
        command: What every job runs.
        resources: What every job gets.

    Raises:
        ValueError: If another process runs this sweep, or its jobs were computed otherwise.
    """
    with only_one(sweep_folder):
        jobs = jobs_of(sweep_folder, overrides_of_jobs)
        differing = differing_overrides(jobs)
        keep_record(sweep_folder, jobs, module=command.module, threads=resources.threads)
        with SweepDisplay(title=f"Sweep {sweep_folder}", differing=differing) as display:
            schedule = _Schedule(jobs, command, resources, display)
            number = schedule.run()
    by_folder = {job.folder: schedule.at_rest(job) for job in jobs}
    print_statuses(list(by_folder.values()), differing, title=f"Sweep {sweep_folder}")
    return Ended(
        tuple(replace(by_folder[job.folder], job=job) for job in jobs), number, schedule.started
    )


class _Schedule:
    """Keeps ``n_jobs`` jobs running until none is left."""

    def __init__(
        self, jobs: Sequence[Job], command: Command, resources: Resources, display: SweepDisplay
    ) -> None:
        self._jobs = list({job.folder: job for job in jobs}.values())
        self._waiting = [job for job in self._jobs if reached(job.folder).state not in DONE]
        self._running: dict[int, JobProcess] = {}  # by place
        self._command = command
        self._resources = resources
        self._display = display
        self._said_to_wait: set[Path] = set()
        self._refused: dict[Path, str] = {}  # by folder: why a job could not be started
        self.started = 0

    def run(self) -> int:
        """Run until all have ended; returns the signal that stopped the sweep, or 0."""
        done = len(self._jobs) - len(self._waiting)
        self._display.say(
            f"{len(self._jobs)} jobs, {done} of them done already; {self._resources}."
        )
        with _signals_counted() as received:
            asked = 0
            try:
                while self._running or (self._waiting and not received):
                    self._collect(stopped=bool(received))
                    if received:
                        asked = self._stop(asked, len(received))
                    else:
                        self._fill()
                    self._display.show(self._statuses)
                    time.sleep(POLL_SECONDS)
            except BaseException:  # a mistake of ours, or a full disk: leave no process behind
                for process in self._running.values():
                    process.stop()
                raise
            return received[0] if received else 0

    def at_rest(self, job: Job) -> Status:
        """State of a job that is not running."""
        if job.folder in self._refused:
            return Status(job, "failed", Reached("failed", self._refused[job.folder]))
        return status_at_rest(job)

    def _collect(self, *, stopped: bool) -> None:
        """Note what has ended."""
        for place, process in list(self._running.items()):
            if not process.has_ended():
                continue
            del self._running[place]
            try:
                process.note_end(stopped=stopped)
            except (OSError, ValueError) as error:  # a full disk: the others may not need any
                self._display.say(f"Not written into the summary of {process.job.name}: {error}")
            status = self.at_rest(process.job)
            self._display.say(status.line)
            if status.is_done and process.code:
                log = shown_log(process.job)
                self._display.say(f"It ended with code {process.code} after that, see {log}")

    def _fill(self) -> None:
        """Start waiting jobs in the free places."""
        for place in range(self._resources.n_jobs):
            while place not in self._running:
                job = next((job for job in self._waiting if self._is_free(job)), None)
                if job is None:
                    return
                self._waiting.remove(job)
                if reached(job.folder).state not in DONE:  # by the process that was waited for
                    self._start(job, place)

    def _start(self, job: Job, place: int) -> None:
        try:
            process = JobProcess(job, self._command, self._resources.environment(place))
        except OSError as error:
            self._refused[job.folder] = f"It could not be started: {error}"
            self._display.say(self.at_rest(job).line)
            return
        self._running[place] = process
        self.started += 1
        self._display.say(f"{job.name} started (pid {process.pid}), log: {shown_log(job)}")

    def _is_free(self, job: Job) -> bool:
        """Return whether no process writes to a job's folder, not even an orphan."""
        other = RunFolder(job.folder).writer() if job.folder.is_dir() else None
        if other is not None and job.folder not in self._said_to_wait:
            self._said_to_wait.add(job.folder)
            self._display.say(f"{job.name} waits: {other} writes to it.")
        return other is None

    def _stop(self, asked: int, number: int) -> int:
        """Ask the running jobs to end at the first signal, kill them at the next."""
        if not asked:
            self._display.say(
                f"Stopping: {len(self._running)} running, which save what they have. Once more "
                "kills them."
            )
        for process in self._running.values():
            if not asked:
                process.stop()
            elif number > 1:
                process.kill()
        return number

    def _statuses(self) -> list[Status]:
        running = {process.job.folder for process in self._running.values()}
        waiting = {job.folder for job in self._waiting}
        return [
            Status(job, "running" if job.folder in running else "waiting", reached(job.folder))
            if job.folder in running | waiting
            else self.at_rest(job)
            for job in self._jobs
        ]


@contextmanager
def _signals_counted() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM instead of dying of them; signals reach the main thread alone."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
