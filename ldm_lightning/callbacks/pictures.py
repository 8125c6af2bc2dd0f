"""Where a callback's picture goes: the run's folder, and the loggers that show images."""

import shutil
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

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
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(f"images/{name}", [str(path)], step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            picture = pil_to_tensor(Image.open(path))
            logger.experiment.add_image(f"images/{name}", picture, trainer.global_step)
