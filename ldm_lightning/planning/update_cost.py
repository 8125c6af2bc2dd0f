"""Cost of one update, counted by running its forward and backward passes.

Written for tensors without memory (``counter.without_memory``), so that a network of any size is
counted in a second; on real tensors it counts the same.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm_lightning.autoencoder.autoencoder import Autoencoder
from ldm_lightning.loss.adversarial import mean_logit
from ldm_lightning.loss.reconstruction import ReconstructionLoss
from ldm_lightning.module.precision import at_least_float32, gradient_at_layer, loss_precision
from ldm_lightning.nn.condition import Condition
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
    autoencoder: Autoencoder,
    reconstruction_loss: ReconstructionLoss,
    discriminator: nn.Module | None,
    images: Tensor,
    *,
    adaptive: bool,
    autocast: torch.autocast,
) -> UpdateCost:
    """Count an update in the order of ``module/autoencoder.py``, the discriminator fully on.

    Args:
        autoencoder: In training mode.
        reconstruction_loss: Its loss.
        discriminator: None where there is none.
        images: Batch of one process, [B, C, H, W].
        adaptive: Whether the adversarial weight compares gradients at the last layer.
        autocast: Of the run's precision.
    """
    noise = None
    if autoencoder.bottleneck.is_stochastic:
        noise = images.new_empty(autoencoder.latent_shape(images.shape))
    counter = _counter_beside(autoencoder, reconstruction_loss, discriminator)
    with counter, autocast:
        output = autoencoder(images, noise)
        kept_bytes = counter.live_bytes
        outputs = at_least_float32(output.outputs.detach()).requires_grad_()
        with loss_precision(images):
            terms = reconstruction_loss(outputs, autoencoder.to_images(outputs), images)
        gradients = list(torch.autograd.grad(terms.total, [outputs]))
        if discriminator is not None:
            with loss_precision(outputs):
                logits = discriminator(autoencoder.to_images(outputs))
            gradients += torch.autograd.grad(mean_logit(logits), [outputs])
            if adaptive:
                for gradient in gradients:
                    gradient_at_layer(output.outputs, autoencoder.last_layer, gradient)
            gradients = [gradients[0] + gradients[1]]
        scalar = (output.outputs * gradients[0]).sum()
        for term in output.bottleneck.terms.values():
            scalar = scalar + term.mean()
        scalar.backward()
        reconstructions = at_least_float32(output.reconstructions.detach())
        del output, outputs, terms, gradients, scalar
        autoencoder.zero_grad(set_to_none=True)
        if discriminator is not None:
            with loss_precision(images):
                real, fake = discriminator(images), discriminator(reconstructions)
            (mean_logit(real) + mean_logit(fake)).backward()
            discriminator.zero_grad(set_to_none=True)
    return UpdateCost(counter.flops, kept_bytes, counter.peak_bytes)


def count_denoiser_update(
    denoiser: nn.Module,
    noisy: Tensor,
    condition: Condition,
    *,
    autocast: torch.autocast,
    encoding: ForwardCost | None = None,
) -> UpdateCost:
    """Count an update of a diffusion model.

    Args:
        denoiser: In training mode.
        noisy: Batch of one process, [B, c, h, w].
        condition: Of that batch.
        autocast: Of the run's precision.
        encoding: Of the batch's images, without gradients; None where a latent cache is read.
    """
    time = noisy.new_empty(len(noisy))
    counter = _counter_beside(denoiser)
    with counter, autocast:
        output = denoiser(noisy, time, condition)
        loss = (output - noisy).square().mean()
        kept_bytes = counter.live_bytes
        loss.backward()
        del output, loss
        denoiser.zero_grad(set_to_none=True)
    flops, peak_bytes = counter.flops, counter.peak_bytes
    if encoding is not None:  # over before the denoiser begins
        flops, peak_bytes = flops + encoding.flops, max(peak_bytes, encoding.peak_bytes)
    return UpdateCost(flops, kept_bytes, peak_bytes)


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _counter_beside(*modules: nn.Module | None) -> Counter:
    """A counter that leaves out what modules hold."""

    def held() -> Iterator[Tensor]:
        for module in modules:
            if module is not None:
                yield from module.parameters()
                yield from module.buffers()
            if isinstance(module, ReconstructionLoss):
                for network in module.frozen_networks:
                    yield from network.parameters()
                    yield from network.buffers()

    counter = Counter()
    counter.know(held())
    return counter
