"""What a sampler costs besides the network: time of a step with a network that does nothing."""

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

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
from ldm_lightning.sampler.sampler import Sampler

PART = "sampling"
NUM_STEPS = 50
BETAS = (0.0015, 0.0195)
SHAPE = (8, 4, 16, 16)


def null_network(noisy: Tensor, network_time: Tensor, condition: Condition) -> Tensor:
    """Predict the input."""
    return noisy


def rows(*, quick: bool) -> list[Row]:
    """Every comparison of this part."""
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    schedule = sqrt_linear_schedule(num_steps=1000, beta_start=BETAS[0], beta_end=BETAS[1])
    process = Process(schedule, Epsilon(), Unweighted(), UniformTimes())
    sampler = Sampler(ddim, num_steps=NUM_STEPS, spacing="leading")
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=BETAS[0],
        beta_end=BETAS[1],
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
    )
    scheduler.set_timesteps(NUM_STEPS)

    def ours() -> Tensor:
        return sampler.sample(
            process, null_network, Condition(), None, noise, lambda step: torch.empty(0)
        )

    @torch.no_grad()
    def theirs() -> Tensor:
        latents = noise
        for timestep in scheduler.timesteps:
            latents = scheduler.step(latents, timestep, latents).prev_sample
        return latents

    difference = float((ours() - theirs()).norm() / theirs().norm())
    assert difference < 1e-4, difference
    timings = time_in_turn({OURS: ours, "diffusers": theirs}, num_rounds=10 if quick else 30)
    steps = {way: timings.spread(way).median / NUM_STEPS for way in timings.seconds}
    return [
        Row(
            part=PART,
            what="DDIM besides the network / diffusers' DDIM",
            setting=f"a step of {NUM_STEPS}, latents {'x'.join(map(str, SHAPE))}",
            value=timings.ratio(OURS, "diffusers"),
            num_rounds=timings.num_rounds,
            goal=0.20,
            seconds=steps,
            facts={"relative_difference": difference},
        )
    ]
