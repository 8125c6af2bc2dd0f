"""Levels of the diffusion U-Net: the blocks that run at one resolution, going down and going up."""

from dataclasses import dataclass

from torch import nn

from ldm_lightning.denoiser.unet_attention import AttentionBlock, SpatialTransformer
from ldm_lightning.denoiser.unet_blocks import BlockList, Downsample, ResidualBlock
from ldm_lightning.nn.blocks import NearestUpsample


@dataclass(frozen=True)
class Level:
    """One resolution.

    Attributes:
        width: Channels of its blocks.
        has_attention: Every residual block is followed by attention.
    """

    width: int
    has_attention: bool


@dataclass(frozen=True)
class LevelBuilder:
    """Builds the blocks of all levels; see ``UNet`` for its arguments."""

    embedding_width: int
    num_heads: int | None
    head_width: int | None
    context_width: int | None
    transformer_depth: int
    scale_shift_norm: bool
    resblock_updown: bool
    dropout: float

    def down(self, in_width: int, level: Level, *, num_blocks: int) -> list[BlockList]:
        """Build the blocks of a level going down."""
        widths = ([in_width] + [level.width] * num_blocks)[:num_blocks]
        return [self._block(width, level) for width in widths]

    def middle(self, width: int) -> BlockList:
        """Build the block between the way down and the way up."""
        return BlockList(
            [self._residual(width, width), self._attention(width), self._residual(width, width)]
        )

    def up(
        self, in_width: int, level: Level, *, skip_widths: list[int], doubles: bool
    ) -> list[BlockList]:
        """Build the blocks of a level going up.

        Args:
            in_width: Channels that come in.
            level: The level.
            skip_widths: Channels that are concatenated to each block's input.
            doubles: The last block doubles height and width.
        """
        widths = [in_width] + [level.width] * (len(skip_widths) - 1)
        blocks = [
            self._block(width + skip_width, level)
            for width, skip_width in zip(widths, skip_widths, strict=True)
        ]
        if doubles:
            blocks[-1].append(self._doubling(level.width))
        return blocks

    def halving(self, width: int) -> BlockList:
        """Build the block between two levels going down."""
        if self.resblock_updown:
            return BlockList([self._residual(width, width, nn.AvgPool2d(2))])
        return BlockList([Downsample(width)])

    def _doubling(self, width: int) -> nn.Module:
        if self.resblock_updown:
            return self._residual(width, width, nn.Upsample(scale_factor=2.0))
        return NearestUpsample(width)

    def _block(self, in_width: int, level: Level) -> BlockList:
        layers: list[nn.Module] = [self._residual(in_width, level.width)]
        if level.has_attention:
            layers.append(self._attention(level.width))
        return BlockList(layers)

    def _residual(
        self, in_width: int, out_width: int, resample: nn.Module | None = None
    ) -> ResidualBlock:
        return ResidualBlock(
            in_width,
            out_width,
            embedding_width=self.embedding_width,
            scale_shift_norm=self.scale_shift_norm,
            dropout=self.dropout,
            resample=resample,
        )

    def _attention(self, width: int) -> nn.Module:
        num_heads = self._num_heads(width)
        if self.context_width is None:
            return AttentionBlock(width, num_heads=num_heads)
        return SpatialTransformer(
            width,
            context_width=self.context_width,
            num_heads=num_heads,
            depth=self.transformer_depth,
        )

    def _num_heads(self, width: int) -> int:
        """Attention heads of a block of ``width`` channels."""
        name, divisor = "num_heads", self.num_heads
        if self.head_width is not None:
            name, divisor = "head_width", self.head_width
        assert divisor is not None  # one of the two is given
        if width % divisor:
            raise ValueError(
                f"Attention over {width} channels is not divisible by {name}={divisor}; change it, "
                "base_width or width_multipliers."
            )
        return divisor if self.head_width is None else width // divisor
