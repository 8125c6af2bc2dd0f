"""Pictures after each validation of a second stage: samples, their ceiling, and decoded noise."""

from typing import Any

import lightning.pytorch as pl

from ldm_lightning.callbacks.pictures import draw, draw_once
from ldm_lightning.runs.run_folder import RunFolder

LEGEND = """\
samples_<update>.png: generated images, always of the same noise; of a class-conditional model
column c holds class c.
ceiling.png: real images as the first stage reconstructs them; samples cannot be better.
prior.png: decoded noise, without any denoising; samples should be better.
"""


class SampleGrid(pl.Callback):
    """Draw what the module generated in its validation into the run's ``images/``.

    Args:
        run_folder: Where ``images/`` is.
    """

    def __init__(self, run_folder: RunFolder) -> None:
        self.folder = run_folder.images

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw on the first process."""
        generated: Any = pl_module.generated  # a Generated, of module/generation.py
        if trainer.sanity_checking or not trainer.is_global_zero or generated is None:
            return
        num_columns: int = pl_module.generation.num_columns  # type: ignore[union-attr, assignment]
        draw(trainer, self.folder, "samples", generated.samples, num_columns=num_columns)
        for name, images in (("ceiling", generated.ceiling), ("prior", generated.prior)):
            draw_once(trainer, self.folder, name, images, num_columns=num_columns)
        legend = self.folder / "legend.txt"
        if not legend.exists():
            legend.write_text(LEGEND, encoding="utf-8")
