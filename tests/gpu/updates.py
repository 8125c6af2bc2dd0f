"""One update of a module of either stage, on any device and in any precision."""

import functools
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader

from ldm_lightning.conditioner.class_label import ClassConditioner
from ldm_lightning.module.diffusion import DiffusionModule
from ldm_lightning.module.settings import Optimization
from tests.autoencoder.first_stages import frozen
from tests.denoiser.small_unet import randomized
from tests.module.small import images, small_module, trainer
from tests.sampler.small import PROCESSES

BATCH_SIZE = 8
DESCENT = functools.partial(torch.optim.SGD, lr=1.0)
"""Moves weights by their gradients: Adam's first update would show little but their signs."""


@dataclass(frozen=True)
class Update:
    """What one update logged, and how it changed all weights, in one row."""

    logged: dict[str, float]
    change: Tensor


def first_stage(folder: Path, **options) -> pl.LightningModule:
    """Autoencoder with discriminator, all losses on."""
    return small_module(optimizer=DESCENT, reduction="mean", **options)


def class_conditioner() -> ClassConditioner:
    torch.manual_seed(2)
    width = randomized().vector_width
    return ClassConditioner(num_classes=5, width=width, dropout=0.5)


def second_stage(folder: Path) -> DiffusionModule:
    """U-Net with classes, of which half are dropped, on images encoded in the update."""
    return DiffusionModule(
        randomized(),
        class_conditioner(),
        PROCESSES["v"],
        frozen(folder),
        optimization=Optimization(
            optimizer=DESCENT, schedule=lambda step: 1.0, accumulate_batches=1, clip_norm=None
        ),
        seed=0,
        log_every_steps=1,
        stored_config={},
        protocol={},
    )


STAGES = {"first": first_stage, "second": second_stage}


def batches() -> DataLoader:
    """One batch of images with labels."""
    pairs = zip(images(BATCH_SIZE, size=32), torch.arange(BATCH_SIZE) % 5, strict=True)
    rows = [{"image": image, "label": label} for image, label in pairs]
    return DataLoader(rows, batch_size=BATCH_SIZE)


def update(
    module: pl.LightningModule, folder: Path, device: torch.device, precision: str
) -> Update:
    """Train one update; ``precision`` is 32, bf16 or fp16."""
    before = _weights(module)
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    options = {"accelerator": accelerator, **_precision(precision, device)}
    run = trainer(folder, max_steps=1, limit_val_batches=0, **options)
    run.fit(module, batches())
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    return Update(logged, _weights(module) - before)


def _weights(module: pl.LightningModule) -> Tensor:
    return torch.cat([p.detach().double().cpu().flatten() for p in module.parameters()])


def _precision(precision: str, device: torch.device) -> dict:
    if precision == "fp16":  # Lightning's own would be bf16 on a CPU
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10)
        return {"plugins": [MixedPrecision("16-mixed", device.type, scaler)]}
    return {"precision": {"32": "32-true", "bf16": "bf16-mixed"}[precision]}
