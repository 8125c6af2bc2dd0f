"""Metrics against settings that a sweep varied."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from ldm_lightning.metrics.names import OWN
from ldm_lightning.reporting.page.charts import (
    MAX_TICKS,
    RECONSTRUCTION,
    STAGES,
    Chart,
    Knot,
    Point,
    Series,
    by_protocol,
    file_name,
    scale_of,
)
from ldm_lightning.reporting.page.findings import swept_found
from ldm_lightning.reporting.page.labels import axis_label, setting_words
from ldm_lightning.reporting.page.protocols import Protocols
from ldm_lightning.reporting.page.runs import Run
from ldm_lightning.reporting.page.settings import Difference
from ldm_lightning.reporting.page.summary_file import number

SWEPT_METRICS = (*RECONSTRUCTION, "high_frequency_deficit", "kl", "codebook_usage")
SWEPT_ONCE = ("val/nll", "val/loss", "gen/fid", "gen/fd_tiny", "latent/std")

MAX_SETTINGS = 6
MAX_LINES = 8
MAX_NAMED = 4

MIN_RUNS = 3
"""Fewer are read off the table."""

MIN_RUNS_WITHOUT_LINE, MIN_VALUES_WITHOUT_LINE = 6, 4
"""Runs that differ in much else show a trend only in numbers, as those of a random search."""


ALONE, MORE = "runs that differ in it alone", "runs that differ in more"


@dataclass(frozen=True)
class _Sweep:
    """A setting that takes several numbers in some runs.

    Attributes:
        key: Its dotted key.
        following: Settings that are known where it is, and rise or fall with it.
        others: Those that are not; runs that differ in one lie on different lines.
    """

    key: str
    following: tuple[str, ...]
    others: tuple[str, ...]


def swept_charts(
    runs: Sequence[Run], protocols: Protocols, differences: Sequence[Difference]
) -> list[Chart]:
    """Each metric against each setting that takes several numbers, by setting.

    A line joins runs that differ in nothing else but the seed and what follows from the setting,
    through the mean of the seeds. Without a line, only a sweep of many values is drawn.
    """
    keys = [one.key for one in differences if one.key.rpartition(".")[2] != "seed"]
    sweeps: dict[tuple[int, ...], list[_Sweep]] = {}
    charts: dict[str, list[Chart]] = {key: [] for key in keys}
    names = [f"{stage}/{name}" for name in (*SWEPT_METRICS, *OWN) for stage in STAGES]
    for metric in (*names, *SWEPT_ONCE):
        for protocol, group in by_protocol(runs, protocols, metric):
            numbers = tuple(run.number for run in group)
            if numbers not in sweeps:
                sweeps[numbers] = _find_sweeps(group, keys)
            for sweep in sweeps[numbers]:
                lines = _lines(group, sweep, metric)
                points = [point for line in lines.values() for point in line]
                xs = sorted({point.x for point in points})
                series = _joined(lines)
                is_line = any(one.line for one in series)
                if not is_line and (
                    len(points) < MIN_RUNS_WITHOUT_LINE or len(xs) < MIN_VALUES_WITHOUT_LINE
                ):
                    continue
                charts[sweep.key].append(
                    Chart(
                        name=f"swept_{file_name(sweep.key)}_{file_name(metric)}_{protocol.label}",
                        section="Metrics against settings",
                        x_label=sweep.key,
                        y_label=axis_label(metric),
                        series=series,
                        metrics=(metric,),
                        protocols=(protocol,),
                        finding=swept_found(metric, series, protocol),
                        note=_changes_too(sweep.following),
                        group=sweep.key,
                        x_scale=scale_of(xs),
                        ticks=tuple(xs) if len(xs) <= MAX_TICKS else (),
                    )
                )
    drawn = [group for group in charts.values() if group][:MAX_SETTINGS]
    return [chart for group in drawn for chart in group]


def _find_sweeps(group: Sequence[Run], keys: Sequence[str]) -> list[_Sweep]:
    """Settings that take several numbers; of those that change together, the first."""
    if len(group) < MIN_RUNS:
        return []
    texts = {key: [repr(run.settings.get(key)) for run in group] for key in keys}
    numbers = {key: [number(run.settings.get(key)) for run in group] for key in keys}

    def goes_with(other: str, key: str) -> bool:
        is_ordered = _is_ordered(numbers[other], by=numbers[key])
        return is_ordered and _follows(texts[other], texts[key])

    varied = [key for key in keys if len(set(texts[key])) > 1]
    sweeps: list[_Sweep] = []
    for key in varied:
        is_known = any(goes_with(key, one.key) for one in sweeps)
        if len(set(numbers[key]) - {None}) > 1 and not is_known:
            rest = [other for other in varied if other != key]
            following = tuple(other for other in rest if goes_with(other, key))
            others = tuple(other for other in rest if other not in following)
            sweeps.append(_Sweep(key, following, others))
    return sweeps


def _follows(texts: Sequence[str], of: Sequence[str]) -> bool:
    """Return whether one setting is known where the other is."""
    pairs = set(zip(of, texts, strict=True))
    return len(pairs) == len({value for value, _ in pairs})


def _is_ordered(values: Sequence[float | None], *, by: Sequence[float | None]) -> bool:
    """Return whether numbers rise or fall all along; what is no number has no order to break.

    In a random search each run has a value of its own of every setting, and none follows another.
    """
    pairs = sorted(
        (x, y) for x, y in zip(by, values, strict=True) if x is not None and y is not None
    )
    ys = [y for _, y in pairs]
    return ys in (sorted(ys), sorted(ys, reverse=True))


def _lines(group: Sequence[Run], sweep: _Sweep, metric: str) -> dict[tuple[str, ...], list[Point]]:
    """Points by what else the runs differ in."""
    lines: dict[tuple[str, ...], list[Point]] = {}
    for run in group:
        x, y = number(run.settings.get(sweep.key)), run.metrics[metric]
        if x is not None and y is not None:
            same = tuple(
                "=".join(setting_words(other, run.settings.get(other))) for other in sweep.others
            )
            lines.setdefault(same, []).append(Point(run.number, x, y))
    return lines


def _joined(lines: dict[tuple[str, ...], list[Point]]) -> tuple[Series, ...]:
    """A line for each set of runs that differ in the swept setting alone; the rest as points."""
    joined = {
        same: points for same, points in lines.items() if len({point.x for point in points}) > 1
    }
    rest = tuple(point for same, points in lines.items() if same not in joined for point in points)
    if not joined or len(joined) > MAX_LINES:
        return (Series("", tuple(point for points in lines.values() for point in points)),)
    labels = _labels(list(joined)) if len(joined) > 1 or not rest else dict.fromkeys(joined, ALONE)
    series = []
    for style, (same, points) in enumerate(joined.items()):
        knots = []
        for x in sorted({point.x for point in points}):
            ys = [point.y for point in points if point.x == x]
            knots.append(Knot(x, fmean(ys), min(ys), max(ys)))
        series.append(Series(labels[same], tuple(points), tuple(knots), style))
    if rest:
        series.append(Series(MORE, rest, style=len(joined)))
    return tuple(series)


def _labels(lines: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """As few settings as tell the lines apart."""
    chosen: list[int] = []
    for place in range(len(lines[0])):
        told = {tuple(same[index] for index in chosen) for same in lines}
        more = {tuple(same[index] for index in (*chosen, place)) for same in lines}
        if len(more) > len(told):
            chosen.append(place)
    return {same: ", ".join(same[index] for index in chosen) for same in lines}


def _changes_too(keys: Sequence[str]) -> str:
    """Name the settings that change together with the one that is drawn."""
    if not keys:
        return ""
    more = f" and {len(keys) - MAX_NAMED} more" if len(keys) > MAX_NAMED else ""
    return f"With it change: {', '.join(keys[:MAX_NAMED])}{more}."
