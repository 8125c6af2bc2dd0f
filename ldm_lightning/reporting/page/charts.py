"""Content of a figure, as points, apart from its drawing.

A chart holds numbers of one protocol an axis: runs that were measured in another way get a chart of
their own. Only runs that are done are compared; curves show the others too.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ldm_lightning.reporting.page.protocols import Protocol, Protocols
from ldm_lightning.reporting.page.runs import Run

STAGES = ("test", "val")
PERCEPTUAL = ("lpips", "lpips_vgg", "perceptual_tiny")
FRECHET = ("rfid", "rfd_tiny")
RECONSTRUCTION = ("psnr", *PERCEPTUAL, *FRECHET)

MAX_PROTOCOLS = 3
"""Charts of one kind; those of the protocols with the most runs are drawn."""

MAX_TICKS = 7
"""Values that an axis names one by one; of more, it names what it likes."""

WIDE_RANGE = 30.0
"""Values that span more than this go on a logarithmic axis."""

MAX_NAME_LETTERS = 60


@dataclass(frozen=True)
class Point:
    """One number of one run; ``run`` is its number in the report."""

    run: int
    x: float
    y: float


@dataclass(frozen=True)
class Knot:
    """Points of a line: the mean of several runs at one place, and their lowest and highest."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """Points of one color; ``line`` is drawn through where there is one.

    ``style`` chooses color, marker and dash: what is the same in two figures has the same.
    """

    label: str
    points: tuple[Point, ...]
    line: tuple[Knot, ...] = ()
    style: int = 0


@dataclass(frozen=True)
class Chart:
    """A figure before it is drawn.

    Attributes:
        name: Of its files.
        section: Under which heading it stands.
        group: Under which smaller heading; empty where there is none.
        x_label: Horizontal axis, with the unit.
        y_label: Vertical axis, likewise.
        series: What is drawn.
        metrics: Whose meaning the caption tells.
        protocols: How the numbers were made; of x first, where it was measured.
        finding: What to conclude.
        note: What was left out or changes too.
        front: The runs that none is better than in both directions, in the order of x.
        x_scale: ``linear``, ``log``, or ``symlog``, which has a zero.
        y_scale: ``linear`` or ``log``.
        ticks: Places that the horizontal axis names; empty where any will do.
        legend: What the labels of the series tell; empty where they say it themselves.
    """

    name: str
    section: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    metrics: tuple[str, ...]
    protocols: tuple[Protocol, ...] = ()
    finding: str = ""
    note: str = ""
    group: str = ""
    front: tuple[Point, ...] = ()
    x_scale: str = "linear"
    y_scale: str = "linear"
    ticks: tuple[float, ...] = ()
    legend: str = ""

    @property
    def title(self) -> str:
        """One line for those who do not see the figure."""
        return f"{self.y_label}, against {self.x_label}"


def by_protocol(
    runs: Sequence[Run], protocols: Protocols, metric: str
) -> list[tuple[Protocol, list[Run]]]:
    """Runs that are done, by how they made one metric; the protocols with the most runs."""
    groups: dict[Protocol, list[Run]] = {}
    for run in runs:
        if run.is_done and run.metrics.get(metric) is not None:
            groups.setdefault(protocols.of(run, metric), []).append(run)
    return sorted(groups.items(), key=lambda item: -len(item[1]))[:MAX_PROTOCOLS]


def scale_of(values: Iterable[float]) -> str:
    """Logarithmic for powers of two or ten and for wide ranges, as sweeps take them."""
    known = sorted(set(values))
    positive = [value for value in known if value > 0]
    if known[0] < 0 or len(positive) < 2:
        return "linear"
    powers = all(math.log2(value).is_integer() for value in positive) or all(
        math.isclose(math.log10(value), round(math.log10(value))) for value in positive
    )
    if positive[-1] / positive[0] <= WIDE_RANGE and not (powers and len(positive) > 2):
        return "linear"
    return "log" if len(positive) == len(known) else "symlog"


def file_name(text: str) -> str:
    """Letters, digits and dashes alone: what comes from a configuration becomes part of a path."""
    safe = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text)
    return safe[:MAX_NAME_LETTERS]
