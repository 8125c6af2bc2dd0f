"""A sweep on the terminal: one table that follows its jobs, or a line now and then."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live

from ldm_lightning.reporting.table import drawn_table, print_rows
from ldm_lightning.sweep.jobs import DONE
from ldm_lightning.sweep.status import Status

logger = logging.getLogger(__name__)

HEADER = ("job", "words", "state", "updates", "time", "metric", "why, and where its log is")


class SweepDisplay:
    """Show the jobs of a sweep while they run.

    On a terminal this is a table. Elsewhere (a file, CI) what happens is a log line, and the
    running jobs are one every ``plain_every_seconds``.

    Args:
        title: Said above the table.
        differing: The words that tell a job from the others, by its folder.
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
        console = Console() if console is None else console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
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
            self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)
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
        if self._live is not None:
            rows = _rows(statuses(), self.differing)
            self._live.update(drawn_table(HEADER, rows, title=self.title), refresh=True)
        else:
            logger.info("%s", _summed_up(statuses()))


def print_statuses(
    statuses: Sequence[Status],
    differing: Mapping[Path, str],
    *,
    title: str,
    console: Console | None = None,
) -> None:
    """Print one row a job: words, state, updates, time, metric, and why it is not done."""
    print_rows(HEADER, _rows(statuses, differing), title=title, console=console)


def _rows(statuses: Sequence[Status], differing: Mapping[Path, str]) -> list[tuple[str, ...]]:
    return [(status.job.name, differing[status.job.folder], *status.cells) for status in statuses]


def _summed_up(statuses: Sequence[Status]) -> str:
    """How many jobs are in each state, and where the running ones are."""
    states = Counter("done" if status.state in DONE else status.state for status in statuses)
    counts = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    running = [
        f"{status.job.name} {status.progress} {status.metric}".strip()
        for status in statuses
        if status.state == "running"
    ]
    return f"{counts}: {'; '.join(running)}" if running else counts
