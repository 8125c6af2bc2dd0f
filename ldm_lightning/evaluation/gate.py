"""The gate before the second stage: a bad first stage is refused, with numbers and the reason.

A diffusion model cannot be better than its first stage, and takes far longer to train. So held-out
images are reconstructed and measured first, and compared with thresholds of the configuration. An
earlier evaluation of the same weights on the same images is used again.
"""

import logging
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ldm_lightning.builders.data import build_images
from ldm_lightning.builders.first_stage import build_linear_floor, build_metrics
from ldm_lightning.builders.hardware import choose_computing
from ldm_lightning.builders.training import build_features
from ldm_lightning.evaluation.cache import FirstStageRecord
from ldm_lightning.evaluation.reconstruct import evaluation_cache, own_metrics_key, reconstruct
from ldm_lightning.metrics.diagnosis import FirstStageFacts
from ldm_lightning.metrics.features import FeatureSet
from ldm_lightning.metrics.names import meanings
from ldm_lightning.metrics.thresholds import GateVerdict, check_mode, judge, read_thresholds
from ldm_lightning.reporting.table import print_gate
from ldm_lightning.reporting.training_record import TrainingRecord, read_training_record
from ldm_lightning.restore.first_stage import OpenedFirstStage, open_first_stage
from ldm_lightning.restore.run_defaults import with_run_defaults
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.utils.image import save_grid
from ldm_lightning.utils.metadata import count_told

log = logging.getLogger(__name__)


class GateError(ValueError):
    """The first stage is not good enough; the message says in what, why, and what to do."""


def run_gate(
    gate: DictConfig,
    *,
    checkpoint: str | Path,
    weights: str,
    trusted_packages: Collection[str] = (),
    data: DictConfig | None,
    features: DictConfig | None,
    cache_dir: str | Path,
    run_folder: RunFolder,
) -> GateVerdict | None:
    """Measure a first stage on held-out images and judge it; call it on one process.

    Prints the numbers beside the thresholds, writes ``images/gate.png`` (a row of images, a row of
    reconstructions) and ``gate`` in ``summary.json``. The state of torch's global random number
    generator is left as it was.

    Args:
        gate: ``mode``, ``linear_floor`` and ``thresholds``, as in ``conf/gate/default.yaml``.
        checkpoint: The first stage: a ``.ckpt`` file or a run folder.
        weights: ``ema`` or ``raw``.
        trusted_packages: Of the user's own, which the first stage's files may name.
        data: Images whose held-out split is reconstructed; None takes those of
            the first stage's own run.
        features: Feature networks; None takes those of the first stage's own run.
        cache_dir: Where earlier evaluations are looked for and this one is kept.
        run_folder: Of the run that wants to train on it.

    Returns:
        What was found; None with ``mode=skip``.

    Raises:
        GateError: With ``mode=stop``, if a threshold is missed.
        ValueError: If the mode or a threshold makes no sense, or the first stage cannot be read.
    """
    mode = check_mode(gate.mode)
    entries: dict[str, Any] = OmegaConf.to_container(gate.thresholds, resolve=True)  # type: ignore[assignment]
    read_thresholds(entries)  # a typing error is worth knowing before anything is measured
    if mode == "skip":
        log.warning("The gate is skipped (gate.mode=skip): the first stage is not measured.")
        return None
    # networks are initialized before their weights are loaded
    with torch.random.fork_rng(devices=[]):
        first_stage = open_first_stage(
            checkpoint, weights=weights, trusted_packages=trusted_packages
        )
        cfg = _measured_config(first_stage, data=data, features=features, cache_dir=cache_dir)
        feature_set = build_features(cfg)
        record = _record(
            first_stage, cfg, feature_set, run_folder, with_floor=bool(gate.linear_floor)
        )
    conditions = {feature_set.name}
    if first_stage.autoencoder.bottleneck.num_codes is not None:
        conditions.add("codes")
    metrics = {
        name if "/" in name else f"val/{name}": value for name, value in record.scalars.items()
    }
    verdict = judge(
        metrics,
        read_thresholds(entries, conditions=conditions),
        facts=_facts(first_stage, record),
    )
    _tell(verdict, first_stage, record, mode=mode, run_folder=run_folder)
    return verdict


def _measured_config(
    first_stage: OpenedFirstStage,
    *,
    data: DictConfig | None,
    features: DictConfig | None,
    cache_dir: str | Path,
) -> DictConfig:
    """The configuration under which `evaluate` would measure it."""
    given = {
        name: None if node is None else OmegaConf.to_container(node, resolve=True)
        for name, node in (("data", data), ("features", features))
    }
    unknown = dict.fromkeys(("resolution", "image_channels", "eval_crop", "precision"))
    cfg = OmegaConf.create({**unknown, **given, "cache_dir": str(cache_dir)})
    if data is not None:
        cfg.image_channels = data.get("image_channels")
    return with_run_defaults(cfg, first_stage)


