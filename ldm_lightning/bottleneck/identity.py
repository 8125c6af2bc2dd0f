"""No bottleneck: an ordinary autoencoder, the upper bound on reconstruction at its size."""

from torch import Tensor

from ldm_lightning.bottleneck.base import Bottleneck, BottleneckOutput


class IdentityBottleneck(Bottleneck):
    """Hand the encoder's output to the decoder as it is; its latents have no scale of their own."""

    def forward(self, encoded: Tensor, *, noise: Tensor | None = None) -> BottleneckOutput:
        """Return ``encoded`` [B, c, h, w] as latents, without terms."""
        return BottleneckOutput(latents=encoded, continuous=encoded)
