"""The steps of a run after its checks: build, load, prepare, fit.

The quick ones come first: ``prepare`` may read every image, and only takes a run that was loaded.
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NewType

import lightning.pytorch as pl
import torch
from omegaconf import OmegaConf

from ldm_lightning.builders.hardware import prepare_networks
from ldm_lightning.builders.optimizer import build_optimizer_factory
from ldm_lightning.builders.training import (
    build_features,
    build_trainer,
    check_monitors,
    load_weights,
)
from ldm_lightning.config import plain
from ldm_lightning.data.module import MapDataModule
from ldm_lightning.distributed.processes import every_process
from ldm_lightning.metrics.names import own_meanings
from ldm_lightning.module.checkpoint_contents import check_continues
from ldm_lightning.module.updating import ManualOptimizationModule
from ldm_lightning.planning.out_of_memory import explain_out_of_memory
from ldm_lightning.resume.point import go_back
from ldm_lightning.runs.run_folder import find_checkpoint
from ldm_lightning.storage.files import atomic_writer
from ldm_lightning.training.check import CheckedRun
from ldm_lightning.training.stages import STAGES
from ldm_lightning.utils.launch import launched
from ldm_lightning.utils.memory import keep_freed_memory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuiltRun:
    """Objects that fit together; nothing of a checkpoint is in them yet."""

    checked: CheckedRun
    data: MapDataModule
    trainer: pl.Trainer
    module: ManualOptimizationModule


@dataclass(frozen=True)
class LoadedRun:
    """A run that holds, or is known to be able to take, the weights it starts from.

    Attributes:
        built: Its objects.
        weights: ``ema`` or ``raw``, of ``checkpoint=``; None where that gave none.
    """

    built: BuiltRun
    weights: str | None


PreparedRun = NewType("PreparedRun", LoadedRun)
"""A run that can begin: judged, measured, its networks laid out in memory."""

FinishedRun = NewType("FinishedRun", LoadedRun)
"""A run that trained or validated to its end."""


def build(checked: CheckedRun) -> BuiltRun:
    """Build feature networks, data, trainer and module, in the order in which they fail quickest.

    Raises:
        ValueError: If an optimizer, weights of feature networks, images or keys are missing or do
            not fit.
    """
    cfg, run_folder, stage = checked.cfg, checked.run_folder, STAGES[checked.cfg.stage]
    build_optimizer_factory(cfg.optim, rate=1.0)  # refused before any data are read
    keep_freed_memory()
    if 0 < launched().local_rank < torch.cuda.device_count():
        torch.cuda.set_device(launched().local_rank)  # for what is measured before training
    features = build_features(cfg)
    torch.manual_seed(cfg.seed)
    data = stage.build_data(cfg, _start(checked))
    data.bad_files_path = run_folder.path / "unreadable_files.tsv"
    data.num_train_batches = cfg.max_steps * cfg.accumulate_batches
    trainer = build_trainer(cfg, run_folder)
    data.check_workers(training=cfg.train, num_devices=trainer.num_devices)
    if cfg.train and trainer.is_global_zero:
        counts = data.counts(trainer.world_size)
        log.info("%s", counts)
        run_folder.update_summary({"data": asdict(counts)})
    module = stage.build_module(cfg, data, features, num_devices=trainer.world_size)
    if cfg.train:
        check_monitors(trainer, module, data)
    return BuiltRun(checked, data, trainer, module)


def _start(checked: CheckedRun) -> Path | None:
    """The checkpoint that a run starts or goes on from."""
    given = checked.cfg.checkpoint
    return checked.continues or (None if given is None else find_checkpoint(given))


def load(built: BuiltRun) -> LoadedRun:
    """Load the weights of ``checkpoint=``, or check that the run can go on from its own.

    Raises:
        ValueError: Naming the file and what does not fit.
    """
    cfg, continues = built.checked.cfg, built.checked.continues
    if continues is not None:
        content = check_continues(continues, trainer=built.trainer, module=built.module)
        STAGES[cfg.stage].continue_from(built.module, content)
        return LoadedRun(built, weights=None)
    if cfg.checkpoint is None:
        return LoadedRun(built, weights=None)
    return LoadedRun(built, load_weights(built.module, cfg.checkpoint, weights=cfg.weights))


def prepare(loaded: LoadedRun) -> PreparedRun:
    """Do what may take long before the first update, each once.

    Raises:
        ValueError: If a first stage is refused, or images cannot be read.
    """
    built = loaded.built
    cfg, stage = built.checked.cfg, STAGES[built.checked.cfg.stage]
    if launched().is_first:
        stage.judge(cfg, built.module, built.data, built.checked.run_folder)
    if built.checked.continues is None:
        stage.measure(cfg, built.module, built.data)
    if cfg.train:
        built.data.identify()
    prepare_networks(cfg, built.module.networks)
    return PreparedRun(loaded)


def fit(prepared: PreparedRun) -> FinishedRun:
    """Write down what the run is, then train, or validate with ``train=false``."""
    built = prepared.built
    checked, trainer, module = built.checked, built.trainer, built.module
    if trainer.is_global_zero:
        _write_start(built)
    with every_process(trainer, checked.run_folder), explain_out_of_memory(checked.cfg):
        if checked.cfg.train:
            trainer.fit(module, built.data, ckpt_path=checked.continues)
        else:
            trainer.validate(module, built.data, verbose=False)
    return FinishedRun(prepared)


def _write_start(built: BuiltRun) -> None:
    """Write the configuration into the run's folder; go back to the checkpoint it continues."""
    checked = built.checked
    cfg, run_folder = checked.cfg, checked.run_folder
    if checked.continues is not None:
        go_back(run_folder, checked.continues)
    checked.composition.write(run_folder.path)
    with atomic_writer(run_folder.config) as file:  # others may be reading it
        file.write(OmegaConf.to_yaml(cfg, resolve=True).encode())
    run_folder.update_summary(
        {"name": cfg.name, "config": plain(cfg), "own_metrics": own_meanings()}
    )
    for logger in built.trainer.loggers:
        logger.log_hyperparams(plain(cfg))
