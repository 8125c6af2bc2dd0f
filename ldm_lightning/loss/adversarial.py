"""Adversarial losses, their regularizers, and the schedule by which they come in.

With r and f the logits on images and reconstructions:

    hinge           D 0.5 mean(relu(1 - r) + relu(1 + f))    G mean(-f)
    vanilla         D mean(softplus(-r) + softplus(f))       G mean(-softplus(f))
    non_saturating  D mean(softplus(-r) + softplus(f))       G mean(softplus(-f))

Sources: Lim & Ye 2017 (hinge); Goodfellow et al. 2014, Eq. 1 (vanilla) and section 3
(non_saturating).

A discriminator returns one map of logits, [B, 1, h, w], or several, one a scale: losses and
regularizers are computed for each map and averaged over the maps (Wang et al. 2018, pix2pixHD).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_lightning.utils.collectives import all_reduce_mean

Logits = Tensor | Sequence[Tensor]


def logit_maps(logits: Logits) -> tuple[Tensor, ...]:
    """Output of a discriminator as a tuple of maps.

    Raises:
        ValueError: If it is neither a tensor nor a list or tuple of tensors.
    """
    maps = (logits,) if isinstance(logits, Tensor) else logits
    if not isinstance(maps, (list, tuple)) or not all(isinstance(one, Tensor) for one in maps):
        raise ValueError(
            "A discriminator must return a tensor of logits or a list of such tensors, got "
            f"{type(logits).__name__}."
        )
    if not maps:
        raise ValueError("A discriminator must return at least one map of logits, got none.")
    return tuple(maps)


def mean_logit(logits: Logits) -> Tensor:
    """Mean of the logits of each map, averaged over maps: a scalar."""
    return _over_maps([one.mean() for one in logit_maps(logits)])


def _over_maps(values: Sequence[Tensor]) -> Tensor:
    """Mean over maps; of one map its value itself."""
    return values[0] if len(values) == 1 else torch.stack(list(values)).mean()


def _full(logits: Tensor) -> Tensor:
    """Leave half precision, in which a mean over many patches loses its digits."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def hinge_discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator, a scalar; zero beyond the margin of one."""
    return 0.5 * (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean())


def hinge_generator_loss(logits_fake: Tensor) -> Tensor:
    """Hinge loss of the generator, a scalar."""
    return -logits_fake.mean()


def vanilla_discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Cross-entropy of the discriminator, a scalar."""
    return F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()


def vanilla_generator_loss(logits_fake: Tensor) -> Tensor:
    """The minimax loss log(1 - D) of the generator, a scalar; its gradient fades where D wins."""
    return -F.softplus(logits_fake).mean()


def non_saturating_generator_loss(logits_fake: Tensor) -> Tensor:
    """The loss -log D of the generator, a scalar; its gradient is largest where D wins."""
    return F.softplus(-logits_fake).mean()


@dataclass(frozen=True)
class AdversarialForm:
    """A pair: ``discriminator(logits_real, logits_fake)`` and ``generator(logits_fake)``."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


FORMS = {
    "hinge": AdversarialForm(hinge_discriminator_loss, hinge_generator_loss),
    "vanilla": AdversarialForm(vanilla_discriminator_loss, vanilla_generator_loss),
    "non_saturating": AdversarialForm(vanilla_discriminator_loss, non_saturating_generator_loss),
}


@dataclass(frozen=True)
class AdversarialSchedule:
    """Schedule of the discriminator and of the adversarial weight, in generator updates.

    The discriminator learns alone for ``warmup_steps`` before ``start_step``; from there on the
    generator's adversarial weight rises linearly over ``ramp_steps``.
    """

    start_step: int
    warmup_steps: int = 0
    ramp_steps: int = 0

    def __post_init__(self) -> None:
        """Refuse negative durations."""
        if min(self.start_step, self.warmup_steps, self.ramp_steps) < 0:
            raise ValueError(
                f"The steps of the adversarial schedule must not be negative, got {self}."
            )

    @property
    def generator_start_step(self) -> int:
        """First update in which the generator sees the discriminator."""
        return max(self.start_step, self.warmup_steps)

    @property
    def fully_on_step(self) -> int:
        """First update with the full adversarial weight."""
        return self.generator_start_step + self.ramp_steps

    def discriminator_learns(self, step: int) -> bool:
        """Return whether the discriminator is updated in this step."""
        return step >= self.generator_start_step - self.warmup_steps

    def generator_fraction(self, step: int) -> float:
        """Share of the adversarial weight in this step, 0 to 1; 0 until the generator sees it."""
        if step < self.generator_start_step:
            return 0.0
        if step >= self.fully_on_step:
            return 1.0
        return (step + 1 - self.generator_start_step) / (self.ramp_steps + 1)


