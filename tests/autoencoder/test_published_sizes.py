"""Presets have exactly the parameter counts of the published first stages (requirement B5)."""

import pytest
import torch

from ldm_lightning.autoencoder.autoencoder import Autoencoder, convolutional_autoencoder
from ldm_lightning.bottleneck.base import Bottleneck
from ldm_lightning.bottleneck.gaussian import GaussianBottleneck
from ldm_lightning.bottleneck.vector_quantizer import VectorQuantizer
from ldm_lightning.discriminator.patchgan import PatchGAN

# name: factor, latent channels, codes, multipliers, attention at, middle attention, encoder,
# decoder, total
PUBLISHED = {
    "kl_f4": (4, 3, None, [1, 2, 4], [], True, 22_351_238, 32_960_771, 55_312_063),
    "kl_f8": (8, 4, None, [1, 2, 4, 4], [], True, 34_163_592, 49_490_179, 83_653_863),
    "kl_f16": (16, 16, None, [1, 1, 2, 2, 4], [16], True, 28_265_760, 41_343_875, 69_610_963),
    "kl_f32": (32, 64, None, [1, 1, 2, 2, 4, 4], [16, 32], True, 42_614_656, 61_244_803,
    103_880_131), "vq_f4": (4, 3, 8192, [1, 2, 4], [], True, 22_337_411, 32_960_771, 55_322_782),
    "vq_f4_noattn": (4, 3, 8192, [1, 2, 4], [], False, 21_285_763, 31_909_123, 53_219_486),
    "vq_f8": (8, 4, 16384, [1, 2, 2, 4], [8], True, 27_397_764, 40_253_955, 67_717_295),
    "vq_f8_n256": (8, 4, 256, [1, 2, 2, 4], [8], True, 27_397_764, 40_253_955, 67_652_783),
    "vq_f16": (16, 8, 16384, [1, 1, 2, 2, 4], [16], True, 28_155_144, 41_307_011, 69_593_371),
    "vqgan_f16": (16, 256, 1024, [1, 1, 2, 2, 4], [16], True, 29_298_176, 42_449_795, 72_141_699),
    "vqgan_f16_16384": (
        16, 256, 16384, [1, 1, 2, 2, 4], [16], True, 29_298_176, 42_449_795, 76_073_859,
    ),
}  # fmt: skip


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def build(name: str) -> Autoencoder:
    factor, channels, num_codes, multipliers, attention_at, middle_attention, *_ = PUBLISHED[name]
    with torch.device("meta"):
        bottleneck: Bottleneck = (
            VectorQuantizer(num_codes=num_codes, latent_channels=channels)
            if num_codes
            else GaussianBottleneck()
        )
        return convolutional_autoencoder(
            bottleneck=bottleneck,
            image_channels=3,
            latent_channels=channels,
            downsampling_factor=factor,
            base_width=128,
            width_multipliers=multipliers,
            num_res_blocks=2,
            attention_at=attention_at,
            middle_attention=middle_attention,
            upsampling="nearest",
            gradient_checkpointing=False,
            output="images",
        )


@pytest.mark.parametrize("name", PUBLISHED)
def test_encoder_decoder_and_total_have_the_published_number_of_parameters(name):
    autoencoder = build(name)
    *_, encoder, decoder, total = PUBLISHED[name]
    assert count(autoencoder.encoder) == encoder
    assert count(autoencoder.decoder) == decoder
    assert count(autoencoder) == total


@pytest.mark.parametrize(("num_layers", "published"), [(3, 2_765_633), (2, 663_361)])
def test_discriminator_has_the_published_number_of_parameters(num_layers, published):
    for normalization in ("batch", "group"):
        network = PatchGAN(image_channels=3, num_layers=num_layers, normalization=normalization)
        assert count(network) == published
