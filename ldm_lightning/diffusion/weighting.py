"""Loss weights by noise level.

A weighting is given for the squared error of the clean estimate. The loss compares the network's
output with its target, and the two errors differ by the factor output_scale; so the weight of the
output's squared error is weight * output_scale^2, in every parametrization.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Weighting(ABC):
    """Base of all weightings."""

    @abstractmethod
    def __call__(self, alpha: Tensor, sigma: Tensor, output_scale: Tensor) -> Tensor:
        """Weight of the error of the network's output.

        Args:
            alpha: Factor of the clean latents, [B], float64.
            sigma: Standard deviation of the noise, [B], float64, positive.
            output_scale: Of the network's output in the clean estimate, [B], float64.

        Returns:
            [B], float64, non-negative.
        """


@dataclass(frozen=True)
class Unweighted(Weighting):
    """Weight 1 on the network's output: the simple loss of Ho et al. 2020, arXiv:2006.11239."""

    def __call__(self, alpha: Tensor, sigma: Tensor, output_scale: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(sigma)


@dataclass(frozen=True)
class MinSnr(Weighting):
    """min(SNR, gamma) on the clean estimate.

    On the network's output that is min(SNR, gamma) for x0, min(SNR, gamma) / SNR for eps and
    min(SNR, gamma) / (SNR + 1) for v. Source: Hang et al. 2023, arXiv:2303.09556, section 3.4. At
    zero SNR the weight is 0: that step is not trained.

    Args:
        gamma: Largest weight of the clean estimate; 5 is published.

    Raises:
        ValueError: If ``gamma`` is not positive.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        """Refuse a gamma that leaves no loss."""
        if not self.gamma > 0:
            raise ValueError(f"gamma must be positive, got {self.gamma}.")

    def __call__(self, alpha: Tensor, sigma: Tensor, output_scale: Tensor) -> Tensor:
        """min(SNR, gamma) * output_scale^2."""
        return (alpha / sigma).square().clamp(max=self.gamma) * output_scale.square()


@dataclass(frozen=True)
class EdmWeighting(Weighting):
    """(sigma^2 + sigma_data^2) / (sigma * sigma_data)^2 on the clean estimate, for alpha = 1.

    With the EDM parametrization this is weight 1 on the network's output. Other alphas are read as
    the same ratio sigma / alpha. Source: Karras et al. 2022, arXiv:2206.00364, Table 1, lambda.

    Args:
        sigma_data: Standard deviation of the clean latents: 1 after normalization.

    Raises:
        ValueError: If ``sigma_data`` is not positive.
    """

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        """Refuse standard deviations that are none."""
        if not self.sigma_data > 0:
            raise ValueError(f"sigma_data must be positive, got {self.sigma_data}.")

    def __call__(self, alpha: Tensor, sigma: Tensor, output_scale: Tensor) -> Tensor:
        """lambda(sigma / alpha) * output_scale^2, each factor finite at zero alpha."""
        return (alpha / sigma).square().add(self.sigma_data**-2) * output_scale.square()
