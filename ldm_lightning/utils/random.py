"""Randomness as a function of where it is used, not of what ran before.

Noise drawn here depends on (seed, purpose, step, row of the global batch) alone. So a resumed run
repeats the uninterrupted one and N processes repeat one, and a process draws only its own rows.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """Hash the parts to a 63-bit seed; the same on every machine and Python version."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator_for(*parts: int | str) -> torch.Generator:
    """Return a CPU generator seeded by the parts, such as ``(seed, "restart", step)``."""
    return torch.Generator().manual_seed(derive_seed(*parts))


@dataclass(frozen=True)
class RowDraws:
    """Random numbers of one process' rows of the global batch of an update.

    Drawn on the CPU and then moved, so that every device and precision sees the same values.

    Attributes:
        seed: The run's seed.
        step: Update, counted from 0.
        first_row: Index of the first local row in the global batch.
        num_rows: Local rows, B.
    """

    seed: int
    step: int
    first_row: int
    num_rows: int

    def normal(self, purpose: str, shape: Sequence[int], *, like: Tensor) -> Tensor:
        """Standard normal noise, [B, *shape], drawn in float32.

        Args:
            purpose: What it is for, such as ``"posterior"``.
            shape: Of one row.
            like: Has the device and type of the result.
        """
        rows = [
            torch.randn(*shape, generator=generator, dtype=torch.float32)
            for generator in self._generators(purpose)
        ]
        return torch.stack(rows).to(like)

    def uniform(self, purpose: str, *, device: torch.device) -> Tensor:
        """One number in [0, 1) a row, [B], float64."""
        rows = [
            torch.rand((), generator=generator, dtype=torch.float64)
            for generator in self._generators(purpose)
        ]
        return torch.stack(rows).to(device)

    def _generators(self, purpose: str) -> Iterator[torch.Generator]:
        for row in range(self.first_row, self.first_row + self.num_rows):
            yield generator_for(self.seed, purpose, self.step, row)
