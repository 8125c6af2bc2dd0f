"""The networks that are timed, alike for every rule."""

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from benchmarks.device import DEVICE
from ldm_lightning.autoencoder.autoencoder import Autoencoder, convolutional_autoencoder
from ldm_lightning.bottleneck.gaussian import GaussianBottleneck
from ldm_lightning.discriminator.patchgan import PatchGAN
from ldm_lightning.loss.perceptual import Lpips
from ldm_lightning.loss.pixel import pixel_loss
from ldm_lightning.loss.reconstruction import ReconstructionLoss
from ldm_lightning.utils.pretrained import WEIGHT_FILES


@dataclass(frozen=True)
class FirstStageShape:
    """A KL autoencoder and the batch it is trained on.

    Attributes:
        name: As the field names it.
        width_multipliers: One a level.
        latent_channels: Channels of the latents.
        base_width: Channels of the first level.
        resolution: Side of an image in pixels.
        batch_size: Images of a batch.
    """

    name: str
    width_multipliers: tuple[int, ...]
    latent_channels: int
    base_width: int
    resolution: int
    batch_size: int

    def __str__(self) -> str:
        return (
            f"{self.name}, {self.resolution} px, batch {self.batch_size}, width {self.base_width}"
        )

    def images(self) -> torch.Tensor:
        """A batch, [B, 3, H, W] in [-1, 1]."""
        generator = torch.Generator().manual_seed(1)
        size = (self.batch_size, 3, self.resolution, self.resolution)
        return (torch.rand(size, generator=generator) * 2 - 1).to(DEVICE)


KL_F4 = FirstStageShape("kl_f4", (1, 2, 4), 3, 64, 64, 8)
KL_F8 = FirstStageShape("kl_f8", (1, 2, 4, 4), 4, 128, 256, 1)


@dataclass(frozen=True)
class Players:
    """Networks that one rule trains: networks of its own, with the weights that all begin with."""

    autoencoder: Autoencoder
    reconstruction_loss: ReconstructionLoss
    discriminator: PatchGAN

    @property
    def num_parameters(self) -> dict[str, int]:
        """Of autoencoder and discriminator."""
        return {
            "autoencoder": sum(p.numel() for p in self.autoencoder.parameters()),
            "discriminator": sum(p.numel() for p in self.discriminator.parameters()),
        }


def build_players(
    shape: FirstStageShape, perceptual: Lpips, *, gradient_checkpointing: bool = False
) -> Players:
    """Networks with the same weights every time; activations are kept or computed again."""
    torch.manual_seed(0)
    autoencoder = convolutional_autoencoder(
        bottleneck=GaussianBottleneck(),
        image_channels=3,
        latent_channels=shape.latent_channels,
        downsampling_factor=2 ** (len(shape.width_multipliers) - 1),
        base_width=shape.base_width,
        width_multipliers=shape.width_multipliers,
        num_res_blocks=2,
        attention_at=[],
        middle_attention=True,
        upsampling="nearest",
        gradient_checkpointing=gradient_checkpointing,
        output="images",
    )
    loss = ReconstructionLoss(pixel_loss("l1"), perceptual, perceptual_weight=1.0, reduction="sum")
    discriminator = PatchGAN(image_channels=3)
    return Players(autoencoder.to(DEVICE), loss.to(DEVICE), discriminator.to(DEVICE))


def diffusers_autoencoder(shape: FirstStageShape) -> AutoencoderKL:
    """The network of diffusers at these sizes."""
    levels = len(shape.width_multipliers)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(m * shape.base_width for m in shape.width_multipliers),
        layers_per_block=2,
        latent_channels=shape.latent_channels,
    )


def num_parameters_of_diffusers(shape: FirstStageShape) -> int:
    """Parameters of the network of diffusers at these sizes."""
    with torch.device("meta"):
        network = diffusers_autoencoder(shape)
    return sum(parameter.numel() for parameter in network.parameters())


@functools.cache
def random_lpips() -> Lpips:
    """LPIPS on VGG-16 with random weights: the cost is that of the published ones."""
    torch.manual_seed(0)
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    weights = {f"features.{name}": value for name, value in layers.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(weights, Path(folder) / WEIGHT_FILES["vgg16"])
        return Lpips("vgg", weights_dir=folder)
