"""Hashes that name weights and protocols.

The hash of weights is SHA-256 over sorted (name, dtype, shape, bytes), so it survives renaming a
file, moving to another device or another container format, and changes with any value.
"""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hash named tensors: SHA-256 over sorted (name, dtype, shape, bytes), as 64 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\x1f{value.dtype}\x1f{tuple(value.shape)}\x1f".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def canonical_json(value: Mapping[str, object]) -> str:
    """Write plain JSON values in one fixed form, so that equal content gives equal text.

    Raises:
        TypeError: If a value is not plain JSON (a path or a tensor, say).
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def hash_json(value: Mapping[str, object]) -> str:
    """Hash plain JSON values whatever the order of their keys: SHA-256 as 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
