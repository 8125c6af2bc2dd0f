"""``results.csv``: everything as one row a run, at full precision."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm_lightning.reporting.page.protocols import Protocols
from ldm_lightning.reporting.page.runs import Run
from ldm_lightning.reporting.page.settings import Difference
from ldm_lightning.reporting.page.table import metric_names, time_text
from ldm_lightning.reporting.page.tradeoffs import bits_per_pixel, elements_per_pixel
from ldm_lightning.storage.files import open_regular
from ldm_lightning.utils.terminal import printable

FORMULA_STARTS = ("=", "+", "-", "@", "\t")
"""With these a spreadsheet takes a text for a formula, and runs it."""

FIRST_COLUMNS = ("number", "name", "folder")


def is_of_a_report(path: Path) -> bool:
    """Return whether a file begins as ``results.csv`` of a report does.

    Raises:
        OSError: If it cannot be read.
    """
    beginning = ",".join(FIRST_COLUMNS).encode()
    with open_regular(path) as file:
        return file.read(len(beginning)) == beginning


def results_csv(
    runs: Sequence[Run], protocols: Protocols, differences: Sequence[Difference]
) -> str:
    """Return the table.

    Each metric is followed by the protocol it was made with; a value that was not finite is
    ``not finite``. A text that a spreadsheet would run begins with an apostrophe.
    """
    metrics = metric_names(runs)
    header = [*FIRST_COLUMNS, "kind", "state", "reason", "updates", "seconds", "device"]
    header += ["written", "elements_per_pixel", "bits_per_pixel"]
    header += [difference.key for difference in differences]
    for metric in metrics:
        header += [metric, f"{metric} protocol"]
    rows = [header, *(_row(run, protocols, differences, metrics) for run in runs)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_harmless(value) for value in row] for row in rows)
    return text.getvalue()


def _row(
    run: Run, protocols: Protocols, differences: Sequence[Difference], metrics: Sequence[str]
) -> list[Any]:
    row: list[Any] = [run.number, run.name, run.place, run.kind, run.state, run.reason, run.step]
    row += [run.seconds, run.device, time_text(run.written)]
    row += [elements_per_pixel(run), bits_per_pixel(run)]
    row += [run.settings.get(difference.key) for difference in differences]
    for metric in metrics:
        value = run.metrics.get(metric)
        if value is not None:
            row += [value, protocols.of(run, metric).text]
        else:
            row += ["not finite" if metric in run.metrics else None, None]
    return row


def _harmless(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = printable(value)  # a lone return would begin a row for some readers
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text
