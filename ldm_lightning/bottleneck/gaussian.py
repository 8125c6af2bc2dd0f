"""Gaussian posterior: the bottleneck of variational autoencoders.

Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", sections 2.3 and 2.4, Appendix B.
"""

import torch
from torch import Tensor

from ldm_lightning.bottleneck.base import Bottleneck, BottleneckOutput

# Keeps exp() finite in float32 and the KL of a dead channel bounded, as published first stages do.
LOG_VARIANCE_RANGE = (-30.0, 20.0)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence of a diagonal Gaussian posterior from the standard normal.

    Source: Kingma & Welling 2014, Appendix B.

    Args:
        mean: Posterior mean, [B, C, H, W], unbounded.
        log_variance: Natural logarithm of the posterior variance, [B, C, H, W].

    Returns:
        KL per image in nats, summed over C, H, W: [B], non-negative.

    Raises:
        ValueError: If the two shapes differ.
    """
    if mean.shape != log_variance.shape:
        raise ValueError(
            f"mean and log_variance must have one shape, got {tuple(mean.shape)} and "
            f"{tuple(log_variance.shape)}."
        )
    elements = mean.square() + log_variance.exp() - 1.0 - log_variance
    return 0.5 * elements.flatten(1).sum(dim=1)


class GaussianBottleneck(Bottleneck):
    """Read mean and log-variance from the encoder; sample by reparameterisation (sec. 2.4).

    Args:
        initial_log_variance: Added to the encoder's log-variance. At the published 0 an untrained
            encoder's latents drown in noise of standard deviation one, and a short run spends its
            updates on scaling them up; a negative value spares it that.
    """

    inputs_per_channel = 2
    term_names = ("kl",)
    is_stochastic = True

    def __init__(self, *, initial_log_variance: float = 0.0) -> None:
        super().__init__()
        self.initial_log_variance = initial_log_variance

    def forward(self, encoded: Tensor, *, noise: Tensor | None = None) -> BottleneckOutput:
        """Sample with ``noise`` [B, c, h, w], or take the posterior mean without.

        The posterior is computed in at least float32 under autocast: exp() of a half-precision
        log-variance overflows.
        """
        with torch.autocast(encoded.device.type, enabled=False):
            if encoded.dtype in (torch.float16, torch.bfloat16):
                encoded = encoded.float()
            mean, log_variance = encoded.chunk(2, dim=1)
            log_variance = (log_variance + self.initial_log_variance).clamp(*LOG_VARIANCE_RANGE)
            latents = mean
            if noise is not None:
                latents = mean + torch.exp(0.5 * log_variance) * noise.to(mean.dtype)
            return BottleneckOutput(
                latents=latents,
                continuous=latents,
                terms={"kl": kl_divergence(mean, log_variance)},
                variance=log_variance.exp(),
            )
