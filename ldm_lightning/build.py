"""From configuration to objects, one function a part.

The constructors it calls take built objects, numbers and factories; none of them sees the
configuration.
"""

import functools
import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ldm_lightning.autoencoder.autoencoder import Autoencoder
from ldm_lightning.config import PRECISIONS, check_batch_norm, discriminator_start
from ldm_lightning.data.module import ImageDataModule
from ldm_lightning.first_stage import rebuild_autoencoder
from ldm_lightning.loss.adversarial import AdversarialLoss, AdversarialSchedule
from ldm_lightning.loss.pixel import pixel_loss
from ldm_lightning.loss.reconstruction import ReconstructionLoss
from ldm_lightning.metrics.features import FeatureSet
from ldm_lightning.metrics.first_stage import FirstStageMetrics
from ldm_lightning.module.autoencoder import AutoencoderModule
from ldm_lightning.module.settings import Adversary, Optimization, OptimizerFactory
from ldm_lightning.optim.schedule import WarmupDecay
from ldm_lightning.utils.checkpoint import load_checkpoint, load_strict, trained_weights
from ldm_lightning.utils.launch import launched, slurm_step
from ldm_lightning.utils.run_folder import RunFolder, find_checkpoint

log = logging.getLogger(__name__)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as dicts and lists."""
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def stored_first_stage(cfg: DictConfig) -> dict[str, Any]:
    """Plain description of the autoencoder, from which ``rebuild_autoencoder`` makes it again."""
    resolved = plain(cfg)
    return {
        key: resolved[key] for key in ("autoencoder", "bottleneck", "image_channels", "resolution")
    }


def load_weights(module: pl.LightningModule, checkpoint: str, *, weights: str) -> str:
    """Load what a module trains for use from a ``.ckpt`` or a run folder; strict.

    Returns:
        ``ema`` or ``raw``: which weights they are.
    """
    path = find_checkpoint(checkpoint)
    part = "autoencoder" if isinstance(module, AutoencoderModule) else "model"
    chosen = trained_weights(load_checkpoint(path), weights, part=part)
    load_strict(module.averaged, chosen.tensors, path)  # type: ignore[arg-type]
    log.info("Weights (%s) from %s.", chosen.kind, path)
    return chosen.kind


def learning_rate(cfg: DictConfig, *, num_devices: int) -> float:
    """The generator's learning rate: as given, or the base rate times images an update."""
    if cfg.optim.learning_rate is not None:
        return float(cfg.optim.learning_rate)
    images = cfg.data.batch_size * num_devices * cfg.accumulate_batches
    return float(cfg.optim.base_learning_rate) * images


def build_optimization(cfg: DictConfig, *, num_devices: int) -> Optimization:
    """Build optimizer (as a factory), schedule, accumulation and clipping."""
    optim = cfg.optim
    return Optimization(
        optimizer=build_adam(cfg, rate=learning_rate(cfg, num_devices=num_devices)),
        schedule=WarmupDecay(
            max_steps=cfg.max_steps,
            warmup_steps=optim.warmup_steps,
            decay_start_share=optim.decay_start_share,
            final_share=optim.final_share,
        ),
        accumulate_batches=cfg.accumulate_batches,
        clip_norm=optim.clip_norm,
    )


def build_adam(cfg: DictConfig, *, rate: float) -> OptimizerFactory:
    """Build a factory of Adam with a learning rate."""
    # AdamW without decay is Adam
    return functools.partial(
        torch.optim.AdamW,
        lr=rate,
        betas=tuple(cfg.optim.betas),
        weight_decay=cfg.optim.weight_decay,
        fused=True,
    )


def build_adversary(cfg: DictConfig, *, num_devices: int) -> Adversary | None:
    """Build the discriminator, its loss and optimizer; None where there is none."""
    if not cfg.discriminator._target_:
        return None
    loss = AdversarialLoss(
        form=cfg.loss.adversarial_form,
        weight=cfg.loss.adversarial_weight,
        adaptive=cfg.loss.adaptive,
        schedule=AdversarialSchedule(
            start_step=discriminator_start(cfg),
            warmup_steps=cfg.loss.discriminator_warmup_steps,
            ramp_steps=cfg.loss.discriminator_ramp_steps,
        ),
        r1_weight=cfg.loss.r1_weight,
        lecam_weight=cfg.loss.lecam_weight,
    )
    rate = learning_rate(cfg, num_devices=num_devices) * cfg.optim.discriminator_learning_rate_ratio
    return Adversary(
        discriminator=instantiate(cfg.discriminator),
        loss=loss,
        optimizer=build_adam(cfg, rate=rate),
    )


