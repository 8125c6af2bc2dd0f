"""Reductions over processes that also work where there is only one."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from ldm_lightning.utils.launch import launched


def num_processes() -> int:
    """Number of processes of this run; 1 where nothing was initialized."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """This process's number, 0 to ``num_processes() - 1``."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@contextmanager
def joined_processes() -> Iterator[None]:
    """Join the processes that torchrun or srun started; alone nothing is joined.

    Raises:
        ValueError: If the environment does not say where they meet.
    """
    here = launched()
    if here.is_alone:
        yield
        return
    if missing := {"MASTER_ADDR", "MASTER_PORT"} - os.environ.keys():
        raise ValueError(
            f"{here.num_processes} processes were started, but {' and '.join(sorted(missing))} "
            "must be set too: host and port of the first. torchrun sets them; for srun see "
            "docs/train.sbatch."
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(here.local_rank)
    # One may finish hours before another.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backend, rank=here.rank, world_size=here.num_processes, timeout=timedelta(days=7)
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if num_processes() > 1:
        dist.barrier()


def broadcast_from_first(value: Tensor) -> Tensor:
    """Broadcast of the first process's tensor; gradients do not flow."""
    if num_processes() == 1:
        return value.detach()
    sent = value.detach().clone().contiguous()
    dist.broadcast(sent, src=0)
    return sent


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


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Average gradients over processes, in place and in one message.

    Args:
        parameters: The same ones have a gradient on every process.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if num_processes() == 1 or not gradients:
        return
    mean = all_reduce_mean(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = mean.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def all_gather_rows(rows: Tensor) -> Tensor:
    """Concatenate equally many rows of every process in rank order: [N, ...] to [P * N, ...]."""
    if num_processes() == 1:
        return rows.detach()
    parts = [torch.empty_like(rows) for _ in range(num_processes())]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def full_tensor(value: Tensor) -> Tensor:
    """All of a tensor that may be spread over processes, on each; gradients do not flow."""
    return value.full_tensor().detach() if isinstance(value, DTensor) else value.detach()


def local_shard(value: Tensor) -> Tensor:
    """Local shard of a tensor, without its gradient; shares its memory."""
    return value.to_local().detach() if isinstance(value, DTensor) else value.detach()
