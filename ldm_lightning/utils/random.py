"""Randomness as a function of where it is used, not of what ran before.

Noise drawn here depends on (seed, purpose, step, row of the global batch) alone. So a resumed run
repeats the uninterrupted one and N processes repeat one, and a process draws only its own rows.
"""

import hashlib

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """Hash the parts to a 63-bit seed; the same on every machine and Python version."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator_for(*parts: int | str) -> torch.Generator:
    """Return a CPU generator seeded by the parts, such as ``(seed, "restart", step)``."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def normal_rows(
    shape: tuple[int, ...],
    *,
    seed: int,
    purpose: str,
    step: int,
    first_row: int,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw standard normal noise for the rows [first_row, first_row + shape[0]) of a global batch.

    The noise is drawn in float32 on the CPU whatever ``device`` and ``dtype``, so that every
    precision and device sees the same values.

    Args:
        shape: Shape of the local rows, [B, ...].
        seed: The run's seed.
        purpose: What the noise is for, such as ``"posterior"``.
        step: Update, counted from 0.
        first_row: Index of the first local row in the global batch.
        device: Where the result lives.
        dtype: Type of the result.
    """
    rows = [
        torch.randn(
            shape[1:],
            generator=generator_for(seed, purpose, step, first_row + row),
            dtype=torch.float32,
        )
        for row in range(shape[0])
    ]
    return torch.stack(rows).to(device=device, dtype=dtype)


def uniform_rows(
    num_rows: int,
    *,
    seed: int,
    purpose: str,
    step: int,
    first_row: int,
    device: torch.device | None = None,
) -> Tensor:
    """Draw one uniform number in [0, 1) for each row, as ``normal_rows`` draws noise.

    Returns:
        [num_rows], float64.
    """
    rows = [
        torch.rand(
            (),
            generator=generator_for(seed, purpose, step, first_row + row),
            dtype=torch.float64,
        )
        for row in range(num_rows)
    ]
    return torch.stack(rows).to(device=device)
