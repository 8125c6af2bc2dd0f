"""PatchGAN: depth, width, normalization (requirement A2)."""

import pytest
import torch

from ldm_lightning.discriminator.patchgan import NORMALIZATIONS, PatchGAN


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize(("num_layers", "side"), [(1, 31), (2, 14), (3, 6)])
def test_one_logit_for_each_patch(normalization, num_layers, side):
    network = PatchGAN(
        image_channels=3, base_width=8, num_layers=num_layers, normalization=normalization
    )
    if num_layers == 1:
        side = 30
    logits = network(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 1, side, side)


def test_a_logit_of_three_layers_sees_seventy_pixels():
    network = PatchGAN(image_channels=1, base_width=8, normalization="none")
    image = torch.randn(1, 1, 128, 128, requires_grad=True)
    logits = network(image)
    logits[0, 0, 7, 7].backward()
    rows = image.grad[0, 0].abs().sum(dim=1).nonzero().flatten()
    assert rows.max() - rows.min() + 1 == 70


def test_unknown_normalization_and_missing_layers_are_refused():
    with pytest.raises(ValueError, match=r"normalization.*'layer'"):
        PatchGAN(image_channels=3, normalization="layer")
    with pytest.raises(ValueError, match=r"num_layers.*\b0\b"):
        PatchGAN(image_channels=3, num_layers=0)


def test_images_too_small_for_a_patch_are_refused_with_what_to_change():
    network = PatchGAN(image_channels=3, base_width=8)
    assert network(torch.zeros(1, 3, 24, 24)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match=r"16x16 .* 24 pixels .* lower discriminator.num_layers"):
        network(torch.zeros(1, 3, 16, 16))
