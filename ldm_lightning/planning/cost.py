"""Cost of a run as numbers, and networks without memory to count it on."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from ldm_lightning.builders.hardware import Hardware
from ldm_lightning.builders.optimizer import build_optimizer_factory
from ldm_lightning.data.transforms import as_size
from ldm_lightning.module.optimizer_state import moments_per_parameter
from ldm_lightning.planning.counter import empty_weights
from ldm_lightning.planning.update_cost import UpdateCost, tensor_bytes


@dataclass(frozen=True)
class StateBytes:
    """Memory of a process between updates, and size of its checkpoint.

    Attributes:
        weights: Everything on the device: what is trained, and frozen networks beside it.
        trained: Of these, what an optimizer trains; gradients take as much.
        optimizer: Its moments.
        average: The moving average of weights; 0 without.
        checkpoint: Trained weights and their buffers, moments and average.
    """

    weights: int
    trained: int
    optimizer: int
    average: int
    checkpoint: int

    @property
    def resident(self) -> int:
        """Held between updates."""
        return self.weights + self.optimizer + self.average


@dataclass(frozen=True)
class DenoiserCost:
    """One denoiser on inputs of one shape, a single image.

    Attributes:
        shape: (C, H, W) of what it denoises.
        flops: Of a forward pass.
        kept_bytes: What that keeps for the backward pass, in float32.
    """

    shape: tuple[int, int, int]
    flops: int
    kept_bytes: int


@dataclass(frozen=True)
class RunCost:
    """Cost of a run.

    Attributes:
        parameters: By network.
        image_shape: (C, H, W).
        latent_shape: (c, h, w).
        bits_per_pixel: Of the codes of an image; None where latents are real numbers.
        is_stochastic: Whether latents have a variance.
        forward_flops: Of one image, by network.
        formula: How an update follows from them, in symbols.
        formula_flops: The same in numbers, for one image.
        quiet_flops: Of an update before the discriminator comes in, for one image, by the formula.
        state: Bytes between updates.
        update: Of one process and batch, as configured.
        recomputed: The same with recomputation; None where it is configured, or not to be had.
        denoisers: The denoiser in pixel and in latent space; empty for a first stage.
    """

    parameters: Mapping[str, int]
    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    bits_per_pixel: float | None
    is_stochastic: bool
    forward_flops: Mapping[str, int]
    formula: str
    formula_flops: int
    quiet_flops: int
    state: StateBytes
    update: UpdateCost
    recomputed: UpdateCost | None
    denoisers: Mapping[str, DenoiserCost] = field(default_factory=dict)

    @property
    def compression(self) -> float:
        """Numbers of an image over numbers of its latents."""
        return math.prod(self.image_shape) / math.prod(self.latent_shape)


def image_shape_of(cfg: DictConfig) -> tuple[int, int, int]:
    """(C, H, W) of the run's images."""
    return (cfg.image_channels, *as_size(cfg.resolution))


def moments_of(cfg: DictConfig) -> int:
    """Numbers that the run's optimizer keeps for each number it trains."""
    return moments_per_parameter(build_optimizer_factory(cfg.optim, rate=1.0))


def state_bytes(
    cfg: DictConfig, *, num_moments: int, weights: int, stored: int, trained: int, averaged: int
) -> StateBytes:
    """Tensors that live between two updates.

    Args:
        cfg: Says whether there is a moving average.
        num_moments: Of ``moments_of``.
        weights: Bytes of all networks.
        stored: Bytes of those in a checkpoint.
        trained: Bytes of what an optimizer trains.
        averaged: Bytes of what a moving average is taken of.
    """
    average = averaged if cfg.callbacks.get("ema") is not None else 0
    return StateBytes(
        weights=weights,
        trained=trained,
        optimizer=num_moments * trained,
        average=average,
        checkpoint=stored + num_moments * trained + average,
    )


def put(network: nn.Module | None, hardware: Hardware) -> None:
    """Give a network the run's device and type, without memory, in training mode."""
    if network is not None:
        empty_weights(network, device=hardware.device, dtype=_dtype(hardware)).train()


def empty(shape: tuple[int, ...], hardware: Hardware) -> Tensor:
    """A tensor of the run's device and type."""
    return torch.empty(shape, device=hardware.device, dtype=_dtype(hardware))


def _dtype(hardware: Hardware) -> torch.dtype:
    return torch.float64 if hardware.precision == "64" else torch.float32


def bytes_of(network: nn.Module | None, *, buffers: bool = True) -> int:
    """Bytes of a network's parameters and, unless left out, its buffers; 0 for None."""

    def tensors() -> Iterator[Tensor]:
        if network is not None:
            yield from network.parameters()
            if buffers:
                yield from network.buffers()

    return tensor_bytes(tensors())


def three(shape: Any) -> tuple[int, int, int]:
    """(C, H, W)."""
    channels, height, width = shape
    return channels, height, width
