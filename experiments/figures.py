"""The look of the studies' figures."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from ldm_lightning.reporting.page.drawing import COLORS, MARKERS

__all__ = ["COLORS", "MARKERS", "drawn"]

STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.2,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.linewidth": 1.4,
    "lines.markersize": 5.0,
}


@contextmanager
def drawn(path: Path, *, width: float, height: float) -> Iterator[Figure]:
    """Give an empty figure, and write what was drawn as a PNG that depends on nothing else.

    Args:
        path: Of the PNG file.
        width: In inches.
        height: In inches.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130, facecolor="white", metadata={"Software": None})
    print(f"Figure -> {path}")
