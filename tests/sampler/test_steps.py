"""Steps over a grid against the formulas of the papers, with plain numbers."""

import pytest
import torch

from ldm_lightning.sampler.steps import GridLevels, Step, grid_levels
from tests.sampler.small import Estimate, published

LEVELS = GridLevels(times=(1.0, 0.5, 0.0), alpha=(0.6, 0.8, 1.0), sigma=(0.8, 0.6, 0.0))


def test_a_step_keeps_moves_and_leaves_its_noise_to_the_walk():
    step = Step(keep=0.5, move=2.0, std=3.0)
    found = step.apply(torch.tensor([4.0]), torch.tensor([1.0]))
    assert found.item() == 0.5 * 4 + 2 * 1


def test_the_deterministic_step_carries_the_predicted_noise_to_the_next_level():
    """Song et al. 2020, Eq. 12 with sigma_t = 0: alpha' clean + sigma' noise."""
    clean, noise = 0.7, -1.3
    noisy = 0.6 * clean + 0.8 * noise
    keep, move, std = LEVELS.ddim_step(0)
    assert keep * noisy + move * clean == pytest.approx(0.8 * clean + 0.6 * noise)
    assert std == 0
    assert LEVELS.ddim_step(1) == pytest.approx((0.0, 1.0, 0.0))


def test_a_stochastic_step_replaces_a_part_of_the_noise():
    clean, noise = 0.7, -1.3
    noisy = 0.6 * clean + 0.8 * noise
    keep, move, std = LEVELS.ddim_step(0, variance=0.16)
    kept = (0.36 - 0.16) ** 0.5
    assert keep * noisy + move * clean == pytest.approx(0.8 * clean + kept * noise)
    assert std == pytest.approx(0.4)


def test_variances_are_those_of_ho_et_al():
    """beta = 1 - (alpha / alpha')^2, and beta-tilde = beta (1 - alpha'^2) / (1 - alpha^2)."""
    beta = 1 - (0.6 / 0.8) ** 2
    assert LEVELS.transition_variance(0) == pytest.approx(beta)
    assert LEVELS.posterior_variance(0) == pytest.approx(beta * 0.36 / 0.64)


def test_a_walk_applies_the_steps_in_turn_and_adds_noise_where_it_is_asked():
    asked, times = [], []

    def step_noise(step):
        asked.append(step)
        return torch.full((1,), 10.0)

    def clean(noisy, time):
        times.append(time)
        return torch.full_like(noisy, 2.0)

    steps = [Step(0.5, 1.0, 0.1), Step(0.25, 1.0)]
    found = LEVELS.walk(steps, Estimate(clean), torch.full((1,), 4.0), step_noise)
    assert found.item() == pytest.approx(0.25 * (0.5 * 4 + 2 + 0.1 * 10) + 2)
    assert asked == [0]
    assert times == [1.0, 0.5]


def test_a_walk_begins_at_the_deviation_of_noise_and_unit_variance_latents():
    levels = GridLevels(times=(1.0, 0.0), alpha=(1.0, 1.0), sigma=(3.0, 0.0))
    assert levels.start(torch.ones(1)).item() == pytest.approx(10**0.5)


def test_levels_of_a_grid_are_the_schedules_and_times_must_descend():
    schedule, times = published(), torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    levels = grid_levels(schedule, times)
    assert levels.num_steps == 2
    alpha, sigma = schedule.noise_level(times)
    assert (list(levels.alpha), list(levels.sigma)) == (alpha.tolist(), sigma.tolist())
    with pytest.raises(ValueError, match=r"\[S \+ 1\]"):
        grid_levels(schedule, times.flip(0))
