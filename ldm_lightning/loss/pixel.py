"""Pixel losses and likelihoods: how far a reconstruction is from its image, element by element.

Each has two steps. ``error`` compares; the perceptual distance is added to it;
``negative_log_likelihood`` turns the sum into nats (or leaves it as it is, where the loss is no
likelihood). The order is that of the published first stages (Rombach et al. 2022), whose learned
log-variance scales both terms.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PixelLoss(nn.Module):
    """Base: a plain distance, which is no likelihood.

    Attributes:
        is_likelihood: Whether ``negative_log_likelihood`` is in nats, so that with the KL it makes
            an ELBO.
        output: What the decoder's output means: ``images`` or ``logits``.
    """

    is_likelihood = False
    output = "images"

    def error(self, outputs: Tensor, images: Tensor) -> Tensor:
        """Compare the decoder's output with images, all [B, C, H, W]."""
        raise NotImplementedError

    def negative_log_likelihood(self, error: Tensor) -> Tensor:
        """Turn errors into the loss, element by element."""
        return error


class L1Loss(PixelLoss):
    """|x - x'|: an unnormalized Laplace likelihood of fixed scale."""

    def error(self, outputs: Tensor, images: Tensor) -> Tensor:
        """Absolute difference."""
        return (outputs - images).abs()


class L2Loss(PixelLoss):
    """(x - x')^2."""

    def error(self, outputs: Tensor, images: Tensor) -> Tensor:
        """Squared difference."""
        return (outputs - images).square()


class BernoulliLoss(PixelLoss):
    """Binary cross-entropy in nats of logits; images in [-1, 1] are read as probabilities."""

    is_likelihood = True
    output = "logits"

    def error(self, outputs: Tensor, images: Tensor) -> Tensor:
        """Cross-entropy with the image as target (Kingma & Welling 2014, Appendix C.1)."""
        return F.binary_cross_entropy_with_logits(outputs, (images + 1) / 2, reduction="none")


class _LearnedScaleLoss(PixelLoss):
    """A likelihood with one scalar log-variance for all elements, learned with the generator."""

    is_likelihood = True

    def __init__(self, *, initial_log_variance: float = 0.0) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.tensor(float(initial_log_variance)))


class GaussianLoss(_LearnedScaleLoss):
    """Gaussian negative log-density in nats, log sigma^2 learned (Kingma & Welling 2014, C.2)."""

    def error(self, outputs: Tensor, images: Tensor) -> Tensor:
        """Squared difference."""
        return (outputs - images).square()

    def negative_log_likelihood(self, error: Tensor) -> Tensor:
        """0.5 (error / sigma^2 + log sigma^2 + log 2 pi)."""
        return 0.5 * (
            error * torch.exp(-self.log_variance) + self.log_variance + math.log(2 * math.pi)
        )


class LaplaceLoss(_LearnedScaleLoss):
    """Laplace negative log-density in nats; the variance 2 b^2 = exp(log_variance) is learned."""

    def error(self, outputs: Tensor, images: Tensor) -> Tensor:
        """Absolute difference."""
        return (outputs - images).abs()

    def negative_log_likelihood(self, error: Tensor) -> Tensor:
        """Error / b + log 2 b, with log b = (log_variance - log 2) / 2."""
        log_scale = (self.log_variance - math.log(2)) / 2
        return error * torch.exp(-log_scale) + log_scale + math.log(2)


PIXEL_LOSSES: dict[str, type[PixelLoss]] = {
    "l1": L1Loss,
    "l2": L2Loss,
    "bernoulli": BernoulliLoss,
    "gaussian": GaussianLoss,
    "laplace": LaplaceLoss,
}


def pixel_loss(name: str) -> PixelLoss:
    """Build a pixel loss by its name.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in PIXEL_LOSSES:
        raise ValueError(f"loss.pixel must be one of {sorted(PIXEL_LOSSES)}, got {name!r}.")
    return PIXEL_LOSSES[name]()
