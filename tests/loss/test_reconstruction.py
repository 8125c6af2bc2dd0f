"""The reconstruction loss against the formula, with a perceptual distance that is given."""

import math

import pytest
import torch
from torch import nn

from ldm_lightning.loss.pixel import pixel_loss
from ldm_lightning.loss.reconstruction import ReconstructionLoss

SHAPE = (3, 2, 4, 5)
DISTANCES = torch.tensor([0.5, 1.0, 4.0])


class Given(nn.Module):
    """A distance of each image that depends on nothing but the mean of its reconstruction."""

    def forward(self, reconstructions, images):
        return DISTANCES + reconstructions.flatten(1).mean(dim=1)


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(SHAPE, generator=generator).requires_grad_()
    return outputs, torch.randn(SHAPE, generator=generator)


def loss_of(pixel="l1", *, reduction, weight=0.0):
    perceptual = Given() if weight else None
    return ReconstructionLoss(
        pixel_loss(pixel), perceptual, perceptual_weight=weight, reduction=reduction
    )


@pytest.mark.parametrize(("reduction", "number"), [("sum", 2 * 4 * 5), ("mean", 1)])
def test_pixels_are_summed_or_averaged_and_images_averaged(pair, reduction, number):
    outputs, images = pair
    terms = loss_of(reduction=reduction)(outputs, outputs, images)
    expected = (outputs - images).abs().mean() * number
    torch.testing.assert_close(terms.total, expected)
    torch.testing.assert_close(terms.pixel, expected)
    assert terms.perceptual is None


@pytest.mark.parametrize(("reduction", "number"), [("sum", 2 * 4 * 5), ("mean", 1)])
def test_the_distance_adds_its_weight_to_the_error_of_every_pixel(pair, reduction, number):
    outputs, images = pair
    terms = loss_of(reduction=reduction, weight=0.25)(outputs, outputs, images)
    error = (outputs - images).abs().mean() * number
    distance = (DISTANCES + outputs.flatten(1).mean(dim=1)).mean()
    torch.testing.assert_close(terms.total, error + 0.25 * number * distance)
    torch.testing.assert_close(terms.pixel, error)
    torch.testing.assert_close(terms.perceptual, distance)
    (gradient,) = torch.autograd.grad(terms.total, outputs, retain_graph=True)
    (pixels,) = torch.autograd.grad(terms.pixel, outputs)
    expected = torch.full(SHAPE, 0.25 * number / math.prod(SHAPE))
    torch.testing.assert_close(gradient - pixels, expected)


def test_under_a_likelihood_the_distance_is_part_of_the_error_that_is_scaled(pair):
    outputs, images = pair
    loss = loss_of("gaussian", reduction="sum", weight=0.25)
    with torch.no_grad():
        loss.pixel.log_variance.fill_(0.7)
    terms = loss(outputs, outputs, images)
    distance = DISTANCES + outputs.flatten(1).mean(dim=1)
    error = (outputs - images).square() + 0.25 * distance[:, None, None, None]
    density = 0.5 * (error / math.exp(0.7) + 0.7 + math.log(2 * math.pi))
    torch.testing.assert_close(terms.total, density.flatten(1).sum(dim=1).mean())


def test_the_perceptual_network_is_no_part_of_it():
    loss = loss_of("gaussian", reduction="sum", weight=0.25)
    assert [name for name, _ in loss.named_parameters()] == ["pixel.log_variance"]
    assert not list(loss.perceptual.parameters())


def test_refuses_what_does_not_go_together():
    with pytest.raises(ValueError, match=r"loss\.reduction.*'median'"):
        loss_of(reduction="median")
    with pytest.raises(ValueError, match=r"0\.5"):
        ReconstructionLoss(pixel_loss("l1"), None, perceptual_weight=0.5, reduction="sum")
    with pytest.raises(ValueError, match=r"0\.0"):
        ReconstructionLoss(pixel_loss("l1"), Given(), perceptual_weight=0.0, reduction="sum")
