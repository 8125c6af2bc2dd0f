"""The figures of this study."""

from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.axes import Axes

from experiments.figures import COLORS, MARKERS, drawn
from experiments.study import Row
from ldm_lightning.data.image_module import ImageDataModule
from ldm_lightning.restore.first_stage import open_first_stage
from ldm_lightning.utils.image import spread_rows, to_uint8

OCTAVES = {
    1: "octave 1\n0.25 to 0.5",
    2: "octave 2\n0.125 to 0.25",
    3: "octave 3\n0.0625 to 0.125",
}
"""Cycles per pixel."""

DRAWN_SIGMAS = ("0.5", "0.8", "1", "1.4")
NUM_CROPS = 6


def draw_blur(rows: list[Row], copies: list[Row], path: Path) -> None:
    """Power over that of the images by octave, a panel a seed, beside blurs of known sigma."""
    octaves = sorted(OCTAVES, reverse=True)
    seeds = sorted({row["seed"] for row in rows})
    with drawn(path, width=9.6, height=3.6) as figure:
        panels = figure.subplots(1, len(seeds), sharey=True, squeeze=False)[0]
        for axes, seed in zip(panels, seeds, strict=True):
            for row in copies:
                if row["kind"] == "blurred" and row["sigma"] in DRAWN_SIGMAS:
                    values = [float(row[f"power_ratio_octave_{octave}"]) for octave in octaves]
                    axes.plot(range(3), values, color="gray", linestyle=":", linewidth=1.0)
                    axes.annotate(
                        f"{row['sigma']} px", (0, values[0]), xytext=(-8, -3), ha="right",
                        textcoords="offset points", fontsize=7, color="gray",
                    )  # fmt: skip
            for index, (variant, group) in enumerate(_by_variant(rows).items()):
                (row,) = (row for row in group if row["seed"] == seed)
                axes.plot(
                    range(3),
                    [float(row[f"power_ratio_octave_{octave}"]) for octave in octaves],
                    color=COLORS[index],
                    marker=MARKERS[index],
                    label=variant,
                )
            axes.axhline(1.0, color="black", linewidth=0.8)
            axes.set_xticks(range(3), [OCTAVES[octave] for octave in octaves])
            axes.set_xlim(-0.45, 2.2)
            axes.set_ylim(0.0, 1.2)
            axes.set_title(f"seed {seed}")
            axes.set_xlabel("cycles per pixel")
        panels[0].set_ylabel("power over that of the images")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=4)


def draw_plane(rows: list[Row], copies: list[Row], path: Path) -> None:
    """PSNR against two perceptual figures: reconstructions, blurred copies, noisy copies."""
    labels = {
        "perceptual_tiny": "perceptual distance (tiny)",
        "rfd_tiny": "Fréchet distance (tiny)",
    }
    with drawn(path, width=9.6, height=4.2) as figure:
        panels = figure.subplots(1, 2)
        for axes, (column, label) in zip(panels, labels.items(), strict=True):
            _draw_copies(axes, copies, column)
            for seed in sorted({row["seed"] for row in rows}):
                _draw_path(axes, [row for row in rows if row["seed"] == seed], column)
            axes.set_ylim(bottom=0.0)
            axes.set_xlabel("PSNR, dB (more is better)")
            axes.set_ylabel(f"{label}, less is better")
        handles, names = panels[0].get_legend_handles_labels()
        once = dict(zip(names, handles, strict=True))
        figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=3)


def _draw_path(axes: Axes, rows: list[Row], column: str) -> None:
    """The variants of one seed, joined in their order."""
    points = [(float(row["psnr"]), float(row[column])) for row in rows]
    axes.plot([x for x, _ in points], [y for _, y in points], color="black", linewidth=0.7)
    for index, (row, (x, y)) in enumerate(zip(rows, points, strict=True)):
        axes.plot(
            x, y, linestyle="", color=COLORS[index], marker=MARKERS[index], label=row["variant"]
        )
    axes.annotate(
        f"seed {rows[0]['seed']}", points[0], xytext=(6, 4), textcoords="offset points", fontsize=7
    )


def _draw_copies(axes: Axes, copies: list[Row], column: str) -> None:
    for kind, dashes in (("blurred", ":"), ("noisy", "--")):
        points = [
            (float(row["psnr"]), float(row[column]), row["sigma"])
            for row in copies
            if row["kind"] == kind
        ]
        axes.plot(
            [x for x, _, _ in points],
            [y for _, y, _ in points],
            color="gray",
            linestyle=dashes,
            marker=".",
            label=f"{kind} copies of the images",
            zorder=1,
        )
        if kind == "blurred":
            for x, y, sigma in points:
                axes.annotate(
                    sigma, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7,
                    color="gray",
                )  # fmt: skip


@torch.no_grad()
def draw_crops(checkpoints: Mapping[str, Path], data: ImageDataModule, path: Path) -> None:
    """Held-out images beside their reconstructions by each variant, pixels as squares."""
    images = spread_rows(next(iter(data.val_dataloader()))["image"], NUM_CROPS)
    columns = {"original": images}
    for variant, checkpoint in checkpoints.items():
        autoencoder = open_first_stage(checkpoint, weights="ema").autoencoder
        columns[variant] = autoencoder(images).reconstructions
    with drawn(path, width=1.7 * len(columns), height=1.65 * len(images) + 0.3) as figure:
        panels = figure.subplots(len(images), len(columns), squeeze=False)
        for column, (title, shown) in enumerate(columns.items()):
            panels[0, column].set_title(title, loc="center")
            for row, image in enumerate(to_uint8(shown)):
                panels[row, column].imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
                panels[row, column].set_axis_off()


def _by_variant(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows that differ in their seed alone, in the order of results.csv."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["variant"], []).append(row)
    return groups
