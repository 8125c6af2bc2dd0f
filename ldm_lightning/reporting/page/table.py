"""The table of runs, as the page shows it and as ``results.csv`` holds it."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ldm_lightning.metrics.names import describe
from ldm_lightning.reporting.page.charts import bits_per_pixel, elements_per_pixel
from ldm_lightning.reporting.page.protocols import Protocols
from ldm_lightning.reporting.page.runs import Run, Setting
from ldm_lightning.reporting.page.settings import Difference, numeric
from ldm_lightning.utils.units import format_seconds

SHOWN_AT_FIRST = 8
"""Settings in the table before its reader asks for all of them."""

MAX_SETTINGS = 40

STAGE_ORDER = ("test", "val", "gen", "prior", "latent", "perf")


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        label: Its heading.
        hint: What the heading means.
        is_number: Aligned to the right.
        is_extra: Shown when asked for.
    """

    label: str
    hint: str = ""
    is_number: bool = False
    is_extra: bool = False


@dataclass(frozen=True)
class Cell:
    """One cell: what is read, what it is sorted by (empty sorts last), and a remark."""

    text: str
    order: str = ""
    remark: str = ""


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
    shown = differences[:MAX_SETTINGS]
    metrics = _metrics(runs)
    labels = {
        metric: " ".join(protocol.label for protocol in protocols.used_by(metric))
        for metric in metrics
    }
    columns = [Column("run"), Column("kind"), Column("state")]
    for index, difference in enumerate(shown):
        also = f"also {', '.join(difference.also)}" if difference.also else ""
        numbers = any(numeric(run.settings.get(difference.key)) is not None for run in runs)
        columns.append(Column(difference.key, also, numbers, index >= SHOWN_AT_FIRST))
    for metric in metrics:
        columns.append(Column(f"{metric} [{labels[metric]}]", _meaning(metric), is_number=True))
    columns += [
        Column("updates", is_number=True),
        Column("time", is_number=True),
        Column("device"),
        Column("last written (UTC)"),
    ]
    rows = []
    for run in runs:
        cells = [Cell(run.name, str(run.number)), Cell(run.kind, run.kind)]
        cells.append(Cell(run.state, run.state, run.reason))
        for difference in shown:
            cells.append(_setting(run, difference.key))
        for metric in metrics:
            cells.append(_metric(run, metric, protocols, is_mixed=" " in labels[metric]))
        cells += [
            Cell("" if run.step is None else f"{run.step:,}", _order(run.step)),
            Cell("" if not run.seconds else format_seconds(run.seconds), _order(run.seconds)),
            Cell(run.device, run.device),
            Cell(_time(run.written), repr(run.written)),
        ]
        rows.append((run, tuple(cells)))
    return Table(tuple(columns), tuple(rows), len(differences) - len(shown))


def results_csv(
    runs: Sequence[Run], protocols: Protocols, differences: Sequence[Difference]
) -> str:
    """Everything as one row a run, at full precision.

    Each metric is followed by the protocol it was made with; a value that was not finite is
    ``not finite``.
    """
    metrics = _metrics(runs)
    header = ["number", "name", "folder", "kind", "state", "reason", "updates", "seconds", "device"]
    header += ["written", "elements_per_pixel", "bits_per_pixel"]
    header += [difference.key for difference in differences]
    for metric in metrics:
        header += [metric, f"{metric} protocol"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for run in runs:
        row: list[Any] = [
            run.number,
            run.name,
            run.place,
            run.kind,
            run.state,
            run.reason,
            run.step,
        ]
        row += [run.seconds, run.device, _time(run.written)]
        row += [elements_per_pixel(run), bits_per_pixel(run)]
        row += [run.settings.get(difference.key) for difference in differences]
        for metric in metrics:
            value = run.metrics.get(metric)
            if value is not None:
                row += [repr(value), protocols.of(run, metric).text]
            else:
                row += ["not finite" if metric in run.metrics else None, None]
        writer.writerow(row)
    return text.getvalue()


def _metrics(runs: Sequence[Run]) -> list[str]:
    """All metrics of all runs, what is tested first."""
    names = {name for run in runs for name in run.metrics}

    def order(name: str) -> tuple[int, str]:
        stage = name.partition("/")[0]
        known = stage in STAGE_ORDER
        return STAGE_ORDER.index(stage) if known else len(STAGE_ORDER), name

    return sorted(names, key=order)


def _setting(run: Run, key: str) -> Cell:
    if key not in run.settings:
        return Cell("")
    value: Setting = run.settings[key]
    number = numeric(value)
    if number is not None and math.isfinite(number):
        return Cell(str(value), repr(number))
    text = "null" if value is None else str(value)
    return Cell(text, text)


def _metric(run: Run, metric: str, protocols: Protocols, *, is_mixed: bool) -> Cell:
    """The value; which protocol, where the column holds several."""
    if metric not in run.metrics:
        return Cell("")
    value = run.metrics[metric]
    if value is None:
        return Cell("not finite", remark="the run logged a number that is not finite")
    protocol = protocols.of(run, metric)
    remark = f"{protocol.label}: {protocol.text}"
    digits = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if is_mixed:
        digits = f"{digits} [{protocol.label}]"
    return Cell(f"{digits}†" if protocol.is_small_sample else digits, repr(value), remark)


def _meaning(metric: str) -> str:
    try:
        return describe(metric).meaning
    except KeyError:
        return ""


def _order(value: float | None) -> str:
    return "" if value is None else repr(value)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
