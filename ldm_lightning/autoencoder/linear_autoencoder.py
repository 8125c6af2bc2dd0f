"""An autoencoder without a network: what latents of a given shape hold by linear maps alone."""

from typing import Self

import torch
from torch import Tensor, nn

from ldm_lightning.autoencoder.autoencoder import AutoencoderOutput
from ldm_lightning.autoencoder.linear import LinearMaps
from ldm_lightning.autoencoder.linear_fit import PatchComponents, fit_components, fit_to_components
from ldm_lightning.bottleneck.base import Bottleneck
from ldm_lightning.bottleneck.identity import IdentityBottleneck
from ldm_lightning.bottleneck.vector_quantizer import VectorQuantizer


class LinearAutoencoder(nn.Module):
    """Linear encoder, k-means codes where there are any, linear decoder; frozen.

    Args:
        maps: Fitted maps.
        bottleneck: Without terms to learn: the identity, or codes that are placed.
    """

    def __init__(self, maps: LinearMaps, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.maps = maps
        self.bottleneck = bottleneck
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def fit(
        cls,
        images: Tensor,
        *,
        latent_channels: int,
        downsampling_factor: int,
        num_codes: int | None,
        seed: int,
    ) -> Self:
        """Fit one to images.

        Args:
            images: uint8 [N, C, H, W]; height and width are divisible by the downsampling factor.
            latent_channels: c.
            downsampling_factor: f.
            num_codes: K; None for latents without codes.
            seed: Of the codes.
        """
        components = fit_components(
            images, size=downsampling_factor, num_components=latent_channels
        )
        return cls.fit_components(
            images,
            components,
            latent_channels=latent_channels,
            downsampling_factor=downsampling_factor,
            num_codes=num_codes,
            seed=seed,
        )

    @classmethod
    def fit_components(
        cls,
        images: Tensor,
        components: PatchComponents,
        *,
        latent_channels: int,
        downsampling_factor: int,
        num_codes: int | None,
        seed: int,
    ) -> Self:
        """Fit one where the components of the images' patches are known; see ``fit``."""
        bottleneck: Bottleneck = IdentityBottleneck()
        # The initial weights are replaced at once: the run's own random numbers stay as they are.
        with torch.random.fork_rng(devices=[]):
            if num_codes is not None:
                bottleneck = VectorQuantizer(num_codes=num_codes, latent_channels=latent_channels)
            maps = LinearMaps(
                image_channels=images.shape[1],
                latent_channels=latent_channels,
                downsampling_factor=downsampling_factor,
            )
        first = components.first(latent_channels)
        fit_to_components(maps, bottleneck, images, first, seed=seed)
        return cls(maps, bottleneck)

    @torch.no_grad()
    def forward(self, images: Tensor) -> AutoencoderOutput:
        """Encode and decode images [B, C, H, W] in [-1, 1], in the maps' own precision."""
        bottleneck = self.bottleneck(self.maps.encode(images))
        reconstructions = self.maps.decode(bottleneck.latents)
        return AutoencoderOutput(reconstructions, reconstructions, bottleneck)
