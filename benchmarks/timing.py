"""Times ways of doing one thing side by side, so that a busy machine slows all of them alike.

In every round each way runs once, one after the other; what is compared is the ratio within a
round. The first round warms up and counts for nothing.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.device import now


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of a sample."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Timings:
    """Seconds of each way in each round.

    Attributes:
        seconds: By way; all lists are as long as there were rounds.
    """

    seconds: Mapping[str, list[float]]

    @property
    def num_rounds(self) -> int:
        """Rounds that count."""
        return len(next(iter(self.seconds.values())))

    def spread(self, way: str) -> Spread:
        """Seconds of a way."""
        return Spread.of(self.seconds[way])

    def ratio(self, way: str, reference: str) -> Spread:
        """Time of a way over that of another, paired by round."""
        pairs = zip(self.seconds[way], self.seconds[reference], strict=True)
        return Spread.of([ours / theirs for ours, theirs in pairs])


def time_in_turn(ways: Mapping[str, Callable[[], object]], *, num_rounds: int) -> Timings:
    """Run every way once a round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(num_rounds + 1):
        for name, run in ways.items():
            start = now()
            run()
            if number:
                seconds[name].append(now() - start)
    return Timings(seconds)
