"""Trained models for a notebook: open a run folder or checkpoint, encode, decode, sample.

    import ldm_lightning
    first_stage = ldm_lightning.open_first_stage("outputs/kl_f8/RUN")
    latents = first_stage.encode(images)

Images are float32 [B, C, H, W] in [-1, 1]. What the commands ``evaluate`` and ``sample`` compute is
computed here with the same weights.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor

from ldm_lightning.restore import first_stage as first_stages
from ldm_lightning.restore.first_stage import OpenedFirstStage
from ldm_lightning.restore.second_stage import (
    OpenedSecondStage,
    open_second_stage,
    opened_sampler,
    stored_sampler,
)
from ldm_lightning.sampler.images import default_labels, in_batches


@dataclass(frozen=True)
class FirstStage:
    """A trained autoencoder in evaluation mode.

    Attributes:
        opened: The network, what it was rebuilt from, which weights it holds, and their file.
    """

    opened: OpenedFirstStage

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images [B, C, H, W] in [-1, 1] to latents [B, c, h, w], not normalized.

        Nothing is sampled: of a posterior they are the mean, of a codebook its vectors.

        Raises:
            ValueError: If height or width is not divisible by the downsampling factor.
        """
        return self.opened.autoencoder.encode(self._put(images)).latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, c, h, w], not normalized, to images clamped to [-1, 1]."""
        return self.opened.autoencoder.decode(self._put(latents)).clamp(-1, 1)

    def _put(self, tensor: Tensor) -> Tensor:
        return tensor.to(next(self.opened.autoencoder.parameters()))


@dataclass(frozen=True)
class Generator:
    """A trained diffusion model with its first stage, in evaluation mode.

    Attributes:
        opened: The networks, what they were rebuilt from, which weights they hold, and their file.
    """

    opened: OpenedSecondStage

    def sample(
        self,
        num_images: int,
        labels: int | Sequence[int] | None = None,
        seed: int = 0,
        *,
        batch_size: int = 64,
    ) -> Tensor:
        """Generate images with the sampler that the run validated with.

        Args:
            num_images: Image i follows from (seed, i), as those of the command ``sample``.
            labels: Class of all images, or classes taken in turn; None takes all classes in turn.
            seed: Of the noise.
            batch_size: Images made at once; changes no image.

        Returns:
            float32 [num_images, C, H, W], clamped to [-1, 1], on the CPU.

        Raises:
            ValueError: If labels are given to a model without classes, or out of range.
        """
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}.")
        sampler = opened_sampler(
            self.opened, OmegaConf.create(stored_sampler(self.opened)), seed=seed
        )
        numbers = range(num_images)
        if labels is None:
            classes = default_labels(numbers, sampler.classes)
        elif sampler.classes is None:
            raise ValueError(f"labels={labels}: this model was trained without classes.")
        else:
            turns = [labels] if isinstance(labels, int) else list(labels)
            classes = [turns[number % len(turns)] for number in numbers]
        batches = [
            sampler.images(batch, None if classes is None else [classes[i] for i in batch])
            for batch in in_batches(numbers, batch_size)
        ]
        return torch.cat([images.float().clamp(-1, 1).cpu() for images in batches])


def open_first_stage(
    path: str | Path,
    *,
    weights: str = "ema",
    device: str | torch.device = "cpu",
    trusted_packages: Collection[str] = (),
) -> FirstStage:
    """Open a first stage.

    Args:
        path: A run folder (``best.ckpt``, else ``last.ckpt``) or a ``.ckpt``.
        weights: ``ema`` takes the moving average where there is one; ``raw`` does not.
        device: Where it computes.
        trusted_packages: Of your own, whose classes and functions the file may name.

    Raises:
        ValueError: If it is missing, damaged, of another kind, or names other packages.
    """
    opened = first_stages.open_first_stage(path, weights=weights, trusted_packages=trusted_packages)
    opened.autoencoder.to(device)
    return FirstStage(opened)


def open_generator(
    path: str | Path,
    *,
    first_stage: str | Path | None = None,
    weights: str = "ema",
    device: str | torch.device = "cpu",
    trusted_packages: Collection[str] = (),
) -> Generator:
    """Open a diffusion model and the first stage it belongs to.

    Args:
        path: A run folder (``best.ckpt``, else ``last.ckpt``) or a ``.ckpt``.
        first_stage: Where its first stage is now; None looks where it was in training.
        weights: ``ema`` takes the moving average where there is one; ``raw`` does not.
        device: Where it computes.
        trusted_packages: Of your own, whose classes and functions the files may name.

    Raises:
        ValueError: If one of the two is missing, damaged, of another kind, or names other packages.
    """
    opened = open_second_stage(
        path,
        weights=weights,
        first_stage_checkpoint=None if first_stage is None else str(first_stage),
        trusted_packages=trusted_packages,
    )
    for network in (opened.first_stage, opened.networks.model):
        network.to(device)
    return Generator(opened)
