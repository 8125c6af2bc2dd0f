"""Cost of one update, counted by running the module's own losses and their backward passes.

Made for tensors without memory (``counter.without_memory``), so that a network of any size is
counted in a second; on real tensors it counts the same.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm_lightning.module.autoencoder import AutoencoderModule
from ldm_lightning.module.diffusion import DiffusionModule
from ldm_lightning.planning.counter import Counter


@dataclass(frozen=True)
class UpdateCost:
    """One update of one process, without its optimizer.

    Attributes:
        flops: Floating-point operations.
        kept_bytes: Tensors that the network's forward pass keeps for its backward pass.
        peak_bytes: The most memory held beside what exists between updates (weights, optimizer,
            moving average): activations, gradients, and copies of weights in half types.
    """

    flops: int
    kept_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class ForwardCost:
    """One forward pass.

    Attributes:
        flops: Floating-point operations.
        kept_bytes: Tensors kept for a backward pass.
        peak_bytes: The most memory held beside the network's weights.
    """

    flops: int
    kept_bytes: int
    peak_bytes: int


def count_forward(run: Callable[[], object], *beside: nn.Module) -> ForwardCost:
    """Count a forward pass; what the modules ``beside`` hold is not counted as kept."""
    counter = _counter_beside(*beside)
    with counter:
        output = run()
    kept_bytes = counter.live_bytes
    del output
    return ForwardCost(counter.flops, kept_bytes, counter.peak_bytes)


def count_first_stage_update(
    module: AutoencoderModule, images: Tensor, *, autocast: torch.autocast
) -> UpdateCost:
    """Count an update of a first stage with the adversarial weight fully on.

    Args:
        module: In training mode.
        images: Batch of one process, [B, C, H, W].
        autocast: Of the run's precision.
    """
    draws, step = module.draws(0, len(images)), module.adversarial_fully_on_step
    counter = _counter_beside(module, *module.reconstruction_loss.frozen_networks)
    with counter, autocast, _kept_by(module.autoencoder, counter) as kept_bytes:
        generated = module.generator_loss(images, draws, step=step)
        generated.loss.backward()
        reconstructions = generated.reconstructions
        del generated
        module.zero_grad(set_to_none=True)
        if module.discriminator is not None:
            module.discriminator_loss(images, reconstructions).loss.backward()
            module.zero_grad(set_to_none=True)
    return UpdateCost(counter.flops, sum(kept_bytes), counter.peak_bytes)


def count_second_stage_update(
    module: DiffusionModule, batch: Mapping[str, Tensor], *, autocast: torch.autocast
) -> UpdateCost:
    """Count an update of a diffusion model, encoding included where the batch holds images.

    Args:
        module: In training mode.
        batch: Of one process.
        autocast: Of the run's precision.
    """
    num_rows = len(next(iter(batch.values())))
    counter = _counter_beside(module, module.first_stage)
    with counter, autocast, _kept_by(module.denoiser, counter) as kept_bytes:
        module.denoising_loss(batch, module.draws(0, num_rows)).backward()
        module.zero_grad(set_to_none=True)
    return UpdateCost(counter.flops, sum(kept_bytes), counter.peak_bytes)


@contextmanager
def _kept_by(network: nn.Module, counter: Counter) -> Iterator[list[int]]:
    """Note how many bytes each forward pass of a network leaves alive."""
    kept_bytes: list[int] = []
    before = network.register_forward_pre_hook(
        lambda *_: kept_bytes.append(-counter.live_bytes),
    )
    after = network.register_forward_hook(
        lambda *_: kept_bytes.append(counter.live_bytes),
    )
    try:
        yield kept_bytes
    finally:
        before.remove()
        after.remove()


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _counter_beside(*modules: nn.Module) -> Counter:
    """A counter that leaves out what modules hold."""
    counter = Counter()
    for module in modules:
        counter.know(module.parameters())
        counter.know(module.buffers())
    return counter
