"""Blocks of the diffusion U-Net that are convolutions, and the lists they are run in.

Source: Dhariwal & Nichol 2021 (ADM, arXiv:2105.05233, section 3) and Rombach et al. 2022
(arXiv:2112.10752, Appendix E.2.1). Parameters bear the names of the published weights.
"""

import torch
from torch import Tensor, nn

from ldm_lightning.denoiser.unet_attention import SpatialTransformer
from ldm_lightning.denoiser.unet_layers import group_norm, zeroed


class ResidualBlock(nn.Module):
    """Two normalized 3x3 convolutions with the time between them, beside a shortcut.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        embedding_width: Width of the time embedding.
        scale_shift_norm: The embedding scales and shifts the normalized features ("adaptive group
            normalization", ADM section 3); else it is added before the normalization.
        dropout: Share of activations dropped before the second convolution.
        resample: Has no parameters; changes the size of residual and shortcut alike.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding_width: int,
        scale_shift_norm: bool,
        dropout: float,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift_norm = scale_shift_norm
        self.resample = resample or nn.Identity()
        self.in_layers = nn.Sequential(
            group_norm(in_channels),
            nn.SiLU(),
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(embedding_width, out_channels * (2 if scale_shift_norm else 1))
        )
        self.out_layers = nn.Sequential(
            group_norm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zeroed(nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)),
        )
        self.skip_connection: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.skip_connection = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Map [B, C_in, h, w] and embedding [B, d] to [B, C_out, h', w']."""
        norm, activation, conv = self.in_layers
        residual = conv(self.resample(activation(norm(hidden))))
        modulation = self.emb_layers(embedding)[:, :, None, None]
        norm, activation, dropout, conv = self.out_layers
        if self.scale_shift_norm:
            scale, shift = modulation.chunk(2, dim=1)
            residual = norm(residual) * (1 + scale) + shift
        else:
            residual = norm(residual + modulation)
        residual = conv(dropout(activation(residual)))
        return self.skip_connection(self.resample(hidden)) + residual


class Downsample(nn.Module):
    """Halve height and width by a strided 3x3 convolution, padded on all sides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, C, h, w] to [B, C, h/2, w/2]."""
        return self.op(hidden)


class BlockList(nn.ModuleList):
    """Layers run one after the other, each given what it takes of the condition."""

    def forward(
        self, hidden: Tensor, embedding: Tensor, context: Tensor | None, skip: Tensor | None = None
    ) -> Tensor:
        """Run all layers.

        Args:
            hidden: [B, C, h, w].
            embedding: Of the time, [B, d].
            context: Tokens for cross-attention, [B, n, d'].
            skip: Concatenated to ``hidden`` first, [B, C', h, w]. Here and not by the caller, so
                that recomputation needs not store the two together.

        Returns:
            [B, C_out, h', w'].
        """
        if skip is not None:
            hidden = torch.cat([hidden, skip], dim=1)
        for layer in self:
            if isinstance(layer, ResidualBlock):
                hidden = layer(hidden, embedding)
            elif isinstance(layer, SpatialTransformer):
                hidden = layer(hidden, context)
            else:
                hidden = layer(hidden)
        return hidden
