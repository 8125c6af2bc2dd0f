"""Finding values that are not finite, in one pass over many tensors and one wait for the device."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ldm_lightning.utils.collectives import local_shard

ADVICE = (
    "Lower optim.learning_rate, set optim.clip_norm, or use trainer.precision=bf16 or 32 instead "
    "of fp16."
)
"""What to do about a training that is no longer finite."""


def not_finite(content: Any) -> list[str]:
    """Name the tensors that hold NaN or infinite values, of sharded ones this process' part.

    Args:
        content: Nested dicts and lists with tensors of any devices in them, such as a checkpoint.

    Returns:
        Places such as ``state_dict.decoder.weight``; empty where all is finite.
    """
    names: dict[tuple[torch.device, torch.dtype], list[str]] = {}
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for name, tensor in _floating(content, ""):
        kind = (tensor.device, tensor.dtype)
        names.setdefault(kind, []).append(name)
        groups.setdefault(kind, []).append(tensor)
    if not groups:
        return []
    # The largest magnitude of each tensor: no sum that could overflow, and NaN stays NaN.
    largest = {
        kind: torch.stack(torch._foreach_norm(tensors, torch.inf)).isfinite()
        for kind, tensors in groups.items()
    }
    first = next(iter(largest.values())).device
    together = torch.cat([found.to(first, non_blocking=True) for found in largest.values()])
    flags = together.tolist()  # waits for the device
    every_name = [name for kind in largest for name in names[kind]]
    return [name for name, is_finite in zip(every_name, flags, strict=True) if not is_finite]


def _floating(content: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors of real numbers that hold any, with their places."""
    if isinstance(content, Tensor):
        tensor = local_shard(content)
        if tensor.is_floating_point() and tensor.numel():
            yield place, tensor
        return
    items: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(content, Mapping):
        items = iter(content.items())
    elif isinstance(content, (list, tuple)):
        items = iter(enumerate(content))
    for key, value in items:
        yield from _floating(value, f"{place}.{key}" if place else str(key))