def build_module(
    cfg: DictConfig,
    *,
    protocol: Mapping[str, str | int | float],
    num_devices: int,
    features: FeatureSet | None = None,
) -> AutoencoderModule:
    """Build the first stage's module.

    Args:
        cfg: The composed configuration.
        protocol: Describes the images of its validation.
        num_devices: Processes that train together.
        features: Feature networks of the metrics; None builds them.
    """
    features = features or build_features(cfg)
    stored = stored_first_stage(cfg)
    perceptual_weight = float(cfg.loss.perceptual_weight)
    reconstruction_loss = ReconstructionLoss(
        pixel_loss(cfg.loss.pixel),
        instantiate(cfg.loss.perceptual) if perceptual_weight else None,
        perceptual_weight=perceptual_weight,
        reduction=cfg.loss.reduction,
    )
    suffix = "_weight"
    autoencoder = rebuild_autoencoder(stored)
    return AutoencoderModule(
        autoencoder,
        reconstruction_loss,
        term_weights={
            key.removesuffix(suffix): cfg.loss[key] for key in cfg.loss if key.endswith(suffix)
        },
        adversary=build_adversary(cfg, num_devices=num_devices),
        optimization=build_optimization(cfg, num_devices=num_devices),
        metrics=build_metrics(cfg, features, autoencoder=autoencoder, protocol=protocol),
        raw_metrics=build_metrics(cfg, features, autoencoder=autoencoder, protocol=protocol)
        if cfg.validation.raw
        else None,
        seed=cfg.seed,
        log_every_steps=cfg.log_every_steps,
        stored_config=stored,
    )


def build_features(cfg: DictConfig) -> FeatureSet:
    """Build the feature networks of the metrics; missing weights are found here."""
    return instantiate(cfg.features)


def build_metrics(
    cfg: DictConfig,
    features: FeatureSet,
    *,
    autoencoder: Autoencoder,
    protocol: Mapping[str, str | int | float],
) -> FirstStageMetrics:
    """Build what validation measures."""
    return FirstStageMetrics(
        features,
        latent_channels=autoencoder.latent_channels,
        num_codes=autoencoder.bottleneck.num_codes,
        protocol=protocol,
        cache_dir=cfg.cache_dir,
    )


def build_data(cfg: DictConfig) -> ImageDataModule:
    """Build the data module; missing and empty folders are found here."""
    return instantiate(cfg.data)


def native_bf16(accelerator: str) -> bool:
    """Whether the device computes in bfloat16 rather than only storing it."""
    if accelerator != "cpu":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.is_file() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def choose_precision(precision: str, accelerator: str) -> str:
    """Resolve ``auto``: bf16 where the device computes in it, else 32."""
    if precision not in (*PRECISIONS, "auto"):
        raise ValueError(f"precision must be one of {[*PRECISIONS, 'auto']}, got {precision}.")
    if precision != "auto":
        return precision
    return "bf16" if native_bf16(accelerator) else "32"


