"""PatchGAN: one logit for each overlapping patch of the image.

Source: Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks",
Appendix 6.1.2.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ldm_lightning.nn.blocks import group_norm

MAX_WIDTH_MULTIPLIER = 8
NEGATIVE_SLOPE = 0.2

# Normalization layers bring their own bias; without one the convolution needs it.
NORMALIZATIONS: dict[str, Callable[[int], nn.Module] | None] = {
    "group": group_norm,
    "batch": nn.BatchNorm2d,
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    "spectral": None,
    "none": None,
}


class PatchGAN(nn.Module):
    """Strided 4x4 convolutions to a map of logits, high where a patch looks real.

    Args:
        image_channels: Channels of the images.
        base_width: Channels after the first convolution.
        num_layers: Strided convolutions; with 3 a logit sees 70x70 pixels, with 2 34x34.
        normalization: ``group``, ``batch`` (published; statistics mix the images of a batch),
            ``instance``, ``spectral`` (on the weights) or ``none``.

    Raises:
        ValueError: If the normalization is unknown or there is no layer.
    """

    def __init__(
        self,
        *,
        image_channels: int,
        base_width: int = 64,
        num_layers: int = 3,
        normalization: str = "group",
    ) -> None:
        super().__init__()
        if normalization not in NORMALIZATIONS:
            raise ValueError(
                f"discriminator.normalization must be one of {sorted(NORMALIZATIONS)}, got "
                f"{normalization!r}."
            )
        if num_layers < 1:
            raise ValueError(f"discriminator.num_layers must be at least 1, got {num_layers}.")
        norm = NORMALIZATIONS[normalization]

        def convolution(
            in_channels: int, out_channels: int, *, stride: int, bias: bool
        ) -> nn.Module:
            layer = nn.Conv2d(
                in_channels, out_channels, kernel_size=4, stride=stride, padding=1, bias=bias
            )
            nn.init.normal_(layer.weight, mean=0.0, std=0.02)
            return spectral_norm(layer) if normalization == "spectral" else layer

        layers = [
            convolution(image_channels, base_width, stride=2, bias=True),
            nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
        ]
        width = base_width
        for index in range(1, num_layers + 1):
            next_width = base_width * min(2**index, MAX_WIDTH_MULTIPLIER)
            stride = 2 if index < num_layers else 1
            layers.append(convolution(width, next_width, stride=stride, bias=norm is None))
            if norm is not None:
                layers.append(norm(next_width))
            layers.append(nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True))
            width = next_width
        layers.append(convolution(width, 1, stride=1, bias=True))
        self.layers = nn.Sequential(*layers)
        self.min_size = 2**num_layers * 3

    def forward(self, images: Tensor) -> Tensor:
        """Map images [B, C, H, W] in [-1, 1] to logits [B, 1, h, w].

        Raises:
            ValueError: If the images are too small for one patch.
        """
        if min(images.shape[-2:]) < self.min_size:
            raise ValueError(
                f"Images of {images.shape[-2]}x{images.shape[-1]} are smaller than the "
                f"{self.min_size} pixels this discriminator needs; lower discriminator.num_layers "
                "or raise the resolution."
            )
        return self.layers(images)
