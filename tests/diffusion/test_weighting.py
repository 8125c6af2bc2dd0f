"""Weights of noise levels against the tables of the papers."""

import pytest
import torch

from ldm_lightning.diffusion.parametrization import Clean, Edm, Epsilon, Velocity
from ldm_lightning.diffusion.weighting import EdmWeighting, MinSnr, Unweighted

SNR = torch.tensor([1e-4, 0.1, 1.0, 4.9, 5.1, 100.0, 1e4], dtype=torch.float64)
ALPHA, SIGMA = (SNR / (1 + SNR)).sqrt(), (1 / (1 + SNR)).sqrt()


def weights(weighting, parametrization, alpha=ALPHA, sigma=SIGMA):
    return weighting(alpha, sigma, parametrization.preconditioning(alpha, sigma).output_scale)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize(
    ("parametrization", "paper"),
    [
        (Epsilon(), lambda snr, clipped: clipped / snr),
        (Clean(), lambda snr, clipped: clipped),
        (Velocity(), lambda snr, clipped: clipped / (snr + 1)),
    ],
    ids=["eps", "x0", "v"],
)
def test_min_snr_weights_are_those_of_hang_et_al(parametrization, paper, gamma):
    expected = paper(SNR, SNR.clamp(max=gamma))
    torch.testing.assert_close(weights(MinSnr(gamma), parametrization), expected)


@pytest.mark.parametrize("weighting", [MinSnr(), EdmWeighting(), EdmWeighting(sigma_data=0.5)])
def test_a_weighting_costs_the_same_error_the_same_in_every_parametrization(weighting):
    kinds = (Epsilon(), Clean(), Velocity(), Edm(), Edm(sigma_data=0.5))
    costs = [
        weights(weighting, kind) / kind.preconditioning(ALPHA, SIGMA).output_scale.square()
        for kind in kinds
    ]
    for cost in costs[1:]:
        torch.testing.assert_close(cost, costs[0])


@pytest.mark.parametrize("data", [0.5, 1.0])
def test_edm_weight_is_lambda_of_karras_et_al_and_one_on_its_own_output(data):
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    alpha = torch.ones_like(sigma)
    table_1 = (sigma**2 + data**2) / (sigma * data) ** 2
    weighting = EdmWeighting(sigma_data=data)
    torch.testing.assert_close(weights(weighting, Clean(), alpha, sigma), table_1)
    own = weights(weighting, Edm(sigma_data=data), alpha, sigma)
    torch.testing.assert_close(own, torch.ones_like(sigma))


def test_without_weighting_every_level_counts_alike():
    assert weights(Unweighted(), Epsilon()).tolist() == [1.0] * len(SNR)


def test_weights_are_finite_where_no_signal_is_left():
    alpha, sigma = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    assert weights(MinSnr(), Velocity(), alpha, sigma).item() == 0
    assert weights(EdmWeighting(), Velocity(), alpha, sigma).item() == 1


@pytest.mark.parametrize("make", [MinSnr, EdmWeighting])
def test_refuses_values_that_leave_no_loss(make):
    with pytest.raises(ValueError, match=r"(gamma|sigma_data)\b.*\b0\b"):
        make(0)
