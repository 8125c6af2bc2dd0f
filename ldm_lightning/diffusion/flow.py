"""Noise levels of rectified flow: the straight line from clean latents to noise."""

from torch import Tensor

from ldm_lightning.diffusion.schedule import (
    NETWORK_TIME_RANGE,
    NoiseLevel,
    NoiseSchedule,
    check_shift,
)


class FlowSchedule(NoiseSchedule):
    """The straight path of rectified flow: alpha = 1 - sigma, and sigma = time where shift is 1.

    Source: Liu et al. 2022, arXiv:2209.03003, Eq. 1; Esser et al. 2024, arXiv:2403.03206, Eq. 13
    and, for the shift, Eq. 23.

    Args:
        shift: Multiplies sigma / alpha: sigma = shift * time / (1 + (shift - 1) * time). The square
            root of the ratio of latent positions to those of the reference resolution.

    Raises:
        ValueError: If the shift is not positive.
    """

    spacings = ("uniform",)

    def __init__(self, *, shift: float = 1.0) -> None:
        check_shift(shift)
        self.shift = shift

    def noise_level(self, time: Tensor) -> NoiseLevel:
        """(1 - time) and shift * time, both over their sum."""
        noise, signal = self.shift * time.double(), 1 - time.double()
        return NoiseLevel(signal / (signal + noise), noise / (signal + noise))

    def time_at(self, noise_to_signal: Tensor) -> Tensor:
        """1 / (1 + shift * alpha / sigma); infinite noise-to-signal is time 1."""
        time = 1 / (1 + self.shift / noise_to_signal.double())
        return time.to(noise_to_signal.dtype)

    def network_time(self, time: Tensor) -> Tensor:
        """1000 * sigma, so that a network trained with one shift can be sampled with another."""
        return (NETWORK_TIME_RANGE * self.noise_level(time).sigma).to(time.dtype)
