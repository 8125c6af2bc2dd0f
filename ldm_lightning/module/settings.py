"""Settings of a module besides its networks: optimization and, in a first stage, an adversary."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ldm_lightning.loss.adversarial import AdversarialLoss

OptimizerFactory = Callable[[Iterable[nn.Parameter] | Iterable[dict[str, Any]]], Optimizer]
"""Makes an optimizer of parameters, or of groups of them."""


@dataclass(frozen=True)
class Optimization:
    """Optimization of a module.

    Attributes:
        optimizer: Makes the optimizer of what the module is there for, from parameters.
        schedule: Factor of every learning rate by update.
        accumulate_batches: Batches that make one update.
        clip_norm: Largest gradient norm of each optimizer's parameters; None does not clip.
    """

    optimizer: OptimizerFactory
    schedule: Callable[[int], float]
    accumulate_batches: int = 1
    clip_norm: float | None = None


@dataclass(frozen=True)
class Adversary:
    """The other player: its network, the rules of the game, and the maker of its optimizer."""

    discriminator: nn.Module
    loss: AdversarialLoss
    optimizer: OptimizerFactory
