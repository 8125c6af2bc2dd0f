"""The configuration: where it is, its resolvers, and checks across keys.

Together with the builders and the doors the only place that sees a DictConfig. Nothing here
imports torch, so that help and printed configurations come at once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, ListConfig, OmegaConf

from ldm_lightning.metrics.names import METRICS
from ldm_lightning.metrics.thresholds import check_mode
from ldm_lightning.runs.folder_choice import run_dir
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.storage.home import cache_folder, expanded

log = logging.getLogger(__name__)

_HERE = Path(__file__).resolve().parent
CONF_DIR = next(
    path for path in (_HERE / "conf", _HERE.parent / "conf") if (path / "train.yaml").is_file()
)
"""The configuration folder: inside an installed wheel, else beside the package in a checkout."""

PUBLISHED_WIDTHS = {
    "kl": {1: [1], 2: [1, 2], 4: [1, 2, 4], 8: [1, 2, 4, 4], 16: [1, 1, 2, 2, 4], 32: [1, 1, 2, 2,
    4, 4]}, "vq": {1: [1], 2: [1, 2], 4: [1, 2, 4], 8: [1, 2, 2, 4], 16: [1, 1, 2, 2, 4], 32: [1, 1,
    2, 2, 4, 4]},
}  # fmt: skip
"""Width multipliers by family and downsampling factor, after Rombach et al. 2022, Table 8 and 9."""

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed", "64": "64-true"}


# Resolvers


def _width_multipliers(factor: int, patch_size: int, family: str = "kl") -> ListConfig:
    """Multipliers of the levels from ``patch_size`` pixels a position on."""
    widths = PUBLISHED_WIDTHS[family]
    if factor not in widths:
        raise ValueError(
            f"autoencoder.downsampling_factor must be one of {sorted(widths)}, got {factor}; for "
            "another factor give autoencoder.width_multipliers, one a level."
        )
    if patch_size not in widths or patch_size > factor:
        raise ValueError(
            "autoencoder.patch_size must be a power of two up to the downsampling factor "
            f"{factor}, got {patch_size}."
        )
    return OmegaConf.create(widths[factor][patch_size.bit_length() - 1 :])


def _higher_is_better(name: str, *, _root_: DictConfig) -> bool:
    """Return whether a higher value is better of a metric such as ``val/psnr``; terms fall."""
    own = name.removeprefix("val/")
    if OmegaConf.select(_root_, f"loss.terms.{own}") is not None:
        return False
    if (target := OmegaConf.select(_root_, f"metrics.{own}._target_")) is not None:
        direction = getattr(get_class(str(target)), "higher_is_better", None)
        if direction is None:
            raise ValueError(f"{name!r} cannot be monitored: neither way is better.")
        return bool(direction)
    metric = METRICS.get(name.removeprefix("val/").removeprefix("gen/"))
    if metric is None or metric.higher_is_better is None:
        directed = [f"val/{key}" for key, m in METRICS.items() if m.higher_is_better is not None]
        raise ValueError(f"{name!r} cannot be monitored; choose from {', '.join(directed)}.")
    return metric.higher_is_better


def _search_direction(name: str, *, _root_: DictConfig) -> str:
    return "maximize" if _higher_is_better(name, _root_=_root_) else "minimize"


def _directions(names: list[str], *, _root_: DictConfig) -> dict[str, str]:
    return {name: "max" if _higher_is_better(name, _root_=_root_) else "min" for name in names}


def _threads_of_a_job(n_jobs: int) -> int:
    """An equal share of the cores that this process may use, at least one thread."""
    affinity = getattr(os, "sched_getaffinity", None)  # SLURM gives a job some; macOS has none
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // max(1, n_jobs))


def register_resolvers() -> None:
    """Make the resolvers of conf/ known; harmless when repeated."""
    resolvers: dict[str, Callable[..., Any]] = {
        "width_multipliers": _width_multipliers,
        "smaller": min,
        "output_of": lambda pixel: "logits" if pixel == "bernoulli" else "images",
        "run_dir": run_dir,
        "created": lambda path: str(
            RunFolder.create(expanded(path, key="output_dir"), folders=[]).path
        ),
        "cache_dir": lambda: str(cache_folder()),
        "higher_is_better": _higher_is_better,
        "search_direction": _search_direction,
        "threads_of_a_job": _threads_of_a_job,
        "directions": _directions,
    }
    for name, function in resolvers.items():
        # Cached: a run's folder carries the time and must not change between two readings.
        OmegaConf.register_new_resolver(name, function, replace=True, use_cache=name == "run_dir")


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as dicts and lists."""
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


# Checks


