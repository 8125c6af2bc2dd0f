"""Ratios of times to equal quality, and the curves that they are read from."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.ours import OURS
from benchmarks.time_to_quality.measuring import METRICS, Point
from benchmarks.time_to_quality.training import ARMS, ORIGINAL, SEARCH, WITHOUT
from experiments.figures import COLORS, drawn

THIRDS = (1 / 3, 2 / 3, 1.0)
"""Fractions of the minutes at which the original's quality is taken: 5, 10 and 15 of 15."""

NAMES = {"psnr": "PSNR in dB", "perceptual_tiny": "perceptual_tiny", "rfd_tiny": "rfd_tiny"}


@dataclass(frozen=True)
class Ratio:
    """Time in which ours is as good as the original, over the original's.

    Attributes:
        case: The experiment.
        against: The original's arm.
        seed: Of both.
        minutes: That the runs were given.
        after_minutes: At which the original's quality was taken.
        value: Infinite where ours never has all three values at once.
    """

    case: str
    against: str
    seed: int
    minutes: float
    after_minutes: float
    value: float


def ratios(points: Sequence[Point], *, clock: str = "seconds") -> list[Ratio]:
    """Every ratio that can be told, paired by case, seed and minutes.

    Args:
        points: Of all arms.
        clock: ``seconds``, or ``cpu_seconds`` where other work shared the cores.
    """
    found = []
    runs = sorted({(point.case, point.seed, point.minutes) for point in points})
    for case, seed, minutes in runs:
        of_arm = {
            arm: [
                point
                for point in points
                if (point.case, point.seed, point.minutes, point.arm) == (case, seed, minutes, arm)
            ]
            for arm in ARMS
        }
        for against in (ORIGINAL, WITHOUT):
            if not of_arm[OURS] or not of_arm[against]:
                continue
            for fraction in THIRDS:
                goal = _at(of_arm[against], fraction * minutes * 60)
                if goal is None:
                    continue
                reached = [
                    getattr(point, clock) for point in of_arm[OURS] if _is_as_good(point, goal)
                ]
                value = min(reached, default=math.inf) / getattr(goal, clock)
                found.append(Ratio(case, against, seed, minutes, fraction * minutes, value))
    return found


def _at(points: Sequence[Point], seconds: float) -> Point | None:
    """The first point of a run at or after a time; None where the run did not get there."""
    later = [point for point in points if point.seconds >= seconds * 0.999]
    return min(later, key=lambda point: point.seconds, default=None)


def _is_as_good(point: Point, goal: Point) -> bool:
    """Return whether a point has all values of another one at once."""
    return all(
        getattr(point, name) >= getattr(goal, name)
        if more_is_better
        else getattr(point, name) <= getattr(goal, name)
        for name, more_is_better in METRICS.items()
    )


def best_rate(points: Sequence[Point], case: str) -> float | None:
    """The learning rate of a search whose ranks in the three metrics sum to the least at its end.

    Of equal sums the lower perceptual distance decides. None where nothing was searched.
    """
    searched = [point for point in points if (point.case, point.arm) == (case, SEARCH)]
    ends = {
        rate: max(
            (point for point in searched if point.learning_rate == rate),
            key=lambda point: point.seconds,
        )
        for rate in {point.learning_rate for point in searched}
    }
    ranks = dict.fromkeys(ends, 0)
    for name in METRICS:
        for rank, rate in enumerate(sorted(ends, key=lambda rate: _badness(ends[rate], name))):
            ranks[rate] += rank
    return min(ends, key=lambda rate: (ranks[rate], ends[rate].perceptual_tiny), default=None)


def _badness(point: Point, name: str) -> float:
    """A metric of a point, less being better; infinite where it is not a number."""
    value = -getattr(point, name) if METRICS[name] else getattr(point, name)
    return math.inf if math.isnan(value) else value


def print_ratios(found: Sequence[Ratio]) -> None:
    """A table with the median and the spread over seeds."""
    table = Table(title="time of ours to the original's quality / the original's time")
    for name in ("case", "against", "minutes", "of", "median", "from", "to", "seeds"):
        table.add_column(name)
    groups: dict[tuple[str, str, float, float], list[float]] = {}
    for one in found:
        group = (one.case, one.against, one.minutes, one.after_minutes)
        groups.setdefault(group, []).append(one.value)
    for (case, against, minutes, after), values in sorted(groups.items()):
        spread = (statistics.median(values), min(values), max(values))
        cells = ["never" if math.isinf(value) else f"{value:.3f}" for value in spread]
        table.add_row(case, against, f"{after:.3g}", f"{minutes:g}", *cells, str(len(values)))
    Console().print(table)


def draw_curves(points: Sequence[Point], path: Path) -> None:
    """Each metric against training seconds: a row a case, a line a run."""
    cases = sorted({point.case for point in points if point.arm != SEARCH})
    with drawn(path, width=11, height=2.6 * max(1, len(cases))) as figure:
        axes = figure.subplots(max(1, len(cases)), len(METRICS), squeeze=False)
        for row, case in enumerate(cases):
            for column, name in enumerate(METRICS):
                panel = axes[row, column]
                for color, arm in zip(COLORS, ARMS, strict=False):
                    runs = {
                        (point.seed, point.minutes)
                        for point in points
                        if (point.case, point.arm) == (case, arm)
                    }
                    for number, (seed, minutes) in enumerate(sorted(runs)):
                        line = sorted(
                            (point.seconds, getattr(point, name))
                            for point in points
                            if (point.case, point.arm, point.seed, point.minutes)
                            == (case, arm, seed, minutes)
                        )
                        panel.plot(
                            [seconds for seconds, _ in line],
                            [value for _, value in line],
                            color=color,
                            marker=".",
                            label=arm if number == 0 else None,
                        )
                panel.set_xscale("symlog", linthresh=5)
                panel.set_title(f"{case}: {NAMES[name]}")
                panel.set_xlabel("training seconds")
        axes[0, 0].legend()
