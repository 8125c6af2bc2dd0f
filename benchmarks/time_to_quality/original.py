"""The recipe of latent-diffusion and taming-transformers, from its published description.

Sources: Rombach et al. 2022, arXiv:2112.10752, appendix G; Esser et al. 2021, arXiv:2012.09841;
github.com/CompVis/latent-diffusion and taming-transformers for the order of an update. In every
update the autoencoder runs once for each of the two networks. Before the discriminator comes in,
its losses are computed too and weighted by zero. The learned log-variance stays at its start, 0:
the published optimizer does not hold it.
"""

from collections.abc import Callable, Mapping

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ldm_lightning.autoencoder.autoencoder import Autoencoder, AutoencoderOutput
from ldm_lightning.discriminator.patchgan import PatchGAN
from ldm_lightning.loss.adversarial import (
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from ldm_lightning.loss.perceptual import TinyPerceptual
from ldm_lightning.loss.pixel import pixel_loss
from ldm_lightning.loss.reconstruction import ReconstructionLoss

BETAS = (0.5, 0.9)
PERCEPTUAL_WEIGHT = 1.0
ADVERSARIAL_WEIGHT = 0.5
TERM_WEIGHTS = {"kl": 1e-6, "codebook": 1.0, "commitment": 0.25}


class OriginalModule(pl.LightningModule):
    """Trains an autoencoder by the original rule.

    Args:
        autoencoder: With a Gaussian or a vector-quantizing bottleneck.
        learning_rate: Of both networks, constant.
        has_begun: True from the update on in which the discriminator counts; None trains without.
        seed: Of the posterior's noise.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        *,
        learning_rate: float,
        has_begun: Callable[[], bool] | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.autoencoder = autoencoder
        has_codes = autoencoder.bottleneck.num_codes is not None
        self.reconstruction_loss = ReconstructionLoss(
            pixel_loss("l1"),
            TinyPerceptual(),
            perceptual_weight=PERCEPTUAL_WEIGHT,
            reduction="mean" if has_codes else "sum",
        )
        channels: int = autoencoder.encoder.conv_in.in_channels
        self.discriminator = (
            None if has_begun is None else PatchGAN(image_channels=channels, normalization="batch")
        )
        self.has_begun = has_begun
        self.learning_rate = learning_rate
        self.num_updates = 0
        self._noise = torch.Generator().manual_seed(seed)

    def configure_optimizers(self) -> list[Optimizer]:
        """Adam for each network."""
        networks: list[nn.Module] = [self.autoencoder]
        if self.discriminator is not None:
            networks.append(self.discriminator)
        return [
            Adam(network.parameters(), lr=self.learning_rate, betas=BETAS) for network in networks
        ]

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Update the generator, then the discriminator, each with a forward of its own."""
        images, found = batch["image"], self.optimizers()
        optimizers = found if isinstance(found, list) else [found]
        self._only(generator=True)
        loss = self.generator_loss(images)
        optimizers[0].zero_grad()
        self.manual_backward(loss)
        optimizers[0].step()
        if self.discriminator is not None:
            self._only(generator=False)
            loss = self.discriminator_loss(images)
            optimizers[1].zero_grad()
            self.manual_backward(loss)
            optimizers[1].step()
        self.num_updates += 1

    def generator_loss(self, images: Tensor) -> Tensor:
        """Reconstruction, the bottleneck's terms and the weighted adversarial loss, a scalar."""
        output = self._run(images)
        reconstruction = self._reconstruction(images, output)
        total = reconstruction
        for name, term in output.bottleneck.terms.items():
            total = total + TERM_WEIGHTS[name] * term.mean()
        if self.discriminator is None:
            return total
        adversarial = hinge_generator_loss(self.discriminator(output.reconstructions))
        gradients = [
            torch.autograd.grad(loss, self.autoencoder.last_layer, retain_graph=True)[0]
            for loss in (reconstruction, adversarial)
        ]
        weight = ADVERSARIAL_WEIGHT * adaptive_weight(gradients[0], gradients[1]).detach()
        return total + self._factor() * weight * adversarial

    def discriminator_loss(self, images: Tensor) -> Tensor:
        """Hinge loss on images and on reconstructions made anew, a scalar."""
        assert self.discriminator is not None
        output = self._run(images)
        self._reconstruction(images, output)  # computed in this turn too, and used for nothing
        logits_fake = self.discriminator(output.reconstructions.detach())
        return self._factor() * hinge_discriminator_loss(self.discriminator(images), logits_fake)

    def _reconstruction(self, images: Tensor, output: AutoencoderOutput) -> Tensor:
        terms = self.reconstruction_loss(output.outputs, output.reconstructions, images)
        return terms.total

    def _run(self, images: Tensor) -> AutoencoderOutput:
        noise = None
        if self.autoencoder.bottleneck.is_stochastic:
            shape = self.autoencoder.latent_shape(images.shape)
            noise = torch.randn(shape, generator=self._noise).to(images)
        return self.autoencoder(images, noise)

    def _factor(self) -> float:
        return float(self.has_begun is not None and self.has_begun())

    def _only(self, *, generator: bool) -> None:
        """Let gradients reach one of the two networks alone."""
        self.autoencoder.requires_grad_(generator)
        if self.discriminator is not None:
            self.discriminator.requires_grad_(not generator)
