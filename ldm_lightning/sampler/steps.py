"""Base of all solvers: the levels of a time grid, and steps linear in two tensors.

The coefficients of a step are Python floats computed before the first network call, so that a step
costs two operations on latents and never waits for a device.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_lightning.diffusion.schedule import NoiseSchedule

# step, counted from 0 -> standard normal noise [B, c, h, w]
StepNoise = Callable[[int], Tensor]


class Step(NamedTuple):
    """From one time to the next: ``keep * noisy + move * clean + std * noise``."""

    keep: float
    move: float
    std: float = 0.0

    def apply(self, noisy: Tensor, clean: Tensor) -> Tensor:
        """The step without its noise."""
        return torch.add(noisy * self.keep, clean, alpha=self.move)


class Denoiser(ABC):
    """Estimates the clean latents at the times of a grid."""

    @abstractmethod
    def __call__(self, noisy: Tensor, time: float) -> Tensor:
        """Clean estimate [B, c, h, w] of noisy latents [B, c, h, w]."""

    def walk(self, step: Step, noisy: Tensor, time: float) -> Tensor:
        """The step from noisy latents at a time, which may be had without forming the estimate."""
        return step.apply(noisy, self(noisy, time))


# (denoise, noise, times, schedule, step_noise) -> latents
Solver = Callable[[Denoiser, Tensor, Tensor, NoiseSchedule, StepNoise], Tensor]


@dataclass(frozen=True)
class GridLevels:
    """Signal and noise at the S + 1 times of a grid.

    Attributes:
        times: Descending.
        alpha: Factor of the clean latents.
        sigma: Standard deviation of the noise.
    """

    times: tuple[float, ...]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]

    @property
    def num_steps(self) -> int:
        """S."""
        return len(self.times) - 1

    def start(self, noise: Tensor) -> Tensor:
        """Noisy latents at the first time: noise, with the variance of unit-variance latents."""
        return noise * (self.alpha[0] ** 2 + self.sigma[0] ** 2) ** 0.5

    def transition_variance(self, step: int) -> float:
        """Variance that the forward process adds from the next time to this one."""
        ratio = self.alpha[step] / self.alpha[step + 1]
        return self.sigma[step] ** 2 - (ratio * self.sigma[step + 1]) ** 2

    def posterior_variance(self, step: int) -> float:
        """Variance of the next latents, given these and the clean ones (beta-tilde)."""
        share = (self.sigma[step + 1] / self.sigma[step]) ** 2
        return self.transition_variance(step) * share

    def ddim_step(self, step: int, *, variance: float = 0.0) -> Step:
        """The step that leads the estimated noise along and adds noise of this variance.

        Source: Song et al. 2020, arXiv:2010.02502, Eq. 12. Without variance it is the Euler step of
        the probability flow, in whichever coordinates.
        """
        kept_noise = max(self.sigma[step + 1] ** 2 - variance, 0.0) ** 0.5
        keep = kept_noise / self.sigma[step]
        move = self.alpha[step + 1] - keep * self.alpha[step]
        return Step(keep, move, variance**0.5)

    def walk(
        self, steps: Sequence[Step], denoise: Denoiser, noise: Tensor, step_noise: StepNoise
    ) -> Tensor:
        """Latents at the last time by one network call and one step after the other."""
        noisy = self.start(noise)
        for index, step in enumerate(steps):
            noisy = denoise.walk(step, noisy, self.times[index])
            if step.std:
                noisy = noisy.add(step_noise(index).to(noisy), alpha=step.std)
        return noisy


def grid_levels(schedule: NoiseSchedule, times: Tensor) -> GridLevels:
    """Levels at ``times`` [S + 1].

    Raises:
        ValueError: If the times do not descend.
    """
    values = times.detach().double().cpu()
    if values.ndim != 1 or len(values) < 2 or not bool((values.diff() < 0).all()):
        raise ValueError(f"times must be [S + 1] and descend, got {values.tolist()}.")
    level = schedule.noise_level(values)
    return GridLevels(
        tuple(values.tolist()), tuple(level.alpha.tolist()), tuple(level.sigma.tolist())
    )
