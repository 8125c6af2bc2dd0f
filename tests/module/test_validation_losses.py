"""Likelihood, ELBO and further terms of validation images, against numbers by hand."""

import math

import pytest
import torch
from torch import nn

from ldm_lightning.autoencoder.autoencoder import AutoencoderOutput
from ldm_lightning.bottleneck.base import BottleneckOutput
from ldm_lightning.loss.pixel import pixel_loss
from ldm_lightning.loss.reconstruction import ReconstructionLoss
from ldm_lightning.loss.terms import LossTerm
from ldm_lightning.module.validation_losses import ValidationLosses


class LargestError(nn.Module):
    def forward(self, reconstructions, images):
        return (reconstructions - images).abs().flatten(1).amax(dim=1)


def losses(pixel: str, **terms) -> ValidationLosses:
    loss = ReconstructionLoss(
        pixel_loss(pixel), None, perceptual_weight=0.0, reduction="sum", terms=terms
    )
    return ValidationLosses(loss)


def output(reconstructions, **terms) -> AutoencoderOutput:
    latents = reconstructions
    return AutoencoderOutput(
        reconstructions, reconstructions, BottleneckOutput(latents, latents, terms)
    )


def test_the_elbo_is_a_mean_over_all_images_whatever_their_batches():
    """A Gaussian of variance 1: the error of image i is i / 4 in each of its two elements."""
    measured = losses("gaussian", largest=LossTerm(LargestError(), 3.0))
    measured.reset(torch.device("cpu"))
    for numbers in ([0.0, 1.0], [2.0]):
        images = torch.zeros(len(numbers), 2, 1, 1)
        kl = torch.tensor(numbers) + 1
        measured.update(
            images, output(images + torch.tensor(numbers)[:, None, None, None] / 4, kl=kl)
        )
    nll = math.log(2 * math.pi) + (0 + 1 / 16 + 4 / 16) / 3
    values = measured.compute(torch.device("cpu"))
    assert values == pytest.approx({"nll": nll, "elbo": -nll - 2.0, "largest": 0.25})
    assert measured.names(has_kl=True) == set(values)


@pytest.mark.parametrize(("pixel", "terms"), [("l1", {"kl": torch.ones(1)}), ("gaussian", {})])
def test_without_a_likelihood_or_a_kl_there_is_no_elbo(pixel, terms):
    measured = losses(pixel)
    measured.reset(torch.device("cpu"))
    images = torch.zeros(1, 2, 1, 1)
    measured.update(images, output(images, **terms))
    assert measured.compute(torch.device("cpu")) == {}
    assert measured.names(has_kl=bool(terms)) == set()
