"""Losses of a first stage on validation images: likelihood, ELBO and the further loss terms."""

import torch
from torch import Tensor

from ldm_lightning.autoencoder.autoencoder import AutoencoderOutput
from ldm_lightning.loss.reconstruction import ReconstructionLoss
from ldm_lightning.metrics.accumulators import MeanOverImages
from ldm_lightning.module.precision import at_least_float32


class ValidationLosses:
    """Means over the images of all processes.

    Args:
        reconstruction_loss: The loss that is trained with; may be moved and learn meanwhile.
    """

    def __init__(self, reconstruction_loss: ReconstructionLoss) -> None:
        self.reconstruction_loss = reconstruction_loss
        names = ("nll", "elbo", *reconstruction_loss.terms)
        self._means = {name: MeanOverImages() for name in names}

    def names(self, *, has_kl: bool) -> set[str]:
        """Names of what is measured.

        Args:
            has_kl: Whether the bottleneck returns a Kullback-Leibler term.
        """
        is_likelihood = has_kl and self.reconstruction_loss.pixel.is_likelihood
        return {*self.reconstruction_loss.terms} | ({"nll", "elbo"} if is_likelihood else set())

    def reset(self, device: torch.device) -> None:
        """Start measuring anew."""
        for mean in self._means.values():
            mean.reset()
            mean.to(device)

    def update(self, images: Tensor, output: AutoencoderOutput) -> None:
        """Add images [B, C, H, W] in [-1, 1] and what the autoencoder made of them."""
        pixel = self.reconstruction_loss.pixel
        if pixel.is_likelihood and "kl" in output.bottleneck.terms:
            elements = pixel.negative_log_likelihood(pixel.error(output.outputs, images))
            nll = elements.flatten(1).sum(dim=1)
            self._means["nll"].update(nll)
            self._means["elbo"].update(-nll - output.bottleneck.terms["kl"])
        for name, term in self.reconstruction_loss.terms.items():
            reconstructions = at_least_float32(output.reconstructions)
            self._means[name].update(term(reconstructions, at_least_float32(images)))

    def compute(self, device: torch.device) -> dict[str, float]:
        """Means by name, of what was measured on any image."""
        values = {}
        for name, metric in self._means.items():
            metric.update(torch.empty(0, device=device))  # a process may have had no images
            mean = metric.compute()
            if mean.num_images:
                values[name] = mean.mean
        return values
