"""``metrics.csv``: every logged scalar as one row of step, metric, value.

Lightning's own CSV logger deletes the file when a run is continued in its folder, and rewrites it
whenever a new column appears. Long rows need neither.
"""

import csv
import io
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from ldm_lightning.reporting.metrics_file import HEADER, MAX_BYTES, read_metrics
from ldm_lightning.storage.files import atomic_writer, read_regular
from ldm_lightning.storage.small_files import SmallFileError


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

        Raises:
            SmallFileError: If a row is damaged; names the file and the row.
        """
        self._prepare()
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
        there = os.path.lexists(self.path)
        content = read_regular(self.path, max_bytes=MAX_BYTES) if there else b""
        header = ",".join(HEADER).encode() + b"\n"
        if header.startswith(content):  # none yet, or a process was killed while it began the file
            with atomic_writer(self.path) as file:
                file.write(header)
        elif not content.startswith(header):
            raise SmallFileError(
                f"{self.path} begins with {content[:20]!r}; expected {','.join(HEADER)}. Move it "
                "away to have it begun anew."
            )
        elif not content.endswith(b"\n"):
            with self.path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
        self._is_ready = True
