"""Every sampler against the scheduler of diffusers, to 1e-6 relative in float64 (issue 3, 4).

The schedulers keep their tables in float32 and some cast samples to float32 in a step. Here their
tables are replaced by float64 ones and the cast is widened, so that the bound means something.
Flags are named in each test. All have clip_sample or thresholding off.
"""

import functools

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
)
from diffusers.schedulers import (
    scheduling_dpmsolver_multistep,
    scheduling_euler_discrete,
    scheduling_flow_match_euler_discrete,
    scheduling_flow_match_heun_discrete,
)

from ldm_lightning.diffusion.flow import FlowSchedule
from ldm_lightning.diffusion.parametrization import Clean, Epsilon, Flow, Velocity
from ldm_lightning.nn.condition import Condition
from ldm_lightning.sampler.ddim import ddim
from ldm_lightning.sampler.ddpm import ddpm
from ldm_lightning.sampler.dpm_solver import dpm_solver
from ldm_lightning.sampler.euler import euler
from ldm_lightning.sampler.grid import time_grid
from ldm_lightning.sampler.heun import heun
from ldm_lightning.sampler.sampler import Sampler
from tests.sampler.small import (
    SHAPE,
    Estimate,
    draw_noise,
    network,
    process_of,
    published,
    sequential_noise,
)

# diffusers 0.42 against numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195}
PARAMETRIZATIONS = {"epsilon": Epsilon(), "sample": Clean(), "v_prediction": Velocity()}
every_prediction = pytest.mark.parametrize("prediction", PARAMETRIZATIONS)


class _Float64Torch:
    """The module torch, whose float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture(autouse=True)
def _no_float32_casts(monkeypatch):
    for module in (
        scheduling_dpmsolver_multistep,
        scheduling_euler_discrete,
        scheduling_flow_match_euler_discrete,
        scheduling_flow_match_heun_discrete,
    ):
        monkeypatch.setattr(module, "torch", _Float64Torch())


def signal_table(*, zero_terminal_snr=False):
    """Cumulative products of 1 - beta in float64, without our schedule."""
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    signal = np.cumprod(1 - betas)
    if zero_terminal_snr:  # Lin et al. 2023, Algorithm 1
        root = np.sqrt(signal)
        signal = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return torch.from_numpy(signal)


def with_float64_table(scheduler, **options):
    scheduler.alphas_cumprod = signal_table(**options)
    return scheduler


def with_float64_sigmas(scheduler, indices):
    """Sigmas of the table at ``indices`` and 0, repeated as Heun's scheduler repeats them."""
    signal = signal_table()[torch.as_tensor(indices).long()]
    sigmas = torch.cat([((1 - signal) / signal).sqrt(), torch.zeros(1, dtype=torch.float64)])
    if isinstance(scheduler, HeunDiscreteScheduler):
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    assert scheduler.sigmas.shape == sigmas.shape
    torch.testing.assert_close(scheduler.sigmas.double(), sigmas, rtol=1e-4, atol=0)
    scheduler.sigmas = sigmas
    return scheduler


def run(scheduler, latents, **step_options):
    """The loop of a diffusers pipeline."""
    for timestep in scheduler.timesteps:
        times = torch.full((len(latents),), float(timestep), dtype=torch.float64)
        inputs = latents
        if hasattr(scheduler, "scale_model_input"):
            inputs = scheduler.scale_model_input(latents, timestep)
        output = network(inputs, times, Condition())
        latents = scheduler.step(output, timestep, latents, **step_options).prev_sample
        assert latents.dtype == torch.float64
    return latents


def ours(solver, process, num_steps, spacing, step_noise=None):
    sampler = Sampler(solver, num_steps=num_steps, spacing=spacing)
    return sampler.sample(process, network, Condition(), None, draw_noise(), step_noise)


def assert_equal(result, reference):
    error = (result - reference).norm() / reference.norm()
    assert error < 1e-6
    assert error < 1e-11  # what float64 gives; a loss of digits would be worth a look


