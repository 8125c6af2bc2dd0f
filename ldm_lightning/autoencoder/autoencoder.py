"""The autoencoder: encoder, bottleneck and decoder, joined by 1x1 convolutions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm_lightning.autoencoder.decoder import Decoder
from ldm_lightning.autoencoder.encoder import Encoder
from ldm_lightning.autoencoder.linear import LinearMaps
from ldm_lightning.autoencoder.linear_fit import fit_linear_maps
from ldm_lightning.bottleneck.base import Bottleneck, BottleneckOutput


@dataclass(frozen=True)
class AutoencoderOutput:
    """One pass through the autoencoder.

    Attributes:
        outputs: What the decoder's last layer gave, [B, C, H, W]: images, or logits of a Bernoulli
            likelihood.
        reconstructions: The same as images, nominally in [-1, 1] (not clamped).
        bottleneck: Latents and regularization terms.
    """

    outputs: Tensor
    reconstructions: Tensor
    bottleneck: BottleneckOutput


class Autoencoder(nn.Module):
    """A first stage: images [B, C, H, W] in [-1, 1] to latents [B, c, H/f, W/f] and back.

    Args:
        encoder: Maps images to ``latent_channels * bottleneck.inputs_per_channel`` channels.
        decoder: Maps ``latent_channels`` channels to the image's.
        bottleneck: What happens between the two.
        latent_channels: Channels of the latents.
        downsampling_factor: Ratio of image size to latent size.
        output: ``images``, or ``logits`` where the decoder's output is the logit of a Bernoulli
            likelihood.
        linear: Maps that encoder and decoder are added to; both then start at zero.

    Raises:
        ValueError: If ``output`` is unknown.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        bottleneck: Bottleneck,
        *,
        latent_channels: int,
        downsampling_factor: int,
        output: str = "images",
        linear: LinearMaps | None = None,
    ) -> None:
        super().__init__()
        if output not in ("images", "logits"):
            raise ValueError(f"output must be 'images' or 'logits', got {output!r}.")
        self.latent_channels = latent_channels
        self.downsampling_factor = downsampling_factor
        self.output = output
        self.encoder = encoder
        self.decoder = decoder
        self.bottleneck = bottleneck
        encoded_channels = latent_channels * bottleneck.inputs_per_channel
        self.quant_conv = nn.Conv2d(encoded_channels, encoded_channels, kernel_size=1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, kernel_size=1)
        self.linear = linear
        if linear is not None:
            for layer in (self.quant_conv, decoder.conv_out):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    @property
    def last_layer(self) -> nn.Parameter:
        """The decoder's last weight, at which the adaptive weight compares gradients."""
        return self.decoder.conv_out.weight  # type: ignore[return-value]

    def latent_shape(self, image_shape: Sequence[int]) -> tuple[int, int, int, int]:
        """Shape [B, c, h, w] of the latents of images of shape [B, C, H, W].

        Raises:
            ValueError: If there are not four axes, or height or width is not divisible by the
                downsampling factor.
        """
        if len(image_shape) != 4:
            raise ValueError(
                f"Images must be [B, C, H, W], got {list(image_shape)}; give one image as "
                "images[None]."
            )
        batch, _, height, width = image_shape
        factor = self.downsampling_factor
        if height % factor or width % factor:
            raise ValueError(
                f"Images of {height}x{width} are not divisible by the downsampling factor "
                f"{factor}; use for instance "
                f"{height - height % factor or factor}x{width - width % factor or factor}."
            )
        return batch, self.latent_channels, height // factor, width // factor

    def start_linearly(self, images: Tensor, *, seed: int) -> None:
        """Fit the linear maps, and the bottleneck's codes, to uint8 images [N, C, H, W].

        Raises:
            ValueError: If it was built without linear maps.
        """
        if self.linear is None:
            raise ValueError("Build the autoencoder with linear_start=True.")
        fit_linear_maps(
            self.linear, self.bottleneck, images, seed=seed, logits=self.output == "logits"
        )

    def encode(self, images: Tensor, noise: Tensor | None = None) -> BottleneckOutput:
        """Encode images; without ``noise`` ([B, c, h, w], standard normal) nothing is sampled."""
        self.latent_shape(images.shape)
        encoded = self.quant_conv(self.encoder(images))
        if self.linear is not None:
            own, rest = encoded.split(
                [self.latent_channels, encoded.shape[1] - self.latent_channels], dim=1
            )
            encoded = torch.cat([self.linear.encode(images) + own, rest], dim=1)
        return self.bottleneck(encoded, noise=noise)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, c, h, w] to images [B, C, H, W], nominally in [-1, 1], not clamped."""
        return self.to_images(self._decoded(latents))

    def _decoded(self, latents: Tensor) -> Tensor:
        """The decoder's output: images, or logits."""
        outputs = self.decoder(self.post_quant_conv(latents))
        return outputs if self.linear is None else outputs + self.linear.decode(latents)

    def to_images(self, outputs: Tensor) -> Tensor:
        """Map the decoder's output to the scale of images."""
        return 2 * torch.sigmoid(outputs) - 1 if self.output == "logits" else outputs

    def forward(self, images: Tensor, noise: Tensor | None = None) -> AutoencoderOutput:
        """Encode and decode images [B, C, H, W] in [-1, 1]."""
        bottleneck = self.encode(images, noise)
        outputs = self._decoded(bottleneck.latents)
        return AutoencoderOutput(outputs, self.to_images(outputs), bottleneck)


