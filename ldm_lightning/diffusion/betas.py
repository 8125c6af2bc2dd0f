"""Tables of betas: the variance that each step of a discrete diffusion adds, float64, [T]."""

import math

import torch
from torch import Tensor

# Nichol & Dhariwal 2021, section 3.2: the offset s, and the largest beta.
COSINE_OFFSET = 0.008
COSINE_MAX_BETA = 0.999


def sqrt_linear_betas(num_steps: int, start: float, end: float) -> Tensor:
    """Betas whose square roots are evenly spaced: the published latent diffusion schedule.

    Source: Rombach et al. 2022, arXiv:2112.10752, section 4 and Appendix E.

    Args:
        num_steps: T, at least 1.
        start: First beta.
        end: Last beta.

    Raises:
        ValueError: Unless 0 < start <= end < 1 and ``num_steps`` is positive.
    """
    _check_num_steps(num_steps)
    if not 0 < start <= end < 1:
        raise ValueError(f"Expected 0 < beta_start <= beta_end < 1, got {start} and {end}.")
    return torch.linspace(math.sqrt(start), math.sqrt(end), num_steps, dtype=torch.float64).square()


def cosine_betas(num_steps: int) -> Tensor:
    """Betas under which the share of signal falls as a squared cosine.

    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 17.

    Args:
        num_steps: T, at least 1.

    Raises:
        ValueError: Unless ``num_steps`` is positive.
    """
    _check_num_steps(num_steps)
    share = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    signal = ((share + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2).cos().square()
    return (1 - signal[1:] / signal[:-1]).clamp(max=COSINE_MAX_BETA)


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """Betas stretched so that the last step leaves no signal at all, the first one unchanged.

    Source: Lin et al. 2023, arXiv:2305.08891, Algorithm 1.

    Args:
        betas: [T], in (0, 1), T at least 2.

    Returns:
        [T], in (0, 1], the last one exactly 1.

    Raises:
        ValueError: If there are fewer than two betas.
    """
    if len(betas) < 2:
        raise ValueError(f"A zero terminal SNR needs at least 2 steps, got {len(betas)}.")
    alpha = (1 - betas.double()).cumprod(dim=0).sqrt()
    first, last = alpha[0], alpha[-1]
    stretched = ((alpha - last) * first / (first - last)).square()
    ratio = torch.cat([stretched[:1], stretched[1:] / stretched[:-1]])
    return 1 - ratio


def _check_num_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps of a table must be at least 1, got {num_steps}.")