@every_prediction
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("num_steps", "spacing"), [(20, "leading"), (50, "trailing")])
def test_ddim_leading_with_offset_1_or_trailing_and_final_alpha_1(
    prediction, eta, num_steps, spacing
):
    scheduler = DDIMScheduler(
        **TABLE,
        prediction_type=prediction,
        clip_sample=False,
        timestep_spacing=spacing,
        steps_offset=1,
        set_alpha_to_one=True,
    )
    with_float64_table(scheduler).set_timesteps(num_steps)
    generator = torch.Generator().manual_seed(1)
    reference = run(scheduler, draw_noise(), eta=eta, generator=generator)
    process = process_of(published(), PARAMETRIZATIONS[prediction])
    solver = functools.partial(ddim, eta=eta)
    assert_equal(ours(solver, process, num_steps, spacing, sequential_noise()), reference)


@every_prediction
def test_ddim_that_ends_at_the_first_place_as_set_alpha_to_one_false_does(prediction):
    scheduler = DDIMScheduler(
        **TABLE,
        prediction_type=prediction,
        clip_sample=False,
        timestep_spacing="leading",
        steps_offset=1,
        set_alpha_to_one=False,
    )
    with_float64_table(scheduler).set_timesteps(20)
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    process = process_of(published(), PARAMETRIZATIONS[prediction])
    times = time_grid(process.schedule, 20, "leading")
    times[-1] = 1 / 1000
    result = ddim(
        Estimate(
            lambda noisy, time: process.denoise(
                network, noisy, torch.full((4,), time, dtype=torch.float64), Condition()
            )
        ),
        draw_noise(),
        times,
        process.schedule,
        sequential_noise(),
    )
    assert_equal(result, run(scheduler, draw_noise()))


def test_ddim_trailing_with_zero_terminal_snr():
    scheduler = DDIMScheduler(
        **TABLE,
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        set_alpha_to_one=True,
    )
    with_float64_table(scheduler, zero_terminal_snr=True).set_timesteps(20)
    process = process_of(published(zero_terminal_snr=True), Velocity())
    assert_equal(ours(ddim, process, 20, "native"), run(scheduler, draw_noise()))


@every_prediction
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_with_custom_timesteps_on_linspace(prediction, variance):
    scheduler = DDPMScheduler(
        **TABLE,
        prediction_type=prediction,
        clip_sample=False,
        variance_type=f"fixed_{variance}",
    )
    # 28 is a divisor of 999 plus one: the grid from 999 to 0 needs no rounding.
    timesteps = np.linspace(999, 0, 28).round().astype(int).tolist()
    with_float64_table(scheduler).set_timesteps(timesteps=timesteps)
    reference = run(scheduler, draw_noise(), generator=torch.Generator().manual_seed(1))
    process = process_of(published(), PARAMETRIZATIONS[prediction])
    solver = functools.partial(ddpm, variance=variance)
    assert_equal(ours(solver, process, 28, "linspace", sequential_noise()), reference)


@every_prediction
@pytest.mark.parametrize("num_steps", [3, 10, 20, 40])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_dpm_solver_midpoint_2m_with_final_sigma_zero_and_lower_order_final(
    prediction, num_steps, spacing
):
    scheduler = DPMSolverMultistepScheduler(
        **TABLE,
        prediction_type=prediction,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
        euler_at_final=False,
        final_sigmas_type="zero",
        timestep_spacing="trailing",
    )
    process = process_of(published(), PARAMETRIZATIONS[prediction])
    indices = (1000 * time_grid(process.schedule, num_steps, spacing)[:-1]).round().int() - 1
    if spacing == "trailing":
        scheduler.set_timesteps(num_steps)
        assert scheduler.timesteps.tolist() == indices.tolist()
    else:  # the scheduler's own grids of these names have other places
        scheduler.set_timesteps(timesteps=indices.tolist())
    with_float64_sigmas(scheduler, indices)
    assert_equal(ours(dpm_solver, process, num_steps, spacing), run(scheduler, draw_noise()))


