"""A first stage small enough to train in a test, and data for it."""

import functools

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ldm_lightning.autoencoder.autoencoder import convolutional_autoencoder
from ldm_lightning.bottleneck.base import Bottleneck
from ldm_lightning.bottleneck.gaussian import GaussianBottleneck
from ldm_lightning.bottleneck.vector_quantizer import VectorQuantizer
from ldm_lightning.discriminator.patchgan import PatchGAN
from ldm_lightning.loss.adversarial import AdversarialLoss, AdversarialSchedule
from ldm_lightning.loss.perceptual import PerceptualLoss, TinyPerceptual
from ldm_lightning.loss.pixel import pixel_loss
from ldm_lightning.loss.reconstruction import ReconstructionLoss
from ldm_lightning.metrics.features import tiny_features
from ldm_lightning.metrics.first_stage import FirstStageMetrics
from ldm_lightning.module.autoencoder import AutoencoderModule
from ldm_lightning.module.settings import Adversary, Optimization, OptimizerFactory

TERM_WEIGHTS = {"kl": 1e-6, "codebook": 1.0, "commitment": 0.25}


def gaussian() -> Bottleneck:
    return GaussianBottleneck()


def quantizer(**changes) -> Bottleneck:
    torch.manual_seed(0)
    return VectorQuantizer(**({"num_codes": 8, "latent_channels": 4} | changes))


def small_module(
    *,
    bottleneck: Bottleneck | None = None,
    pixel: str = "l1",
    perceptual: PerceptualLoss | None | str = "tiny",
    reduction: str = "sum",
    start_step: int | None = 0,
    accumulate_batches: int = 1,
    clip_norm: float | None = None,
    learning_rate: float = 1e-3,
    log_every_steps: int = 1,
    adversarial: dict | None = None,
    base_width: int = 8,
    optimizer: OptimizerFactory | None = None,
) -> AutoencoderModule:
    torch.manual_seed(0)
    bottleneck = bottleneck or gaussian()
    if perceptual == "tiny":
        perceptual = TinyPerceptual()
    autoencoder = convolutional_autoencoder(
        bottleneck=bottleneck,
        image_channels=3,
        latent_channels=4,
        downsampling_factor=4,
        base_width=base_width,
        width_multipliers=[1, 1, 2],
        num_res_blocks=1,
        attention_at=[],
        middle_attention=True,
        upsampling="nearest",
        gradient_checkpointing=False,
        output="logits" if pixel == "bernoulli" else "images",
    )
    if optimizer is None:
        optimizer = functools.partial(torch.optim.Adam, lr=learning_rate, betas=(0.5, 0.9))
    adversary = None
    if start_step is not None:
        settings = {"form": "hinge", "weight": 0.5, "adaptive": True} | (adversarial or {})
        schedule = settings.pop("schedule", AdversarialSchedule(start_step=start_step))
        adversary = Adversary(
            PatchGAN(image_channels=3, base_width=8, num_layers=2),
            AdversarialLoss(**settings, schedule=schedule),
            optimizer,
        )
    return AutoencoderModule(
        autoencoder,
        ReconstructionLoss(
            pixel_loss(pixel),
            perceptual,
            perceptual_weight=0.1 if perceptual else 0.0,
            reduction=reduction,
        ),
        term_weights=TERM_WEIGHTS,
        adversary=adversary,
        optimization=Optimization(
            optimizer=optimizer,
            schedule=lambda step: 1.0,
            accumulate_batches=accumulate_batches,
            clip_norm=clip_norm,
        ),
        metrics=FirstStageMetrics(
            tiny_features(), latent_channels=4, num_codes=bottleneck.num_codes
        ),
        seed=0,
        log_every_steps=log_every_steps,
        stored_config={},
    )


def images(num_images: int, *, seed: int = 1, size: int = 16) -> Tensor:
    """Smooth random images in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num_images, 3, 4, 4, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")


def loader(num_batches: int, batch_size: int = 4, *, size: int = 16) -> DataLoader:
    rows = [{"image": image} for image in images(num_batches * batch_size, size=size)]
    return DataLoader(rows, batch_size=batch_size)


def trainer(folder, *, max_steps: int, **options) -> pl.Trainer:
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": max_steps,
        "max_epochs": -1,
        "default_root_dir": folder,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "use_distributed_sampler": False,
    }
    return pl.Trainer(**(settings | options))


class Recorder(pl.Callback):
    """Keeps what a test wants to see of every update."""

    def __init__(self, see):
        self.see, self.seen = see, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(self.see(trainer, pl_module))


def logged(module, tmp_path, *, num_batches=1, max_steps=1, **options):
    run = trainer(tmp_path, max_steps=max_steps, **options)
    run.fit(module, loader(num_batches))
    return {name: float(value) for name, value in run.callback_metrics.items()}
