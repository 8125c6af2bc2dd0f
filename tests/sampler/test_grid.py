"""Time grids: published places, closed forms, refusals."""

import math

import pytest
import torch

from ldm_lightning.diffusion.edm import EdmSchedule
from ldm_lightning.diffusion.flow import FlowSchedule
from ldm_lightning.diffusion.schedule import cosine_schedule
from ldm_lightning.sampler.grid import time_grid
from tests.sampler.small import PROCESSES, published


def indices(num_steps, spacing, schedule=None):
    """Indices in the table, counted from 0, without the last time."""
    schedule = schedule or published()
    places = time_grid(schedule, num_steps, spacing)[:-1] * schedule.num_steps
    torch.testing.assert_close(places, places.round(), rtol=0, atol=1e-9)
    return [int(place) - 1 for place in places.round()]


def test_spacings_meet_the_published_places():
    assert indices(5, "leading") == [801, 601, 401, 201, 1]
    assert indices(5, "trailing") == [999, 799, 599, 399, 199]
    assert indices(4, "linspace") == [999, 666, 333, 0]
    assert indices(3, "leading") == [667, 334, 1]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_as_many_steps_as_the_table_has_visit_every_place(spacing):
    assert indices(1000, spacing) == list(range(999, -1, -1))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_number_of_steps_gives_distinct_places_of_the_table(spacing):
    schedule = cosine_schedule(num_steps=60)
    for num_steps in range(1, 61):
        places = indices(num_steps, spacing, schedule)
        assert len(set(places)) == num_steps
        assert all(0 <= place < 60 for place in places)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_one_step_starts_at_the_last_place(spacing):
    assert indices(1, spacing) == [999]


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_grids_descend_to_zero(process, num_steps):
    times = time_grid(process.schedule, num_steps)
    assert times.shape == (num_steps + 1,)
    assert times.dtype == torch.float64
    assert times[-1].item() == 0
    assert (times.diff() < 0).all()


def test_the_native_grid_starts_at_the_last_place_where_that_holds_no_signal():
    assert indices(20, "native") == indices(20, "leading")
    schedule = published(zero_terminal_snr=True)
    assert indices(20, "native", schedule) == indices(20, "trailing")


@pytest.mark.parametrize(("sigma_min", "sigma_max", "rho"), [(0.002, 80.0, 7.0), (0.1, 10.0, 3.0)])
def test_karras_noise_levels_are_those_of_eq_5(sigma_min, sigma_max, rho):
    schedule = EdmSchedule(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    sigma = schedule.noise_level(time_grid(schedule, 18, "karras")).sigma
    for step in range(18):
        high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
        expected = (high + step / 17 * (low - high)) ** rho
        assert math.isclose(sigma[step].item(), expected, rel_tol=1e-12)
    assert sigma[18].item() == 0


def test_uniform_times_cut_the_path_evenly():
    torch.testing.assert_close(
        time_grid(FlowSchedule(), 4, "uniform"),
        torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=torch.float64),
    )


@pytest.mark.parametrize(
    ("schedule", "num_steps", "spacing", "match"),
    [
        (published(), 1001, "leading", r"\b1001\b.*\b1000\b.*sampler\.num_steps"),
        (published(), 0, "leading", r"num_steps.*\b0\b"),
        (FlowSchedule(), -3, "uniform", "num_steps.*-3"),
        (FlowSchedule(), 5, "leading", "FlowSchedule.*'leading'.*spacing.*uniform"),
        (EdmSchedule(), 5, "uniform", "'uniform'.*native, karras"),
        (published(), 5, "karras", "'karras'.*native, leading, trailing, linspace"),
    ],
)
def test_refuses_grids_that_the_schedule_has_not(schedule, num_steps, spacing, match):
    with pytest.raises(ValueError, match=match):
        time_grid(schedule, num_steps, spacing)
