"""Least squares from 3x3 latents to the patch in their middle.

The sums are taken once: the decoder of the first channels alone follows from a part of them.
"""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_LAPPED_CHANNELS = 32
"""Channels whose neighbors are fitted; later ones hold too little for their many weights."""

RIDGE = 1e-6
"""Added to the diagonal of the least-squares system, as a fraction of its mean."""


@dataclass(frozen=True)
class LappedDecoder:
    """Linear map from 3x3 latents to a patch less the mean patch.

    Attributes:
        weight: [D, n, 3, 3].
        bias: [D].
    """

    weight: Tensor
    bias: Tensor


class LappedMoments:
    """Products of 3x3 latents with themselves and with patches, summed in float64.

    Args:
        num_channels: Channels of the latents, n.
        patch_length: Values of a patch, D.
    """

    def __init__(self, num_channels: int, patch_length: int) -> None:
        self._lapped = min(num_channels, MAX_LAPPED_CHANNELS)
        num_inputs = 9 * self._lapped + 1  # the last one is constant
        self._gram = torch.zeros(num_inputs, num_inputs, dtype=torch.float64)
        self._with_own = torch.zeros(num_inputs, num_channels, dtype=torch.float64)
        self._with_patches = torch.zeros(num_inputs, patch_length, dtype=torch.float64)

    def add(self, latents: Tensor, patches: Tensor) -> Self:
        """Add images: latents [B, n, h, w], and patches less the mean patch [B, h, w, D]."""
        own = latents.movedim(1, -1).flatten(0, 2)
        padded = F.pad(latents[:, : self._lapped], (1, 1, 1, 1), mode="replicate")
        inputs = F.unfold(padded, 3).movedim(1, -1).flatten(0, 1)  # [B * h * w, lapped * 9]
        inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
        self._gram += (inputs.T @ inputs).double()
        self._with_own += (inputs.T @ own).double()
        self._with_patches += (inputs.T @ patches.flatten(0, 2)).double()
        return self

    def solve(self, own_patch: Tensor) -> LappedDecoder:
        """Fit the decoder of the first n channels: ``own_patch``, and least squares of the rest.

        Args:
            own_patch: Map from the n latents of a position to its patch, [D, n].
        """
        length, kept = own_patch.shape
        lapped = min(kept, self._lapped)
        chosen = torch.cat([torch.arange(9 * lapped), torch.tensor([len(self._gram) - 1])])
        gram = self._gram[chosen][:, chosen]
        gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
        rest = self._with_own[chosen, :kept] @ own_patch.double().T
        solution = torch.linalg.solve(gram, self._with_patches[chosen] - rest).float()
        weight = solution.new_zeros(length, kept, 3, 3)
        weight[:, :lapped] = solution[:-1].T.view(length, lapped, 3, 3)
        weight[:, :, 1, 1] += own_patch
        return LappedDecoder(weight, solution[-1])
