"""At which times the network is trained, as functions of uniforms that the caller draws."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_lightning.diffusion.schedule import NoiseSchedule


class TimeDistribution(ABC):
    """Base of all distributions of training times.

    Attributes:
        needs_table: Whether the schedule must be a discrete one.
    """

    needs_table = False

    @abstractmethod
    def __call__(self, uniform: Tensor, schedule: NoiseSchedule) -> Tensor:
        """Map uniforms [B] in (0, 1), float64, to times [B] in (0, 1]; monotone."""


@dataclass(frozen=True)
class TableTimes(TimeDistribution):
    """Every place of a discrete table alike. Source: Ho et al. 2020, arXiv:2006.11239, Alg. 1."""

    needs_table = True

    def __call__(self, uniform: Tensor, schedule: NoiseSchedule) -> Tensor:
        """(i + 1) / T for i uniform in 0, ..., T - 1."""
        num_steps = schedule.num_steps
        assert num_steps is not None
        return ((uniform * num_steps).floor() + 1).clamp(max=num_steps) / num_steps


@dataclass(frozen=True)
class UniformTimes(TimeDistribution):
    """Uniform in continuous time."""

    def __call__(self, uniform: Tensor, schedule: NoiseSchedule) -> Tensor:
        """The uniforms themselves."""
        return uniform


@dataclass(frozen=True)
class LogNormalTimes(TimeDistribution):
    """ln(sigma / alpha) is normal. Source: Karras et al. 2022, arXiv:2206.00364, Table 1.

    The rare noise levels beyond the schedule's last one are trained at that one.

    Args:
        mean: P_mean.
        std: P_std, positive.
    """

    mean: float
    std: float

    def __post_init__(self) -> None:
        """Refuse standard deviations that are none."""
        _check_std(self.std)

    def __call__(self, uniform: Tensor, schedule: NoiseSchedule) -> Tensor:
        """Time of exp(mean + std * z) for the normal quantile z."""
        return schedule.time_at((self.mean + self.std * _normal_quantile(uniform)).exp())


@dataclass(frozen=True)
class LogitNormalTimes(TimeDistribution):
    """ln(time / (1 - time)) is normal. Source: Esser et al. 2024, arXiv:2403.03206, Eq. 19.

    Args:
        mean: Positive values train more at high noise.
        std: Positive; smaller ones train more in the middle.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        """Refuse standard deviations that are none."""
        _check_std(self.std)

    def __call__(self, uniform: Tensor, schedule: NoiseSchedule) -> Tensor:
        """Sigmoid(mean + std * z) for the normal quantile z."""
        return torch.sigmoid(self.mean + self.std * _normal_quantile(uniform))


def _normal_quantile(uniform: Tensor) -> Tensor:
    """Inverse of the standard normal distribution function."""
    return torch.special.ndtri(uniform)


def _check_std(std: float) -> None:
    if not std > 0:
        raise ValueError(f"std of the training times must be positive, got {std}.")
