"""The linear floors of a set of images as a table, as CSV, and as a figure."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from rich.console import Console

from ldm_lightning.reporting.page.drawing import COLORS, MARKERS
from ldm_lightning.reporting.page.labels import axis_label
from ldm_lightning.reporting.table import print_rows
from ldm_lightning.utils.units import format_flops

STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    "lines.markersize": 5.0,
}


HIDDEN = ("power_", "high_", "block_", "codebook_usage")
"""Beginnings of the names of metrics that stand in the files alone."""


@dataclass(frozen=True)
class FloorRow:
    """One latent shape: what it holds, and what a denoiser costs on it.

    Attributes:
        downsampling_factor: f.
        latent_channels: c.
        num_codes: K; None for latents without codes.
        latent_height: h.
        latent_width: w.
        compression: Numbers of an image over numbers of its latents.
        denoiser_flops: Operations of a call of the denoiser on one latent; None where it cannot
            take that size.
        denoiser_relative: The same over those at the denoiser's own downsampling factor.
        scalars: Value by metric name.
    """

    downsampling_factor: int
    latent_channels: int
    num_codes: int | None
    latent_height: int
    latent_width: int
    compression: float
    denoiser_flops: int | None
    denoiser_relative: float | None
    scalars: dict[str, float]

    def values(self) -> dict[str, Any]:
        """All of it by name, the metrics among them."""
        own = {name: value for name, value in vars(self).items() if name != "scalars"}
        return {**own, **self.scalars}


def shown_metrics(rows: Sequence[FloorRow]) -> list[str]:
    """Names of the metrics of a table: quality first; power ratios stand in the files alone."""
    names = dict.fromkeys(name for row in rows for name in row.scalars)
    return [name for name in names if not name.startswith(HIDDEN)]


def print_floors(
    rows: Sequence[FloorRow], *, title: str, own_factor: int, console: Console | None = None
) -> None:
    """Print one row a latent shape.

    Args:
        rows: At least one.
        title: Said above the table.
        own_factor: Downsampling factor that the denoiser's cost is relative to.
        console: Where to print; the terminal by default.
    """
    metrics = shown_metrics(rows)
    has_codes = any(row.num_codes is not None for row in rows)
    header = ["f", "c", *(["K"] if has_codes else []), "latents", "of image", *metrics]
    cells = [
        (
            str(row.downsampling_factor),
            str(row.latent_channels),
            *([_count(row.num_codes)] if has_codes else []),
            f"{row.latent_channels}x{row.latent_height}x{row.latent_width}",
            f"1/{row.compression:.3g}",
            *(_number(row.scalars.get(name)) for name in metrics),
            "-" if row.denoiser_flops is None else format_flops(row.denoiser_flops),
            "-" if row.denoiser_relative is None else f"{row.denoiser_relative:.3g}",
        )
        for row in rows
    ]
    header += ["U-Net call", f"over f {own_factor}"]
    print_rows(header, cells, title=title, console=console)


def write_csv(rows: Sequence[FloorRow], path: Path) -> None:
    """Write one line a latent shape; what was not measured is empty."""
    names = list(dict.fromkeys(name for row in rows for name in row.values()))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(row.values() for row in rows)


def draw_floors(rows: Sequence[FloorRow], path: Path, *, title: str) -> None:
    """Draw each metric over the numbers of latents, a line a downsampling factor, as PNG.

    Args:
        rows: At least one.
        path: Of the PNG file.
        title: Above the figure.
    """
    metrics = [name for name in shown_metrics(rows) if not name.startswith("codebook_")]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.0 + 3.6 * len(metrics), 4.0), layout="constrained")
        axes = figure.subplots(1, len(metrics), squeeze=False)[0]
        for one, name in zip(axes, metrics, strict=True):
            _draw(one, rows, name)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
        figure.suptitle(title, fontsize=10)
        figure.savefig(path, dpi=130, facecolor="white", metadata={"Software": None})


def _draw(axes: Axes, rows: Sequence[FloorRow], name: str) -> None:
    """One metric: latents without codes as lines, codes as hollow points."""
    factors = list(dict.fromkeys(row.downsampling_factor for row in rows))
    for index, factor in enumerate(factors):
        mine = [row for row in rows if row.downsampling_factor == factor and name in row.scalars]
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        for codes in dict.fromkeys(row.num_codes for row in mine):
            line = sorted(
                (row for row in mine if row.num_codes == codes), key=lambda row: _latents(row)
            )
            axes.plot(
                [_latents(row) for row in line],
                [row.scalars[name] for row in line],
                linestyle="-" if codes is None else ":",
                marker=marker,
                color=color,
                markerfacecolor=color if codes is None else "white",
                label=_label(line[0]),
            )
            for row in line if codes is None else line[-1:]:
                text = f"c {row.latent_channels}" if codes is None else f"K {codes}"
                axes.annotate(
                    text,
                    (_latents(row), row.scalars[name]),
                    xytext=(0, 5 if index % 2 else -11),  # lines of neighbors meet
                    textcoords="offset points",
                    fontsize=7.5,
                    ha="center",
                    color=color,
                )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("numbers of an image's latents, c x h x w")
    axes.set_title(axis_label(name), fontsize=9.5, loc="left")
    axes.margins(x=0.08, y=0.12)


def _label(row: FloorRow) -> str:
    """Factor, codes and cost: ``f 4 (U-Net 4.03)``."""
    said = f"f {row.downsampling_factor}"
    if row.num_codes is not None:
        return f"{said}, K {row.num_codes}"
    if row.denoiser_relative is None:
        return said
    return f"{said} (U-Net cost {row.denoiser_relative:.3g})"


def _latents(row: FloorRow) -> int:
    return row.latent_channels * row.latent_height * row.latent_width


def _count(number: int | None) -> str:
    return "-" if number is None else str(number)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
