"""Destinations of a callback's picture: the run's folder, and the loggers that show images."""

import shutil
from pathlib import Path

import lightning.pytorch as pl
from torch import Tensor

from ldm_lightning.callbacks.dashboards import dashboards
from ldm_lightning.utils.image import save_grid


def draw(trainer: pl.Trainer, folder: Path, name: str, images: Tensor, *, num_columns: int) -> None:
    """Write ``<name>_<update>.png`` and its copy ``<name>_latest.png``; send it to the loggers.

    Args:
        trainer: Knows the update and the loggers.
        folder: For the files.
        name: What the picture shows.
        images: [B, C, H, W] in [-1, 1].
        num_columns: Images in a row.
    """
    path = folder / f"{name}_{trainer.global_step}.png"
    save_grid(images, path, num_columns=num_columns)
    shutil.copyfile(path, folder / f"{name}_latest.png")
    show(trainer, name, path)


def draw_once(
    trainer: pl.Trainer, folder: Path, name: str, images: Tensor, *, num_columns: int
) -> None:
    """Write ``<name>.png`` unless it is there, of what never changes in a run; see ``draw``."""
    path = folder / f"{name}.png"
    if not path.exists():
        save_grid(images, path, num_columns=num_columns)
        show(trainer, name, path)


def show(trainer: pl.Trainer, name: str, path: Path) -> None:
    """Send a picture to the loggers that show images, under the same name every time."""
    for dashboard in dashboards(trainer):
        dashboard.log_picture(f"images/{name}", path, step=trainer.global_step)
