"""Gaussian posterior against torch.distributions (requirements B11, C1)."""

import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_kl

from ldm_lightning.bottleneck.gaussian import GaussianBottleneck, kl_divergence


def test_kl_equals_torch_distributions_summed_over_channels_and_positions():
    mean, log_variance = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    expected = reference_kl(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected.sum(dim=(1, 2, 3)))


def test_kl_is_zero_for_the_prior_itself():
    assert kl_divergence(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)).item() == 0


def test_kl_refuses_shapes_that_differ():
    with pytest.raises(ValueError, match=r"shape.*\(1, 2\).*\(1, 3\)"):
        kl_divergence(torch.zeros(1, 2), torch.zeros(1, 3))


def test_without_noise_the_mean_is_taken_and_with_noise_the_reparameterised_sample():
    encoded, noise = torch.randn(2, 8, 3, 3), torch.randn(2, 4, 3, 3)
    mean, log_variance = encoded.chunk(2, dim=1)
    bottleneck = GaussianBottleneck()
    torch.testing.assert_close(bottleneck(encoded).latents, mean)
    expected = Normal(mean, (0.5 * log_variance).exp()).icdf(Normal(0.0, 1.0).cdf(noise))
    torch.testing.assert_close(
        bottleneck(encoded, noise=noise).latents, expected, rtol=1e-3, atol=1e-3
    )


def test_an_extreme_log_variance_stays_finite():
    output = GaussianBottleneck()(torch.full((1, 2, 1, 1), 1e4), noise=torch.ones(1, 1, 1, 1))
    assert output.latents.isfinite().all()
    assert output.terms["kl"].isfinite().all()


def test_the_initial_log_variance_is_that_of_an_encoder_that_gives_zeros():
    output = GaussianBottleneck(initial_log_variance=-6.0)(torch.zeros(1, 2, 3, 3))
    torch.testing.assert_close(output.variance, torch.full((1, 1, 3, 3), -6.0).exp())
