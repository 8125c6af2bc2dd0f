"""The ratios as a figure: a dot for the median, a line for the spread, a tick for the goal."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.results import Row


def draw_ratios(rows: Sequence[Row], path: Path) -> None:
    """One line a ratio, on a logarithmic axis, so that half and double are equally far from 1."""
    rows = [row for row in rows if row.unit == "ratio"]
    figure, axes = plt.subplots(figsize=(12, 1 + 0.42 * len(rows)), layout="constrained")
    for place, row in enumerate(rows):
        missed = row.verdict == "MISSED"
        color = "#d55e00" if missed else "#0072b2"  # told apart by color-blind readers too
        axes.plot([row.value.low, row.value.high], [place, place], color=color, linewidth=2)
        marker = "X" if missed else "o"
        axes.plot(row.value.median, place, marker, color=color, markersize=8)
        if row.goal is not None:
            axes.plot(row.goal, place, "|", color="black", markersize=18, markeredgewidth=2)
    axes.axvline(1, color="gray", linewidth=1, linestyle=":")
    axes.set_xscale("log")
    ticks = [0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), [f"{row.what}\n{row.setting}" for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("ours / the other (dot: median, line: spread, bar: goal)")
    figure.savefig(path, dpi=150)
    plt.close(figure)
