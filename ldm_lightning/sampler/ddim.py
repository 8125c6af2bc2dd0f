"""DDIM: deterministic, or with a share of the ancestral sampler's noise.

Source: Song et al. 2020, arXiv:2010.02502, Eq. 12 and 16.
"""

from torch import Tensor

from ldm_lightning.diffusion.schedule import NoiseSchedule
from ldm_lightning.sampler.steps import Denoiser, StepNoise, grid_levels


def ddim(
    denoise: Denoiser,
    noise: Tensor,
    times: Tensor,
    schedule: NoiseSchedule,
    step_noise: StepNoise,
    *,
    eta: float = 0.0,
) -> Tensor:
    """Walk the grid, one network call a step.

    Args:
        denoise: Clean estimate from noisy latents and a time.
        noise: Standard normal, [B, c, h, w].
        times: [S + 1], descending.
        schedule: Signal and noise as functions of time.
        step_noise: Standard normal noise of a step; asked only where ``eta`` is positive.
        eta: Noise as a share of the ancestral sampler's standard deviation: 0 is deterministic, 1
            is DDPM with the small variance.

    Returns:
        Latents at the last time, [B, c, h, w].

    Raises:
        ValueError: If ``eta`` lies outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}.")
    levels = grid_levels(schedule, times)
    steps = [
        levels.ddim_step(step, variance=eta**2 * levels.posterior_variance(step) if eta else 0.0)
        for step in range(levels.num_steps)
    ]
    return levels.walk(steps, denoise, noise, step_noise)
