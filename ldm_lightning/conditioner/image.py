"""An image as condition, concatenated to the noisy latents: low resolution, masks, maps."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_lightning.conditioner.base import Conditioner
from ldm_lightning.nn.condition import Condition


class ImageConditioner(Conditioner):
    """Resizes an image of the batch to the latents' size; has no parameters.

    Args:
        key: Of the batch; [B, channels, H, W].
        channels: Of that image; the denoiser's ``in_channels`` are these and the latents'.
        latent_size: Height and width of the latents: one number, or both.
        dropout: Share of a training batch that learns without its image, which is then zero.

    Raises:
        ValueError: If a number makes no sense.
    """

    def __init__(
        self, *, key: str, channels: int, latent_size: int | Sequence[int], dropout: float = 0.0
    ) -> None:
        super().__init__(dropout=dropout, num_classes=None)
        size = [latent_size] * 2 if isinstance(latent_size, int) else list(latent_size)
        if channels < 1 or len(size) != 2 or min(size) < 1:
            raise ValueError(
                "conditioner.channels and conditioner.latent_size must be at least 1, got "
                f"{channels} and {latent_size}."
            )
        self.key = key
        self.channels = channels
        self.size = (size[0], size[1])

    def forward(self, batch: Mapping[str, Any], *, drop: Tensor | None) -> Condition:
        """Average ``batch[key]`` down to the latents' size.

        Raises:
            ValueError: If the image is missing or has other channels.
        """
        if self.key not in batch:
            raise ValueError(
                f"conditioner.key={self.key} is not in this batch, which has "
                f"{', '.join(map(str, batch))}. A latent cache holds no images (leave out "
                "data=latents), and sampling cannot supply one (set validation.num_samples=0 and "
                "monitor=val/loss)."
            )
        image: Tensor = batch[self.key]
        if image.ndim != 4 or image.shape[1] != self.channels:
            raise ValueError(
                f"batch[{self.key!r}] must be [B, {self.channels}, H, W], got {list(image.shape)}; "
                "set conditioner.channels."
            )
        resized = F.interpolate(image, self.size, mode="area")
        if drop is not None:
            resized = resized.masked_fill(drop[:, None, None, None], 0.0)
        return Condition(concat=resized)

    def null(self, batch_size: int, device: torch.device) -> Condition:
        """Zero images."""
        return Condition(concat=torch.zeros(batch_size, self.channels, *self.size, device=device))