@dataclass(frozen=True)
class AdversarialLoss:
    """Settings of the adversarial game.

    Args:
        form: ``hinge``, ``vanilla`` or ``non_saturating``.
        weight: Weight of the generator's adversarial loss.
        adaptive: Multiply the weight by the ratio of gradient norms at the decoder's last layer.
        schedule: When it comes in.
        r1_weight: Weight of the gradient penalty on images; 0 leaves it out.
        lecam_weight: Weight of the LeCam regularizer; 0 leaves it out.

    Raises:
        ValueError: If the form is unknown.
    """

    form: str
    weight: float
    adaptive: bool
    schedule: AdversarialSchedule
    r1_weight: float = 0.0
    lecam_weight: float = 0.0

    def __post_init__(self) -> None:
        """Refuse an unknown form."""
        if self.form not in FORMS:
            raise ValueError(
                f"loss.adversarial_form must be one of {sorted(FORMS)}, got {self.form!r}."
            )

    def discriminator_loss(self, logits_real: Logits, logits_fake: Logits) -> Tensor:
        """Loss of the discriminator, a scalar averaged over maps."""
        pairs = zip(logit_maps(logits_real), logit_maps(logits_fake), strict=True)
        loss = FORMS[self.form].discriminator
        return _over_maps([loss(_full(real), _full(fake)) for real, fake in pairs])

    def generator_loss(self, logits_fake: Logits) -> Tensor:
        """Loss of the generator before its weight, a scalar averaged over maps."""
        loss = FORMS[self.form].generator
        return _over_maps([loss(_full(fake)) for fake in logit_maps(logits_fake)])


def adaptive_weight(reconstruction_gradient: Tensor, adversarial_gradient: Tensor) -> Tensor:
    """Ratio of gradient norms at the decoder's last layer, which makes both losses pull alike.

    Source: Esser et al. 2021, "Taming Transformers", Eq. 7, with its published constants.

    Args:
        reconstruction_gradient: Gradient of the reconstruction loss, averaged over processes.
        adversarial_gradient: Gradient of the generator's adversarial loss, averaged over processes.

    Returns:
        A scalar in [0, 1e4].
    """
    ratio = reconstruction_gradient.norm() / (adversarial_gradient.norm() + 1e-4)
    return ratio.clamp(0.0, 1e4)


def r1_penalty(logits_real: Logits, images: Tensor) -> Tensor:
    """Half the squared norm of the logits' gradient at real images, averaged over images: a scalar.

    Source: Mescheder et al. 2018, "Which Training Methods for GANs do actually Converge?", Eq. 9.

    Args:
        logits_real: Logits on ``images``, any shape; of several maps the sums are averaged.
        images: [B, C, H, W], requiring gradients.
    """
    total = _over_maps([_full(real).sum() for real in logit_maps(logits_real)])
    (gradient,) = torch.autograd.grad(total, images, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(dim=1).mean()


class LeCam(nn.Module):
    """Hold logits near running means of the other side's: steadier training on little data.

    Source: Tseng et al. 2021, "Regularizing Generative Adversarial Networks under Limited Data",
        Eq. 3.

    Args:
        decay: Decay of the running means, by update.
    """

    def __init__(self, *, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.mean_real: Tensor
        self.mean_fake: Tensor
        self.register_buffer("mean_real", torch.zeros(()))
        self.register_buffer("mean_fake", torch.zeros(()))

    def forward(self, logits_real: Logits, logits_fake: Logits) -> Tensor:
        """The regularizer, a scalar averaged over maps."""
        pairs = zip(logit_maps(logits_real), logit_maps(logits_fake), strict=True)
        return _over_maps([self._of_map(real, fake) for real, fake in pairs])

    def _of_map(self, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
        far_real = F.relu(_full(logits_real) - self.mean_fake).square().mean()
        far_fake = F.relu(self.mean_real - _full(logits_fake)).square().mean()
        return far_real + far_fake

    @torch.no_grad()
    def update(self, logits_real: Sequence[Logits], logits_fake: Sequence[Logits]) -> None:
        """Move the running means by the logits of one update, averaged over processes.

        Args:
            logits_real: On images, one entry a batch of the update.
            logits_fake: On their reconstructions, in the same order.
        """
        means = torch.stack([self._mean(logits_real), self._mean(logits_fake)])
        real, fake = all_reduce_mean(means).to(self.mean_real.dtype)
        self.mean_real.lerp_(real, 1 - self.decay)
        self.mean_fake.lerp_(fake, 1 - self.decay)

    def _mean(self, batches: Sequence[Logits]) -> Tensor:
        maps = zip(*map(logit_maps, batches), strict=True)  # the same map of every batch
        return _over_maps([_full(torch.cat(logits)).mean() for logits in maps])
