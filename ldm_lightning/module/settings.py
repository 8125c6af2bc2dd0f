"""What a first stage's module is given besides its network: optimization and adversary."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from ldm_lightning.loss.adversarial import AdversarialLoss

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class Optimization:
    """How both networks are updated.

    Attributes:
        generator: Makes the optimizer of autoencoder and log-variance from parameters.
        discriminator: Makes the discriminator's.
        schedule: Factor of both learning rates by update.
        accumulate_batches: Batches that make one update.
        clip_norm: Largest gradient norm of either network; None does not clip.
    """

    generator: OptimizerFactory
    discriminator: OptimizerFactory
    schedule: Callable[[int], float]
    accumulate_batches: int = 1
    clip_norm: float | None = None


@dataclass(frozen=True)
class Adversary:
    """The other player: its network and the rules of the game."""

    discriminator: nn.Module
    loss: AdversarialLoss
