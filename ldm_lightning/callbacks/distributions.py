"""Histograms after each validation of a first stage: use of the codes, statistics of the latents.

For the dashboards alone; ``summary.json`` has the channels' figures as ``per_channel``.
"""

from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
from torch import Tensor

from ldm_lightning.callbacks.dashboards import dashboards

MAX_BARS = 512
"""As many as W&B stores."""

CHANNEL_BARS = 64


class Bars(NamedTuple):
    """A histogram.

    Attributes:
        heights: [N].
        edges: [N + 1], rising.
    """

    heights: list[float]
    edges: list[float]


class Distributions(pl.Callback):
    """Show what one number hides: which codes are used, and how channels differ.

    ``codebook/histogram``: how often each code was used over the whole validation set, by index, so
    that a code keeps its place from one validation to the next. ``latent/channel_means`` and
    ``latent/channel_stds``: how many channels have which mean and standard deviation.
    """

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw what the report holds; the same on every process, shown by the first."""
        report: Any = pl_module.report
        if trainer.sanity_checking or not trainer.is_global_zero or report is None:
            return
        found: dict[str, Bars] = {}
        if report.codebook_histogram is not None:
            found["codebook/histogram"] = use_of_codes(report.codebook_histogram)
        for name, values in report.per_channel.items():
            found[f"{name.replace('/', '/channel_')}s"] = spread_of(values)
        for dashboard in dashboards(trainer):
            for name, (heights, edges) in found.items():
                dashboard.log_histogram(name, heights, edges, step=trainer.global_step)


def use_of_codes(counts: Tensor) -> Bars:
    """Use counts of codes, by index.

    Args:
        counts: int64, [K].

    Returns:
        A bar for each code; where there are more than ``MAX_BARS``, for as many neighbors as it
        takes.
    """
    num_codes = len(counts)
    edges = np.linspace(0, num_codes, min(num_codes, MAX_BARS) + 1).round().astype(int)
    heights = np.add.reduceat(counts.numpy(), edges[:-1])
    return Bars(heights.tolist(), edges.tolist())


def spread_of(values: list[float]) -> Bars:
    """A histogram of finite values."""
    finite = [value for value in values if np.isfinite(value)]
    heights, edges = np.histogram(finite, bins=CHANNEL_BARS)
    return Bars(heights.tolist(), edges.tolist())