def check_values(cfg: DictConfig) -> list[str]:
    """Check values against each other before anything is built.

    Returns:
        Warnings about settings that are allowed and probably not meant.

    Raises:
        ValueError: Naming the keys, their values and what to change.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if cfg.dry_run:  # needs no data
        missing = [key for key in missing if not key.startswith("data.")]
    if missing:
        raise ValueError(f"No value for {', '.join(missing)}: give {missing[0]}=VALUE.")
    if not (cfg.train or cfg.dry_run) and (cfg.checkpoint is None or cfg.resume is not None):
        raise ValueError(
            "train=false validates the weights of a checkpoint: give checkpoint=..., and no resume."
        )
    if cfg.dry_run and cfg.resume is not None:
        raise ValueError(f"dry_run=true builds a run anew: leave resume={cfg.resume} out.")
    size = [cfg.resolution] * 2 if isinstance(cfg.resolution, int) else list(cfg.resolution)
    second = cfg.stage == "second"
    factor = cfg.downsampling_factor if second else cfg.autoencoder.downsampling_factor
    if any(side % factor for side in size):
        raise ValueError(
            f"resolution={cfg.resolution} is not divisible by "
            f"{'' if second else 'autoencoder.'}downsampling_factor={factor}; use for instance "
            f"{_divisible(size, factor)}."
        )
    if str(cfg.trainer.precision) not in (*PRECISIONS, "auto"):
        raise ValueError(
            f"trainer.precision must be one of {[*PRECISIONS, 'auto']}, got "
            f"{cfg.trainer.precision}."
        )
    if cfg.trainer.strategy == "fsdp":
        _check_sharding(cfg)
    if second:
        _check_denoiser_size(cfg, size)
        return _check_second_stage(cfg)
    if "denoiser" in cfg:
        raise ValueError(
            "denoiser=... belongs to a second stage: choose experiment=ldm_kl_f8 or another ldm_*."
        )
    if not cfg.discriminator._target_:
        return []
    trainer = cfg.trainer
    if trainer.accelerator == "cpu" and trainer.devices != "auto":
        check_batch_norm(cfg, num_processes=trainer.devices * trainer.num_nodes)
    return _check_loss(cfg)


def _divisible(size: list[int], factor: int) -> str:
    """The words for the next smaller size that is divisible by a factor."""
    height, width = (max(factor, side - side % factor) for side in size)
    return f"resolution={height}" if height == width else f"resolution=[{height},{width}]"


def _check_denoiser_size(cfg: DictConfig, size: list[int]) -> None:
    """Refuse latents that the denoiser would refuse in its first update."""
    halved = len(cfg.denoiser.get("width_multipliers", [1])) - 1
    factor = cfg.denoiser.get("patch_size", 2**halved)
    if any(side // cfg.downsampling_factor % factor for side in size):
        latents = "x".join(str(side // cfg.downsampling_factor) for side in size)
        raise ValueError(
            f"resolution={cfg.resolution} gives latents of {latents}, which the denoiser cannot "
            f"divide by {factor}; use for instance "
            f"{_divisible(size, cfg.downsampling_factor * factor)}."
        )


def _check_second_stage(cfg: DictConfig) -> list[str]:
    check_mode(cfg.gate.mode)
    if cfg.validation.num_samples == 1:
        raise ValueError(
            "validation.num_samples=1 cannot be compared with a set of images: give at least 2, or "
            "0 to generate none."
        )
    if not cfg.validation.num_samples and str(cfg.monitor).startswith("gen/"):
        raise ValueError(
            f"monitor={cfg.monitor} needs samples, and validation.num_samples=0 generates none; "
            "set monitor=val/loss."
        )
    if cfg.first_stage.checkpoint is None and not cfg.dry_run:
        raise ValueError(
            "A second stage needs a first one: give first_stage.checkpoint=RUN, or let python -m "
            "ldm_lightning.pipeline with the same words train one."
        )
    return []


def _check_sharding(cfg: DictConfig) -> None:
    if cfg.stage == "first":
        raise ValueError(
            "trainer=fsdp shards the weights of a second stage, and this experiment trains a first "
            "one: use trainer=ddp (in a pipeline first_stage.overrides=['trainer=ddp'])."
        )
    if str(cfg.trainer.precision) == "fp16":
        raise ValueError(
            "trainer=fsdp computes in trainer.precision=32, bf16 or 64, got fp16, whose loss "
            "scaling is not supported over sharded gradients: use bf16, or trainer=ddp."
        )
    if cfg.trainer.compile:
        raise ValueError("trainer.compile=true does not go with trainer=fsdp: use trainer=ddp.")
    if str(cfg.optim._target_).endswith(".Muon"):
        raise ValueError(
            "optim=muon needs whole matrices, which trainer=fsdp shards: use trainer=ddp, or "
            "optim=adam."
        )


def check_batch_norm(cfg: DictConfig, *, num_processes: int) -> None:
    """Refuse BatchNorm in the discriminator over several processes without GPUs.

    Raises:
        ValueError: Saying what to use instead.
    """
    normalization = cfg.discriminator.get("normalization")
    if normalization == "batch" and num_processes > 1:
        raise ValueError(
            "discriminator.normalization=batch needs the statistics of all processes, which torch "
            f"gathers on GPUs alone; got {num_processes} processes on the CPU. Use trainer=cpu, or "
            "discriminator.normalization=group."
        )


def _check_loss(cfg: DictConfig) -> list[str]:
    loss = cfg.loss
    starts = [loss.discriminator_start_steps, loss.discriminator_start_fraction]
    if sum(start is not None for start in starts) != 1:
        raise ValueError(
            "Give one of loss.discriminator_start_steps and loss.discriminator_start_fraction, and "
            f"null for the other; got {starts[0]} and {starts[1]}."
        )
    start = discriminator_start(cfg)
    if start >= cfg.max_steps:
        return [
            f"The discriminator starts at update {start}, which max_steps={cfg.max_steps} never "
            "reaches: this run trains without. Lower loss.discriminator_start_steps."
        ]
    if start + loss.discriminator_ramp_steps >= cfg.max_steps:
        return [
            "The adversarial weight is still rising when the run ends (update "
            f"{start + loss.discriminator_ramp_steps} of {cfg.max_steps}); lower "
            "loss.discriminator_ramp_steps."
        ]
    return []


def discriminator_start(cfg: DictConfig) -> int:
    """Update in which the generator first sees the discriminator."""
    start = cfg.loss.discriminator_start_steps
    return (
        round(cfg.loss.discriminator_start_fraction * cfg.max_steps)
        if start is None
        else int(start)
    )
