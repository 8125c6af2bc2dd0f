"""The autoencoder as a user of the package meets it."""

import pytest
import torch

from ldm_lightning.autoencoder.autoencoder import Autoencoder, convolutional_autoencoder
from ldm_lightning.bottleneck.gaussian import GaussianBottleneck
from ldm_lightning.bottleneck.identity import IdentityBottleneck


def build(**changes) -> Autoencoder:
    options = {
        "bottleneck": GaussianBottleneck(),
        "image_channels": 3,
        "latent_channels": 4,
        "downsampling_factor": 4,
        "base_width": 8,
        "width_multipliers": [1, 2, 2],
        "num_res_blocks": 1,
        "attention_at": [4],
        "middle_attention": True,
        "upsampling": "nearest",
        "gradient_checkpointing": False,
        "output": "images",
    }
    return convolutional_autoencoder(**(options | changes))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_any_channel_count_and_any_divisible_size_comes_back_in_its_shape(channels, size):
    images = torch.rand(2, channels, *size) * 2 - 1
    output = build(image_channels=channels)(images)
    assert output.reconstructions.shape == images.shape
    assert output.bottleneck.latents.shape == (2, 4, size[0] // 4, size[1] // 4)


def test_a_size_that_does_not_divide_is_refused_with_one_that_does():
    with pytest.raises(ValueError, match=r"\b18x16\b.*factor 4\b.*\b16x16\b"):
        build()(torch.zeros(1, 3, 18, 16))


def test_width_multipliers_that_contradict_the_factor_are_refused():
    with pytest.raises(ValueError, match=r"\b2\b.*downsampling_factor=4\b"):
        build(width_multipliers=[1, 2])


def test_an_unknown_upsampling_is_refused():
    with pytest.raises(ValueError, match=r"\['nearest', 'transposed'\].*'bilinear'"):
        build(upsampling="bilinear")


def test_decode_of_encode_is_the_reconstruction():
    autoencoder, images = build(), torch.rand(2, 3, 16, 16) * 2 - 1
    output = autoencoder(images)
    torch.testing.assert_close(
        autoencoder.decode(autoencoder.encode(images).latents), output.reconstructions
    )


def test_logits_come_out_as_images_between_minus_one_and_one():
    autoencoder = build(output="logits", bottleneck=IdentityBottleneck())
    output = autoencoder(torch.rand(2, 3, 16, 16) * 2 - 1)
    torch.testing.assert_close(output.reconstructions, 2 * torch.sigmoid(output.outputs) - 1)


def test_recomputation_changes_neither_output_nor_gradients():
    torch.manual_seed(0)
    plain = build().train()
    recomputing = build(gradient_checkpointing=True).train()
    recomputing.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    for autoencoder in (plain, recomputing):
        autoencoder(images).reconstructions.square().sum().backward()
    for (name, left), right in zip(plain.named_parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad, msg=name)


def test_transposed_upsampling_leaves_a_grid_on_a_flat_field_and_nearest_does_not():
    def relative_grid_energy(upsampling: str) -> float:
        torch.manual_seed(0)
        autoencoder = build(upsampling=upsampling, attention_at=[], middle_attention=False)
        with torch.no_grad():
            image = autoencoder.decode(torch.ones(1, 4, 16, 16))[0, 0, 16:48, 16:48]
        spectrum = torch.fft.fft2(image - image.mean()).abs()
        grid = spectrum[16, :].sum() + spectrum[:, 16].sum()  # the frequency of every second pixel
        return float(grid / image.numel() / image.std().clamp(min=1e-3))

    assert relative_grid_energy("transposed") > 5 * relative_grid_energy("nearest")


def test_the_last_layer_keeps_full_precision_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert build()(torch.zeros(1, 3, 16, 16)).outputs.dtype == torch.float32