def convolutional_autoencoder(
    *,
    bottleneck: Bottleneck,
    image_channels: int,
    latent_channels: int,
    downsampling_factor: int,
    base_width: int,
    width_multipliers: Sequence[int],
    num_res_blocks: int,
    attention_at: Sequence[int],
    middle_attention: bool,
    upsampling: str,
    gradient_checkpointing: bool,
    output: str,
    linear_start: bool = False,
    patch_size: int = 1,
) -> Autoencoder:
    """Build the autoencoder of Rombach et al. 2022 from numbers; see ``Encoder`` and ``Decoder``.

    Raises:
        ValueError: If the number of width multipliers does not give the downsampling factor.
    """
    levels_factor = patch_size * 2 ** (len(width_multipliers) - 1)
    if levels_factor != downsampling_factor:
        raise ValueError(
            f"autoencoder.width_multipliers={list(width_multipliers)} has {len(width_multipliers)} "
            f"levels and downsamples by {levels_factor}, but "
            f"autoencoder.downsampling_factor={downsampling_factor}; give one multiplier a level, "
            "or leave the multipliers to follow from the factor."
        )
    encoder = Encoder(
        image_channels=image_channels,
        base_width=base_width,
        width_multipliers=width_multipliers,
        num_res_blocks=num_res_blocks,
        attention_at=attention_at,
        middle_attention=middle_attention,
        out_channels=latent_channels * bottleneck.inputs_per_channel,
        patch_size=patch_size,
        gradient_checkpointing=gradient_checkpointing,
    )
    decoder = Decoder(
        image_channels=image_channels,
        base_width=base_width,
        width_multipliers=width_multipliers,
        num_res_blocks=num_res_blocks,
        attention_at=attention_at,
        middle_attention=middle_attention,
        in_channels=latent_channels,
        upsampling=upsampling,
        patch_size=patch_size,
        gradient_checkpointing=gradient_checkpointing,
    )
    return Autoencoder(
        encoder,
        decoder,
        bottleneck,
        latent_channels=latent_channels,
        downsampling_factor=downsampling_factor,
        output=output,
        linear=LinearMaps(
            image_channels=image_channels,
            latent_channels=latent_channels,
            downsampling_factor=downsampling_factor,
        )
        if linear_start
        else None,
    )
