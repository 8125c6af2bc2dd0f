"""The figures of this study."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from matplotlib.axes import Axes

from experiments.figures import COLORS, MARKERS, drawn
from experiments.study import Row

DISTANCES = {"psnr": "PSNR, dB", "rfd_tiny": "rfd_tiny of reconstructions"}
OF_KL_WEIGHT = {
    "psnr": "PSNR, dB",
    "high_frequency_deficit": "high-frequency deficit",
    "latent_std": "latent std",
    "kl_nats": "KL, nats per image",
}

FACTORS = ("4", "8", "16")

SMALLEST = 4
"""Channels of the latents whose costs are the ticks: more hardly add to the U-Net."""


@dataclass(frozen=True)
class Shape:
    """Latents of 256-px images, and what the published U-Net needs for one forward pass of them.

    Attributes:
        factor: Downsampling factor.
        channels: Latent channels.
        parameters: Of the U-Net.
        gflops: Of its forward pass.
    """

    factor: int
    channels: int
    parameters: int
    gflops: float

    @property
    def numbers_per_pixel(self) -> float:
        """Latent numbers for each pixel; an RGB image has 3."""
        return self.channels / self.factor**2


def draw_rates(rows: list[Row], shapes: dict[tuple[str, str], Shape], path: Path) -> None:
    """Numbers per pixel against two distances, and the better distance against the U-Net's cost."""
    small = [row for row in rows if float(row["kl_weight"]) < 1e-5]
    with drawn(path, width=9.6, height=3.4) as figure:
        panels = figure.subplots(1, 3)
        for axes, (column, label) in zip(panels[:2], DISTANCES.items(), strict=True):
            places = {key: shape.numbers_per_pixel for key, shape in shapes.items()}
            _draw_points(axes, small, places, column)
            _tell_channels(axes, small, places, column)
            axes.set_xscale("log", base=2)
            sizes = sorted(set(places.values()))
            axes.set_xticks(sizes, [str(Fraction(size)) for size in sizes])
            axes.set_xlabel("latent numbers per pixel (an image has 3)")
            axes.set_ylabel(label)
        _draw_points(
            panels[2], small, {key: shape.gflops for key, shape in shapes.items()}, "rfd_tiny"
        )
        panels[2].set_xscale("log")
        costs = sorted({shape.gflops for shape in shapes.values() if shape.channels == SMALLEST})
        panels[2].set_xticks(costs, [f"{cost:.0f}" for cost in costs], minor=False)
        panels[2].set_xticks([], minor=True)
        panels[2].set_xlabel("GFLOPs of the U-Net for a 256-px image")
        panels[2].set_ylabel(DISTANCES["rfd_tiny"])
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper left", ncols=3)


def _draw_points(
    axes: Axes, rows: list[Row], places: dict[tuple[str, str], float], column: str
) -> None:
    """One point a run at the place of its latents' shape."""
    for index, factor in enumerate(FACTORS):
        chosen = [row for row in rows if row["factor"] == factor]
        axes.plot(
            [places[row["factor"], row["channels"]] for row in chosen],
            [float(row[column]) for row in chosen],
            linestyle="",
            marker=MARKERS[index],
            markerfacecolor="none",
            color=COLORS[index],
            label=f"f {factor}",
        )
    axes.margins(x=0.14, y=0.12)


def _tell_channels(
    axes: Axes, rows: list[Row], places: dict[tuple[str, str], float], column: str
) -> None:
    for key, place in places.items():
        values = [float(row[column]) for row in rows if (row["factor"], row["channels"]) == key]
        axes.annotate(
            f"{key[1]} ch.", (place, max(values)), xytext=(0, 6), ha="center",
            textcoords="offset points", fontsize=7,
        )  # fmt: skip


def draw_kl_weights(rows: list[Row], path: Path) -> None:
    """Effect of the KL weight on reconstructions, to latents and to the KL term.

    Lines join the runs of seed 0; hollow are those of other seeds.
    """
    shown = [row for row in rows if row["channels"] == "4"]
    with drawn(path, width=11.0, height=2.9) as figure:
        panels = figure.subplots(1, len(OF_KL_WEIGHT))
        for axes, (column, label) in zip(panels, OF_KL_WEIGHT.items(), strict=True):
            for index, factor in enumerate(FACTORS):
                runs = [row for row in shown if row["factor"] == factor]
                joined = [row for row in runs if row["seed"] == "0"]
                others = [row for row in runs if row["seed"] != "0"]
                axes.plot(
                    [float(row["kl_weight"]) for row in joined],
                    [float(row[column]) for row in joined],
                    marker=MARKERS[index],
                    color=COLORS[index],
                    label=f"f {factor}",
                )
                axes.plot(
                    [float(row["kl_weight"]) for row in others],
                    [float(row[column]) for row in others],
                    linestyle="",
                    marker=MARKERS[index],
                    color=COLORS[index],
                    markerfacecolor="none",
                )
            axes.set_xscale("log")
            axes.set_xlabel("KL weight, on the sum in nats")
            axes.set_ylabel(label)
        panels[2].axhline(1.0, color="gray", linewidth=0.8, linestyle="--")
        panels[3].set_yscale("log")
        panels[3].legend()
