"""Residual, attention and resampling blocks of the convolutional autoencoder.

The layout, and with it every parameter's name, is that of the first stages of Rombach et al. 2022
(arXiv:2112.10752, Appendix), so that published weights need a prefix and no renaming.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MAX_NORM_GROUPS = 32


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalization with 32 groups from 128 channels on, and four channels a group below.

    Differs from the published networks only where those do not go (under 128 channels): there 32
    groups would leave one channel a group, which removes every channel's mean and with it the
    image's color.
    """
    num_groups = math.gcd(min(MAX_NORM_GROUPS, max(1, channels // 4)), channels)
    return nn.GroupNorm(num_groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Two normalized 3x3 convolutions beside a shortcut, which is 1x1 where the width changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.nin_shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, C_in, H, W] to [B, C_out, H, W]."""
        residual = self.conv1(F.silu(self.norm1(hidden)))
        residual = self.conv2(F.silu(self.norm2(residual)))
        return self.nin_shortcut(hidden) + residual


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions, beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, kernel_size=1)
        self.k = nn.Conv2d(channels, channels, kernel_size=1)
        self.v = nn.Conv2d(channels, channels, kernel_size=1)
        self.proj_out = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        batch, channels, height, width = hidden.shape
        normalized = self.norm(hidden)
        # Contiguous, because fused attention takes no strided channels: torch would silently fill a
        # table of (H*W)^2 weights instead, 1 GiB an image at 128x128 positions.
        query, key, value = (
            project(normalized).flatten(2).transpose(1, 2).contiguous().unsqueeze(1)
            for project in (self.q, self.k, self.v)
        )  # [B, 1, H*W, C]
        attended = F.scaled_dot_product_attention(query, key, value)
        attended = attended.squeeze(1).transpose(1, 2).reshape(batch, channels, height, width)
        return hidden + self.proj_out(attended)


class Downsample(nn.Module):
    """Halve height and width by a strided 3x3 convolution, padded at the right and lower edge."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C, H/2, W/2]."""
        return self.conv(F.pad(hidden, (0, 1, 0, 1)))


class NearestUpsample(nn.Module):
    """Double height and width by repeating pixels, then convolve: all pixels are made alike."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C, 2H, 2W]."""
        return self.conv(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))


class TransposedUpsample(nn.Module):
    """Double height and width by a transposed 3x3 convolution with stride 2.

    Kernel and stride do not divide, so neighboring output pixels see different numbers of taps:
    the cause of checkerboard patterns (Odena et al. 2016). Here to be compared with, not to be
    preferred.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(
            channels, channels, kernel_size=3, stride=2, padding=1, output_padding=1
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C, 2H, 2W]."""
        return self.conv(hidden)


class MiddleBlock(nn.Module):
    """Residual, attention, residual at the lowest resolution; attention may be left out."""

    def __init__(self, channels: int, *, attention: bool) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = AttentionBlock(channels) if attention else nn.Identity()
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        return self.block_2(self.attn_1(self.block_1(hidden)))


def run_block(block: nn.Module, hidden: Tensor, *, gradient_checkpointing: bool) -> Tensor:
    """Apply a block; ``gradient_checkpointing`` recomputes its activations in the backward pass."""
    if gradient_checkpointing and hidden.requires_grad:
        return checkpoint(block, hidden, use_reentrant=False)
    return block(hidden)
