"""Two linear maps between images and latents: patches to components, 3x3 latents to patches.

Together they are the best that latents of a given shape hold without a network. A first stage can
start on them and learn the rest; see ``linear_fit``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LinearMaps(nn.Module):
    """Linear encoder and decoder, zero until they are fitted or loaded.

    Args:
        image_channels: C.
        latent_channels: c.
        downsampling_factor: f; a patch has C * f * f values.
    """

    def __init__(
        self, *, image_channels: int, latent_channels: int, downsampling_factor: int
    ) -> None:
        super().__init__()
        self.downsampling_factor = downsampling_factor
        self.to_latents = nn.Conv2d(
            image_channels,
            latent_channels,
            kernel_size=downsampling_factor,
            stride=downsampling_factor,
        )
        self.to_patches = nn.Conv2d(
            latent_channels,
            image_channels * downsampling_factor**2,
            kernel_size=3,
            padding=1,
            padding_mode="replicate",
        )
        for layer in (self.to_latents, self.to_patches):
            nn.init.zeros_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def encode(self, images: Tensor) -> Tensor:
        """Map images [B, C, H, W] in [-1, 1] to latents [B, c, H/f, W/f]."""
        return _in_own_precision(self.to_latents, images)

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents [B, c, h, w] to the decoder's output [B, C, h * f, w * f], unbounded."""
        patches = _in_own_precision(self.to_patches, latents)
        return F.pixel_shuffle(patches, self.downsampling_factor)


def _in_own_precision(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """Run a layer in its weights' precision: half types would round what the networks add to."""
    with torch.autocast(inputs.device.type, enabled=False):
        return layer(inputs.to(layer.weight.dtype))
