"""Reductions over processes that also work where there is only one."""

import torch
import torch.distributed as dist
from torch import Tensor


def num_processes() -> int:
    """Number of processes of this run; 1 where nothing was initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """This process's number, 0 to ``num_processes() - 1``."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_reduce_sum(value: Tensor) -> Tensor:
    """Sum a tensor over processes; gradients do not flow."""
    if num_processes() == 1:
        return value.detach()
    total = value.detach().clone().contiguous()
    dist.all_reduce(total)
    return total


def all_reduce_mean(value: Tensor) -> Tensor:
    """Average a tensor over processes; gradients do not flow."""
    return all_reduce_sum(value) / num_processes()


def all_gather_rows(rows: Tensor) -> Tensor:
    """Concatenate equally many rows of every process in rank order: [N, ...] to [P * N, ...]."""
    if num_processes() == 1:
        return rows.detach()
    parts = [torch.empty_like(rows) for _ in range(num_processes())]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)
