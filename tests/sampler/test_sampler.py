"""The configured sampler: batches, types, calls, and the files of conf/."""

import functools
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from ldm_lightning.diffusion.process import Process
from ldm_lightning.nn.condition import Condition
from ldm_lightning.sampler.ddim import ddim
from ldm_lightning.sampler.ddpm import ddpm
from ldm_lightning.sampler.dpm_solver import dpm_solver
from ldm_lightning.sampler.euler import euler
from ldm_lightning.sampler.heun import heun
from ldm_lightning.sampler.sampler import Sampler
from ldm_lightning.sampler.steps import grid_levels
from tests.sampler.small import PROCESSES, SHAPE, draw_noise, network, sequential_noise

CONF = Path(__file__).parents[2] / "conf"

SOLVERS = {
    "ddim": ddim,
    "ddim, eta 0.5": functools.partial(ddim, eta=0.5),
    "ddpm": ddpm,
    "ddpm, large": functools.partial(ddpm, variance="large"),
    "dpm_solver": dpm_solver,
    "euler": euler,
    "heun": heun,
}

every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())


def conditions(rows=slice(None)):
    vector = draw_noise(seed=7, shape=(4, 3))[rows]
    return Condition(vector=vector), Condition(vector=torch.zeros_like(vector))


def step_noise(step, rows=slice(None)):
    return draw_noise(seed=100 + step)[rows]


@every_solver
@every_process
def test_row_i_does_not_depend_on_the_batch_it_is_sampled_in(solver, process):
    sampler = Sampler(solver, num_steps=6, guidance_scale=2.0, guidance_interval=(0.2, 0.8))
    whole = sampler.sample(process, network, *conditions(), draw_noise(), step_noise)
    assert whole.isfinite().all()
    for row in range(4):
        rows = slice(row, row + 1)
        alone = sampler.sample(
            process,
            network,
            *conditions(rows),
            draw_noise()[rows],
            functools.partial(step_noise, rows=rows),
        )
        torch.testing.assert_close(alone, whole[rows], rtol=1e-12, atol=1e-12)


@every_solver
@every_process
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_few_steps_stay_finite(solver, process, num_steps):
    sampler = Sampler(solver, num_steps=num_steps)
    result = sampler.sample(process, network, Condition(), None, draw_noise(), step_noise)
    assert result.shape == SHAPE
    assert result.isfinite().all()


@every_solver
@every_process
def test_float32_samples_are_those_of_float64(solver, process):
    sampler = Sampler(solver, num_steps=8)
    exact = sampler.sample(process, network, Condition(), None, draw_noise(), step_noise)
    result = sampler.sample(process, network, Condition(), None, draw_noise().float(), step_noise)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), exact, rtol=1e-4, atol=1e-4)


def test_half_precise_noise_is_walked_in_float32_and_given_back_in_its_type():
    seen = set()

    def watching(scaled_noisy, network_time, condition):
        seen.add((scaled_noisy.dtype, network_time.dtype))
        return network(scaled_noisy, network_time, condition)

    result = Sampler(ddim, num_steps=4).sample(
        PROCESSES["v"], watching, Condition(), None, draw_noise().bfloat16(), step_noise
    )
    assert result.dtype == torch.bfloat16
    assert seen == {(torch.float32, torch.float32)}


def test_autocast_around_the_sampler_reaches_the_network_alone():
    linear = torch.nn.Linear(2, 2)
    seen = []

    def watching(scaled_noisy, network_time, condition):
        seen.append((scaled_noisy.dtype, linear(scaled_noisy).dtype))
        return linear(scaled_noisy)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = Sampler(dpm_solver, num_steps=4).sample(
            PROCESSES["v"], watching, Condition(), None, draw_noise().float(), step_noise
        )
    assert result.dtype == torch.float32
    assert set(seen) == {(torch.float32, torch.bfloat16)}


@every_solver
@every_process
def test_sampling_stays_where_the_noise_is(solver, process):
    """The meta device stands for a GPU: an operand that was left on the CPU is an error."""
    noise = torch.empty(4, 3, 2, 2, device="meta")
    linear = torch.nn.Linear(2, 2, device="meta")
    result = Sampler(solver, num_steps=3, guidance_scale=2.0).sample(
        process,
        lambda x, t, c: linear(x + t[:, None, None, None]),
        Condition(vector=torch.empty(4, 3, device="meta")),
        Condition(vector=torch.empty(4, 3, device="meta")),
        noise,
        lambda step: noise,
    )
    assert result.device.type == "meta"


