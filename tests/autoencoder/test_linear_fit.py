"""Linear maps between images and latents: against numpy, and with every bottleneck."""

import numpy as np
import pytest
import torch

from ldm_lightning.autoencoder.autoencoder import Autoencoder, convolutional_autoencoder
from ldm_lightning.autoencoder.linear import LinearMaps
from ldm_lightning.autoencoder.linear_fit import (
    COLOR_GAIN,
    fit_components,
    fit_linear_maps,
    patches_of,
    sample_size,
)
from ldm_lightning.bottleneck.base import Bottleneck
from ldm_lightning.bottleneck.gaussian import GaussianBottleneck
from ldm_lightning.bottleneck.identity import IdentityBottleneck
from ldm_lightning.bottleneck.kmeans import nearest
from ldm_lightning.bottleneck.vector_quantizer import VectorQuantizer
from ldm_lightning.utils.image import from_uint8


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Smooth random images, uint8 [48, 3, 16, 32]."""
    noise = torch.randn(48, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise, scale_factor=4, mode="bicubic")
    return ((smooth * 40) + 128).clamp(0, 255).to(torch.uint8)


def maps_for(images, channels: int, factor: int) -> LinearMaps:
    return LinearMaps(
        image_channels=images.shape[1], latent_channels=channels, downsampling_factor=factor
    )


@torch.no_grad()
def psnr(maps: LinearMaps, bottleneck: Bottleneck, images: torch.Tensor) -> float:
    truth = from_uint8(images)
    encoded = torch.cat([maps.encode(truth)] * bottleneck.inputs_per_channel, dim=1)
    error = maps.decode(bottleneck.eval()(encoded).latents) - truth
    return float(-10 * (error / 2).square().mean().log10())


@pytest.mark.parametrize(("factor", "channels"), [(4, 5), (8, 3)])
def test_equals_numpy(images, factor, channels):
    maps = maps_for(images, channels, factor)
    fit_linear_maps(maps, IdentityBottleneck(), images, seed=0)

    x = images.numpy().astype(np.float64) / 127.5 - 1
    n, c, h, w = x.shape
    patches = x.reshape(n, c, h // factor, factor, w // factor, factor)
    patches = patches.transpose(0, 2, 4, 1, 3, 5).reshape(n, h // factor, w // factor, -1)
    flat = patches.reshape(-1, patches.shape[-1])
    centered = flat - flat.mean(0)
    channels_first = centered.reshape(len(flat), c, -1)
    gray = channels_first.mean(1, keepdims=True)
    color = (channels_first - gray).mean(2, keepdims=True)
    centered = (channels_first + (COLOR_GAIN - 1) * color).reshape(centered.shape)
    _, singular, directions = np.linalg.svd(centered, full_matrices=False)
    latents = centered @ directions[:channels].T / (singular[:channels] / np.sqrt(len(flat)))
    grid = latents.reshape(n, h // factor, w // factor, channels)
    padded = np.pad(grid, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows, columns = grid.shape[1:3]
    around = [padded[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    inputs = np.concatenate([*around, np.ones((*grid.shape[:3], 1))], axis=-1)
    inputs = inputs.reshape(len(flat), -1)
    fitted = inputs @ np.linalg.lstsq(inputs, flat, rcond=None)[0]

    found = maps.decode(maps.encode(from_uint8(images)))
    found = patches_of(found, factor).flatten(0, 2).detach().numpy()
    error, best = np.square(found - flat).mean(), np.square(fitted - flat).mean()
    assert error == pytest.approx(best, rel=1e-4)
    assert np.abs(found - fitted).max() < 5e-3
    own = maps.encode(from_uint8(images)).movedim(1, -1).flatten(0, 2).detach().numpy()
    assert np.abs(np.abs(own) - np.abs(latents)).max() < 1e-3


def test_iterated_components_equal_exact_ones(images, monkeypatch):
    exact = fit_components(images, size=8, num_components=6)
    monkeypatch.setattr("ldm_lightning.autoencoder.linear_fit.MAX_EXACT_SIZE", 0)
    iterated = fit_components(images, size=8, num_components=6)
    torch.testing.assert_close(iterated.variances, exact.variances, rtol=1e-4, atol=0)
    torch.testing.assert_close(iterated.analysis, exact.analysis, rtol=0, atol=1e-3)
    torch.testing.assert_close(iterated.synthesis, exact.synthesis, rtol=0, atol=1e-3)
    identity = exact.analysis @ exact.synthesis
    torch.testing.assert_close(identity, torch.eye(6), rtol=0, atol=1e-5)


def quantizer(channels: int, *, normalize: bool = False) -> VectorQuantizer:
    return VectorQuantizer(num_codes=32, latent_channels=channels, normalize=normalize)


BOTTLENECKS = {
    "identity": lambda channels: IdentityBottleneck(),
    "gaussian": lambda channels: GaussianBottleneck(initial_log_variance=-6.0),
    "vq": quantizer,
    "vq_normalized": lambda channels: quantizer(channels, normalize=True),
}


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_lapped_decoder_is_better_than_a_position_alone(images, name):
    channels = 4
    maps, bottleneck = maps_for(images, channels, 4), BOTTLENECKS[name](channels)
    fit_linear_maps(maps, bottleneck, images, seed=0)
    lapped = psnr(maps, bottleneck, images)
    components = fit_components(images, size=4, num_components=channels)
    scales = components.variances.sqrt()
    if bottleneck.compares_vectors:
        scales = components.variances.mean().sqrt().expand(channels)
    with torch.no_grad():
        maps.to_patches.weight.zero_()
        maps.to_patches.weight[:, :, 1, 1] = components.synthesis * scales
        maps.to_patches.bias.copy_(components.mean)
    assert lapped > psnr(maps, bottleneck, images)


def test_codes_are_nearest_centers_from_the_first_update_on(images):
    maps, bottleneck = maps_for(images, 4, 4), quantizer(4)
    fit_linear_maps(maps, bottleneck, images, seed=0)
    assert bottleneck.is_quantizing
    vectors = maps.encode(from_uint8(images)).movedim(1, -1).flatten(0, 2).detach()
    assert float(vectors.square().mean()) == pytest.approx(1.0, rel=1e-3)
    used = nearest(vectors, bottleneck.codes()).bincount(minlength=32)
    assert (used > 0).sum() >= 30


def test_channels_beyond_the_values_of_a_patch_stay_zero(images):
    maps = maps_for(images, 20, 2)
    fit_linear_maps(maps, IdentityBottleneck(), images, seed=0)
    latents = maps.encode(from_uint8(images))
    assert not latents[:, 12:].any()
    assert psnr(maps, IdentityBottleneck(), images) > 60


def test_logits_give_the_images_back(images):
    maps = maps_for(images, 48, 4)
    fit_linear_maps(maps, IdentityBottleneck(), images, seed=0, logits=True)
    truth = from_uint8(images)
    with torch.no_grad():
        shown = 2 * torch.sigmoid(maps.decode(maps.encode(truth))) - 1
    assert float((shown - truth).square().mean()) < 0.01 * float(truth.square().mean())


def autoencoder(bottleneck: Bottleneck, **changes) -> Autoencoder:
    settings = {
        "image_channels": 3,
        "latent_channels": 4,
        "downsampling_factor": 4,
        "base_width": 8,
        "width_multipliers": [1, 1, 1],
        "num_res_blocks": 1,
        "attention_at": [],
        "middle_attention": False,
        "upsampling": "nearest",
        "gradient_checkpointing": False,
        "output": "images",
        "linear_start": True,
        "patch_size": 1,
    }
    return convolutional_autoencoder(bottleneck=bottleneck, **(settings | changes))


@pytest.mark.parametrize("name", BOTTLENECKS)
@pytest.mark.parametrize("output", ["images", "logits"])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_an_autoencoder_starts_on_its_linear_maps(images, name, output, patch_size):
    network = autoencoder(
        BOTTLENECKS[name](4),
        output=output,
        patch_size=patch_size,
        width_multipliers=[1] * (4 // (2 * patch_size) + 1),
    )
    network.start_linearly(images, seed=0)
    network.eval()
    truth = from_uint8(images)
    output_of = network(truth)
    maps = network.linear
    encoded = torch.cat([maps.encode(truth)] + [torch.zeros(48, 4, 4, 8)] * (name == "gaussian"), 1)
    expected = maps.decode(network.bottleneck(encoded).latents)
    torch.testing.assert_close(output_of.outputs, expected, rtol=0, atol=1e-5)
    network.train()
    network(truth, torch.zeros(48, 4, 4, 8)).outputs.square().sum().backward()
    assert network.quant_conv.weight.grad.abs().sum() > 0
    assert network.decoder.conv_out.weight.grad.abs().sum() > 0


def test_gray_images_and_five_channels(images):
    for channels in (1, 5):
        many = torch.cat([images, images.flip(2)], dim=1)[:, :channels]
        network = autoencoder(IdentityBottleneck(), image_channels=channels)
        network.start_linearly(many, seed=0)
        assert network.eval()(from_uint8(many)).outputs.shape == many.shape


def test_it_must_be_built_with_linear_maps(images):
    with pytest.raises(ValueError, match="linear_start=True"):
        autoencoder(IdentityBottleneck(), linear_start=False).start_linearly(images, seed=0)


def test_size_of_the_sample():
    assert sample_size((64, 64)) == 2048
    assert sample_size((256, 256)) == 128
    assert sample_size((8192, 8192)) == 1
