"""Cost of a sampler besides the network: time of a step with a network that does nothing."""

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from benchmarks.device import DEVICE
from benchmarks.ours import OURS
from benchmarks.results import Row
from benchmarks.timing import time_in_turn
from ldm_lightning.diffusion.parametrization import Epsilon
from ldm_lightning.diffusion.process import Process
from ldm_lightning.diffusion.schedule import sqrt_linear_schedule
from ldm_lightning.diffusion.times import UniformTimes
from ldm_lightning.diffusion.weighting import Unweighted
from ldm_lightning.nn.condition import Condition
from ldm_lightning.sampler.ddim import ddim
from ldm_lightning.sampler.grid import time_grid
from ldm_lightning.sampler.guidance import Guidance, GuidedDenoiser
from ldm_lightning.sampler.sampler import Sampler
from ldm_lightning.sampler.steps import grid_levels

PART = "sampling"
NUM_STEPS = 50
BETAS = (0.0015, 0.0195)
SHAPE = (8, 4, 16, 16)


def null_network(noisy: Tensor, network_time: Tensor, condition: Condition) -> Tensor:
    """Predict the input."""
    return noisy


def rows(*, quick: bool) -> list[Row]:
    """Every comparison of this part."""
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    schedule = sqrt_linear_schedule(num_steps=1000, beta_start=BETAS[0], beta_end=BETAS[1])
    process = Process(schedule, Epsilon(), Unweighted(), UniformTimes())
    sampler = Sampler(ddim, num_steps=NUM_STEPS, spacing="leading")
    times = time_grid(schedule, NUM_STEPS, "leading")
    levels = grid_levels(schedule, times)
    steps = [levels.ddim_step(step) for step in range(NUM_STEPS)]
    denoiser = GuidedDenoiser(
        process,
        null_network,
        times=times,
        condition=Condition(),
        null_condition=None,
        guidance=Guidance(),
        latents=noise,
    )
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=BETAS[0],
        beta_end=BETAS[1],
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
    )

    def no_noise(step: int) -> Tensor:
        raise AssertionError("DDIM without eta draws nothing")

    @torch.no_grad()
    def our_steps() -> Tensor:
        return levels.walk(steps, denoiser, noise, no_noise)

    def our_sample() -> Tensor:
        return sampler.sample(process, null_network, Condition(), None, noise, no_noise)

    @torch.no_grad()
    def their_steps() -> Tensor:
        latents = noise
        for timestep in scheduler.timesteps:
            latents = scheduler.step(latents, timestep, latents).prev_sample
        return latents

    def their_sample() -> Tensor:
        scheduler.set_timesteps(NUM_STEPS)
        return their_steps()

    theirs = their_sample()
    difference = max(
        float((run() - theirs).norm() / theirs.norm()) for run in (our_steps, our_sample)
    )
    assert difference < 1e-4, difference
    ways = {OURS: our_steps, "diffusers": their_steps}
    whole = {"ours, whole": our_sample, "diffusers, whole": their_sample}
    timings = time_in_turn({**ways, **whole}, num_rounds=10 if quick else 30)
    return [
        Row(
            part=PART,
            what=f"{what} besides the network / diffusers'",
            setting=f"{NUM_STEPS} steps, latents {'x'.join(map(str, SHAPE))}",
            value=timings.ratio(first, second),
            num_rounds=timings.num_rounds,
            goal=goal,
            seconds={way: timings.spread(way).median / NUM_STEPS for way in (first, second)},
            facts={"relative_difference": difference},
        )
        for what, goal, (first, second) in (
            ("DDIM step", 0.20, ways),
            ("DDIM step and its share of the tables", None, whole),
        )
    ]
