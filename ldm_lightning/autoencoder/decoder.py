"""Decoder of the convolutional autoencoder: latents to images.

Source: Rombach et al. 2022, arXiv:2112.10752, Appendix. One residual block a level more than the
encoder.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_lightning.nn.blocks import (
    AttentionBlock,
    MiddleBlock,
    NearestUpsample,
    ResidualBlock,
    TransposedUpsample,
    group_norm,
    run_block,
)

UPSAMPLERS: dict[str, type[NearestUpsample] | type[TransposedUpsample]] = {
    "nearest": NearestUpsample,
    "transposed": TransposedUpsample,
}


class DecoderLevel(nn.Module):
    """Residual blocks, attention after each where asked for, and a doubling but for the last."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_blocks: int,
        attention: bool,
        upsampler: type[nn.Module] | None,
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
        self.upsample: nn.Module = upsampler(out_channels) if upsampler else nn.Identity()

    def forward(self, hidden: Tensor, *, gradient_checkpointing: bool) -> Tensor:
        """Map [B, C_in, h, w] to [B, C_out, 2h, 2w] (the last level keeps h, w)."""
        for index, block in enumerate(self.block):
            hidden = run_block(block, hidden, gradient_checkpointing=gradient_checkpointing)
            if len(self.attn):
                hidden = run_block(
                    self.attn[index], hidden, gradient_checkpointing=gradient_checkpointing
                )
        return self.upsample(hidden)


class Decoder(nn.Module):
    """Map latents [B, in_channels, h, w] to [B, image_channels, h * f, w * f].

    Args:
        image_channels: Channels of the images.
        base_width: Channels of the last level.
        width_multipliers: Channels of each level, as multiples of ``base_width``, in the encoder's
            order.
        num_res_blocks: Residual blocks a level in the encoder; here one more.
        attention_at: Downsampling factors at which every residual block is followed by attention.
        middle_attention: Whether the middle block has attention.
        in_channels: Channels of the latents.
        upsampling: ``nearest`` (repeat, then convolve) or ``transposed`` (see
            ``TransposedUpsample``).
        patch_size: Pixels a side that the first level takes as one position; a power of two.
        gradient_checkpointing: Recompute activations in the backward pass, to save memory.

    Raises:
        ValueError: If ``upsampling`` is unknown.
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
        in_channels: int,
        upsampling: str = "nearest",
        patch_size: int = 1,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        if upsampling not in UPSAMPLERS:
            raise ValueError(f"upsampling must be one of {sorted(UPSAMPLERS)}, got {upsampling!r}.")
        self.gradient_checkpointing = gradient_checkpointing
        widths = [base_width * multiplier for multiplier in width_multipliers]
        self.conv_in = nn.Conv2d(in_channels, widths[-1], kernel_size=3, padding=1)
        self.mid = MiddleBlock(widths[-1], attention=middle_attention)
        # Kept in the encoder's order, as published weights are; run from the last to the first.
        self.up = nn.ModuleList(
            DecoderLevel(
                widths[min(level + 1, len(widths) - 1)],
                width,
                num_blocks=num_res_blocks + 1,
                attention=patch_size * 2**level in attention_at,
                upsampler=UPSAMPLERS[upsampling] if level else None,
            )
            for level, width in enumerate(widths)
        )
        self.norm_out = group_norm(base_width * width_multipliers[0])
        self.conv_out = nn.Conv2d(
            widths[0], image_channels * patch_size**2, kernel_size=3, padding=1
        )

    def forward(self, latents: Tensor) -> Tensor:
        """Decode [B, in_channels, h, w] to [B, image_channels, h * f, w * f], unbounded."""
        gradient_checkpointing = self.gradient_checkpointing and self.training
        hidden = run_block(
            self.mid, self.conv_in(latents), gradient_checkpointing=gradient_checkpointing
        )
        for level in reversed(self.up):
            hidden = level(hidden, gradient_checkpointing=gradient_checkpointing)
        hidden = F.silu(self.norm_out(hidden))
        # The last layer runs in the parameters' own precision: the losses, and the adaptive
        # weight's gradients with respect to this layer, would lose digits (bf16) or vanish (fp16)
        # otherwise. It is one convolution.
        with torch.autocast(hidden.device.type, enabled=False):
            outputs = self.conv_out(hidden.to(self.conv_out.weight.dtype))
        return F.pixel_shuffle(outputs, self.patch_size)
