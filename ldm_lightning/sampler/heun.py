"""Heun's method on the probability flow: Euler's step, corrected by the slope at its end.

Source: Karras et al. 2022, arXiv:2206.00364, Algorithm 1. Second order; 2 S - 1 network calls for S
steps, because a step that ends at sigma = 0 is left as Euler's.
"""

from torch import Tensor

from ldm_lightning.diffusion.schedule import NoiseSchedule
from ldm_lightning.sampler.steps import Denoiser, StepNoise, grid_levels


def heun(
    denoise: Denoiser,
    noise: Tensor,
    times: Tensor,
    schedule: NoiseSchedule,
    step_noise: StepNoise,
) -> Tensor:
    """Walk the grid, two network calls a step; second order.

    With noisy / scale = clean + spread * slope the flow is straight wherever the clean estimate
    stands still. The scale is alpha, as in the paper, so that the spread is sigma / alpha; where
    that is infinite at time 1 it is alpha + sigma, which is 1 for rectified flow.

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
    noise_fraction = 1.0 if schedule.has_zero_terminal_snr else 0.0
    scales = [
        alpha + noise_fraction * sigma
        for alpha, sigma in zip(levels.alpha, levels.sigma, strict=True)
    ]
    spreads = [sigma / scale for sigma, scale in zip(levels.sigma, scales, strict=True)]
    scaled = levels.start(noise) / scales[0]
    for step in range(levels.num_steps):
        here, there = spreads[step], spreads[step + 1]
        slope = (scaled - denoise(scaled * scales[step], levels.times[step])) / here
        predicted = scaled.add(slope, alpha=there - here)
        if there == 0:
            scaled = predicted
            continue
        estimate = denoise(predicted * scales[step + 1], levels.times[step + 1])
        slope = slope.add((predicted - estimate) / there)
        scaled = scaled.add(slope, alpha=(there - here) / 2)
    return scaled * scales[-1]
