"""Noise schedules: signal and noise levels by time.

Time runs over [0, 1], 1 = noise: noisy = alpha(time) * clean + sigma(time) * noise. Every schedule
has alpha(0) = 1 and sigma(0) = 0. Everything is computed in float64, whatever the latents are in.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_lightning.diffusion import betas as beta_tables

# The networks' time embedding was made for the indices 0 to 999 of the published tables.
NETWORK_TIME_RANGE = 1000.0


class NoiseLevel(NamedTuple):
    """Signal and noise at some times.

    Attributes:
        alpha: Factor of the clean latents, float64, non-negative.
        sigma: Standard deviation of the noise, float64, the same shape.
    """

    alpha: Tensor
    sigma: Tensor


class NoiseSchedule(ABC):
    """Base of all schedules; nothing in it is learned.

    Attributes:
        num_steps: Length of a discrete table; None where time is continuous.
        spacings: The time grids that samplers can use, the schedule's own first.
    """

    num_steps: int | None = None
    spacings: tuple[str, ...]

    @abstractmethod
    def noise_level(self, time: Tensor) -> NoiseLevel:
        """Signal and noise at ``time``, any shape, in [0, 1]."""

    @abstractmethod
    def time_at(self, noise_to_signal: Tensor) -> Tensor:
        """Time at which sigma / alpha has this value: the inverse, monotone, kept in [0, 1]."""

    @abstractmethod
    def network_time(self, time: Tensor) -> Tensor:
        """Input of the network's time embedding at ``time``; shape and dtype of ``time``."""

    @property
    def has_zero_terminal_snr(self) -> bool:
        """True if time 1 is noise alone."""
        return self.noise_level(torch.ones((), dtype=torch.float64)).alpha.item() == 0


def check_shift(shift: float) -> None:
    """Raise ``ValueError`` unless a shift is positive."""
    if not shift > 0:
        raise ValueError(f"shift must be positive, got {shift}; 1 shifts nothing.")


class DiscreteSchedule(NoiseSchedule):
    """A table of T variance-preserving noise levels at the times (i + 1) / T.

    Between them the angle atan(sigma / alpha) is interpolated, from 0 at time 0: alpha and sigma
    stay on the unit circle, and zero terminal SNR needs no special case.

    Source: Ho et al. 2020, arXiv:2006.11239, Eq. 4. Shift: Hoogeboom et al. 2023,
    arXiv:2301.11093, section 3.1.

    Args:
        betas: Variances that the steps add, [T], in (0, 1]; only the last may be 1.
        shift: Multiplies sigma / alpha, that is, adds -2 ln(shift) to the log-SNR. The ratio of
            image sides to those the table was made for.

    Raises:
        ValueError: If the betas are no such table or the shift is not positive.
    """

    num_steps: int

    def __init__(self, betas: Tensor, *, shift: float = 1.0) -> None:
        values = betas.detach().double().cpu()
        if values.ndim != 1 or not len(values):
            raise ValueError(f"betas must be [T] with T > 0, got {list(values.shape)}.")
        if not bool(((values > 0) & (values <= 1)).all() & (values[:-1] < 1).all()):
            raise ValueError(
                "betas must lie in (0, 1), and the last one in (0, 1]; got values from "
                f"{values.min().item()} to {values.max().item()}."
            )
        check_shift(shift)
        self.num_steps = len(values)
        self.shift = shift
        signal = (1 - values).cumprod(dim=0)
        alpha, sigma = signal.sqrt(), shift * (1 - signal).sqrt()
        if shift != 1:  # without, the published table to the last bit
            length = torch.hypot(alpha, sigma)
            alpha, sigma = alpha / length, sigma / length
        start = torch.tensor([[1.0], [0.0]], dtype=torch.float64)  # time 0
        table = torch.cat([start, torch.stack([alpha, sigma])], dim=1)
        angle = torch.atan2(table[1], table[0])
        # The published spacing, unless it would leave out a last place that holds no signal (Lin et
        # al. 2023, section 3.3). On Gaussian data with a power-law spectrum and the exact denoiser
        # it is the nearest to the data of the three at 10 to 50 steps of DDIM and DPM-Solver++.
        self.spacings = ("leading", "trailing", "linspace")
        if alpha[-1] == 0:
            self.spacings = ("trailing", "leading", "linspace")
        self._tables = {torch.device("cpu"): torch.cat([table, angle[None]])}

    def _on(self, device: torch.device) -> Tensor:
        """Rows alpha, sigma, angle of the table, [3, T + 1], copied to a device once."""
        if device not in self._tables:
            self._tables[device] = self._tables[torch.device("cpu")].to(device)
        return self._tables[device]

    def _position(self, time: Tensor) -> Tensor:
        """Time in steps, in [0, T]; whole where a float32 time means a place of the table."""
        position = (time.double() * self.num_steps).clamp(0, self.num_steps)
        nearest = position.round()
        return torch.where((position - nearest).abs() < self.num_steps * 2**-22, nearest, position)

    def noise_level(self, time: Tensor) -> NoiseLevel:
        """Of the table, or between its places along the circle."""
        table, position = self._on(time.device), self._position(time)
        lower, upper = position.floor().long(), position.ceil().long()
        angle = torch.lerp(table[2][lower], table[2][upper], position - lower)
        on_table = lower == upper
        return NoiseLevel(
            torch.where(on_table, table[0][lower], angle.cos()),
            torch.where(on_table, table[1][lower], angle.sin()),
        )

    def time_at(self, noise_to_signal: Tensor) -> Tensor:
        """Inverse of sigma / alpha; what lies beyond the table is 1."""
        angles = self._on(noise_to_signal.device)[2]
        angle = noise_to_signal.double().atan()
        upper = torch.searchsorted(angles, angle.contiguous()).clamp(1, self.num_steps)
        lower = upper - 1
        share = (angle - angles[lower]) / (angles[upper] - angles[lower])
        time = (lower + share.clamp(0, 1)) / self.num_steps
        return time.to(noise_to_signal.dtype)

    def network_time(self, time: Tensor) -> Tensor:
        """1000 * time - 1: for T = 1000 the index i that the published models were given."""
        steps = self._position(time) * (NETWORK_TIME_RANGE / self.num_steps)
        return (steps - 1).to(time.dtype)


def sqrt_linear_schedule(
    *,
    num_steps: int,
    beta_start: float,
    beta_end: float,
    zero_terminal_snr: bool = False,
    shift: float = 1.0,
) -> DiscreteSchedule:
    """The published latent diffusion schedule (see ``sqrt_linear_betas``)."""
    betas = beta_tables.sqrt_linear_betas(num_steps, beta_start, beta_end)
    if zero_terminal_snr:
        betas = beta_tables.zero_terminal_snr(betas)
    return DiscreteSchedule(betas, shift=shift)


def cosine_schedule(
    *, num_steps: int, zero_terminal_snr: bool = False, shift: float = 1.0
) -> DiscreteSchedule:
    """The squared-cosine schedule (see ``cosine_betas``)."""
    betas = beta_tables.cosine_betas(num_steps)
    if zero_terminal_snr:
        betas = beta_tables.zero_terminal_snr(betas)
    return DiscreteSchedule(betas, shift=shift)
