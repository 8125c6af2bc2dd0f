"""Images from noise: draw, denoise, decode. Image i follows from (seed, i) alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm_lightning.autoencoder.frozen import FrozenFirstStage
from ldm_lightning.conditioner.base import Conditioner
from ldm_lightning.diffusion.process import Network, Process
from ldm_lightning.sampler.sampler import Sampler
from ldm_lightning.utils.random import RowDraws


@dataclass(frozen=True)
class ImageSampler:
    """Makes images by their numbers, whatever batch or process they are made in.

    Args:
        sampler: Walks from noise to latents.
        process: What the denoiser was trained with.
        denoiser: In evaluation mode.
        conditioner: Turns labels into conditions, in evaluation mode.
        first_stage: Decodes.
        latent_size: Height and width of the latents.
        seed: Of the noise.
        classes: Ids of the classes of which the model has seen images; None without classes.

    Raises:
        ValueError: If the sampler asks for a guidance the conditioner was not trained for.
    """

    sampler: Sampler
    process: Process
    denoiser: Network
    conditioner: Conditioner
    first_stage: FrozenFirstStage
    latent_size: tuple[int, int]
    seed: int
    classes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Find out before any waiting what cannot be sampled."""
        self.sampler.check(self.process)
        if self.sampler.guidance_scale != 1 and not self.conditioner.dropout:
            raise ValueError(
                f"sampler.guidance_scale={self.sampler.guidance_scale} compares with a prediction "
                "without condition, which this model never learned; set sampler.guidance_scale=1, "
                "or train with conditioner=class_label and conditioner.dropout above 0."
            )

    @torch.no_grad()
    def images(self, numbers: Sequence[int], labels: Sequence[int] | None = None) -> Tensor:
        """Make the images of these numbers.

        Args:
            numbers: B different ones, each at least 0.
            labels: Classes of the B images, where the model is class-conditional.

        Returns:
            [B, C, H, W], in [-1, 1].

        Raises:
            ValueError: If labels are missing or out of range.
        """
        device, batch = self._device, {}
        if self.conditioner.num_classes is not None:
            if labels is None:
                raise ValueError(
                    f"This model is conditioned on one of {self.conditioner.num_classes} classes: "
                    "give a label for each image."
                )
            batch = {"label": torch.tensor(list(labels), device=device)}
        condition = self.conditioner(batch, drop=None)
        null = self.conditioner.null(len(numbers), device) if self.conditioner.dropout else None
        latents = self.sampler.sample(
            self.process,
            self.denoiser,
            condition,
            null,
            self._draw("sample noise", 0, numbers),
            lambda step: self._draw("sample step", step, numbers),
        )
        return self.first_stage.decode(latents)

    @torch.no_grad()
    def prior_images(self, numbers: Sequence[int]) -> Tensor:
        """Decode the noise that ``images`` starts from: what no denoiser would give, [B, C, H, W].

        The noise has the mean and the variance of the normalized latents, channel by channel if
        the normalizer has.
        """
        return self.first_stage.decode(self._draw("sample noise", 0, numbers))

    @property
    def _device(self) -> torch.device:
        return next(self.first_stage.parameters()).device

    def _draw(self, purpose: str, step: int, numbers: Sequence[int]) -> Tensor:
        """Standard normal noise of these images, [B, c, h, w]."""
        shape = (self.first_stage.latent_channels, *self.latent_size)
        parameter = next(self.first_stage.parameters())
        return RowDraws(self.seed, step, numbers).normal(purpose, shape, like=parameter)


def default_labels(numbers: Sequence[int], classes: Sequence[int] | None) -> list[int] | None:
    """Class after class in turn; None for a model without classes."""
    return None if classes is None else [classes[number % len(classes)] for number in numbers]


def in_batches(numbers: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Cut numbers into batches of at most ``size``."""
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]
