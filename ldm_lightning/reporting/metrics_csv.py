"""``metrics.csv``: every logged scalar as one row of step, metric, value.

Lightning's own CSV logger deletes the file when a run is continued in its folder, and rewrites it
whenever a new column appears. Long rows need neither.
"""

import csv
import io
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from ldm_lightning.reporting.metrics_file import HEADER, read_metrics
from ldm_lightning.utils.files import atomic_writer


class MetricsCsv(Logger):
    """Append scalars to ``metrics.csv`` in a run folder; each call is on disk when it returns.

    Args:
        save_dir: The run folder; it must exist.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self._is_ready = False

    @property
    def name(self) -> str:
        """Kind of this logger."""
        return "csv"

    @property
    def version(self) -> str:
        """There is one file a run, whatever the number of continuations."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing: the configuration is in ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row a metric.

        Args:
            metrics: Values by name. Lightning adds ``epoch``, which means nothing here and is left
                out.
            step: Generator updates done.

        Raises:
            ValueError: If there is no step.
        """
        if step is None:
            raise ValueError(f"metrics.csv needs a step for {', '.join(metrics)}, got None.")
        rows = io.StringIO()
        writer = csv.writer(rows, lineterminator="\n")
        for metric, value in metrics.items():
            if metric != "epoch":
                writer.writerow((step, metric, repr(float(value))))
        if not self._is_ready:
            self._prepare()
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(rows.getvalue())

    @rank_zero_only
    def drop_rows_after(self, step: int, *, validated: bool) -> None:
        """Remove rows of later updates, which a run continued from ``step`` writes again.

        Unless it is ``validated``, also those of its own validation: all but ``train/*``.
        The file is replaced as a whole: a run that is killed meanwhile loses nothing.
        """
        if not self.path.exists():
            return
        kept = [
            row
            for row in read_metrics(self.path)
            if row[0] < step or (row[0] == step and (validated or row[1].startswith("train/")))
        ]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows((row[0], row[1], repr(row[2])) for row in kept)
        with atomic_writer(self.path) as file:
            file.write(text.getvalue().encode())

    def _prepare(self) -> None:
        """Begin the file, or cut off the row that a killed process may have left half written."""
        content = self.path.read_bytes() if self.path.exists() else b""
        if not content:
            self.path.write_text(",".join(HEADER) + "\n", encoding="utf-8")
        elif not content.endswith(b"\n"):
            with self.path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
        self._is_ready = True
