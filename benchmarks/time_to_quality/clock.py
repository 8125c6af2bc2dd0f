"""Time of training alone, and turns that processes take so that other work slows all alike."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.device import now

TURN_OVER = "turn over"


@dataclass(frozen=True)
class Time:
    """Seconds on a clock and of the processor; can be added and subtracted.

    Of the processor in this process and in those it has waited for, such as readers of images.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @classmethod
    def now(cls) -> "Time":
        """Read both."""
        return cls(time.perf_counter(), sum(os.times()[:4]))

    def __add__(self, other: "Time") -> "Time":
        return Time(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)

    def __sub__(self, other: "Time") -> "Time":
        return Time(self.seconds - other.seconds, self.cpu_seconds - other.cpu_seconds)


class TrainingClock:
    """Runs while a network is trained, stands while it is measured or another process trains.

    Args:
        limit: Seconds of training.
        turn_seconds: Length of a turn; 0 takes none. At its end the process prints ``TURN_OVER``
            and waits for a line. The first turn begins with such a line too.
    """

    def __init__(self, limit: float, *, turn_seconds: float = 0.0) -> None:
        self.limit = limit
        self.turn_seconds = turn_seconds
        self._before = Time()
        self._since: Time | None = None
        self._turn_ends = 0.0

    @property
    def time(self) -> Time:
        """Trained so far."""
        return self._before + (Time() if self._since is None else Time.now() - self._since)

    @property
    def fraction(self) -> float:
        """Of the limit."""
        return self.time.seconds / self.limit

    def run(self) -> None:
        """Go on."""
        assert self._since is None
        self._since = Time.now()

    def stand(self) -> None:
        """Stop until ``run``."""
        now()  # waits for a GPU
        self._before, self._since = self.time, None

    def wait_for_turn(self) -> None:
        """Begin a turn when it comes; the clock stands.

        Raises:
            SystemExit: If whoever gives turns is gone.
        """
        if self.turn_seconds:
            if not sys.stdin.readline():
                sys.exit("The race has ended.")
            self._turn_ends = self.time.seconds + self.turn_seconds

    def give_turn(self) -> None:
        """Let others train if this turn is over; the clock runs."""
        if self.turn_seconds and self.time.seconds >= self._turn_ends:
            self.stand()
            print(TURN_OVER, flush=True)
            self.wait_for_turn()
            self.run()

    def timed(self, work: Callable[[], object]) -> None:
        """Count something that is done before training as training."""
        self.run()
        work()
        self.stand()
