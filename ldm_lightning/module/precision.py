"""Precision of losses and their gradients, whatever the network runs in."""

import torch
from torch import Tensor, nn


def at_least_float32(value: Tensor) -> Tensor:
    """Widen half types; float64 stays."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def loss_precision(images: Tensor) -> torch.autocast:
    """Run losses in full precision under fp16, whose range unscaled gradients would leave."""
    kind = images.device.type
    is_half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    enabled = torch.is_autocast_enabled(kind) and not is_half
    return torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), enabled=enabled)


def gradient_at_layer(outputs: Tensor, layer: nn.Parameter, gradient: Tensor) -> Tensor:
    """Push a gradient at the decoder's output to the weight of its last layer, and no further."""
    if outputs.dtype == gradient.dtype:
        return torch.autograd.grad(outputs, layer, gradient, retain_graph=True)[0]
    # A half type without loss scaling: at unit length the gradient stays in float16's range.
    length = gradient.norm().clamp(min=torch.finfo(gradient.dtype).tiny)
    unit = (gradient / length).to(outputs.dtype)
    return torch.autograd.grad(outputs, layer, unit, retain_graph=True)[0] * length