def test_samples_carry_no_graph():
    linear = torch.nn.Linear(2, 2, dtype=torch.float64)
    result = Sampler(ddim, num_steps=3).sample(
        PROCESSES["v"], lambda x, t, c: linear(x), Condition(), None, draw_noise(), step_noise
    )
    assert not result.requires_grad


@pytest.mark.parametrize(
    ("name", "num_calls"),
    [("ddim", 5), ("ddpm", 5), ("dpm_solver", 5), ("euler", 5), ("heun", 9)],
)
@every_process
def test_number_of_network_calls(process, name, num_calls):
    calls = []

    def counting(scaled_noisy, network_time, condition):
        assert network_time.isfinite().all()
        calls.append(len(scaled_noisy))
        return network(scaled_noisy, network_time, condition)

    sampler = Sampler(SOLVERS[name], num_steps=5)
    sampler.sample(process, counting, Condition(), None, draw_noise(), step_noise)
    assert calls == [4] * num_calls


@every_process
def test_full_eta_is_ancestral_sampling_with_the_small_variance(process):
    results = [
        Sampler(solver, num_steps=9).sample(
            process, network, Condition(), None, draw_noise(), sequential_noise()
        )
        for solver in (ddpm, functools.partial(ddim, eta=1.0))
    ]
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


@every_solver
def test_step_noise_is_asked_once_a_step_but_the_last_and_only_by_stochastic_solvers(solver):
    asked = []

    def noise_of(step):
        asked.append(step)
        return draw_noise(seed=step)

    Sampler(solver, num_steps=5).sample(
        PROCESSES["v"], network, Condition(), None, draw_noise(), noise_of
    )
    stochastic = solver in (ddpm, SOLVERS["ddpm, large"], SOLVERS["ddim, eta 0.5"])
    assert asked == ([0, 1, 2, 3] if stochastic else [])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Sampler(ddim, num_steps=0), r"sampler\.num_steps.*\b0\b"),
        (lambda: Sampler(ddim, guidance_interval=(0.9, 0.1)), "lowest < highest"),
    ],
)
def test_refuses_samplers_that_are_none(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    ("solver", "num_steps", "match"),
    [
        (functools.partial(ddim, eta=1.5), 5, r"\beta\b.*\[0, 1\].*\b1\.5\b"),
        (functools.partial(ddpm, variance="learned"), 5, "variance.*'learned'"),
        (ddim, 1001, r"\b1001\b.*\b1000\b"),
    ],
)
def test_refuses_what_the_solver_or_the_schedule_cannot_do(solver, num_steps, match):
    with pytest.raises(ValueError, match=match):
        Sampler(solver, num_steps=num_steps).sample(
            PROCESSES["v"], network, Condition(), None, draw_noise(), step_noise
        )


def test_refuses_times_that_do_not_descend():
    with pytest.raises(ValueError, match=r"times.*\[0\.5, 0\.5, 0\.0\]"):
        grid_levels(PROCESSES["v"].schedule, torch.tensor([0.5, 0.5, 0.0]))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm_solver", "euler", "heun"])
@pytest.mark.parametrize("diffusion", ["eps", "x0", "v", "edm", "flow"])
def test_every_configured_process_can_be_sampled_by_every_configured_sampler(diffusion, sampler):
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose(
            overrides=[f"+diffusion={diffusion}", f"+sampler={sampler}", "sampler.num_steps=3"]
        )
    process, configured = instantiate(cfg.diffusion), instantiate(cfg.sampler)
    assert isinstance(process, Process)
    result = configured.sample(process, network, Condition(), None, draw_noise(), step_noise)
    direct = Sampler(SOLVERS[sampler], num_steps=3).sample(
        process, network, Condition(), None, draw_noise(), step_noise
    )
    assert torch.equal(result, direct)


def test_options_of_a_configuration_reach_solver_schedule_and_weighting():
    overrides = [
        "+diffusion=v",
        "diffusion/schedule=cosine",
        "diffusion/weighting=min_snr",
        "diffusion/training_times=logit_normal",
        "diffusion.weighting.gamma=3",
        "diffusion.schedule.shift=2",
        "+sampler=ddim",
        "sampler.solver.eta=0.5",
        "sampler.num_steps=4",
    ]
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose(overrides=overrides)
    process, configured = instantiate(cfg.diffusion), instantiate(cfg.sampler)
    assert process.weighting.gamma == 3
    assert process.schedule.shift == 2
    result = configured.sample(process, network, Condition(), None, draw_noise(), step_noise)
    direct = Sampler(SOLVERS["ddim, eta 0.5"], num_steps=4).sample(
        process, network, Condition(), None, draw_noise(), step_noise
    )
    assert torch.equal(result, direct)
