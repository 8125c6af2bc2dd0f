"""Encoder of the convolutional autoencoder: images to the bottleneck's input.

Source: Rombach et al. 2022, arXiv:2112.10752, Appendix; the same network as Esser et al. 2021,
"Taming Transformers", Table 7.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ldm_lightning.nn.blocks import (
    AttentionBlock,
    Downsample,
    MiddleBlock,
    ResidualBlock,
    group_norm,
    run_block,
)


class EncoderLevel(nn.Module):
    """Residual blocks, attention after each where asked for, and a halving but for the last."""

    def __init__(
        self, in_channels: int, out_channels: int, *, num_blocks: int, attention: bool, last: bool
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * num_blocks
        self.block = nn.ModuleList(
            ResidualBlock(width, next_width)
            for width, next_width in zip(widths[:-1], widths[1:], strict=True)
        )
        self.attn = nn.ModuleList(
            AttentionBlock(out_channels) for _ in range(num_blocks if attention else 0)
        )
        self.downsample: nn.Module = nn.Identity() if last else Downsample(out_channels)

    def forward(self, hidden: Tensor, *, gradient_checkpointing: bool) -> Tensor:
        """Map [B, C_in, H, W] to [B, C_out, H/2, W/2] (the last level keeps H, W)."""
        for index, block in enumerate(self.block):
            hidden = run_block(block, hidden, gradient_checkpointing=gradient_checkpointing)
            if len(self.attn):
                hidden = run_block(
                    self.attn[index], hidden, gradient_checkpointing=gradient_checkpointing
                )
        return self.downsample(hidden)


class Encoder(nn.Module):
    """Map images to [B, out_channels, H/f, W/f] with f = 2 ** (number of levels - 1).

    Args:
        image_channels: Channels of the images.
        base_width: Channels of the first level.
        width_multipliers: Channels of each level, as multiples of ``base_width``.
        num_res_blocks: Residual blocks a level.
        attention_at: Downsampling factors at which every residual block is followed by attention;
            one that no level reaches is ignored.
        middle_attention: Whether the middle block has attention.
        out_channels: Channels the bottleneck takes.
        patch_size: Pixels a side that the first level takes as one position; a power of two.
        gradient_checkpointing: Recompute activations in the backward pass, to save memory.
    """

    def __init__(
        self,
        *,
        image_channels: int,
        base_width: int,
        width_multipliers: Sequence[int],
        num_res_blocks: int,
        attention_at: Sequence[int],
        middle_attention: bool,
        out_channels: int,
        patch_size: int = 1,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.gradient_checkpointing = gradient_checkpointing
        widths = [base_width * multiplier for multiplier in width_multipliers]
        self.conv_in = nn.Conv2d(
            image_channels * patch_size**2, base_width, kernel_size=3, padding=1
        )
        self.down = nn.ModuleList(
            EncoderLevel(
                widths[level - 1] if level else base_width,
                width,
                num_blocks=num_res_blocks,
                attention=patch_size * 2**level in attention_at,
                last=level == len(widths) - 1,
            )
            for level, width in enumerate(widths)
        )
        self.mid = MiddleBlock(widths[-1], attention=middle_attention)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], out_channels, kernel_size=3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images [B, C, H, W] in [-1, 1] to [B, out_channels, H/f, W/f], unbounded."""
        gradient_checkpointing = self.gradient_checkpointing and self.training
        hidden = self.conv_in(F.pixel_unshuffle(images, self.patch_size))
        for level in self.down:
            hidden = level(hidden, gradient_checkpointing=gradient_checkpointing)
        hidden = run_block(self.mid, hidden, gradient_checkpointing=gradient_checkpointing)
        return self.conv_out(F.silu(self.norm_out(hidden)))
