"""Layers that all blocks of the diffusion U-Net share."""

import math
from typing import TypeVar

from torch import nn

MAX_NORM_GROUPS = 32

Layer = TypeVar("Layer", bound=nn.Module)


def group_norm(channels: int, *, eps: float = 1e-5) -> nn.GroupNorm:
    """Group normalization with 32 groups, fewer where they would hold less than two channels.

    A group of one channel would remove that channel's mean over the latents. All published widths,
    128 and more, have 32 groups.
    """
    num_groups = math.gcd(min(MAX_NORM_GROUPS, max(1, channels // 2)), channels)
    return nn.GroupNorm(num_groups, channels, eps=eps)


def zeroed(layer: Layer) -> Layer:
    """Set a layer's weights to zero, so that what it ends contributes nothing at first."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
