"""What networks predict: closed forms of the papers, and agreement with each other."""

import pytest
import torch

from ldm_lightning.diffusion.edm import EdmSchedule
from ldm_lightning.diffusion.flow import FlowSchedule
from ldm_lightning.diffusion.parametrization import Clean, Edm, Epsilon, Flow, Velocity
from ldm_lightning.diffusion.schedule import sqrt_linear_schedule
from tests.diffusion.predictions import clean_of, target_of

PARAMETRIZATIONS = [Epsilon(), Clean(), Velocity(), Edm(), Edm(sigma_data=0.5), Flow()]
every_parametrization = pytest.mark.parametrize("parametrization", PARAMETRIZATIONS, ids=repr)

LEVELS = {
    "circle": sqrt_linear_schedule(num_steps=1000, beta_start=0.0015, beta_end=0.0195),
    "edm": EdmSchedule(),
    "flow": FlowSchedule(),
}


def levels(kind, count=9):
    times = torch.linspace(0.1, 0.95, count, dtype=torch.float64)[:, None]
    return LEVELS[kind].noise_level(times)


def draw(count=9):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, count, 50, generator=generator, dtype=torch.float64).unbind()


@every_parametrization
@pytest.mark.parametrize("kind", LEVELS)
def test_the_target_as_output_gives_back_the_clean_latents(parametrization, kind):
    (clean, noise), (alpha, sigma) = draw(), levels(kind)
    noisy = alpha * clean + sigma * noise
    target = target_of(parametrization, clean, noise, alpha, sigma)
    estimate = clean_of(parametrization, target, noisy, alpha, sigma)
    torch.testing.assert_close(estimate, clean, rtol=1e-9, atol=1e-9)


@every_parametrization
@pytest.mark.parametrize("kind", LEVELS)
def test_one_estimate_can_be_said_in_every_parametrization(parametrization, kind):
    (clean, noise), (alpha, sigma) = draw(), levels(kind)
    noisy = alpha * clean + sigma * noise
    output = torch.tanh(noisy)  # of some network that predicts the velocity, wrongly
    estimate = clean_of(Velocity(), output, noisy, alpha, sigma)
    estimated_noise = (noisy - alpha * estimate) / sigma
    converted = target_of(parametrization, estimate, estimated_noise, alpha, sigma)
    torch.testing.assert_close(
        clean_of(parametrization, converted, noisy, alpha, sigma), estimate, rtol=1e-9, atol=1e-9
    )


def test_targets_are_those_of_the_papers():
    (clean, noise), (alpha, sigma) = draw(), levels("circle")
    at = (clean, noise, alpha, sigma)
    torch.testing.assert_close(target_of(Epsilon(), *at), noise)
    torch.testing.assert_close(target_of(Clean(), *at), clean)
    torch.testing.assert_close(target_of(Velocity(), *at), alpha * noise - sigma * clean)
    alpha, sigma = levels("flow")
    torch.testing.assert_close(target_of(Flow(), clean, noise, alpha, sigma), noise - clean)


@pytest.mark.parametrize("data", [0.5, 1.0])
def test_edm_scales_are_those_of_karras_et_al_table_1(data):
    alpha, sigma = levels("edm")
    scales = Edm(sigma_data=data).preconditioning(alpha, sigma)
    total = sigma**2 + data**2
    torch.testing.assert_close(scales.skip, data**2 / total)
    torch.testing.assert_close(scales.output_scale, sigma * data / total.sqrt())
    torch.testing.assert_close(scales.input_scale, 1 / total.sqrt())
    clean, noise = draw()
    noisy = clean + sigma * noise
    target = (clean - scales.skip * noisy) / scales.output_scale  # Eq. 8
    torch.testing.assert_close(
        target_of(Edm(sigma_data=data), clean, noise, alpha, sigma), target, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("kind", LEVELS)
def test_edm_with_unit_variance_is_the_negative_velocity(kind):
    at = (*draw(), *levels(kind))
    torch.testing.assert_close(target_of(Edm(), *at), -target_of(Velocity(), *at))


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS[:4], ids=repr)
@pytest.mark.parametrize("kind", LEVELS)
def test_the_network_sees_unit_variance_at_every_noise_level(parametrization, kind):
    alpha, sigma = levels(kind)
    scale = parametrization.preconditioning(alpha, sigma).input_scale
    variance = (scale * alpha) ** 2 + (scale * sigma) ** 2
    torch.testing.assert_close(variance, torch.ones_like(variance))


def test_published_models_see_noisy_latents_as_they_are():
    for parametrization, kind in [(Epsilon(), "circle"), (Velocity(), "circle"), (Flow(), "flow")]:
        scale = parametrization.preconditioning(*levels(kind)).input_scale
        torch.testing.assert_close(scale, torch.ones_like(scale), rtol=1e-15, atol=0)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS[1:], ids=repr)
def test_scales_are_finite_where_no_signal_is_left(parametrization):
    alpha, sigma = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    scales = parametrization.preconditioning(alpha, sigma)
    assert all(value.isfinite().all() for value in vars(scales).values())
    assert not parametrization.needs_signal


def test_refuses_a_standard_deviation_that_is_none():
    with pytest.raises(ValueError, match=r"sigma_data.*\b0\b"):
        Edm(sigma_data=0)
