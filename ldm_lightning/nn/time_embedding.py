"""Time embedding of a denoiser: a sinusoidal embedding and two linear layers."""

import math

import torch
from torch import Tensor, nn

_LONGEST_PERIOD = 10_000.0


def sinusoidal_embedding(network_time: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of [B] times at `width / 2` spaced frequencies: [B, width].

    The order (cosine first) and the frequencies 10000^(-i / (width / 2)) are those of ADM and
    CompVis, so that published weights keep their meaning.
    Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.5.

    Raises:
        ValueError: for an odd width.
    """
    if width % 2:
        raise ValueError(f"a time embedding of width {width}: the width must be even")
    half = width // 2
    steps = torch.arange(half, dtype=network_time.dtype, device=network_time.device)
    angles = network_time[:, None] * torch.exp(steps * (-math.log(_LONGEST_PERIOD) / half))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedding(nn.Sequential):
    """[B] network times -> [B, out_width]; the sinusoid is computed in float32 at least.

    The two linear layers are named 0 and 2, as in published U-Nets.
    """

    def __init__(self, *, width: int, out_width: int) -> None:
        super().__init__(nn.Linear(width, out_width), nn.SiLU(), nn.Linear(out_width, out_width))
        self.width = width

    def forward(self, network_time: Tensor) -> Tensor:
        """Embed [B] network times as [B, out_width]."""
        precise = network_time.to(torch.promote_types(network_time.dtype, torch.float32))
        embedded = sinusoidal_embedding(precise, self.width)
        return super().forward(embedded.to(next(self.parameters()).dtype))
