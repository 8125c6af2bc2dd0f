"""Time a few real updates of a run on random images, before it starts."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ldm_lightning.builders.first_stage import build_reconstruction_loss
from ldm_lightning.builders.hardware import Hardware, autocast
from ldm_lightning.config import PRECISIONS
from ldm_lightning.module.autoencoder import AutoencoderModule
from ldm_lightning.module.diffusion import DiffusionModule
from ldm_lightning.planning.cost import image_shape_of
from ldm_lightning.planning.untrained import untrained_first_stage, untrained_second_stage
from ldm_lightning.utils.provenance import peak_memory

MAX_UPDATES = 20
MAX_SECONDS = 20.0
"""A trial ends at either; one update is timed however long it takes."""

PROBE_SECONDS = 0.5


@dataclass(frozen=True)
class Trial:
    """Timings of a trial.

    Attributes:
        num_updates: Timed; one more before them was not.
        seconds_per_update: Median.
        peak_bytes: Most memory the process, or the GPU, has held.
    """

    num_updates: int
    seconds_per_update: float
    peak_bytes: float


def probe_speed(hardware: Hardware) -> float:
    """FLOP/s of one plain convolution and its gradients, in the run's precision: half a second.

    Larger networks reach about as much, so it tells whether a trial would take too long.
    """
    layer = nn.Conv2d(128, 128, kernel_size=3, padding=1).to(hardware.device)
    images = torch.randn(4, 128, 64, 64, device=hardware.device, requires_grad=True)
    flops = 3 * 2 * images.numel() * 128 * 9
    num_passes, start = -1, time.monotonic()
    while num_passes < 1 or time.monotonic() - start < PROBE_SECONDS:
        with autocast(hardware.device.type, hardware.precision):
            layer(images).sum().backward()
        _wait(hardware.device)
        num_passes += 1
        if num_passes == 0:  # the first pass pays for start-up
            start = time.monotonic()
    return num_passes * flops / (time.monotonic() - start)


def time_updates(
    cfg: DictConfig, hardware: Hardware, *, first_stage: dict[str, Any] | None, encodes: bool
) -> Trial:
    """Train on random numbers of the right shape, in one process, with the discriminator on.

    Neither data, trained weights, checkpoints nor validation take part.

    Args:
        cfg: The composed configuration, after ``resolve_condition``.
        hardware: What it runs on.
        first_stage: Description of a second stage's first stage; else None.
        encodes: Whether a second stage encodes images in every update, instead of reading latents.
    """
    cfg = cfg.copy()
    cfg.log_every_steps = MAX_UPDATES + 2  # random numbers are not checked for what they lead to
    batch = {"image": torch.rand(cfg.data.batch_size, *image_shape_of(cfg)) * 2 - 1}
    module: pl.LightningModule
    if first_stage is None:
        module = _first_stage_module(cfg)
    else:
        module = untrained_second_stage(cfg, first_stage, device="cpu")
        if not encodes:
            batch = _random_latents(module, batch["image"])
        if "num_classes" in cfg.conditioner:
            batch["label"] = torch.randint(cfg.conditioner.num_classes, (cfg.data.batch_size,))
    timer = _Timer(batches_per_update=cfg.accumulate_batches)
    averages = [instantiate(cfg.callbacks.ema)] if cfg.callbacks.get("ema") is not None else []
    trainer = pl.Trainer(
        accelerator=hardware.accelerator,
        devices=1,
        precision=PRECISIONS[hardware.precision],  # type: ignore[arg-type]
        max_steps=MAX_UPDATES + 1,
        max_epochs=-1,
        limit_val_batches=0,
        callbacks=[*averages, timer],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    num_batches = (MAX_UPDATES + 1) * cfg.accumulate_batches
    batches: DataLoader = DataLoader([batch] * num_batches, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(module, batches, batches)
    peak = peak_memory(trainer.strategy.root_device)
    mebibytes = peak["peak_device_mib"] or peak["peak_host_mib"] or 0.0
    return Trial(len(timer.seconds), statistics.median(timer.seconds), mebibytes * 2**20)


class _Timer(pl.Callback):
    """Times updates after the first, until there are enough."""

    def __init__(self, *, batches_per_update: int) -> None:
        self.batches_per_update = batches_per_update
        self.seconds: list[float] = []
        self._mark: float | None = None
        self._begin = 0.0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Take the time whenever an update is complete."""
        if (batch_idx + 1) % self.batches_per_update:
            return
        _wait(pl_module.device)
        now = time.monotonic()
        if self._mark is None:
            self._begin = now
        else:
            self.seconds.append(now - self._mark)
        self._mark = now
        if self.seconds and now - self._begin >= MAX_SECONDS:
            trainer.should_stop = True


def _first_stage_module(cfg: DictConfig) -> AutoencoderModule:
    """The module of the run, with everything on that comes in later."""
    if cfg.discriminator._target_:
        cfg.loss.discriminator_start_steps, cfg.loss.discriminator_start_fraction = 0, None
        cfg.loss.discriminator_warmup_steps = cfg.loss.discriminator_ramp_steps = 0
    if "quantize_start_step" in cfg.bottleneck:
        cfg.bottleneck.quantize_start_step = 0
    loss = build_reconstruction_loss(cfg, trained=False)
    if loss.perceptual is not None and next(loss.perceptual.network.parameters()).is_meta:
        loss.perceptual.network.to_empty(device="cpu")
        for parameter in loss.perceptual.network.parameters():
            nn.init.normal_(parameter, std=0.01)
    return untrained_first_stage(cfg, loss, device="cpu")


def _random_latents(module: DiffusionModule, images: Tensor) -> dict[str, Tensor]:
    """Latents that a cache would hold of as many images."""
    shape = module.first_stage.latent_shape(images.shape)
    batch = {"mean": torch.randn(shape)}
    if module.first_stage.is_stochastic:
        batch["variance"] = torch.rand(shape)
    return batch


def _wait(device: torch.device) -> None:
    """Let a GPU finish what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
