"""Attention of the diffusion U-Net: over positions, and from positions to tokens of a condition.

Source: Dhariwal & Nichol 2021 (ADM, arXiv:2105.05233, section 3.1) for ``AttentionBlock``;
Rombach et al. 2022 (arXiv:2112.10752, section 3.3, Appendix E.2.1) for ``SpatialTransformer``.
Parameters bear the names of the published weights.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ldm_lightning.denoiser.unet_layers import group_norm, zeroed

FEED_FORWARD_RATIO = 4
"""Width of the transformer's feed-forward layer over its own."""


class AttentionBlock(nn.Module):
    """Self-attention over all positions, beside a shortcut."""

    def __init__(self, channels: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, kernel_size=1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, kernel_size=1))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, C, h, w] to the same shape."""
        projected = _pointwise(self.qkv, _tokens(self.norm(hidden)))  # [B, h*w, 3C]
        # published weights hold query, key and value of the first head, then of the second, ...
        by_head = projected.unflatten(2, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
        query, key, value = by_head.unbind(0)  # [B, heads, h*w, C/heads]
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return hidden + _image(_pointwise(self.proj_out, attended), hidden)


class TokenAttention(nn.Module):
    """Attention from tokens to a context; to themselves where the context is the tokens."""

    def __init__(self, width: int, *, context_width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Map tokens [B, N, C] and context [B, n, d] to [B, N, C]."""
        query, key, value = (
            projected.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, N, C/heads]
            for projected in (self.to_q(tokens), self.to_k(context), self.to_v(context))
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.to_out(attended.transpose(1, 2).flatten(2))


class GatedLinear(nn.Module):
    """GEGLU: a linear map gated by the GELU of another (Shazeer 2020, arXiv:2002.05202, Eq. 5)."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_width, 2 * out_width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [B, N, C_in] to [B, N, C_out]."""
        value, gate = self.proj(tokens).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """A gated linear layer, four times as wide, and one back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = FEED_FORWARD_RATIO * width
        # the identity stands where published code has a dropout, which numbers the layers
        self.net = nn.Sequential(GatedLinear(width, inner), nn.Identity(), nn.Linear(inner, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [B, N, C] to the same shape."""
        return self.net(tokens)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context, feed-forward; normalized and with shortcuts."""

    def __init__(self, width: int, *, context_width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = TokenAttention(width, context_width=width, num_heads=num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = TokenAttention(width, context_width=context_width, num_heads=num_heads)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Map tokens [B, N, C] and context [B, n, d] to [B, N, C]."""
        normalized = self.norm1(tokens)
        tokens = tokens + self.attn1(normalized, normalized)
        tokens = tokens + self.attn2(self.norm2(tokens), context)
        return tokens + self.ff(self.norm3(tokens))


class SpatialTransformer(nn.Module):
    """Transformer blocks over all positions, which read a context, beside a shortcut."""

    def __init__(self, channels: int, *, context_width: int, num_heads: int, depth: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, kernel_size=1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, context_width=context_width, num_heads=num_heads)
            for _ in range(depth)
        )
        self.proj_out = zeroed(nn.Conv2d(channels, channels, kernel_size=1))

    def forward(self, hidden: Tensor, context: Tensor) -> Tensor:
        """Map [B, C, h, w] and context [B, n, d] to [B, C, h, w]."""
        tokens = _pointwise(self.proj_in, _tokens(self.norm(hidden)))
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return hidden + _image(_pointwise(self.proj_out, tokens), hidden)


def _tokens(hidden: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h*w, C], one token a position."""
    return hidden.flatten(2).transpose(1, 2)


def _image(tokens: Tensor, like: Tensor) -> Tensor:
    """[B, h*w, C] -> [B, C, h, w], a view in channels-last order."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])


def _pointwise(conv: nn.Conv1d | nn.Conv2d, tokens: Tensor) -> Tensor:
    """Apply a convolution of kernel size 1, the form of the published weights, to [B, N, C]."""
    return F.linear(tokens, conv.weight.flatten(1), conv.bias)
