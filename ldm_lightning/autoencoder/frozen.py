"""A first stage in use: frozen, in evaluation mode, between images and normalized latents."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from ldm_lightning.autoencoder.autoencoder import Autoencoder
from ldm_lightning.autoencoder.normalizer import LatentNormalizer
from ldm_lightning.utils.metadata import check_facts


class Moments(NamedTuple):
    """Posterior of a batch of images, before the normalizer.

    Attributes:
        mean: [B, c, h, w]; where nothing is sampled, the latents (those before quantization).
        variance: [B, c, h, w]; None where nothing is sampled.
    """

    mean: Tensor
    variance: Tensor | None


class FrozenFirstStage(nn.Module):
    """Encodes and decodes; nothing trains it and no call of ``train()`` reaches it.

    A module that uses it keeps it out of its own ``state_dict`` (in a tuple) and stores
    ``weights_hash`` and ``path`` instead.

    Args:
        autoencoder: Is frozen in place.
        normalizer: Of its latents.
        weights_hash: SHA-256 of its tensors.
        path: The checkpoint they come from.
        weights: Which weights of the checkpoint they are, ``ema`` or ``raw``.

    Raises:
        ValueError: If the normalizer was made for other weights or another number of channels.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        normalizer: LatentNormalizer,
        *,
        weights_hash: str,
        path: Path,
        weights: str,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.weights_hash = weights_hash
        self.path = path
        self.weights = weights
        self.normalizer: LatentNormalizer
        self.set_normalizer(normalizer)
        self.requires_grad_(False)
        self.eval()

    @property
    def latent_channels(self) -> int:
        """Channels of the latents, c."""
        return self.autoencoder.latent_channels

    @property
    def is_stochastic(self) -> bool:
        """True if latents are samples of a posterior, so that ``encode`` uses noise."""
        return self.autoencoder.bottleneck.is_stochastic

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode whatever is asked for."""
        return super().train(False)

    def set_normalizer(self, normalizer: LatentNormalizer) -> None:
        """Use another normalizer from now on.

        Raises:
            ValueError: If it was made for other weights or another number of channels.
        """
        normalizer.check(self.weights_hash)
        if len(normalizer.shift) != self.latent_channels:
            raise ValueError(
                f"The latent normalizer has {len(normalizer.shift)} channels, the latents of "
                f"{self.path} have {self.latent_channels}."
            )
        device = next(self.autoencoder.parameters()).device
        self.normalizer = normalizer.requires_grad_(False).to(device)

    def check_weights(self, expected_hash: str) -> None:
        """Refuse to stand in for other weights.

        Raises:
            ValueError: Naming both hashes.
        """
        check_facts(
            {"first_stage_hash": self.weights_hash},
            {"first_stage_hash": expected_hash},
            what=f"The first stage {self.path}",
            remedy="Give the checkpoint that was used before, with the same weights=ema or raw.",
        )

    def latent_shape(self, image_shape: Sequence[int]) -> tuple[int, int, int, int]:
        """Shape [B, c, h, w] of the latents of images of shape [B, C, H, W].

        Raises:
            ValueError: If height or width is not divisible by the downsampling factor.
        """
        return self.autoencoder.latent_shape(image_shape)

    @torch.no_grad()
    def moments(self, images: Tensor) -> Moments:
        """Encode images [B, C, H, W] in [-1, 1]; in at least float32, also under autocast."""
        output = self.autoencoder.encode(images)
        half = output.continuous.dtype in (torch.float16, torch.bfloat16)
        mean = output.continuous.float() if half else output.continuous
        return Moments(mean, output.variance)

    @torch.no_grad()
    def sample(self, moments: Moments, noise: Tensor | None) -> Tensor:
        """Draw normalized latents from a posterior.

        Args:
            moments: Of ``moments``, or read from a latent cache.
            noise: Standard normal, [B, c, h, w]; None takes the mean. Not used where nothing is
                sampled.
        """
        latents = moments.mean
        if moments.variance is not None and noise is not None:
            latents = latents + moments.variance.sqrt() * noise
        return self.normalizer.normalize(latents)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Encode images to normalized latents; see ``moments`` and ``sample``."""
        return self.sample(self.moments(images), noise)

    @torch.no_grad()
    def decode(self, normalized: Tensor) -> Tensor:
        """Decode normalized latents [B, c, h, w] to images [B, C, H, W], clamped to [-1, 1].

        Where there are codes, every latent vector is replaced by its nearest code first.
        """
        latents = self.normalizer.denormalize(normalized)
        if self.autoencoder.bottleneck.num_codes is not None:
            latents = self.autoencoder.bottleneck(latents).latents
        return self.autoencoder.decode(latents).clamp(-1, 1)
