"""The table of runs, as the page shows it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ldm_lightning.metrics.names import OWN
from ldm_lightning.reporting.page.charts import RECONSTRUCTION
from ldm_lightning.reporting.page.labels import (
    clipped,
    digits,
    is_higher_better,
    meaning_of,
    setting_words,
    unit_of,
)
from ldm_lightning.reporting.page.protocols import Protocol, Protocols
from ldm_lightning.reporting.page.runs import Run
from ldm_lightning.reporting.page.settings import Difference
from ldm_lightning.reporting.page.summary_file import number
from ldm_lightning.utils.units import format_seconds

SETTINGS_AT_FIRST = 6
"""Settings in the table before its reader asks for every column."""

MAX_SETTINGS = 40
MAX_CELL_LETTERS, MAX_REMARK_LETTERS = 40, 500

STAGE_ORDER = ("test", "val", "gen", "prior", "latent", "perf")

DECIDING = (
    *(*RECONSTRUCTION, "high_frequency_deficit", "color_explained", "fid", "fd_tiny"),
    *("loss", "nll", "kl", "codebook_usage"),
)


def shown_at_first() -> tuple[str, ...]:
    """Metrics that decide, and those of a configuration; others come with every column."""
    return tuple(
        f"{stage}/{name}" for stage in ("test", "val", "gen") for name in (*DECIDING, *OWN)
    )


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: Its whole name.
        group: What the name begins with, written above it.
        label: The rest of the name.
        unit: Of its numbers.
        protocols: Labels of the protocols of its numbers.
        hint: What the heading means.
        is_number: Aligned to the right.
        is_extra: Shown when asked for.
    """

    key: str
    group: str = ""
    label: str = ""
    unit: str = ""
    protocols: str = ""
    hint: str = ""
    is_number: bool = False
    is_extra: bool = False


@dataclass(frozen=True)
class Cell:
    """One cell: what is read, what it is sorted by (empty sorts last), and a remark."""

    text: str
    order: str = ""
    remark: str = ""
    is_best: bool = False


@dataclass(frozen=True)
class Table:
    """Columns, and one row of cells a run."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Run, tuple[Cell, ...]], ...]
    num_hidden_settings: int


def build_table(
    runs: Sequence[Run], protocols: Protocols, differences: Sequence[Difference]
) -> Table:
    """Settings that differ, metrics with their protocol, state, device, time."""
    shown, metrics = differences[:MAX_SETTINGS], metric_names(runs)
    best = {metric: best_runs(runs, protocols, metric) for metric in metrics}
    columns = [
        Column("run", label="run"),
        Column("kind", label="kind", is_extra=len({run.kind for run in runs}) == 1),
        Column("state", label="state"),
        *(_column_of_setting(runs, one, index) for index, one in enumerate(shown)),
        *(_column_of_metric(metric, protocols) for metric in metrics),
        Column("updates", label="updates", is_number=True),
        Column("time", label="time", is_number=True, hint="over all interruptions"),
        Column("device", label="device"),
        Column("written", label="last written", unit="UTC"),
    ]
    rows = []
    for run in runs:
        cells = [Cell(run.name, str(run.number)), Cell(run.kind, run.kind)]
        cells.append(Cell(run.state, run.state, clipped(run.reason, MAX_REMARK_LETTERS)))
        cells += [_setting(run, one.key) for one in shown]
        for metric in metrics:
            is_best = run.number in best[metric]
            cells.append(_metric(run, metric, protocols, is_best=is_best))
        cells += [
            Cell("" if run.step is None else f"{run.step:,}", _order(run.step)),
            Cell("" if not run.seconds else format_seconds(run.seconds), _order(run.seconds)),
            Cell(clipped(run.device, MAX_CELL_LETTERS), run.device, run.device),
            Cell(time_text(run.written)[:-3], repr(run.written)),
        ]
        rows.append((run, tuple(cells)))
    return Table(tuple(columns), tuple(rows), len(differences) - len(shown))


def metric_names(runs: Sequence[Run]) -> list[str]:
    """All metrics of all runs, what is tested first."""
    names, first = {name for run in runs for name in run.metrics}, shown_at_first()

    def order(name: str) -> tuple[int, int, str]:
        stage = name.partition("/")[0]
        place = STAGE_ORDER.index(stage) if stage in STAGE_ORDER else len(STAGE_ORDER)
        return place, first.index(name) if name in first else len(first), name

    return sorted(names, key=order)


def best_runs(runs: Sequence[Run], protocols: Protocols, metric: str) -> set[int]:
    """Of each protocol under which several runs are done, the one with the best value."""
    higher = is_higher_better(metric)
    if higher is None:
        return set()
    groups: dict[Protocol, list[tuple[float, int]]] = {}
    for run in runs:
        value = run.metrics.get(metric)
        if run.is_done and value is not None:
            group = groups.setdefault(protocols.of(run, metric), [])
            group.append((value if higher else -value, run.number))
    return {
        max(group)[1]
        for protocol, group in groups.items()
        if len(group) > 1 and not protocol.is_small_sample
    }


def time_text(seconds: float) -> str:
    """Unix time as UTC, for people and for sorting."""
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")


def _column_of_setting(runs: Sequence[Run], one: Difference, index: int) -> Column:
    group, _, label = one.key.rpartition(".")
    return Column(
        one.key,
        group,
        label,
        hint=f"the same as {', '.join(one.also)}" if one.also else "",
        is_number=any(number(run.settings.get(one.key)) is not None for run in runs),
        is_extra=index >= SETTINGS_AT_FIRST,
    )


def _column_of_metric(metric: str, protocols: Protocols) -> Column:
    group, _, label = metric.rpartition("/")
    return Column(
        metric,
        group,
        label,
        unit=unit_of(label) or "",
        protocols=" ".join(protocol.label for protocol in protocols.used_by(metric)),
        hint=meaning_of(metric),
        is_number=True,
        is_extra=metric not in shown_at_first(),
    )


def _setting(run: Run, key: str) -> Cell:
    if key not in run.settings:
        return Cell("")
    value = run.settings[key]
    if (as_number := number(value)) is not None:
        return Cell(clipped(str(value), MAX_CELL_LETTERS), repr(as_number))
    text = "null" if value is None else str(value)
    short = clipped(setting_words(key, text)[1], MAX_CELL_LETTERS)
    return Cell(short, short, "" if short == text else clipped(text, MAX_REMARK_LETTERS))


def _metric(run: Run, metric: str, protocols: Protocols, *, is_best: bool) -> Cell:
    """The value; which protocol, where the column holds several."""
    if metric not in run.metrics:
        return Cell("")
    value = run.metrics[metric]
    if value is None:
        return Cell("not finite", remark="the run logged a number that is not finite")
    protocol = protocols.of(run, metric)
    text = f"{digits(value)}†" if protocol.is_small_sample else digits(value)
    if len(protocols.used_by(metric)) > 1:
        text = f"{text} {protocol.label}"
    remark = f"{repr(value)}; {protocol.label}: {protocol.text}"
    return Cell(text, repr(value), clipped(remark, MAX_REMARK_LETTERS), is_best)


def _order(value: float | None) -> str:
    return "" if value is None else repr(value)
