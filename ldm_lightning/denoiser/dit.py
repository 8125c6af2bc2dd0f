"""Diffusion transformer with adaLN-zero: patches as tokens, the condition as scales and shifts.

Source: Peebles & Xie 2023, arXiv:2212.09748, section 3. Differs from it: the prediction has as many
channels as ``out_channels`` says (published: twice the latents', for a learned variance), and
positions follow from the size of the input, so that any size divisible by the patch is taken.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm_lightning.nn.condition import Condition, check_inputs
from ldm_lightning.nn.time_embedding import TimeEmbedding, sinusoidal_embedding

TIME_WIDTH = 256
"""Width of the sinusoid of the time."""


def position_embedding(height: int, width: int, channels: int) -> Tensor:
    """Sines and cosines of column and row of each token, row by row: [height * width, channels].

    The first half of the channels holds the column, the second the row; sines come first.
    """
    rows = torch.arange(height, dtype=torch.float64)
    columns = torch.arange(width, dtype=torch.float64)
    halves = []
    for values in (columns.repeat(height), rows.repeat_interleave(width)):
        cosines, sines = sinusoidal_embedding(values, channels // 2).chunk(2, dim=1)
        halves += [sines, cosines]
    return torch.cat(halves, dim=1).float()


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [B, n, C] to the same shape."""
        heads = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)  # [B, heads, n, C / heads]
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2))


class DiTBlock(nn.Module):
    """Attention and feed-forward, each normalized, scaled, shifted and gated by the condition."""

    def __init__(self, width: int, *, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, num_heads=num_heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width)
        )
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        """Map [B, n, C] and the condition [B, C] to [B, n, C]."""
        modulation = self.adaLN_modulation(embedding)[:, None].chunk(6, dim=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation
        tokens = tokens + gate * self.attn(self.norm1(tokens) * (1 + scale) + shift)
        return tokens + mlp_gate * self.mlp(self.norm2(tokens) * (1 + mlp_scale) + mlp_shift)


class FinalLayer(nn.Module):
    """From tokens to the values of their patches."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, out_width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        """Map [B, n, C] and the condition [B, C] to [B, n, out_width]."""
        shift, scale = self.adaLN_modulation(embedding)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm_final(tokens) * (1 + scale) + shift)


class DiT(nn.Module):
    """Predicts from noisy latents, time and condition; zero before training.

    Args:
        in_channels: Of the noisy latents, with those of ``condition.concat``.
        out_channels: Of the prediction.
        width: Of the tokens, and of ``condition.vector``; divisible by 4.
        num_blocks: Transformer blocks.
        num_heads: Attention heads.
        patch_size: Latent pixels on a side that make a token.
        mlp_ratio: Width of the feed-forward layer over ``width``.
        gradient_checkpointing: Recompute activations in the backward pass, to save memory.

    Raises:
        ValueError: If the heads do not divide the width, the width is not divisible by 4, or a
            number is below 1.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        width: int,
        num_blocks: int,
        num_heads: int,
        patch_size: int,
        mlp_ratio: float = 4.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        sizes = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "width": width,
            "num_blocks": num_blocks,
            "num_heads": num_heads,
            "patch_size": patch_size,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"denoiser.{name} must be at least 1, got {size}.")
        if width % num_heads or width % 4:
            raise ValueError(
                f"denoiser.width={width} must be divisible by 4 and by "
                f"denoiser.num_heads={num_heads}."
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.width = width
        self.patch_size = patch_size
        self.gradient_checkpointing = gradient_checkpointing
        self.x_embedder = nn.Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size)
        self.t_embedder = TimeEmbedding(width=TIME_WIDTH, out_width=width)
        self.blocks = nn.ModuleList(
            DiTBlock(width, num_heads=num_heads, mlp_ratio=mlp_ratio) for _ in range(num_blocks)
        )
        self.final_layer = FinalLayer(width, patch_size**2 * out_channels)
        self._positions: dict[tuple[int, int], Tensor] = {}  # by the grid of tokens
        self._initialize()

    @property
    def vector_width(self) -> int:
        """Width of ``condition.vector``."""
        return self.width

    def forward(self, noisy: Tensor, network_time: Tensor, condition: Condition) -> Tensor:
        """Predict.

        Args:
            noisy: [B, c, h, w], h and w divisible by the patch size.
            network_time: [B].
            condition: Vector and concat.

        Returns:
            [B, out_channels, h, w]; in the parameters' type, under autocast too.

        Raises:
            ValueError: If channels, size, time or condition do not fit.
        """
        self._check_size(*noisy.shape[2:])
        check_inputs(
            noisy,
            network_time,
            condition,
            in_channels=self.in_channels,
            vector_width=self.width,
            context_width=None,
        )
        parts = [noisy] if condition.concat is None else [noisy, condition.concat]
        patches = self.x_embedder(torch.cat(parts, dim=1))
        height, width = patches.shape[-2:]
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = tokens + self._positions_of(height, width, like=tokens)
        embedding = self.t_embedder(network_time)
        if condition.vector is not None:
            embedding = embedding + condition.vector
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                tokens = checkpoint(block, tokens, embedding, use_reentrant=False)
            else:
                tokens = block(tokens, embedding)
        # The last layer runs in the parameters' own precision: what it rounds away is an error of
        # every prediction. It is one linear map.
        dtype = self.final_layer.linear.weight.dtype
        with torch.autocast(tokens.device.type, enabled=False):
            values = self.final_layer(tokens.to(dtype), embedding.to(dtype))
        size = (height, width, self.patch_size, self.patch_size, self.out_channels)
        pixels = values.unflatten(1, size[:2]).unflatten(-1, size[2:])
        return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def _check_size(self, height: int, width: int) -> None:
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"Latents of {height}x{width} are not divisible by "
                f"denoiser.patch_size={self.patch_size}; use another resolution or patch size."
            )

    def _positions_of(self, height: int, width: int, *, like: Tensor) -> Tensor:
        """Positions in float32 at least, so that under autocast the sum over the blocks is too.

        In bfloat16 that sum rounds once a block: 24 blocks of random weights, 192 wide, then err
        by 1.6% of the prediction instead of 0.4%; with the last layer in float32 by 0.2%.
        """
        dtype = torch.promote_types(like.dtype, torch.float32)
        known = self._positions.get((height, width))
        if known is None or known.device != like.device or known.dtype != dtype:
            known = position_embedding(height, width, self.width).to(like.device, dtype)
            self._positions[height, width] = known
        return known

    def _initialize(self) -> None:
        """Xavier on every linear map, the time's normal, modulations and prediction zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.weight.view(self.width, -1))
        nn.init.zeros_(self.x_embedder.bias)  # type: ignore[arg-type]
        for layer in self.t_embedder:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        modulations = [block.adaLN_modulation for block in self.blocks]
        for modulation in (*modulations, self.final_layer.adaLN_modulation):
            nn.init.zeros_(modulation[-1].weight)  # type: ignore[index, union-attr]
        nn.init.zeros_(self.final_layer.linear.weight)
