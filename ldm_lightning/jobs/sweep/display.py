"""A sweep on the terminal: one table that follows its jobs, or a line now and then."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live

from ldm_lightning.jobs.sweep.reached import DONE
from ldm_lightning.jobs.sweep.remaining import Remaining
from ldm_lightning.jobs.sweep.status import Status
from ldm_lightning.reporting.table import drawn_table, print_rows
from ldm_lightning.utils.terminal import printable
from ldm_lightning.utils.units import format_seconds

logger = logging.getLogger(__name__)

HEADER = ("job", "overrides", "state", "updates", "time", "metric", "why (log)")

WIDE_COLUMNS = 100
"""A terminal that is narrower follows only what NARROW names; why a job failed stands above."""

NARROW = ("overrides", "state", "updates", "metric")

LINES_AROUND = 7
"""Of a table: its title, its frame, its header, and what the cursor needs."""

URGENCY = {"running": 0, "failed": 1, "interrupted": 1, "waiting": 2}
"""What is shown first where a terminal is too low for all jobs; what is done comes last."""


class SweepDisplay:
    """Show the jobs of a sweep while they run.

    On a terminal this is a table. Elsewhere (a file, CI) what happens is a log line, and the
    running jobs are one every ``plain_every_seconds``.

    Args:
        title: Said above the table.
        differing: The overrides that tell a job from the others, by its folder.
        plain_every_seconds: Pause between two lines where there is no terminal.
        console: Where to show; the terminal by default.
    """

    def __init__(
        self,
        *,
        title: str,
        differing: Mapping[Path, str],
        plain_every_seconds: float = 30.0,
        console: Console | None = None,
    ) -> None:
        self.title = title
        self.differing = differing
        self._console = console = Console() if console is None else console
        # Gone at the end, when print_statuses says how all have ended.
        live = Live(console=console, auto_refresh=False, transient=True)
        self._live = live if console.is_terminal else None
        self._remaining = Remaining()
        self._pause = 1.0 if self._live is not None else plain_every_seconds
        self._shown = time.monotonic()

    def __enter__(self) -> SweepDisplay:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """Say what has happened: above the table, or as a log line."""
        if self._live is not None:
            self._live.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
        else:
            logger.info("%s", line)

    def show(self, statuses: Callable[[], Sequence[Status]]) -> None:
        """Show where the jobs stand, once in a while.

        Args:
            statuses: Reads the jobs' folders; called only when it is time.
        """
        now = time.monotonic()
        if now - self._shown < self._pause:
            return
        self._shown = now
        found = statuses()
        counted = _counted(found, self._remaining.seconds(found))
        if self._live is None:
            logger.info("%s", _with_running(counted, found))
            return
        rows = _rows(_most_urgent(found, self._places), self.differing)
        title = f"{self.title}: {counted}"
        header = HEADER if self._console.width >= WIDE_COLUMNS else NARROW
        kept = [[row[HEADER.index(column)] for column in header] for row in rows]
        self._live.update(drawn_table(header, kept, title=title), refresh=True)

    @property
    def _places(self) -> int:
        """Number of jobs that the terminal has lines for."""
        return max(1, self._console.height - LINES_AROUND)


def print_statuses(
    statuses: Sequence[Status],
    differing: Mapping[Path, str],
    *,
    title: str,
    console: Console | None = None,
) -> None:
    """Print one row a job: overrides, state, updates, time, metric, and why it is not done."""
    print_rows(HEADER, _rows(statuses, differing), title=title, console=console)


def _rows(statuses: Sequence[Status], differing: Mapping[Path, str]) -> list[tuple[str, ...]]:
    return [(status.job.name, differing[status.job.folder], *status.cells) for status in statuses]


def _most_urgent(statuses: Sequence[Status], places: int) -> list[Status]:
    """So many of the jobs, in their order."""
    urgency = [URGENCY.get(status.state, len(URGENCY)) for status in statuses]
    chosen = sorted(range(len(statuses)), key=lambda i: (urgency[i], i))[:places]
    return [statuses[i] for i in sorted(chosen)]


def _counted(statuses: Sequence[Status], seconds_left: float | None) -> str:
    """Line of job counts by state, with the remaining time."""
    states = Counter("done" if status.state in DONE else status.state for status in statuses)
    counts = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    left = "" if seconds_left is None else f", about {format_seconds(seconds_left)} left"
    return counts + left


def _with_running(counted: str, statuses: Sequence[Status]) -> str:
    running = [
        f"{status.job.name} {status.progress} {status.metric}".strip()
        for status in statuses
        if status.state == "running"
    ]
    return f"{counted}: {'; '.join(running)}" if running else counted
