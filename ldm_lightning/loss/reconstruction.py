"""Reconstruction loss: pixels and perceptual distance, joined as published first stages do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

from torch import Tensor, nn

from ldm_lightning.loss.perceptual import PerceptualLoss
from ldm_lightning.loss.pixel import PixelLoss
from ldm_lightning.loss.terms import LossTerm

REDUCTIONS = ("sum", "mean")


@dataclass(frozen=True)
class ReconstructionTerms:
    """Reconstruction loss of one batch, scalars averaged over images.

    Attributes:
        total: What is optimized.
        pixel: The pixel loss alone, reduced over C, H, W as ``total`` is.
        perceptual: The perceptual distance before its weight; None where it is not used.
        added: Further terms before their weights, by name.
    """

    total: Tensor
    pixel: Tensor
    perceptual: Tensor | None
    added: Mapping[str, Tensor] = field(default_factory=dict)


class ReconstructionLoss(nn.Module):
    """Pixel loss plus perceptual distance: total = reduce(nll(error + weight * perceptual)).

    The perceptual distance of an image is added to each of its elements before the likelihood, so
    that a learned log-variance scales both (Rombach et al. 2022; published with a fixed one).
    Further terms are added to the total, times their weights.

    Args:
        pixel: Pixel loss or likelihood.
        perceptual: Frozen perceptual distance; kept out of ``state_dict`` and of the parameters.
            None: not used.
        perceptual_weight: Its weight.
        reduction: ``sum`` over C, H, W, in which a KL weight of 1e-6 means what it means in
            publications, or ``mean``.
        terms: Further terms by name; kept out of ``state_dict`` and of the parameters.

    Raises:
        ValueError: If the reduction is unknown, or only one of perceptual distance and weight is
            given.
    """

    def __init__(
        self,
        pixel: PixelLoss,
        perceptual: PerceptualLoss | None,
        *,
        perceptual_weight: float,
        reduction: str,
        terms: Mapping[str, LossTerm] | None = None,
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"loss.reduction must be one of {REDUCTIONS}, got {reduction!r}.")
        if (perceptual is None) != (perceptual_weight == 0):
            raise ValueError(
                f"A perceptual weight of {perceptual_weight} does not go with "
                f"{'no' if perceptual is None else 'a'} perceptual distance."
            )
        self.pixel = pixel
        self.perceptual_weight = perceptual_weight
        self.reduction = reduction
        self.terms = dict(terms or {})  # LossTerm is no module, so nothing in it is registered
        self._unregistered = (perceptual,)

    @property
    def perceptual(self) -> PerceptualLoss | None:
        """The frozen perceptual distance, which is no submodule."""
        return self._unregistered[0]

    @property
    def frozen_networks(self) -> list[nn.Module]:
        """Frozen networks in use: the perceptual network and the further terms."""
        perceptual = [] if self.perceptual is None else [self.perceptual.network]
        return [*perceptual, *(term.module for term in self.terms.values())]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let device and precision changes reach the frozen networks too."""
        super()._apply(fn, recurse)
        for network in self.frozen_networks:
            network._apply(fn, recurse)
        return self

    def forward(
        self, outputs: Tensor, reconstructions: Tensor, images: Tensor
    ) -> ReconstructionTerms:
        """Compare a batch.

        Args:
            outputs: What the decoder gave, [B, C, H, W]: images or logits, as the pixel loss
                expects.
            reconstructions: The same as images, nominally in [-1, 1].
            images: [B, C, H, W] in [-1, 1].
        """
        error = self.pixel.error(outputs, images)
        pixel = self._reduce(self.pixel.negative_log_likelihood(error))
        total, perceptual = pixel, None
        if self.perceptual is not None:
            distance = self.perceptual(reconstructions, images)  # [B]
            error = error + self.perceptual_weight * distance[:, None, None, None]
            total = self._reduce(self.pixel.negative_log_likelihood(error))
            perceptual = distance.mean()
        added = {name: term(reconstructions, images).mean() for name, term in self.terms.items()}
        for name, value in added.items():
            total = total + self.terms[name].weight * value
        return ReconstructionTerms(total, pixel, perceptual, added)

    def _reduce(self, elements: Tensor) -> Tensor:
        per_image = (
            elements.flatten(1).sum(1) if self.reduction == "sum" else elements.flatten(1).mean(1)
        )
        return per_image.mean()
