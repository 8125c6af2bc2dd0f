"""DPM-Solver++(2M): second order from one network call a step, by the previous clean estimate.

Source: Lu et al. 2022, arXiv:2211.01095, Algorithm 2.
"""

import math

import torch
from torch import Tensor

from ldm_lightning.diffusion.schedule import NoiseSchedule
from ldm_lightning.sampler.steps import Denoiser, GridLevels, StepNoise, grid_levels


def dpm_solver(
    denoise: Denoiser,
    noise: Tensor,
    times: Tensor,
    schedule: NoiseSchedule,
    step_noise: StepNoise,
) -> Tensor:
    """Walk the grid, one network call a step; second order.

    The first step and the last are of first order: the first has no previous estimate, and at
    sigma = 0 the last one would extrapolate over an infinite log-SNR.

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
    beyond = _extrapolation(levels)
    noisy = levels.start(noise)
    previous: Tensor | None = None
    for index, step in enumerate(steps):
        clean = denoise(noisy, levels.times[index])
        # lerp with a weight above 1 extrapolates: clean + beyond * (clean - previous).
        ahead = clean if previous is None else torch.lerp(previous, clean, 1 + beyond[index])
        noisy = step.apply(noisy, ahead)
        previous = clean
    return noisy


def _extrapolation(levels: GridLevels) -> list[float]:
    """1 / (2 r) of each step, with r the previous step over this one in half the log-SNR."""
    half_log_snr = [
        _log_ratio(alpha, sigma) for alpha, sigma in zip(levels.alpha, levels.sigma, strict=True)
    ]
    lengths = [
        after - before for before, after in zip(half_log_snr, half_log_snr[1:], strict=False)
    ]
    inner = [lengths[step] / (2 * lengths[step - 1]) for step in range(1, levels.num_steps - 1)]
    return [0.0, *inner, 0.0][: levels.num_steps]


def _log_ratio(alpha: float, sigma: float) -> float:
    """ln(alpha / sigma), infinite at either end."""
    if alpha == 0:
        return -math.inf
    return math.log(alpha / sigma) if sigma else math.inf
