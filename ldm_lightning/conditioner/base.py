"""Interface of every conditioner: a batch in, a condition out, and the empty condition."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm_lightning.nn.condition import Condition


class Conditioner(nn.Module):
    """Makes the denoiser's condition; trained with it.

    Args:
        dropout: Share of a training batch that learns without its condition, in [0, 1]. The caller
            draws which; 0 means that the null condition is never learned.
        num_classes: Number of classes; None where labels are not used.

    Raises:
        ValueError: If the fraction lies outside [0, 1].
    """

    def __init__(self, *, dropout: float, num_classes: int | None) -> None:
        super().__init__()
        if not 0 <= dropout <= 1:
            raise ValueError(f"conditioner.dropout must lie in [0, 1], got {dropout}.")
        self.dropout = dropout
        self.num_classes = num_classes

    @abstractmethod
    def forward(self, batch: Mapping[str, Any], *, drop: Tensor | None) -> Condition:
        """Condition of a batch.

        Args:
            batch: With the keys this conditioner reads.
            drop: [B] bool; True replaces a row by the null condition. None replaces none.
        """

    @abstractmethod
    def null(self, batch_size: int, device: torch.device) -> Condition:
        """The condition of ``batch_size`` rows that were all dropped."""
