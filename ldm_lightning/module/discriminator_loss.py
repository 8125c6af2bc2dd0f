"""Discriminator's loss on one batch of images and their reconstructions."""

from dataclasses import dataclass

from torch import Tensor

from ldm_lightning.loss.adversarial import LeCam, Logits, logit_maps, mean_logit, r1_penalty
from ldm_lightning.module.precision import loss_precision
from ldm_lightning.module.settings import Adversary


@dataclass(frozen=True)
class DiscriminatorLoss:
    """Discriminator's loss on one batch.

    Attributes:
        loss: With its regularizers, a scalar.
        logits_real: On the images, detached, by map.
        logits_fake: On their reconstructions, likewise.
        logged: Scalars to log by name, detached.
    """

    loss: Tensor
    logits_real: list[Tensor]
    logits_fake: list[Tensor]
    logged: dict[str, Tensor]


def discriminator_loss(
    adversary: Adversary, lecam: LeCam | None, images: Tensor, reconstructions: Tensor
) -> DiscriminatorLoss:
    """Judge one batch, and add the regularizers.

    Args:
        adversary: Discriminator and adversarial loss.
        lecam: Regularizer with its running means; None leaves it out.
        images: [B, C, H, W] in [-1, 1].
        reconstructions: Of these images, detached, [B, C, H, W].
    """
    settings = adversary.loss
    if settings.r1_weight:
        images = images.detach().requires_grad_()
    with loss_precision(images):
        logits_real = adversary.discriminator(images)
        logits_fake = adversary.discriminator(reconstructions)
    loss = settings.discriminator_loss(logits_real, logits_fake)
    logged = {
        "loss_discriminator": loss,
        "logits_real": mean_logit(logits_real),
        "logits_fake": mean_logit(logits_fake),
    }
    if settings.r1_weight:
        penalty = r1_penalty(logits_real, images)
        logged["loss_r1"] = penalty
        loss = loss + settings.r1_weight * penalty
    if lecam is not None:
        regularizer = lecam(logits_real, logits_fake)
        logged["loss_lecam"] = regularizer
        loss = loss + settings.lecam_weight * regularizer
    return DiscriminatorLoss(
        loss,
        _detached(logits_real),
        _detached(logits_fake),
        {name: value.detach() for name, value in logged.items()},
    )


def _detached(logits: Logits) -> list[Tensor]:
    return [one.detach() for one in logit_maps(logits)]
