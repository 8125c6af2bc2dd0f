"""Conclusions from a figure, in a sentence or two."""

from collections import Counter
from collections.abc import Mapping, Sequence

from ldm_lightning.reporting.page.charts import Knot, Point, Series
from ldm_lightning.reporting.page.labels import axis_number, digits, is_higher_better, unit_of
from ldm_lightning.reporting.page.protocols import NOT_RECORDED, Protocol

MAX_NAMED = 8

SMALL_SAMPLE = "Small sample: nothing is ranked by it."
NO_PROTOCOL = "How these numbers were made was not recorded; runs may differ in it."
ONE_SEED = "One run a point: how far seeds lie apart is unknown."
NO_LINE = "No two runs differ in this setting alone: other settings may be the cause."


def front_found(front: Sequence[Point], num_points: int, protocols: Sequence[Protocol]) -> str:
    """Name the runs on the Pareto front."""
    if any(protocol.is_small_sample for protocol in protocols):
        return SMALL_SAMPLE
    runs = sorted(point.run for point in front)
    if len(runs) == 1:
        found = f"Run {runs[0]} is the best in both directions."
    elif len(runs) == num_points:
        found = "Each run pays for one with the other: none is better than another in both."
    else:
        found = f"No run is better in both directions than runs {_listed(runs)}."
    return _with_caution(found, protocols)


def swept_found(metric: str, series: Sequence[Series], protocol: Protocol) -> str:
    """Trends of lines, against the spread of runs of one setting."""
    lines = [one.line for one in series if one.line]
    if protocol.is_small_sample:
        return SMALL_SAMPLE
    if not lines:
        return _with_caution(NO_LINE, [protocol])
    spread = max(knot.high - knot.low for line in lines for knot in line)
    # Not from end to end: a line may have its best place in the middle.
    change = max(max(knot.y for knot in line) - min(knot.y for knot in line) for line in lines)
    found = _one_line(metric, lines[0]) if len(lines) == 1 else _many_lines(metric, lines)
    if spread > 0:
        more = ", no less than the change" if spread >= change else ""
        found += f" Runs that differ in the seed alone lie up to {digits(spread)} apart{more}."
    elif all(len(one.points) == len(one.line) for one in series if one.line):
        found += f" {ONE_SEED}"
    return _with_caution(found, [protocol])


def curve_told(metric: str, curve: Sequence[Knot]) -> str:
    """From where to where one run went."""
    first, last = curve[0], curve[-1]
    found = (
        f"From {digits(first.y)} at update {first.x:,.0f} to {_value(metric, last.y)} at "
        f"{last.x:,.0f}."
    )
    best = _best(curve, is_higher_better(metric))
    if best is not None and digits(best.y) != digits(last.y):
        found += f" Best: {digits(best.y)} at {best.x:,.0f}."
    return found


def curve_found(
    metric: str, curves: Mapping[int, Sequence[Knot]], protocol: Protocol | None
) -> str:
    """Ends of runs; ``curves`` by the number of the run."""
    if len(curves) == 1:
        ((run, curve),) = curves.items()
        return f"Run {run}. {curve_told(metric, curve)}"
    better = is_higher_better(metric)
    if protocol is not None and protocol.is_small_sample:
        return SMALL_SAMPLE
    ends = sorted((curve[-1].y, run) for run, curve in curves.items())
    (lowest, low_run), (highest, high_run) = ends[0], ends[-1]
    if better is None:
        return (
            f"Last values lie between {digits(lowest)} (run {low_run}) and "
            f"{_value(metric, highest)} (run {high_run})."
        )
    best_end, worst_end = (ends[-1], ends[0]) if better else (ends[0], ends[-1])
    return (
        f"Last values: run {best_end[1]} is best with {_value(metric, best_end[0])}, run "
        f"{worst_end[1]} worst with {digits(worst_end[0])}."
    )


def _one_line(metric: str, line: Sequence[Knot]) -> str:
    first, last = line[0], line[-1]
    if len({knot.y for knot in line}) == 1:
        return f"It stays at {_value(metric, last.y)}."
    found = (
        f"From {axis_number(first.x)} to {axis_number(last.x)} it {_way(line)}: {digits(first.y)} "
        f"to {_value(metric, last.y)}."
    )
    best = _best(line, is_higher_better(metric))
    return found if best is None else f"{found} Best at {axis_number(best.x)}."


def _many_lines(metric: str, lines: Sequence[Sequence[Knot]]) -> str:
    ways = Counter(_way(line) for line in lines)
    if len(ways) == 1:
        found = f"From left to right it {next(iter(ways))} along all {len(lines)} lines."
    else:
        told = [f"{way} along {count}" for way, count in ways.items()]
        found = f"From left to right it {', '.join(told)} of {len(lines)} lines."
    better = is_higher_better(metric)
    bests = Counter(best.x for line in lines if (best := _best(line, better)) is not None)
    if len(bests) == 1:
        return f"{found} Best at {axis_number(next(iter(bests)))} on all."
    places = [f"at {axis_number(x)} on {count}" for x, count in bests.most_common(MAX_NAMED)]
    return f"{found} Best {', '.join(places)}." if places else found


def _way(line: Sequence[Knot]) -> str:
    """Trend of a line; ``rises`` and ``falls`` are for those that do so all along."""
    ys = [knot.y for knot in line]
    if ys[-1] == ys[0]:
        return "ends where it began"
    if ys == sorted(ys):
        return "rises"
    if ys == sorted(ys, reverse=True):
        return "falls"
    return "ends higher" if ys[-1] > ys[0] else "ends lower"


def _best(line: Sequence[Knot], better: bool | None) -> Knot | None:
    if better is None:
        return None
    return max(line, key=lambda knot: knot.y) if better else min(line, key=lambda knot: knot.y)


def _value(metric: str, value: float) -> str:
    unit = unit_of(metric)
    return f"{digits(value)} {unit}" if unit else digits(value)


def _listed(runs: Sequence[int]) -> str:
    if len(runs) > MAX_NAMED:
        return f"{', '.join(map(str, runs[:MAX_NAMED]))} and {len(runs) - MAX_NAMED} more"
    return f"{', '.join(map(str, runs[:-1]))} and {runs[-1]}"


def _with_caution(found: str, protocols: Sequence[Protocol]) -> str:
    if any(protocol.text == NOT_RECORDED for protocol in protocols):
        return f"{found} {NO_PROTOCOL}"
    return found
