"""Distributions of training times against scipy's, by quantiles."""

import numpy as np
import pytest
import torch
from scipy import stats

from ldm_lightning.diffusion.edm import EdmSchedule
from ldm_lightning.diffusion.flow import FlowSchedule
from ldm_lightning.diffusion.schedule import cosine_schedule
from ldm_lightning.diffusion.times import (
    LogitNormalTimes,
    LogNormalTimes,
    TableTimes,
    UniformTimes,
)

UNIFORM = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000


def test_table_times_meet_every_place_equally_often():
    times = TableTimes()(UNIFORM, cosine_schedule(num_steps=1000))
    places, counts = times.unique(return_counts=True)
    torch.testing.assert_close(places, torch.arange(1, 1001, dtype=torch.float64) / 1000)
    assert counts.tolist() == [4] * 1000


def test_uniform_times_are_the_uniforms():
    assert torch.equal(UniformTimes()(UNIFORM, FlowSchedule()), UNIFORM)


@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.0, 0.5)])
def test_log_normal_times_make_the_logarithm_of_sigma_normal(mean, std):
    schedule = EdmSchedule()
    sigma = schedule.noise_level(LogNormalTimes(mean, std)(UNIFORM, schedule)).sigma
    expected = stats.lognorm(s=std, scale=np.exp(mean)).ppf(UNIFORM)
    np.testing.assert_allclose(sigma.numpy(), expected, rtol=1e-9)


def test_log_normal_times_work_on_a_table_by_its_noise_to_signal():
    schedule = cosine_schedule(num_steps=1000)
    times = LogNormalTimes(0.0, 1.0)(UNIFORM, schedule)
    ratio = schedule.noise_level(times).sigma / schedule.noise_level(times).alpha
    np.testing.assert_allclose(ratio.numpy(), stats.lognorm(s=1.0).ppf(UNIFORM), rtol=1e-3)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.6)])
def test_logit_normal_times_are_those_of_esser_et_al(mean, std):
    times = LogitNormalTimes(mean, std)(UNIFORM, FlowSchedule())
    expected = stats.norm(mean, std).ppf(UNIFORM)
    np.testing.assert_allclose(torch.logit(times).numpy(), expected, rtol=1e-9, atol=1e-12)


def test_noise_levels_beyond_the_schedule_are_trained_at_its_last_one():
    times = LogNormalTimes(10.0, 1.0)(UNIFORM, EdmSchedule())
    assert times.max().item() == 1
    assert times.isfinite().all()


@pytest.mark.parametrize("make", [LogNormalTimes, LogitNormalTimes])
def test_refuses_a_deviation_that_is_none(make):
    with pytest.raises(ValueError, match=r"\bstd\b.*\b0\b"):
        make(mean=0.0, std=0.0)
