"""A denoiser and its conditioner, cut over processes block by block.

Source: Zhao et al. 2023, "PyTorch FSDP", arXiv:2304.11277; torch calls the form used here FSDP2.
Each process keeps one part of every parameter, and so of its gradient, its optimizer's state and
its moving average. A block's parameters are put together just before it runs, forward or backward,
and dropped after.
"""

from collections.abc import Iterable

import torch.utils._pytree
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from ldm_lightning.nn.condition import Condition

# So that torch finds the conditioner's output, whose gradient tells when its backward pass begins.
torch.utils._pytree.register_dataclass(Condition)


def shard(model: nn.ModuleDict, mesh: DeviceMesh) -> None:
    """Cut the parameters of denoiser and conditioner, in place.

    Args:
        model: Holds ``denoiser`` and ``conditioner``, alike on every process. A denoiser says with
            ``blocks`` what runs one after the other; the rest of it is put together once an update.
        mesh: Of all processes.
    """
    blocks: Iterable[nn.Module] = model["denoiser"].blocks  # type: ignore[assignment]
    for block in blocks:
        fully_shard(block, mesh=mesh)
    # Each is the root of its own: a root is what is called, and nothing calls the two together.
    for part in model.values():
        if any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh)


def gather(model: nn.ModuleDict) -> None:
    """Put all parameters together until ``release``; call it on all processes.

    Until then no forward pass waits for another process, so that in validation each may run as many
    as it has images. Memory allows it: there are no gradients and activations then, and what is put
    together, the weights alone, is a fifth of what every process holds without sharding.
    """
    for module in _sharded(model):
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()


def release(model: nn.ModuleDict) -> None:
    """Cut all parameters again; changes made to the parts meanwhile count."""
    roots = list(model.values())
    for module in _sharded(model):
        module.set_reshard_after_forward(module not in roots, recurse=False)
        module.reshard()


def _sharded(model: nn.ModuleDict) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
