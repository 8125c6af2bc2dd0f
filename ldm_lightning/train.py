"""Train a first or a second stage: compose, check, build, fit, say what was reached.

    python -m ldm_lightning.train experiment=vqgan_f16

``--help`` lists groups and values; ``--cfg job`` prints a configuration. Neither imports torch.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ldm_lightning.checks.keys import check_keys
from ldm_lightning.cli import (
    handle_user_errors,
    quiet_lightning,
    record_end,
    run_entry_point,
    run_lock,
)
from ldm_lightning.config import CONF_DIR, check_values
from ldm_lightning.distributed.processes import end_with_parent, every_process, record_first_cause
from ldm_lightning.restore.stored_config import read_composition
from ldm_lightning.resume.arguments import composition_of, continued_arguments
from ldm_lightning.runs.folder_choice import resumed_folder
from ldm_lightning.runs.run_folder import RunFolder, has_begun
from ldm_lightning.utils.launch import launched

if TYPE_CHECKING:
    from pathlib import Path

    import lightning.pytorch as pl

    from ldm_lightning.data.module import MapDataModule
    from ldm_lightning.metrics.features import FeatureSet
    from ldm_lightning.module.updating import ManualOptimizationModule

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
def _train(cfg: DictConfig) -> float | None:
    with handle_user_errors():
        return train(cfg, HydraConfig.get())


def train(cfg: DictConfig, runtime: HydraConf) -> float | None:
    """Run the configuration.

    Args:
        cfg: The composed configuration.
        runtime: Hydra's own configuration of this job: group choices, overrides, folder.

    Returns:
        The final value of ``cfg.monitor``, for sweeps; None where nothing was validated.
    """
    quiet_lightning()
    check_keys(cfg, runtime.runtime.choices)
    run_folder = RunFolder(runtime.runtime.output_dir)
    is_first = launched().is_first
    if not is_first:
        logging.getLogger().setLevel(logging.WARNING)  # one of them tells what all do
    with run_lock(run_folder, is_first=is_first):
        if is_first:
            _check_folder(cfg, run_folder)
        with record_end(run_folder, is_first=is_first), record_first_cause(run_folder):
            return _run(cfg, runtime, run_folder)


def _check_folder(cfg: DictConfig, run_folder: RunFolder) -> None:
    """Refuse to overwrite a run, and to continue one in the folder of another."""
    if cfg.resume is None and has_begun(run_folder.path):
        raise ValueError(
            f"{run_folder.path} holds a run already. Continue it with resume={run_folder.path}, or "
            f"choose another output_dir."
        )
    if cfg.resume not in (None, "auto"):
        folder = resumed_folder(str(cfg.resume))
        if folder.resolve() != run_folder.path.resolve():
            raise ValueError(
                f"resume={cfg.resume} goes on in its own folder, not in {run_folder.path}: leave "
                "output_dir and hydra.run.dir out."
            )


def _run(cfg: DictConfig, runtime: HydraConf, run_folder: RunFolder) -> float | None:
    """Check, build, and train or validate."""
    continues = cfg.resume is not None and run_folder.config.is_file()
    cfg.output_dir = str(run_folder.path)
    alarms = check_values(cfg)
    resumed = None
    if continues:
        from ldm_lightning.resume.point import resumed_from

        resumed = resumed_from(cfg, run_folder)
    else:
        choices = runtime.runtime.choices
        log.info("scale=%s shrinks %s.", choices["scale"], cfg.scale_description)
        if choices["scale"] != "paper":
            log.info("The published recipe: experiment=%s scale=paper", choices["experiment"])
    for alarm in alarms:
        log.warning(alarm)
    if cfg.dry_run:
        _dry_run(cfg, run_folder)
        return None

    import torch

    from ldm_lightning.builders.hardware import prepare_networks
    from ldm_lightning.builders.training import (
        build_features,
        build_trainer,
        check_monitors,
        load_weights,
    )
    from ldm_lightning.config import plain
    from ldm_lightning.resume.point import go_back
    from ldm_lightning.storage.files import atomic_writer
    from ldm_lightning.utils.memory import keep_freed_memory

    keep_freed_memory()
    if 0 < launched().local_rank < torch.cuda.device_count():
        torch.cuda.set_device(launched().local_rank)  # for what is measured before training
    features = build_features(cfg)  # first: weights may be missing, data may be slow to list
    torch.manual_seed(cfg.seed)
    data = _build_data(cfg, resumed)
    data.bad_files_path = run_folder.path / "unreadable_files.tsv"
    data.num_train_batches = cfg.max_steps * cfg.accumulate_batches
    trainer = build_trainer(cfg, run_folder)
    data.check_workers(training=cfg.train, num_devices=trainer.num_devices)
    if cfg.train and trainer.is_global_zero:
        counts = data.counts(trainer.world_size)
        log.info("%s", counts)
        run_folder.update_summary({"data": asdict(counts)})
    build_module = _first_stage_module if cfg.stage == "first" else _second_stage_module
    module = build_module(cfg, data, features, trainer, run_folder, resumed)
    if cfg.train:
        check_monitors(trainer, module, data)
    loaded = None
    if resumed is None and cfg.checkpoint is not None:
        loaded = load_weights(module, cfg.checkpoint, weights=cfg.weights)
    if cfg.train:
        data.identify()  # last of the checks: it may read every file, once
    prepare_networks(cfg, module.networks)
    if trainer.is_global_zero:
        if resumed is not None:
            go_back(run_folder, resumed)
        before = read_composition(run_folder.path) if continues else None
        composition_of(runtime, before).write(run_folder.path)
        with atomic_writer(run_folder.config) as file:  # others may be reading it
            file.write(OmegaConf.to_yaml(cfg, resolve=True).encode())
        run_folder.update_summary({"name": cfg.name, "config": plain(cfg)})
        for logger in trainer.loggers:
            logger.log_hyperparams(plain(cfg))
    with every_process(trainer, run_folder):
        if cfg.train:
            trainer.fit(module, data, ckpt_path=resumed)
        else:
            trainer.validate(module, data, verbose=False)
    if trainer.is_global_zero:
        _report(module, run_folder, facts={} if cfg.train else {"weights": loaded})
        if cfg.page:
            from ldm_lightning.reporting.page.write import write_own_page

            write_own_page(run_folder.path)
    return _monitored(cfg, module)


def _first_stage_module(
    cfg: DictConfig,
    data: MapDataModule,
    features: FeatureSet,
    trainer: pl.Trainer,
    run_folder: RunFolder,
    resumed: Path | None,
) -> ManualOptimizationModule:
    from ldm_lightning.builders.first_stage import build_first_stage_module
    from ldm_lightning.data.module import ImageDataModule
    from ldm_lightning.module.checkpoint_contents import check_continues

    if not isinstance(data, ImageDataModule):
        raise ValueError("A first stage is trained on images: data=latents holds none.")
    module = build_first_stage_module(
        cfg, protocol=data.protocol("val"), num_devices=trainer.world_size, features=features
    )
    if resumed is not None:
        check_continues(resumed, trainer=trainer, module=module)
    return module


def _build_data(cfg: DictConfig, last: Path | None) -> MapDataModule:
    """Build the data; a second stage goes on with the class ids of its checkpoint, if any."""
    from ldm_lightning.builders.data import build_data, build_labeled_data
    from ldm_lightning.runs.run_folder import find_checkpoint

    if cfg.stage == "first":
        return build_data(cfg)
    given = None if cfg.checkpoint is None else find_checkpoint(cfg.checkpoint)
    return build_labeled_data(cfg, start=last or given)


def _second_stage_module(
    cfg: DictConfig,
    data: MapDataModule,
    features: FeatureSet,
    trainer: pl.Trainer,
    run_folder: RunFolder,
    resumed: Path | None,
) -> ManualOptimizationModule:
    """Build the diffusion model, judge its first stage, measure its latents; quick checks first."""
    from ldm_lightning.builders.data import check_labels
    from ldm_lightning.builders.second_stage import (
        build_frozen_first_stage,
        build_second_stage_module,
        fit_normalizer,
        resolve_condition,
    )
    from ldm_lightning.data.module import ImageDataModule
    from ldm_lightning.evaluation.gate import run_gate
    from ldm_lightning.module.checkpoint_contents import check_continues

    check_labels(cfg, data)
    resolve_condition(cfg, num_classes=data.num_classes)
    first_stage = build_frozen_first_stage(cfg, data)
    module = build_second_stage_module(
        cfg, data=data, first_stage=first_stage, features=features, num_devices=trainer.world_size
    )
    if resumed is not None:  # before the waiting begins; its latents are normalized already
        content = check_continues(resumed, trainer=trainer, module=module)
        module.use_first_stage_of(content["second_stage"])
    if launched().is_first:
        run_gate(
            cfg.gate,
            checkpoint=first_stage.path,
            weights=first_stage.weights,
            data=cfg.data if isinstance(data, ImageDataModule) else None,
            features=cfg.features,
            cache_dir=cfg.cache_dir,
            run_folder=run_folder,
        )
    if resumed is None:
        fit_normalizer(cfg, first_stage, data)  # last: it may read every image
    return module


def _dry_run(cfg: DictConfig, run_folder: RunFolder) -> None:
    """Build everything without memory, print the parameters, write them down."""
    from ldm_lightning.builders.meta_networks import count_parameters, networks_without_memory
    from ldm_lightning.config import plain
    from ldm_lightning.reporting.parameters import print_parameters

    counts = count_parameters(networks_without_memory(cfg))
    print_parameters(counts, title=f"{cfg.name}: parameters")
    run_folder.update_summary(
        {"state": "dry_run", "name": cfg.name, "parameters": counts, "config": plain(cfg)}
    )
    OmegaConf.save(cfg, run_folder.config, resolve=True)


def _report(module: pl.LightningModule, run_folder: RunFolder, *, facts: dict[str, Any]) -> None:
    """Print the final metrics and where everything is; ``facts`` go into their protocol."""
    from ldm_lightning.metrics.names import METRICS
    from ldm_lightning.reporting.table import print_metrics
    from ldm_lightning.utils.metadata import count_told

    summary = run_folder.read_summary()
    protocol: dict[str, Any] = {}
    report: Any = module.report
    if report is not None:
        protocol = {
            name if "/" in name else f"val/{name}": {**entry, **facts}
            for name, entry in report.protocol.items()
        }
        run_folder.update_summary({"protocol": protocol})
    print_metrics(
        summary.get("metrics", {}),
        {name: metric.meaning for name, metric in METRICS.items()},
        title=f"{summary.get('state', 'done')} at update {summary.get('step', 0)}",
        counts={name: count_told(entry) for name, entry in protocol.items()},
    )
    for name, file in (("Reconstructions", "reconstruction"), ("Samples", "samples")):
        grid = run_folder.images / f"{file}_latest.png"
        if grid.is_file():
            log.info("%s: %s", name, grid)
    log.info("Run folder: %s", run_folder.path)


def _monitored(cfg: DictConfig, module: pl.LightningModule) -> float | None:
    report: Any = module.report
    if report is None:
        return None
    scalars, name = report.scalars, str(cfg.monitor)
    return scalars.get(name, scalars.get(name.removeprefix("val/")))


def _complete_and_train() -> None:
    sys.argv[1:] = continued_arguments(sys.argv[1:])
    _train()


def main() -> None:
    """Entry point of ``ldm-train`` and ``python -m ldm_lightning.train``."""
    end_with_parent()
    run_entry_point(_complete_and_train)


if __name__ == "__main__":
    main()
