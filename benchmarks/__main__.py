"""Time one first-stage update against the update rule of the published trainers.

    python -m benchmarks

The two-forward rule (CompVis latent-diffusion, taming-transformers) is written here as a plain loop
around our own networks, from its published description: the autoencoder runs forward twice an
update, once for each network, the perceptual distance is computed both times, and the adaptive
weight differentiates both losses again. Both rules see the same networks, images and optimizers;
blocks of updates alternate, and the ratio is taken block by block.
"""

import functools
import json
import statistics
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from ldm_lightning.autoencoder.autoencoder import convolutional_autoencoder
from ldm_lightning.bottleneck.gaussian import GaussianBottleneck
from ldm_lightning.discriminator.patchgan import PatchGAN
from ldm_lightning.loss.adversarial import (
    AdversarialLoss,
    AdversarialSchedule,
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from ldm_lightning.loss.perceptual import TinyPerceptual
from ldm_lightning.loss.pixel import pixel_loss
from ldm_lightning.loss.reconstruction import ReconstructionLoss
from ldm_lightning.metrics.features import tiny_features
from ldm_lightning.metrics.first_stage import FirstStageMetrics
from ldm_lightning.module.autoencoder import AutoencoderModule
from ldm_lightning.module.settings import Adversary, Optimization
from ldm_lightning.utils.memory import keep_freed_memory

RESOLUTION, BATCH_SIZE, WIDTH = 64, 8, 32
NUM_BLOCKS, UPDATES_PER_BLOCK = 5, 3


def build_module() -> AutoencoderModule:
    """Build kl_f4 at a small width, with everything an update needs."""
    torch.manual_seed(0)
    autoencoder = convolutional_autoencoder(
        bottleneck=GaussianBottleneck(),
        image_channels=3,
        latent_channels=3,
        downsampling_factor=4,
        base_width=WIDTH,
        width_multipliers=[1, 2, 4],
        num_res_blocks=2,
        attention_at=[],
        middle_attention=True,
        upsampling="nearest",
        recompute=False,
        output="images",
    )
    schedule = AdversarialSchedule(start_step=0)
    adam = functools.partial(torch.optim.Adam, lr=1e-4, betas=(0.5, 0.9), fused=True)
    return AutoencoderModule(
        autoencoder,
        ReconstructionLoss(
            pixel_loss("l1"), TinyPerceptual(), perceptual_weight=1.0, reduction="sum"
        ),
        term_weights={"kl": 1e-6},
        adversary=Adversary(
            PatchGAN(image_channels=3),
            AdversarialLoss("hinge", weight=0.5, adaptive=True, schedule=schedule),
            adam,
        ),
        optimization=Optimization(optimizer=adam, schedule=lambda step: 1.0),
        metrics=FirstStageMetrics(tiny_features(), latent_channels=3),
        seed=0,
        log_every_steps=10**9,
        stored_config={},
    )


class Clock(pl.Callback):
    """Seconds of each update inside the Trainer."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_batch_start(self, *_: object) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_batch_end(self, *_: object) -> None:
        """Stop it."""
        self.seconds.append(time.perf_counter() - self._start)


def time_ours(module: AutoencoderModule, images: Tensor) -> float:
    """Median seconds of an update under Lightning, the first of the block left out."""
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=UPDATES_PER_BLOCK + 1,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
    )
    rows = [{"image": image} for image in images.repeat(UPDATES_PER_BLOCK + 1, 1, 1, 1)]
    trainer.fit(module, DataLoader(rows, batch_size=BATCH_SIZE))
    return statistics.median(clock.seconds[1:])


def two_forward_update(module: AutoencoderModule, images: Tensor, optimizers: list) -> None:
    """One update of the published rule."""
    generator, discriminator = optimizers
    network = module.discriminator
    assert network is not None
    layer = module.autoencoder.last_layer

    def forward() -> tuple[Tensor, Tensor, Tensor]:
        noise = torch.randn(module.autoencoder.latent_shape(images.shape))
        output = module.autoencoder(images, noise)
        terms = module.reconstruction_loss(output.outputs, output.reconstructions, images)
        return output.reconstructions, terms.total, output.bottleneck.terms["kl"].mean()

    network.requires_grad_(False)
    reconstructions, nll, kl = forward()
    adversarial = hinge_generator_loss(network(reconstructions))
    gradients = [
        torch.autograd.grad(loss, layer, retain_graph=True)[0] for loss in (nll, adversarial)
    ]
    weight = 0.5 * adaptive_weight(*gradients)
    generator.zero_grad()
    (nll + 1e-6 * kl + weight * adversarial).backward()
    generator.step()
    network.requires_grad_(True)
    reconstructions, _, _ = forward()
    loss = hinge_discriminator_loss(network(images), network(reconstructions.detach()))
    discriminator.zero_grad()
    loss.backward()
    discriminator.step()


def time_two_forward(module: AutoencoderModule, images: Tensor) -> float:
    """Median seconds of an update, the first of the block left out."""
    optimizers = module.configure_optimizers()
    seconds = []
    for _ in range(UPDATES_PER_BLOCK + 1):
        start = time.perf_counter()
        two_forward_update(module, images, optimizers)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def main() -> None:
    """Alternate the two rules and print the ratio."""
    keep_freed_memory()
    images = torch.rand(BATCH_SIZE, 3, RESOLUTION, RESOLUTION) * 2 - 1
    module = build_module()
    blocks = []
    for _ in track(range(NUM_BLOCKS), description="timing"):
        blocks.append((time_ours(module, images), time_two_forward(module, images)))
    ratios = sorted(ours / peer for ours, peer in blocks)
    result = {
        "what": "first-stage update, fp32: ours / two-forward rule, seconds by block and ratio",
        "setting": f"kl_f4, {RESOLUTION} px, batch {BATCH_SIZE}, width {WIDTH}, tiny perceptual",
        "num_threads": torch.get_num_threads(),
        "blocks": blocks,
        "ratio_median": statistics.median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
    }
    path = Path("outputs/benchmarks/first_stage_update.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{result['what']}\n{result['setting']}, {result['num_threads']} threads")
    print(f"ratio {result['ratio_median']:.3f} [{ratios[0]:.3f} to {ratios[-1]:.3f}] -> {path}")


if __name__ == "__main__":
    main()
