"""Parametrizations: the network's target, and the clean latents from its output.

With noisy = alpha * clean + sigma * noise, every parametrization is linear in both ways:

    clean estimate = skip * noisy + output_scale * network(input_scale * noisy, ...)
    target         = clean_weight * clean + noise_weight * noise

so that network output = target exactly where the estimate is right. The formulas hold for any alpha
and sigma; where a paper assumes alpha^2 + sigma^2 = 1 (or alpha + sigma = 1) they reduce to its.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Preconditioning:
    """Scales around the network at some noise levels, all float64 and of one shape.

    Attributes:
        input_scale: Of the noisy latents that the network sees (c_in of Karras et al. 2022).
        skip: Of the noisy latents in the clean estimate (c_skip).
        output_scale: Of the network's output in the clean estimate (c_out).
        clean_weight: Of the clean latents in the target.
        noise_weight: Of the noise in the target.
    """

    input_scale: Tensor
    skip: Tensor
    output_scale: Tensor
    clean_weight: Tensor
    noise_weight: Tensor


class Parametrization(ABC):
    """Base of all parametrizations.

    Attributes:
        needs_signal: Whether the estimate divides by alpha, which zero terminal SNR forbids.
    """

    needs_signal = False

    @abstractmethod
    def preconditioning(self, alpha: Tensor, sigma: Tensor) -> Preconditioning:
        """Scales at noise levels of any shape."""


@dataclass(frozen=True)
class Epsilon(Parametrization):
    """The noise. Source: Ho et al. 2020, arXiv:2006.11239, Eq. 11 and 14."""

    needs_signal = True

    def preconditioning(self, alpha: Tensor, sigma: Tensor) -> Preconditioning:
        """Clean = (noisy - sigma * output) / alpha."""
        return Preconditioning(
            input_scale=_unit_variance_scale(alpha, sigma),
            skip=1 / alpha,
            output_scale=-sigma / alpha,
            clean_weight=torch.zeros_like(sigma),
            noise_weight=torch.ones_like(sigma),
        )


@dataclass(frozen=True)
class Clean(Parametrization):
    """The clean latents themselves (x0). Source: Ho et al. 2020, arXiv:2006.11239, sec. 3.2."""

    def preconditioning(self, alpha: Tensor, sigma: Tensor) -> Preconditioning:
        """Clean = output."""
        zeros, ones = torch.zeros_like(sigma), torch.ones_like(sigma)
        return Preconditioning(
            input_scale=_unit_variance_scale(alpha, sigma),
            skip=zeros,
            output_scale=ones,
            clean_weight=ones,
            noise_weight=zeros,
        )


@dataclass(frozen=True)
class Velocity(Parametrization):
    """The velocity v = alpha * noise - sigma * clean on the circle alpha^2 + sigma^2 = 1.

    Levels off the circle are scaled to it. Source: Salimans & Ho 2022, arXiv:2202.00512, sec. 4.
    """

    def preconditioning(self, alpha: Tensor, sigma: Tensor) -> Preconditioning:
        """Clean = alpha * noisy - sigma * output on the circle."""
        scale = _unit_variance_scale(alpha, sigma)
        return Preconditioning(
            input_scale=scale,
            skip=alpha * scale.square(),
            output_scale=-sigma * scale,
            clean_weight=-sigma * scale,
            noise_weight=alpha * scale,
        )


@dataclass(frozen=True)
class Edm(Parametrization):
    """A mixture of clean latents and noise that has unit variance at every noise level.

    Source: Karras et al. 2022, arXiv:2206.00364, Eq. 7 and Table 1, here for any alpha.

    Args:
        sigma_data: Standard deviation of the clean latents: 1 after normalization.

    Raises:
        ValueError: If ``sigma_data`` is not positive.
    """

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        """Refuse standard deviations that are none."""
        _check_sigma_data(self.sigma_data)

    def preconditioning(self, alpha: Tensor, sigma: Tensor) -> Preconditioning:
        """c_in, c_skip and c_out, and the effective target of Eq. 8."""
        data = alpha * self.sigma_data
        scale = _unit_variance_scale(data, sigma)
        return Preconditioning(
            input_scale=scale,
            skip=data * self.sigma_data * scale.square(),
            output_scale=sigma * self.sigma_data * scale,
            clean_weight=sigma / self.sigma_data * scale,
            noise_weight=-data * scale,
        )


@dataclass(frozen=True)
class Flow(Parametrization):
    """The direction noise - clean of the straight path.

    Levels off the line alpha + sigma = 1 are scaled to it. Source: Liu et al. 2022,
    arXiv:2209.03003, Eq. 1.
    """

    def preconditioning(self, alpha: Tensor, sigma: Tensor) -> Preconditioning:
        """Clean = noisy - sigma * output on the line, where the network sees ``noisy`` as it is."""
        ones, total = torch.ones_like(sigma), alpha + sigma
        return Preconditioning(
            input_scale=1 / total,
            skip=1 / total,
            output_scale=-sigma / total,
            clean_weight=-ones,
            noise_weight=ones,
        )


def _unit_variance_scale(signal: Tensor, noise: Tensor) -> Tensor:
    """Factor that scales a sum of independent parts with these deviations to unit variance."""
    return (signal.square() + noise.square()).rsqrt()


def _check_sigma_data(sigma_data: float) -> None:
    if not sigma_data > 0:
        raise ValueError(f"sigma_data must be positive, got {sigma_data}.")
