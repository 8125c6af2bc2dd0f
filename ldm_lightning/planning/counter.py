"""Count floating-point operations and living tensors of whatever runs, real or without memory."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

OPERATIONS = {
    **flop_registry,
    # Missing in torch's table, although F.scaled_dot_product_attention runs it on the CPU.
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        aten._scaled_dot_product_flash_attention
    ],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
}
"""Operations by function: convolutions, matrix products, attention; a multiply-add counts as 2."""


class Counter(TorchDispatchMode):
    """Counts what runs inside, backward passes and recomputation included.

    Unlike torch's FlopCounterMode it hangs no hooks on modules: these do not survive
    ``torch.autograd.grad``.

    Attributes:
        flops: Floating-point operations so far; see ``OPERATIONS``.
        live_bytes: Tensors made inside that are still alive; what shares memory counts once.
        peak_bytes: The most ``live_bytes`` has been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.live_bytes = 0
        self.peak_bytes = 0
        self._known: set[int] = set()  # storages that existed before, or are counted

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch guards each operation from its compiler, whose import takes seconds."""
        return False

    def know(self, tensors: Iterable[Tensor]) -> None:
        """Leave tensors that existed before out of the count, and so what is a view of them."""
        self._known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run one operation and count it."""
        if func is torch.ops.prim.device.default:  # two of three calls, and nothing is computed
            return args[0].fake_device
        kwargs = kwargs or {}
        result = _without_values(func, args, kwargs)
        if result is NotImplemented:
            result = func(*args, **kwargs)
        if (operations := OPERATIONS.get(func._overloadpacket)) is not None:
            self.flops += operations(*args, **kwargs, out_val=result)
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self._follow(value)
        return result

    def _follow(self, tensor: Tensor) -> None:
        """Count a tensor's memory until it is freed, unless it is known."""
        storage = tensor.untyped_storage()
        key, num_bytes = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._forget, key, num_bytes)

    def _forget(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.live_bytes -= num_bytes


@contextmanager
def without_memory() -> Iterator[None]:
    """Make tensors that have shapes, types and no memory; networks follow by ``empty_weights``."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def empty_weights(network: nn.Module, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Replace all weights and buffers by new ones without values.

    ``to_empty`` does not do without memory where a module is registered twice, as those of LPIPS.

    Args:
        network: Is changed and returned.
        device: Of the new tensors.
        dtype: Of those that are floating-point numbers.
    """

    def empty(tensor: Tensor) -> Tensor:
        new_dtype = dtype if tensor.is_floating_point() else tensor.dtype
        return torch.empty(tensor.shape, device=device, dtype=new_dtype)

    for module in network.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(empty(value), requires_grad=value.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, empty(buffer))
    return network


def _without_values(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Refuse what tensors without values cannot answer; NotImplemented for all others.

    A vector quantizer asks whether it quantizes already (it does), and how often each code was
    used.
    """
    if not isinstance(args[0] if args else None, torch._subclasses.FakeTensor):
        return NotImplemented
    if func is aten._local_scalar_dense.default:
        return True
    if func is aten.bincount.default:
        length = args[2] if len(args) > 2 else kwargs.get("minlength", 0)
        return args[0].new_zeros(length)
    return NotImplemented
