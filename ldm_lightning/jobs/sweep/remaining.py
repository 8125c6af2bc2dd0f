"""Remaining time of a sweep, from how far its jobs have come since it was started."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ldm_lightning.jobs.sweep.status import Status

LEAST_FRACTION = 0.02
"""Of one job: before as much is done, loading and compiling count for too much."""


class Remaining:
    """Estimate the time left; of jobs that take equally long, or nearly so.

    Args:
        clock: Seconds of whatever origin.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._before: dict[Path, float] = {}

    def seconds(self, statuses: Sequence[Status]) -> float | None:
        """Time until the last job is done; None where nothing is left or nothing tells.

        Args:
            statuses: One a job. What failed is not waited for, and counts for nothing.
        """
        shares = {
            status.job.folder: status.reached.share or 0.0
            for status in statuses
            if status.is_done or status.state in ("waiting", "running")
        }
        for folder, share in shares.items():  # a job done before this start has gained nothing
            self._before.setdefault(folder, share)
        gained = sum(share - self._before[folder] for folder, share in shares.items())
        left = sum(1.0 - share for share in shares.values())
        if gained < LEAST_FRACTION or not left:
            return None
        return left * (self._clock() - self._start) / gained