def autocast(device_type: str, precision: str) -> torch.autocast:
    """The autocast context of a precision, as Lightning would enter it."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device_type, dtype=dtype, enabled=precision in ("bf16", "fp16"))


def trainer_settings(cfg: DictConfig) -> dict[str, Any]:
    """Settings of Lightning's Trainer; ``auto`` chooses from the device and says what."""
    trainer = cfg.trainer
    has_gpu = torch.cuda.is_available()
    accelerator = (
        ("gpu" if has_gpu else "cpu") if trainer.accelerator == "auto" else trainer.accelerator
    )
    if accelerator == "gpu" and not has_gpu:
        raise ValueError(
            "trainer.accelerator=gpu, but torch sees no GPU. Use trainer=cpu or trainer=ddp_cpu."
        )
    devices = trainer.devices
    if devices == "auto":
        devices = torch.cuda.device_count() if accelerator == "gpu" else 1
    _check_launch(devices, trainer.num_nodes)
    if accelerator == "cpu" and "discriminator" in cfg and cfg.discriminator._target_:
        check_batch_norm(cfg, num_processes=devices * trainer.num_nodes)
    strategy = trainer.strategy
    if strategy == "auto" and devices * trainer.num_nodes > 1:
        # A codebook gets no gradient before it quantises; DDP must then look for what has none.
        late = cfg.stage == "first" and cfg.bottleneck.get("unquantised_steps", 0) > 0
        strategy = "ddp_find_unused_parameters_true" if late else "ddp"
    if strategy in ("ddp", "ddp_find_unused_parameters_true"):
        strategy = DDPStrategy(
            find_unused_parameters=strategy != "ddp",
            timeout=timedelta(seconds=trainer.timeout_seconds),
        )
    precision = choose_precision(str(trainer.precision), accelerator)
    log.info("Device: %d x %s, precision %s.", devices * trainer.num_nodes, accelerator, precision)
    return {
        "accelerator": accelerator,
        "devices": devices,
        "num_nodes": trainer.num_nodes,
        "strategy": strategy,
        "precision": PRECISIONS[precision],
        "deterministic": trainer.deterministic,
        "plugins": _environment(),
        "sync_batchnorm": accelerator == "gpu" and devices * trainer.num_nodes > 1,
    }


def prepare_networks(cfg: DictConfig, networks: Sequence[nn.Module]) -> None:
    """Lay out and compile networks as ``cfg.trainer`` says; neither renames a parameter."""
    for network in networks:
        if cfg.trainer.channels_last:
            network.to(memory_format=torch.channels_last)
        if cfg.trainer.compile:
            network.compile()


def _check_launch(devices: int, num_nodes: int) -> None:
    """Refuse to train on other processes than were started.

    Raises:
        ValueError: Naming both numbers.
    """
    started, wanted = launched().num_processes, devices * num_nodes
    if started == wanted or (started == 1 and slurm_step() is None):  # it starts the others
        return
    hint = " Or set SLURM_JOB_NAME=bash, and the others are started here." if started == 1 else ""
    raise ValueError(
        f"{started} process(es) were started, but trainer.devices={devices} on each of "
        f"trainer.num_nodes={num_nodes} machine(s) makes {wanted}. Give trainer.devices and "
        f"trainer.num_nodes as torchrun or srun has them.{hint}"
    )


def _environment() -> list[SLURMEnvironment]:
    """What tells processes of srun from each other; elsewhere Lightning finds it itself.

    Its own requeueing would save wherever the signal arrives, between two networks' updates too.
    """
    return [SLURMEnvironment(auto_requeue=False)] if slurm_step() is not None else []


def build_callbacks(cfg: DictConfig, run_folder: RunFolder) -> list[pl.Callback]:
    """Build the callbacks that are not set to null; those that write get the run's folder."""
    callbacks: list[pl.Callback] = []
    for node in cfg.callbacks.values():
        if node is None:
            continue
        folder = {"run_folder": run_folder} if "run_folder" in node.keys() else {}  # noqa: SIM118
        callbacks.append(instantiate(node, _convert_="all", **folder))
    return callbacks


def build_loggers(cfg: DictConfig, run_folder: RunFolder) -> list[Logger]:
    """Build the loggers; each writes below the run's folder."""
    nodes = [node for node in cfg.logger.values() if isinstance(node, DictConfig)]
    return [instantiate(node, save_dir=str(run_folder.path)) for node in nodes]


def build_trainer(cfg: DictConfig, run_folder: RunFolder) -> pl.Trainer:
    """Build the Trainer of a training run; see ``trainer_settings`` for device and precision."""
    return pl.Trainer(
        **trainer_settings(cfg),
        max_steps=cfg.max_steps,
        max_epochs=-1,
        val_check_interval=cfg.validation.every_steps * cfg.accumulate_batches,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=1,  # the module logs every log_every_steps updates
        use_distributed_sampler=False,  # the data module splits by process itself
        enable_checkpointing=True,
        enable_model_summary=False,
        default_root_dir=run_folder.path,
        callbacks=build_callbacks(cfg, run_folder),
        logger=build_loggers(cfg, run_folder),
    )
