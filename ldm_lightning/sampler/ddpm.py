"""Ancestral sampling: the learned reverse of the Markov chain, on any grid of its times.

Source: Ho et al. 2020, arXiv:2006.11239, Eq. 6, 7 and Algorithm 2.
"""

from torch import Tensor

from ldm_lightning.diffusion.schedule import NoiseSchedule
from ldm_lightning.sampler.steps import Denoiser, GridLevels, Step, StepNoise, grid_levels

VARIANCES = ("small", "large")


def ddpm(
    denoise: Denoiser,
    noise: Tensor,
    times: Tensor,
    schedule: NoiseSchedule,
    step_noise: StepNoise,
    *,
    variance: str = "small",
) -> Tensor:
    """Walk the grid, one network call a step.

    Args:
        denoise: Clean estimate from noisy latents and a time.
        noise: Standard normal, [B, c, h, w].
        times: [S + 1], descending.
        schedule: Signal and noise as functions of time.
        step_noise: Standard normal noise of a step; not asked where the step ends at sigma = 0.
        variance: Of a step (Ho et al. 2020, section 3.2): ``small`` is that of the posterior given
            the clean latents (beta-tilde), ``large`` that of the forward step (beta).

    Returns:
        Latents at the last time, [B, c, h, w].

    Raises:
        ValueError: If ``variance`` is neither.
    """
    if variance not in VARIANCES:
        raise ValueError(f"variance must be one of {VARIANCES}, got {variance!r}.")
    levels = grid_levels(schedule, times)
    steps = [_step(levels, index, variance) for index in range(levels.num_steps)]
    return levels.walk(steps, denoise, noise, step_noise)


def _step(levels: GridLevels, step: int, variance: str) -> Step:
    """Mean of the posterior (Eq. 7, for any alpha and sigma), and the chosen deviation."""
    added = levels.transition_variance(step)
    ratio = levels.alpha[step] / levels.alpha[step + 1]
    share = (levels.sigma[step + 1] / levels.sigma[step]) ** 2
    move = levels.alpha[step + 1] * added / levels.sigma[step] ** 2
    if levels.sigma[step + 1] == 0:
        return Step(ratio * share, move)
    chosen = levels.posterior_variance(step) if variance == "small" else added
    return Step(ratio * share, move, chosen**0.5)
