"""Reading ``metrics.csv``, without the trainer that writes it."""

import csv
from pathlib import Path

HEADER = ("step", "metric", "value")


def read_metrics(path: Path) -> list[tuple[int, str, float]]:
    """Read a ``metrics.csv`` as (step, metric, value); a half-written last row is left out."""
    rows = []
    content = path.read_text(encoding="utf-8")
    complete = content[: content.rfind("\n") + 1]
    for step, metric, value in csv.reader(complete.splitlines()[1:]):
        rows.append((int(step), metric, float(value)))
    return rows
