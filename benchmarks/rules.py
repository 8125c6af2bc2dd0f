"""The update rules of the field, written from their published description around our networks.

two forwards   The autoencoder runs once for each network, the perceptual distance in both.
               latent-diffusion, taming-transformers
alternating    One batch for the generator, the next for the discriminator. The perceptual distance
               gives no gradient; the discriminator's loss goes through the whole autoencoder.
               the autoencoder script of diffusers
loss twice     The autoencoder runs once, the whole loss for each network; the discriminator is not
               frozen for the generator. SEED-Voken

Each takes the adaptive weight from the gradients of both losses at the decoder's last layer, by a
backward pass of its own. Sources: github.com/CompVis/latent-diffusion,
github.com/CompVis/taming-transformers, github.com/huggingface/diffusers
(examples/research_projects/autoencoderkl), github.com/TencentARC/SEED-Voken.
"""

import functools
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from benchmarks.networks import Players
from ldm_lightning.autoencoder.autoencoder import AutoencoderOutput
from ldm_lightning.loss.adversarial import (
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
)

DECAY = 0.999
KL_WEIGHT = 1e-6
ADVERSARIAL_WEIGHT = 0.5


def adam(parameters: list[torch.nn.Parameter]) -> Optimizer:
    """Adam as those trainers call it."""
    return Adam(parameters, lr=1e-4, betas=(0.5, 0.9))


class Rule(ABC):
    """Networks and optimizers of one rule.

    Attributes:
        has_our_loss: Whether the generator's loss is the one that ours has.
    """

    has_our_loss = True

    def __init__(self, players: Players) -> None:
        self.players = players
        self.generator = adam(list(players.autoencoder.parameters()))
        self.discriminator = adam(list(players.discriminator.parameters()))

    @abstractmethod
    def update(self, images: Tensor, noise: Tensor) -> Tensor:
        """Update both networks.

        Args:
            images: [B, 3, H, W] in [-1, 1].
            noise: Of the posterior, [B, c, h, w].

        Returns:
            The generator's loss before the update, a scalar.
        """

    def only(self, part: str) -> None:
        """Let gradients reach one of the two networks alone, as toggled optimizers do."""
        self.players.autoencoder.requires_grad_(part == "autoencoder")
        self.players.discriminator.requires_grad_(part == "discriminator")

    def generator_loss(
        self, images: Tensor, output: AutoencoderOutput, *, perceptual_gradient: bool = True
    ) -> Tensor:
        """Reconstruction, KL and weighted adversarial loss, a scalar."""
        players, images_made = self.players, output.reconstructions
        if perceptual_gradient:
            reconstruction = players.reconstruction_loss(output.outputs, images_made, images).total
        else:
            loss = players.reconstruction_loss
            assert loss.perceptual is not None
            with torch.no_grad():
                distance = loss.perceptual(images_made, images).mean()
            elements = images[0].numel()
            reconstruction = (images_made - images).abs().mean() * elements + distance * elements
        adversarial = hinge_generator_loss(players.discriminator(images_made))
        layer = players.autoencoder.last_layer
        gradients = [
            torch.autograd.grad(loss, layer, retain_graph=True)[0]
            for loss in (reconstruction, adversarial)
        ]
        weight = ADVERSARIAL_WEIGHT * adaptive_weight(gradients[0], gradients[1]).detach()
        kl = output.bottleneck.terms["kl"].mean()
        return reconstruction + KL_WEIGHT * kl + weight * adversarial

    def step_generator(self, loss: Tensor) -> None:
        """Update the autoencoder."""
        self.generator.zero_grad()
        loss.backward()
        self.generator.step()

    def step_discriminator(self, images: Tensor, images_made: Tensor) -> None:
        """Update the discriminator."""
        network = self.players.discriminator
        loss = hinge_discriminator_loss(network(images), network(images_made))
        self.discriminator.zero_grad()
        loss.backward()
        self.discriminator.step()

    def perceptual_for_nothing(self, images: Tensor, output: AutoencoderOutput) -> None:
        """The reconstruction loss once more, in the discriminator's turn, where nobody uses it."""
        made = output.reconstructions.detach()
        self.players.reconstruction_loss(output.outputs.detach(), made, images)


class TwoForwards(Rule):
    """The autoencoder runs once for each network."""

    def update(self, images: Tensor, noise: Tensor) -> Tensor:
        """Update both networks; returns the generator's loss."""
        self.only("autoencoder")
        loss = self.generator_loss(images, self.players.autoencoder(images, noise))
        self.step_generator(loss)
        self.only("discriminator")
        output = self.players.autoencoder(images, noise)
        self.perceptual_for_nothing(images, output)
        self.step_discriminator(images, output.reconstructions.detach())
        return loss.detach()


class Alternating(Rule):
    """One batch for the generator, the next for the discriminator; nothing is frozen."""

    has_our_loss = False  # without the perceptual gradient the adaptive weight is another one

    def update(self, images: Tensor, noise: Tensor) -> Tensor:
        """Update both networks on a batch each; returns the generator's loss."""
        output = self.players.autoencoder(images, noise)
        loss = self.generator_loss(images, output, perceptual_gradient=False)
        self.step_generator(loss)
        output = self.players.autoencoder(images.flip(0), noise)
        self.step_discriminator(images.flip(0), output.reconstructions)
        return loss.detach()


class LossTwice(Rule):
    """One forward of the autoencoder, and the whole loss for each network."""

    def update(self, images: Tensor, noise: Tensor) -> Tensor:
        """Update both networks; returns the generator's loss."""
        output = self.players.autoencoder(images, noise)
        loss = self.generator_loss(images, output)
        self.step_generator(loss)
        self.perceptual_for_nothing(images, output)
        self.step_discriminator(images, output.reconstructions.detach())
        return loss.detach()


class OneForward(Rule):
    """Our module's update, without Lightning, logging and callbacks; with its average."""

    def __init__(self, players: Players) -> None:
        super().__init__(players)
        fused = functools.partial(Adam, lr=1e-4, betas=(0.5, 0.9), fused=True)
        self.generator = fused(players.autoencoder.parameters())
        self.discriminator = fused(players.discriminator.parameters())
        self.averages = [p.detach().clone() for p in players.autoencoder.parameters()]

    def update(self, images: Tensor, noise: Tensor) -> Tensor:
        """Update both networks; returns the generator's loss."""
        autoencoder, discriminator = self.players.autoencoder, self.players.discriminator
        output = autoencoder(images, noise)
        made = output.reconstructions.detach().requires_grad_()
        reconstruction = self.players.reconstruction_loss(made, made, images).total
        (gradient,) = torch.autograd.grad(reconstruction, made)
        adversarial = hinge_generator_loss(discriminator(made))
        (adversarial_gradient,) = torch.autograd.grad(adversarial, made)
        at_layer = [
            torch.autograd.grad(output.outputs, autoencoder.last_layer, g, retain_graph=True)[0]
            for g in (gradient, adversarial_gradient)
        ]
        weight = ADVERSARIAL_WEIGHT * adaptive_weight(at_layer[0], at_layer[1])
        kl = output.bottleneck.terms["kl"].mean()
        gradient = gradient + weight * adversarial_gradient
        self.step_generator((output.outputs * gradient).sum() + KL_WEIGHT * kl)
        self.step_discriminator(images, made.detach())
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, list(autoencoder.parameters()), 1 - DECAY)
        return (reconstruction + weight * adversarial + KL_WEIGHT * kl).detach()
