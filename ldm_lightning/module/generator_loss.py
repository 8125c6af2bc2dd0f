"""Generator's loss: reconstruction, adversarial gradient and the bottleneck's terms of one batch.

The losses are differentiated down to the decoder's output and no further, so that perceptual
network and discriminator run once; what is returned pushes the weighted sum of these gradients
through the autoencoder in one backward pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_lightning.autoencoder.autoencoder import Autoencoder
from ldm_lightning.loss.adversarial import adaptive_weight
from ldm_lightning.loss.reconstruction import ReconstructionLoss
from ldm_lightning.module.precision import at_least_float32, gradient_at_layer, loss_precision
from ldm_lightning.module.settings import Adversary
from ldm_lightning.utils.collectives import all_reduce_mean


@dataclass(frozen=True)
class GeneratorLoss:
    """Generator's loss on one batch.

    Attributes:
        loss: A scalar with the gradients of the weighted losses, though not with their value.
        reconstructions: Detached, in float32 at least, [B, C, H, W].
        logged: Scalars to log by name, detached.
    """

    loss: Tensor
    reconstructions: Tensor
    logged: dict[str, Tensor]


@dataclass(frozen=True)
class _Adversarial:
    """The generator's adversarial loss, a scalar, and its gradient at the decoder's output."""

    loss: Tensor
    gradient: Tensor


def generator_loss(
    autoencoder: Autoencoder,
    images: Tensor,
    noise: Tensor | None,
    *,
    reconstruction_loss: ReconstructionLoss,
    adversary: Adversary | None,
    term_weights: Mapping[str, float],
    step: int,
) -> GeneratorLoss:
    """Run one batch forward and weigh its losses.

    Args:
        autoencoder: The generator.
        images: [B, C, H, W] in [-1, 1].
        noise: Samples the posterior, of the latent's shape; None takes its mean.
        reconstruction_loss: Pixels, perceptual distance, added terms.
        adversary: Discriminator and adversarial loss; None trains without.
        term_weights: Weight of each term of the bottleneck, by name.
        step: Updates done, by which the adversarial weight comes in.
    """
    output = autoencoder(images, noise)
    # Half types cannot hold the gradient of mean(|x - x'|), or round it coarsely.
    outputs = at_least_float32(output.outputs.detach()).requires_grad_()
    with loss_precision(images):
        terms = reconstruction_loss(outputs, autoencoder.to_images(outputs), images)
    learned = list(reconstruction_loss.parameters())
    gradient, *learned_gradients = torch.autograd.grad(terms.total, [outputs, *learned])
    logged = {"loss_pixel": terms.pixel}
    if terms.perceptual is not None:
        logged["loss_perceptual"] = terms.perceptual
    logged |= {f"loss_{name}": added for name, added in terms.added.items()}
    total = terms.total.detach()
    fraction = adversary.loss.schedule.generator_fraction(step) if adversary else 0.0
    if adversary and fraction > 0 and adversary.loss.weight > 0:
        adversarial = _adversarial(adversary, autoencoder, outputs)
        weight = fraction * _adversarial_weight(
            adversary, autoencoder, output.outputs, gradient, adversarial.gradient
        )
        gradient = gradient + weight * adversarial.gradient
        total = total + weight * adversarial.loss
        logged |= {"loss_adversarial": adversarial.loss, "adversarial_weight": weight}
    # The gradient at the decoder's output stands for everything behind it; terms that do not
    # pass through the output (bottleneck, log-variance) are added as they are.
    scalar = (output.outputs * gradient.detach()).sum()
    for parameter, parameter_gradient in zip(learned, learned_gradients, strict=True):
        scalar = scalar + (parameter * parameter_gradient).sum()
    for name, weight_of_term in term_weights.items():
        term = output.bottleneck.terms[name].mean()
        logged[f"loss_{name}"] = term
        scalar = scalar + weight_of_term * term
        total = total + weight_of_term * term.detach()
    logged["loss_total"] = total
    return GeneratorLoss(
        scalar,
        at_least_float32(output.reconstructions.detach()),
        {name: value.detach() for name, value in logged.items()},
    )


def _adversarial(adversary: Adversary, autoencoder: Autoencoder, outputs: Tensor) -> _Adversarial:
    with loss_precision(outputs):
        logits_fake = adversary.discriminator(autoencoder.to_images(outputs))
        loss = adversary.loss.generator_loss(logits_fake)
    (gradient,) = torch.autograd.grad(loss, outputs)
    return _Adversarial(loss.detach(), gradient)


def _adversarial_weight(
    adversary: Adversary,
    autoencoder: Autoencoder,
    outputs: Tensor,
    reconstruction: Tensor,
    adversarial: Tensor,
) -> Tensor:
    """Weight of the adversarial gradient, from both gradients at ``outputs``.

    All processes find the same.
    """
    if not adversary.loss.adaptive:
        return outputs.new_tensor(adversary.loss.weight)
    gradients = [
        gradient_at_layer(outputs, autoencoder.last_layer, gradient)
        for gradient in (reconstruction, adversarial)
    ]
    reconstruction_mean, adversarial_mean = all_reduce_mean(torch.stack(gradients))
    return adversary.loss.weight * adaptive_weight(reconstruction_mean, adversarial_mean)
