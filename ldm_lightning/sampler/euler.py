"""Euler's method on the probability flow.

In sigma / alpha (Karras et al. 2022, arXiv:2206.00364, Eq. 3 and Algorithm 1 without its second
call) and along the straight path of rectified flow (Liu et al. 2022, arXiv:2209.03003, section 2.1)
the step is one and the same, and that of DDIM without noise.
"""

from torch import Tensor

from ldm_lightning.diffusion.schedule import NoiseSchedule
from ldm_lightning.sampler.steps import Denoiser, StepNoise, grid_levels


def euler(
    denoise: Denoiser,
    noise: Tensor,
    times: Tensor,
    schedule: NoiseSchedule,
    step_noise: StepNoise,
) -> Tensor:
    """Walk the grid, one network call a step; first order.

    Args:
        denoise: Clean estimate from noisy latents and a time.
        noise: Standard normal, [B, c, h, w].
        times: [S + 1], descending.
        schedule: Signal and noise as functions of time.
        step_noise: Not asked: the sampler is deterministic.

    Returns:
        Latents at the last time, [B, c, h, w].
    """
    levels = grid_levels(schedule, times)
    steps = [levels.ddim_step(step) for step in range(levels.num_steps)]
    return levels.walk(steps, denoise, noise, step_noise)
