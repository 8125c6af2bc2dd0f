"""Pictures after each validation: inputs, reconstructions, errors, and samples of a VAE's prior."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from ldm_lightning.callbacks.pictures import draw
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.utils.image import spread_rows
from ldm_lightning.utils.random import generator_for


class ReconstructionGrid(pl.Callback):
    """Draw the first validation images, the same every time, into the run's ``images/``.

    Rows of ``reconstruction_<update>.png``: inputs; reconstructions by the weights that are being
    validated, without sampling; absolute error, black where there is none and white from 2 /
    ``error_factor`` on (images reach over 2, from -1 to 1). ``legend.txt`` beside the pictures says
    so.

    Args:
        run_folder: Where ``images/`` is.
        num_images: Columns of the grid.
        error_factor: How much the error is amplified.
        prior_samples: Decode this many draws of the standard normal into ``prior_<update>.png``,
            the same draws every time; for autoencoders with a Gaussian bottleneck and a KL weight
            that makes the prior meaningful. 0 draws none.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        run_folder: RunFolder,
        *,
        num_images: int = 8,
        error_factor: float = 4.0,
        prior_samples: int = 0,
    ) -> None:
        if num_images < 1 or error_factor <= 0 or prior_samples < 0:
            raise ValueError(
                "callbacks.reconstruction_grid needs num_images >= 1, error_factor > 0 and "
                f"prior_samples >= 0; got {num_images}, {error_factor}, {prior_samples}."
            )
        self.folder = run_folder.images
        self.num_images = num_images
        self.error_factor = error_factor
        self.prior_samples = prior_samples
        self._images: list[Tensor] = []

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Collect anew; the validation set has a fixed order."""
        self._images = []

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first images of the first process."""
        missing = self.num_images - sum(len(images) for images in self._images)
        if trainer.is_global_zero and missing > 0:
            # Spread over the batch: neighbors may be windows of one photograph.
            self._images.append(spread_rows(batch["image"], missing).detach())

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw now, while an average of the weights still stands in for them."""
        if trainer.sanity_checking or not self._images:
            return
        images = torch.cat(self._images)
        self._images = []
        with trainer.precision_plugin.forward_context():
            output = pl_module.autoencoder(images)  # type: ignore[operator]
        images, reconstructions = images.float(), output.reconstructions.float().clamp(-1, 1)
        errors = (self.error_factor * (images - reconstructions).abs() - 1).clamp(max=1)
        grid = torch.cat([images, reconstructions, errors])
        self._draw(trainer, "reconstruction", grid, num_columns=len(images))
        if self.prior_samples:
            if "kl" not in output.bottleneck.terms:
                raise ValueError(
                    "callbacks.reconstruction_grid.prior_samples needs a Gaussian bottleneck; this "
                    "one has no prior to draw from. Set it to 0."
                )
            latents = output.bottleneck.latents
            shape = (self.prior_samples, *latents.shape[1:])
            noise = torch.randn(shape, generator=generator_for("prior samples")).to(latents)
            with trainer.precision_plugin.forward_context():
                samples = pl_module.autoencoder.decode(noise)  # type: ignore[union-attr, operator]
            self._draw(trainer, "prior", samples.float(), num_columns=min(8, len(samples)))

    def _draw(self, trainer: pl.Trainer, name: str, images: Tensor, *, num_columns: int) -> None:
        """Write one picture, and what its rows show."""
        draw(trainer, self.folder, name, images, num_columns=num_columns)
        legend = self.folder / "legend.txt"
        if not legend.exists():
            legend.write_text(self.legend() + "\n", encoding="utf-8")

    def legend(self) -> str:
        """Names of the rows."""
        return (
            "reconstruction_<update>.png, rows: input; reconstruction; |input - reconstruction| x "
            f"{self.error_factor:g} (black 0, white {2 / self.error_factor:g} or more; images "
            "reach from -1 to 1).\nprior_<update>.png: decoded draws of the prior, the same every "
            "time."
        )
