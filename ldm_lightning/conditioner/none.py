"""No condition: an unconditional model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm_lightning.conditioner.base import Conditioner
from ldm_lightning.nn.condition import Condition


class NoConditioner(Conditioner):
    """Conditions on nothing, whatever the batch holds."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0, num_classes=None)

    def forward(self, batch: Mapping[str, Any], *, drop: Tensor | None) -> Condition:
        """Return the empty condition."""
        return Condition()

    def null(self, batch_size: int, device: torch.device) -> Condition:
        """Return the empty condition."""
        return Condition()
