"""Objects that both stages train with: optimizer, schedule, callbacks, loggers, the Trainer."""

import logging

import lightning.pytorch as pl
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from ldm_lightning.builders.hardware import trainer_settings
from ldm_lightning.builders.optimizer import build_optimizer_factory
from ldm_lightning.callbacks.checkpointing import Checkpointing
from ldm_lightning.callbacks.stall_stopping import StallStopping
from ldm_lightning.callbacks.throughput import Throughput
from ldm_lightning.checkpoints.checkpoint import load_checkpoint, load_strict, trained_weights
from ldm_lightning.data.image_module import ImageDataModule
from ldm_lightning.data.module import MapDataModule
from ldm_lightning.metrics.features import FeatureSet
from ldm_lightning.module.autoencoder import AutoencoderModule
from ldm_lightning.module.learning_rate import WarmupDecay
from ldm_lightning.module.settings import Optimization
from ldm_lightning.module.update_loop import use_update_loop
from ldm_lightning.module.updating import ManualOptimizationModule
from ldm_lightning.runs.run_folder import RunFolder, find_checkpoint

log = logging.getLogger(__name__)


def load_weights(module: pl.LightningModule, checkpoint: str, *, weights: str) -> str:
    """Load what a module trains for use from a ``.ckpt`` or a run folder; strict.

    Returns:
        ``ema`` or ``raw``: which weights they are.
    """
    path = find_checkpoint(checkpoint)
    part = "autoencoder" if isinstance(module, AutoencoderModule) else "model"
    chosen = trained_weights(load_checkpoint(path), weights, path=path, part=part)
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
        optimizer=build_optimizer_factory(optim, rate=learning_rate(cfg, num_devices=num_devices)),
        schedule=WarmupDecay(
            max_steps=cfg.max_steps,
            warmup_steps=optim.warmup_steps,
            decay_start_fraction=optim.decay_start_fraction,
            final_fraction=optim.final_fraction,
        ),
        accumulate_batches=cfg.accumulate_batches,
        clip_norm=optim.clip_norm,
    )


def build_features(cfg: DictConfig) -> FeatureSet:
    """Build the feature networks of the metrics; missing weights are found here."""
    return instantiate(cfg.features)


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
    folder = str(run_folder.path)
    return [instantiate(node, _convert_="all", save_dir=folder) for node in nodes]


def build_trainer(cfg: DictConfig, run_folder: RunFolder) -> pl.Trainer:
    """Build the Trainer of a training run; see ``trainer_settings`` for device and precision."""
    trainer = pl.Trainer(
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
        callbacks=[Throughput(), *build_callbacks(cfg, run_folder)],
        logger=build_loggers(cfg, run_folder),
    )
    return use_update_loop(trainer, accumulate_batches=cfg.accumulate_batches)


def check_monitors(
    trainer: pl.Trainer, module: ManualOptimizationModule, data: MapDataModule
) -> None:
    """Refuse to wait for a metric that no validation is going to measure.

    Raises:
        ValueError: Naming the metric, the number of images, and what is measured.
    """
    num_images = len(data.val_indices)
    size = data.resolution if isinstance(data, ImageDataModule) else (0, 0)
    names = module.validation_names(num_images=num_images, size=size)
    wanted: dict[str, str] = {}
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, Checkpointing) and callback.monitor is not None:
            wanted[callback.monitor] = "monitor"
        if isinstance(callback, StallStopping):
            wanted |= {name: "stall_monitors" for name in callback.monitors if name not in wanted}
    for name, key in wanted.items():
        if name not in names:
            raise ValueError(
                f"{key}={name} is not going to be measured by a validation on {num_images} images: "
                "sets are compared from 2 images on either side on (data.max_val_images, "
                "validation.num_samples), precision and recall from 4. Measured are: "
                f"{', '.join(sorted(names))}."
            )
