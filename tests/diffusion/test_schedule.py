"""Schedules: published tables, inverses, shifts, and both ends of time."""

import copy

import pytest
import torch
from diffusers import DDIMScheduler

from ldm_lightning.diffusion.betas import sqrt_linear_betas
from ldm_lightning.diffusion.edm import EdmSchedule
from ldm_lightning.diffusion.flow import FlowSchedule
from ldm_lightning.diffusion.schedule import (
    DiscreteSchedule,
    cosine_schedule,
    sqrt_linear_schedule,
)


def published(**options):
    return sqrt_linear_schedule(num_steps=1000, beta_start=0.0015, beta_end=0.0195, **options)


SCHEDULES = {
    "published": published(),
    "published, shifted": published(shift=2.0),
    "zero terminal SNR": published(zero_terminal_snr=True),
    "zero terminal SNR, shifted": published(zero_terminal_snr=True, shift=0.5),
    "cosine": cosine_schedule(num_steps=1000),
    "short table": cosine_schedule(num_steps=7),
    "edm": EdmSchedule(),
    "flow": FlowSchedule(),
    "flow, shifted": FlowSchedule(shift=3.0),
}

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


def table_times(schedule, dtype=torch.float64):
    return torch.arange(1, schedule.num_steps + 1, dtype=dtype) / schedule.num_steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_table_gives_the_published_signal_and_noise_at_its_places(dtype):
    reference = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195)
    schedule, signal = published(), reference.alphas_cumprod.to(dtype)
    times = table_times(schedule, dtype)
    # The reference multiplies a thousand float32 factors; hence 1e-5, and more where it cancels.
    level = schedule.noise_level(times)
    torch.testing.assert_close(level.alpha, signal.sqrt().double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(level.sigma, (1 - signal).sqrt().double(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("num_steps", [7, 1000, 4000])
def test_a_float32_time_finds_its_place_of_the_table_exactly(num_steps):
    schedule = DiscreteSchedule(sqrt_linear_betas(num_steps, 1e-4, 2e-2))
    exact = schedule.noise_level(table_times(schedule))
    rounded = schedule.noise_level(table_times(schedule, torch.float32))
    assert torch.equal(exact.alpha, rounded.alpha)
    assert torch.equal(exact.sigma, rounded.sigma)


@every_schedule
def test_time_zero_is_clean_and_noise_grows_with_time(schedule):
    times = torch.linspace(0, 1, 3001, dtype=torch.float64)
    alpha, sigma = schedule.noise_level(times).alpha, schedule.noise_level(times).sigma
    assert alpha[0].item() == 1
    assert sigma[0].item() == 0
    assert ((sigma / alpha).diff() > 0).all()


@every_schedule
def test_time_at_is_the_inverse_of_noise_to_signal(schedule):
    times = torch.linspace(0, 1, 2003, dtype=torch.float64)
    ratio = schedule.noise_level(times).sigma / schedule.noise_level(times).alpha
    torch.testing.assert_close(schedule.time_at(ratio), times, rtol=1e-8, atol=1e-9)
    back = schedule.time_at(ratio.float())
    assert back.dtype == torch.float32
    torch.testing.assert_close(back, times.float(), rtol=1e-3, atol=1e-5)


@every_schedule
def test_time_at_stays_in_range_and_monotone_beyond_the_schedule(schedule):
    ratio = torch.cat([torch.zeros(1), torch.logspace(-6, 8, 500), torch.tensor([torch.inf])])
    times = schedule.time_at(ratio.double())
    assert times[0].item() == 0
    assert times[-1].item() == 1
    assert (times.diff() >= 0).all()


@every_schedule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_have_the_shape_of_the_times_and_levels_are_double(schedule, dtype):
    times = torch.rand(2, 3, dtype=dtype).clamp(min=0.01)
    assert schedule.network_time(times).shape == (2, 3)
    assert schedule.network_time(times).dtype == dtype
    for value in schedule.noise_level(times):
        assert value.shape == (2, 3)
        assert value.dtype == torch.float64


def test_tables_preserve_variance_between_their_places_too():
    schedule = published(zero_terminal_snr=True)
    level = schedule.noise_level(torch.rand(1000, dtype=torch.float64))
    total = level.alpha.square() + level.sigma.square()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-14, atol=0)


def test_zero_terminal_snr_ends_at_noise_alone_and_the_published_table_does_not():
    time = torch.ones(1)
    assert published(zero_terminal_snr=True).noise_level(time).alpha.item() == 0
    assert published(zero_terminal_snr=True, shift=3.0).noise_level(time).alpha.item() == 0
    assert published(zero_terminal_snr=True).has_zero_terminal_snr
    assert FlowSchedule().has_zero_terminal_snr
    assert not published().has_zero_terminal_snr
    assert not EdmSchedule().has_zero_terminal_snr


@pytest.mark.parametrize("shift", [0.5, 3.0])
@pytest.mark.parametrize("make", [published, FlowSchedule])
def test_shift_multiplies_noise_to_signal_and_the_log_snr_loses_two_log_shift(make, shift):
    times = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    plain, shifted = make(), make(shift=shift)
    log_snr = [
        2 * (s.noise_level(times).alpha / s.noise_level(times).sigma).log()
        for s in (plain, shifted)
    ]
    expected = torch.full_like(times, -2 * torch.tensor(shift).double().log().item())
    # Between places a table is interpolated after the shift; the nine times are places.
    torch.testing.assert_close(log_snr[1] - log_snr[0], expected, rtol=1e-9, atol=0)


def test_a_shifted_flow_is_that_of_esser_et_al():
    times = torch.linspace(0, 1, 11, dtype=torch.float64)
    expected = 3 * times / (1 + 2 * times)  # Eq. 23
    torch.testing.assert_close(FlowSchedule(shift=3.0).noise_level(times).sigma, expected)


def test_the_network_sees_the_published_time():
    times = torch.tensor([1 / 1000, 0.25, 1.0])
    assert published().network_time(times).tolist() == [0.0, 249.0, 999.0]
    assert DiscreteSchedule(sqrt_linear_betas(10, 0.1, 0.2)).network_time(
        torch.tensor([0.1, 1.0])
    ).tolist() == [99.0, 999.0]
    sigma = torch.tensor([0.002, 1.0, 80.0], dtype=torch.float64)
    edm = EdmSchedule()
    torch.testing.assert_close(edm.network_time(edm.time_at(sigma)), sigma.log() / 4)
    shifted = FlowSchedule(shift=3.0)
    sigma = shifted.noise_level(times).sigma.float()
    torch.testing.assert_close(shifted.network_time(times), 1000 * sigma)


def test_a_schedule_can_be_copied():
    schedule = copy.deepcopy(published())
    assert torch.equal(
        schedule.noise_level(torch.ones(1)).alpha, published().noise_level(torch.ones(1)).alpha
    )


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: DiscreteSchedule(torch.zeros(3)), r"\(0, 1\).*\b0\.0\b.*\b0\.0\b"),
        (lambda: DiscreteSchedule(torch.tensor([1.0, 0.5])), r"\(0, 1\]"),
        (lambda: DiscreteSchedule(torch.empty(0)), r"\[T\].*\[0\]"),
        (lambda: published(shift=0.0), r"shift.*\b0\.0\b"),
        (lambda: FlowSchedule(shift=-1.0), r"shift.*-1\.0\b"),
        (lambda: EdmSchedule(sigma_min=2.0, sigma_max=1.0), r"sigma_min < sigma_max.*2\.0, 1\.0"),
        (lambda: EdmSchedule(rho=0.0), r"\brho\b.*\b0\.0\b"),
    ],
)
def test_refuses_schedules_that_are_none(make, match):
    with pytest.raises(ValueError, match=match):
        make()
