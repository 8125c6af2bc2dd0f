"""The interface that callbacks ask of a logger that shows more than scalars."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning.pytorch as pl


@runtime_checkable
class Dashboard(Protocol):
    """A logger with panels, such as W&B or TensorBoard.

    The part of a name before its slash is the panel. Every ``step`` counts generator or denoiser
    updates.
    """

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Show scalars."""

    def log_picture(self, name: str, path: Path, *, step: int) -> None:
        """Show a PNG file."""

    def log_histogram(
        self, name: str, heights: Sequence[float], edges: Sequence[float], *, step: int
    ) -> None:
        """Show bars, at most 512; bar i reaches from ``edges[i]`` to ``edges[i + 1]``."""


def dashboards(trainer: pl.Trainer) -> list[Dashboard]:
    """Those of the trainer's loggers that show more than scalars."""
    return [logger for logger in trainer.loggers if isinstance(logger, Dashboard)]
