"""Pixel losses against torch.distributions (requirements B8, C2)."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Laplace, Normal

from ldm_lightning.loss.pixel import (
    PIXEL_LOSSES,
    BernoulliLoss,
    GaussianLoss,
    LaplaceLoss,
    pixel_loss,
)


def nll(loss, outputs, images):
    return loss.negative_log_likelihood(loss.error(outputs, images))


@pytest.fixture
def pair():
    return torch.randn(2, 3, 4, 4), torch.rand(2, 3, 4, 4) * 2 - 1


@pytest.mark.parametrize("log_variance", [-2.0, 0.0, 1.5])
def test_gaussian_is_the_negative_log_density_in_nats(pair, log_variance):
    outputs, images = pair
    expected = -Normal(outputs, math.exp(log_variance / 2)).log_prob(images)
    loss = GaussianLoss(initial_log_variance=log_variance)
    torch.testing.assert_close(nll(loss, outputs, images), expected)


@pytest.mark.parametrize("log_variance", [-2.0, 0.0, 1.5])
def test_laplace_is_the_negative_log_density_of_that_variance(pair, log_variance):
    outputs, images = pair
    reference = Laplace(outputs, math.sqrt(math.exp(log_variance) / 2))
    torch.testing.assert_close(reference.variance.mean().item(), math.exp(log_variance))
    loss = LaplaceLoss(initial_log_variance=log_variance)
    torch.testing.assert_close(nll(loss, outputs, images), -reference.log_prob(images))


def test_bernoulli_is_the_negative_log_probability_of_binary_images():
    outputs = torch.randn(2, 1, 4, 4)
    images = (torch.rand(2, 1, 4, 4) > 0.5).float() * 2 - 1
    expected = -Bernoulli(logits=outputs).log_prob((images + 1) / 2)
    torch.testing.assert_close(nll(BernoulliLoss(), outputs, images), expected)


def test_plain_losses_are_absolute_and_squared_differences(pair):
    outputs, images = pair
    torch.testing.assert_close(nll(pixel_loss("l1"), outputs, images), (outputs - images).abs())
    torch.testing.assert_close(nll(pixel_loss("l2"), outputs, images), (outputs - images) ** 2)


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_the_best_log_variance_is_that_of_the_errors(name):
    torch.manual_seed(0)
    loss = pixel_loss(name)
    noise = 0.3 * torch.randn(4, 3, 32, 32)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        nll(loss, noise, torch.zeros_like(noise)).mean().backward()
        optimizer.step()
    scale = noise.std() if name == "gaussian" else noise.abs().mean() * math.sqrt(2)
    assert loss.log_variance.item() == pytest.approx(2 * math.log(scale), abs=0.02)


def test_only_normalized_densities_claim_to_be_likelihoods():
    likelihoods = {name for name, kind in PIXEL_LOSSES.items() if kind.is_likelihood}
    assert likelihoods == {"bernoulli", "gaussian", "laplace"}


def test_an_unknown_pixel_loss_is_refused():
    with pytest.raises(ValueError, match=r"loss\.pixel.*'l1'.*'l3'"):
        pixel_loss("l3")
