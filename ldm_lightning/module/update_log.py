"""The numbers of one update: averaged over its batches, then over processes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ldm_lightning.utils.collectives import all_reduce_mean


class UpdateLog:
    """Collects values by name until they are taken.

    Args:
        num_batches: Batches that make one update.
    """

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches
        self._values: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Add a scalar of one batch; what is taken is its mean over the update's batches."""
        part = value.detach().double() / self.num_batches
        self._values[name] = self._values[name] + part if name in self._values else part

    def add_all(self, values: Mapping[str, Tensor]) -> None:
        """Add scalars of one batch by name."""
        for name, value in values.items():
            self.add(name, value)

    def set(self, name: str, value: Tensor | float) -> None:
        """Set a scalar of the whole update."""
        self._values[name] = torch.as_tensor(value, dtype=torch.float64).detach()

    def clear(self) -> None:
        """Forget this update."""
        self._values = {}

    def take(self, device: torch.device) -> dict[str, Tensor]:
        """Values averaged over processes, float64 on ``device``; begins the next update."""
        names = list(self._values)
        values = torch.stack([self._values[name].to(device, torch.float64) for name in names])
        self.clear()
        return dict(zip(names, all_reduce_mean(values), strict=True))