@every_prediction
@pytest.mark.parametrize(
    ("num_steps", "spacing"), [(20, "leading"), (50, "trailing"), (28, "linspace")]
)
def test_euler_discrete_with_linear_interpolation_and_final_sigma_zero(
    prediction, num_steps, spacing
):
    scheduler = EulerDiscreteScheduler(
        **TABLE,
        prediction_type=prediction,
        interpolation_type="linear",
        timestep_spacing=spacing,
        steps_offset=1 if spacing == "leading" else 0,
        final_sigmas_type="zero",
        use_karras_sigmas=False,
    )
    scheduler.set_timesteps(num_steps)
    with_float64_sigmas(scheduler, scheduler.timesteps)
    # The scheduler's latents are ours over alpha.
    start = draw_noise() * (1 + scheduler.sigmas[0] ** 2).sqrt()
    process = process_of(published(), PARAMETRIZATIONS[prediction])
    assert_equal(ours(euler, process, num_steps, spacing), run(scheduler, start))


@every_prediction
@pytest.mark.parametrize(
    ("num_steps", "spacing"), [(20, "leading"), (50, "trailing"), (28, "linspace")]
)
def test_heun_discrete(prediction, num_steps, spacing):
    scheduler = HeunDiscreteScheduler(
        **TABLE,
        prediction_type=prediction,
        clip_sample=False,
        timestep_spacing=spacing,
        steps_offset=1 if spacing == "leading" else 0,
        use_karras_sigmas=False,
    )
    scheduler.set_timesteps(num_steps)
    indices = torch.cat([scheduler.timesteps[:1], scheduler.timesteps[1::2]])
    with_float64_sigmas(scheduler, indices)
    start = draw_noise() * (1 + scheduler.sigmas[0] ** 2).sqrt()
    process = process_of(published(), PARAMETRIZATIONS[prediction])
    assert_equal(ours(heun, process, num_steps, spacing), run(scheduler, start))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("num_steps", [1, 10, 28])
def test_flow_match_euler_with_sigmas_from_1_to_0_and_a_static_shift(shift, num_steps):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=False)
    even = np.linspace(1, 1 / num_steps, num_steps)
    scheduler.set_timesteps(sigmas=even.tolist())
    sigmas = torch.from_numpy(shift * even / (1 + (shift - 1) * even))
    torch.testing.assert_close(scheduler.sigmas[:-1].double(), sigmas, rtol=1e-6, atol=0)
    scheduler.sigmas = torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])
    scheduler.timesteps = 1000 * sigmas
    process = process_of(FlowSchedule(shift=shift), Flow())
    result = ours(euler, process, num_steps, "uniform")
    assert_equal(result, run(scheduler, draw_noise()))
    assert_equal(ours(ddim, process, num_steps, "native"), result)


def test_flow_match_heun_with_sigmas_from_1_to_a_thousandth_and_0():
    scheduler = FlowMatchHeunDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(12)
    even = torch.linspace(1, 1 / 1000, 12, dtype=torch.float64)
    times = torch.cat([even, torch.zeros(1, dtype=torch.float64)])
    repeated = torch.cat([times[:1], times[1:-1].repeat_interleave(2), times[-1:]])
    torch.testing.assert_close(scheduler.sigmas.double(), repeated, rtol=1e-6, atol=0)
    scheduler.sigmas, scheduler.timesteps = repeated, 1000 * repeated[:-1]
    process = process_of(FlowSchedule(), Flow())
    result = heun(
        Estimate(
            lambda noisy, time: process.denoise(
                network, noisy, torch.full((len(noisy),), time, dtype=torch.float64), Condition()
            )
        ),
        draw_noise(shape=SHAPE),
        times,
        process.schedule,
        None,
    )
    assert_equal(result, run(scheduler, draw_noise()))
