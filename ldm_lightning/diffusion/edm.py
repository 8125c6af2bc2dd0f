"""Noise levels of EDM: latents are never scaled, noise is added up to a large sigma."""

import torch
from torch import Tensor

from ldm_lightning.diffusion.schedule import NoiseLevel, NoiseSchedule


class EdmSchedule(NoiseSchedule):
    """Noise is added and nothing is scaled: alpha = 1, sigma = sigma_max * time^rho.

    Evenly spaced times are the steps of Karras et al. 2022, arXiv:2206.00364, Eq. 5, whose
    sigma_min is the last level above zero on a sampler's grid.

    Args:
        sigma_min: Smallest noise level that samplers visit before zero.
        sigma_max: Noise level of time 1.
        rho: Exponent; larger ones put more steps at low noise.

    Raises:
        ValueError: Unless 0 < sigma_min < sigma_max and rho > 0.
    """

    spacings = ("karras",)

    def __init__(
        self, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
    ) -> None:
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"Expected 0 < sigma_min < sigma_max, got {sigma_min}, {sigma_max}.")
        if rho <= 0:
            raise ValueError(f"rho must be positive, got {rho}.")
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho

    def noise_level(self, time: Tensor) -> NoiseLevel:
        """Alpha 1 and sigma_max * time^rho."""
        sigma = self.sigma_max * time.double().pow(self.rho)
        return NoiseLevel(torch.ones_like(sigma), sigma)

    def time_at(self, noise_to_signal: Tensor) -> Tensor:
        """(sigma / sigma_max)^(1 / rho)."""
        share = (noise_to_signal.double() / self.sigma_max).clamp(0, 1)
        return share.pow(1 / self.rho).to(noise_to_signal.dtype)

    def network_time(self, time: Tensor) -> Tensor:
        """c_noise = ln(sigma) / 4 (Table 1); minus infinity at time 0."""
        return (self.noise_level(time).sigma.log() / 4).to(time.dtype)
