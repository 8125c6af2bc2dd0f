"""The figures of this study."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from experiments.figures import COLORS, MARKERS, drawn
from experiments.study import Row

NUM_CLASSES = 10


def by_kind(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of each first stage, in the order of results.csv."""
    return {
        kind: [row for row in rows if row["first_stage"] == kind]
        for kind in dict.fromkeys(row["first_stage"] for row in rows)
    }


def draw_bounds(rows: list[Row], path: Path) -> None:
    """Ceiling against generation, in both networks' distances; a point a seed."""
    with drawn(path, width=9.6, height=3.4) as figure:
        panels = figure.subplots(1, 3)
        for axes, (x, y, x_label, y_label) in zip(
            panels,
            (
                ("rfd_tiny", "fd_tiny", "rfd_tiny of reconstructions", "fd_tiny of samples"),
                (
                    "rfd_tiny",
                    "fd_judge",
                    "rfd_tiny of reconstructions",
                    "judge's distance of samples",
                ),
                ("psnr", "fd_judge", "PSNR of reconstructions, dB", "judge's distance of samples"),
            ),
            strict=True,
        ):
            for index, (kind, group) in enumerate(by_kind(rows).items()):
                axes.plot(
                    [float(row[x]) for row in group],
                    [float(row[y]) for row in group],
                    linestyle="",
                    marker=MARKERS[index],
                    color=COLORS[index],
                    label=kind,
                )
            axes.set_xlabel(x_label)
            axes.set_ylabel(y_label)
        low, high = panels[0].get_xlim()
        panels[0].plot(
            [low, high], [low, high], color="gray", linewidth=0.8, linestyle="--", zorder=0
        )
        middle = (low + high) / 2
        panels[0].annotate(
            "as good as the ceiling", (middle, middle), xytext=(4, -3), textcoords="offset points",
            ha="left", va="top", fontsize=7,
        )  # fmt: skip
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)


def draw_samples(chains: Mapping[str, Path], path: Path) -> None:
    """The first sample of each class by first stage; nothing of the data set is shown."""
    with drawn(path, width=8.4, height=0.86 * len(chains)) as figure:
        panels = figure.subplots(len(chains), NUM_CLASSES, squeeze=False)
        for row, (kind, chain) in enumerate(chains.items()):
            files = sorted((chain / "samples" / "images").glob("*.png"))
            for column, file in enumerate(files[:NUM_CLASSES]):
                panels[row, column].imshow(Image.open(file), interpolation="nearest")
                panels[row, column].set(xticks=[], yticks=[])
                panels[row, column].spines[:].set_visible(False)
            panels[row, 0].set_ylabel(kind, rotation=0, ha="right", va="center")
