"""The U-Net of latent diffusion.

Source: Dhariwal & Nichol 2021 (ADM, arXiv:2105.05233, section 3); with attention to a condition's
tokens, Rombach et al. 2022 (arXiv:2112.10752, section 3.3). Parameters bear the names of the
published weights without their prefix ``model.diffusion_model.``; embeddings of labels are the
conditioner's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm_lightning.denoiser.unet_blocks import BlockList
from ldm_lightning.denoiser.unet_layers import group_norm, zeroed
from ldm_lightning.denoiser.unet_levels import Level, LevelBuilder
from ldm_lightning.nn.condition import Condition, check_inputs
from ldm_lightning.nn.time_embedding import TimeEmbedding

EMBEDDING_RATIO = 4
"""Width of the time embedding over ``base_width``."""


class UNet(nn.Module):
    """Predict from noisy latents, at the time given, what the parametrization says.

    Args:
        in_channels: Channels of the noisy latents, and of what a condition concatenates to them.
        out_channels: Channels of the prediction.
        base_width: Channels of the first level; even.
        width_multipliers: Channels of each level, as multiples of ``base_width``; each level halves
            height and width of the one before.
        num_res_blocks: Residual blocks a level going down; one more going up.
        attention_at: Downsampling factors of the latents at which every residual block is followed
            by attention; one that no level reaches is ignored. The middle block always has it.
        num_heads: Attention heads, or None.
        head_width: Channels of an attention head, or None. One of the two is given.
        context_width: Width of the condition's tokens, which attention blocks then read; None for
            self-attention alone.
        transformer_depth: Transformer blocks at each place of attention to the condition's tokens.
        scale_shift_norm: The time embedding scales and shifts normalized features, instead of being
            added to features.
        resblock_updown: Residual blocks change the resolution, instead of convolutions.
        dropout: Share of activations dropped in residual blocks, in [0, 1).
        gradient_checkpointing: Recompute activations in the backward pass, to save memory.

    Raises:
        ValueError: If not exactly one of ``num_heads`` and ``head_width`` is given, or it does not
            divide the width of a level with attention.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        base_width: int,
        width_multipliers: Sequence[int],
        num_res_blocks: int,
        attention_at: Sequence[int],
        num_heads: int | None = None,
        head_width: int | None = None,
        context_width: int | None = None,
        transformer_depth: int = 1,
        scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        dropout: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if (num_heads is None) == (head_width is None):
            raise ValueError(
                "Give exactly one of num_heads and head_width and leave the other null, got "
                f"num_heads={num_heads} and head_width={head_width}."
            )
        self.in_channels = in_channels
        self.context_width = context_width
        self.gradient_checkpointing = gradient_checkpointing
        self.downsampling_factor = 2 ** (len(width_multipliers) - 1)
        self._embedding_width = embedding_width = EMBEDDING_RATIO * base_width

        build = LevelBuilder(
            embedding_width=embedding_width,
            num_heads=num_heads,
            head_width=head_width,
            context_width=context_width,
            transformer_depth=transformer_depth,
            scale_shift_norm=scale_shift_norm,
            resblock_updown=resblock_updown,
            dropout=dropout,
        )
        levels = [
            Level(base_width * multiplier, has_attention=2**index in attention_at)
            for index, multiplier in enumerate(width_multipliers)
        ]
        self.time_embed = TimeEmbedding(width=base_width, out_width=embedding_width)
        self.input_blocks = nn.ModuleList(
            [BlockList([nn.Conv2d(in_channels, base_width, kernel_size=3, padding=1)])]
        )
        width, skip_widths = base_width, [base_width]  # of the output of each input block
        for index, level in enumerate(levels):
            if index > 0:
                self.input_blocks.append(build.halving(width))
                skip_widths.append(width)
            self.input_blocks.extend(build.down(width, level, num_blocks=num_res_blocks))
            skip_widths += [level.width] * num_res_blocks
            width = skip_widths[-1]
        self.middle_block = build.middle(width)
        self.output_blocks = nn.ModuleList()
        for index, level in reversed(list(enumerate(levels))):
            skipped = [skip_widths.pop() for _ in range(num_res_blocks + 1)]
            self.output_blocks.extend(
                build.up(width, level, skip_widths=skipped, doubles=index > 0)
            )
            width = level.width
        self.out = nn.Sequential(
            group_norm(width),
            nn.SiLU(),
            zeroed(nn.Conv2d(width, out_channels, kernel_size=3, padding=1)),
        )

    @property
    def vector_width(self) -> int:
        """Width of ``condition.vector``: that of the time embedding."""
        return self._embedding_width

    @property
    def blocks(self) -> list[nn.Module]:
        """Blocks that run one after the other."""
        return [*self.input_blocks, self.middle_block, *self.output_blocks]

    def forward(self, noisy: Tensor, network_time: Tensor, condition: Condition) -> Tensor:
        """Predict.

        Args:
            noisy: Noisy latents, scaled to unit variance or so, [B, c, h, w].
            network_time: What the schedule says the network sees of the time, [B].
            condition: ``vector`` [B, ``vector_width``] is added to the time embedding, ``context``
                [B, n, ``context_width``] is attended to, ``concat`` [B, c', h, w] is concatenated.

        Returns:
            [B, out_channels, h, w], unbounded; in the parameters' type, under autocast too.

        Raises:
            ValueError: If height or width is not divisible, or what comes is not what the network
                was built for.
        """
        self._check_size(*noisy.shape[2:])
        check_inputs(
            noisy,
            network_time,
            condition,
            in_channels=self.in_channels,
            vector_width=self.vector_width,
            context_width=self.context_width,
        )
        hidden = noisy
        if condition.concat is not None:
            hidden = torch.cat([noisy, condition.concat], dim=1)
        embedding = self.time_embed(network_time)
        if condition.vector is not None:
            embedding = embedding + condition.vector
        skips: list[Tensor] = []
        for blocks in self.input_blocks:
            hidden = self._run(blocks, hidden, embedding, condition.context)
            skips.append(hidden)
        hidden = self._run(self.middle_block, hidden, embedding, condition.context)
        for blocks in self.output_blocks:
            hidden = self._run(blocks, hidden, embedding, condition.context, skips.pop())
        norm, activation, conv = self.out
        hidden = activation(norm(hidden))
        # The last layer runs in the parameters' own precision: what it rounds away is an error of
        # every prediction. It is one convolution.
        with torch.autocast(hidden.device.type, enabled=False):
            return conv(hidden.to(conv.weight.dtype))

    def _run(
        self,
        blocks: nn.Module,
        hidden: Tensor,
        embedding: Tensor,
        context: Tensor | None,
        skip: Tensor | None = None,
    ) -> Tensor:
        """Run a list of blocks, whose activations ``gradient_checkpointing`` recomputes."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(blocks, hidden, embedding, context, skip, use_reentrant=False)
        return blocks(hidden, embedding, context, skip)

    def _check_size(self, height: int, width: int) -> None:
        if height % self.downsampling_factor or width % self.downsampling_factor:
            raise ValueError(
                f"Latents of {height}x{width} are not divisible by the U-Net's downsampling factor "
                f"{self.downsampling_factor}; give images whose size is, or fewer "
                "denoiser.width_multipliers."
            )