def _record(
    first_stage: OpenedFirstStage,
    cfg: DictConfig,
    features: FeatureSet,
    run_folder: RunFolder,
    *,
    with_floor: bool,
) -> FirstStageRecord:
    """The figures of an earlier evaluation, or of one that is made now, and their grid."""
    data = build_images(cfg)
    data.bad_files_path = run_folder.path / "unreadable_files.tsv"
    grid = _grid(run_folder)
    computing = choose_computing(str(cfg.precision))
    protocol = data.protocol("val")
    cache = evaluation_cache(
        first_stage,
        features,
        protocol=protocol,
        precision=computing.precision,
        cache_dir=cfg.cache_dir,
        own_metrics=own_metrics_key(cfg),
        with_floor=with_floor,
    )
    record = cache.load()
    if record is not None:
        log.info("These weights were measured on these images before: %s", cache.path)
        shutil.copyfile(cache.grid, grid)
        return record
    if broken := _not_finite(first_stage):
        raise GateError(
            f"The first stage {first_stage.path} is refused: {broken} NaN or infinite values. It "
            "was damaged, or its training diverged: take an earlier checkpoint, or train it again."
        )
    metrics = build_metrics(cfg, features, autoencoder=first_stage.autoencoder, protocol=protocol)
    floor = None
    if with_floor:
        floor = build_linear_floor(
            first_stage.autoencoder,
            features,
            metrics=metrics,
            protocol=protocol,
            seed=data.loading.seed,
        )
    measured = reconstruct(first_stage, data, metrics, computing=computing, floor=floor)
    save_grid(measured.grid, grid, num_columns=measured.num_columns)
    record = measured.record()
    cache.save(record, grid)
    return record


def _grid(run_folder: RunFolder) -> Path:
    return run_folder.images / "gate.png"


def _not_finite(first_stage: OpenedFirstStage) -> str:
    """Name the weights that are not finite; empty where all are."""
    tensors = first_stage.autoencoder.state_dict()
    names = [name for name, value in tensors.items() if not bool(value.isfinite().all())]
    if not names:
        return ""
    return f"{names[0]} holds" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more hold"


def _facts(first_stage: OpenedFirstStage, record: FirstStageRecord) -> FirstStageFacts:
    """Facts from the checkpoint and its run beside the figures."""
    autoencoder = first_stage.autoencoder
    _, channels, height, width = autoencoder.latent_shape((1, *record.image_shape))
    training = TrainingRecord()
    if first_stage.run is not None and first_stage.step is not None:
        training = read_training_record(
            first_stage.run, step=first_stage.step, stage=first_stage.validated_as
        )
    return FirstStageFacts(
        num_latents=channels * height * width,
        num_positions=record.num_images * height * width,
        num_codes=autoencoder.bottleneck.num_codes,
        downsampling_factor=autoencoder.downsampling_factor,
        kl_weight=OmegaConf.select(first_stage.run_config(), "loss.kl_weight"),
        gray_psnr=record.gray_psnr,
        trained=training.validated,
        same_images=training.is_of(record.protocol["psnr"]),
        psnr_rise=training.psnr_rise,
    )


def _tell(
    verdict: GateVerdict,
    first_stage: OpenedFirstStage,
    record: FirstStageRecord,
    *,
    mode: str,
    run_folder: RunFolder,
) -> None:
    """Print, write down, and stop or warn where the gate is not passed."""
    grid = _grid(run_folder)
    print_gate(
        verdict.rows,
        meanings(),
        title=f"gate: {first_stage.path} on held-out images: {count_told(record.protocol['psnr'])}",
    )
    log.info("Images and their reconstructions: %s", grid)
    facts = {"weights": first_stage.weights, "weights_hash": first_stage.weights_hash}
    run_folder.update_summary(
        {
            "gate": {
                "passed": verdict.passed,
                "mode": mode,
                "checkpoint": str(first_stage.path),
                "metrics": {row.threshold.metric: row.value for row in verdict.rows},
                "wanted": {row.threshold.metric: str(row.threshold) for row in verdict.rows},
                "causes": {cause.name: str(cause) for cause in verdict.causes},
                "protocol": {name: {**entry, **facts} for name, entry in record.protocol.items()},
                "grid": str(grid),
            }
        }
    )
    if verdict.passed:
        return
    message = _refusal(verdict, first_stage, grid)
    if mode == "stop":
        raise GateError(message)
    log.warning("%s", message)


def _refusal(verdict: GateVerdict, first_stage: OpenedFirstStage, grid: Path) -> str:
    """Everything there is to say about a first stage that fails."""
    return "\n".join(
        [
            f"The first stage {first_stage.path} fails the gate: "
            f"{'; '.join(map(str, verdict.failed))}.",
            *(f"Likely cause: {cause}" for cause in verdict.causes),
            f"Look at {grid}: images above, their reconstructions below.",
            "To train on it all the same: gate.mode=warn measures and warns, gate.mode=skip does "
            "not measure.",
        ]
    )
