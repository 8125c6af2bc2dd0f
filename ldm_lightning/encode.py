"""Encode a data set into a latent cache: moments, labels, names, statistics.

    python -m ldm_lightning.encode checkpoint=outputs/kl_f8/RUN output=LATENTS
    torchrun --nproc-per-node 8 -m ldm_lightning.encode checkpoint=RUN output=LATENTS

Images are cut as for evaluation. Started again with the same words, it keeps what is intact; with
other weights, data or settings it refuses the folder and says what differs. Of several processes
each writes its own shards.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from ldm_lightning.checks.keys import check_keys
from ldm_lightning.cli import handle_user_errors, record_end, run_entry_point, run_lock
from ldm_lightning.config import CONF_DIR
from ldm_lightning.distributed.processes import end_with_parent
from ldm_lightning.utils.launch import launched

if TYPE_CHECKING:
    from ldm_lightning.data.image_module import ImageDataModule
    from ldm_lightning.data.latents.writing import Encode, SplitWriter
    from ldm_lightning.restore.first_stage import OpenedFirstStage
    from ldm_lightning.runs.run_folder import RunFolder
    from ldm_lightning.storage.content import FileHashes

log = logging.getLogger(__name__)

DTYPES = ("float32", "float16")
SPLITS = ("train", "val")


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="encode")
def _encode(cfg: DictConfig) -> None:
    with handle_user_errors():
        check_keys(cfg, HydraConfig.get().runtime.choices, command="encode")
        encode(cfg)


def encode(cfg: DictConfig) -> None:
    """Fill ``cfg.output`` with what the configuration names; write its ``summary.json``.

    Raises:
        ValueError: If a value makes no sense, or the folder holds a cache of other things.
    """
    _check(cfg)
    from ldm_lightning.runs.run_folder import RunFolder
    from ldm_lightning.utils.collectives import joined_processes
    from ldm_lightning.utils.memory import keep_freed_memory

    keep_freed_memory()
    run_folder = RunFolder.create(cfg.output, folders=[])
    is_first = launched().is_first
    with run_lock(run_folder, is_first=is_first), record_end(run_folder, is_first=is_first):
        with joined_processes():
            changes = _encode_splits(cfg, run_folder)
        if is_first:
            run_folder.update_summary({"state": "finished", **changes})
            log.info("Latent cache: data=latents data.root=%s", run_folder.path)


def _check(cfg: DictConfig) -> None:
    if OmegaConf.is_missing(cfg, "checkpoint"):
        raise ValueError("No value for checkpoint: give checkpoint=RUN, a run folder or a .ckpt.")
    splits = list(cfg.splits) if isinstance(cfg.splits, ListConfig) else [cfg.splits]
    if not splits or not set(splits) <= set(SPLITS):
        raise ValueError(f"splits must be some of {list(SPLITS)}, got {cfg.splits}.")
    if cfg.dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {cfg.dtype!r}.")


def _encode_splits(cfg: DictConfig, run_folder: RunFolder) -> dict[str, Any]:
    """Write the splits, one after the other; returns what to put into the summary."""
    from ldm_lightning.autoencoder.frozen import Moments
    from ldm_lightning.builders.data import build_images
    from ldm_lightning.builders.hardware import choose_computing
    from ldm_lightning.config import plain
    from ldm_lightning.data.latents.cache import LatentIndex
    from ldm_lightning.restore.first_stage import open_first_stage
    from ldm_lightning.storage.content import FileHashes
    from ldm_lightning.utils.provenance import git_commit, package_versions, peak_memory

    opened = open_first_stage(
        cfg.checkpoint, weights=cfg.weights, trusted_packages=cfg.trusted_packages
    )
    cfg = _with_run_defaults(cfg, opened)
    computing = choose_computing(str(cfg.precision))
    data = build_images(cfg)
    writers = [
        _writer(cfg, split, data, opened, run_folder.path / split, computing.precision)
        for split in SPLITS
        if split in cfg.splits
    ]  # all of them first: a folder that holds something else is refused before the work
    if writers[0].rank == 0:
        run_folder.update_summary({"state": "running", "name": "encode"})
    first_stage = opened.frozen().to(computing.device, computing.dtype)

    def moments(images: Any) -> Moments:
        with computing.autocast():
            return first_stage.moments(
                images.to(computing.device, computing.dtype, non_blocking=True)
            )

    log.info("Weights: %s of %s. Precision: %s.", opened.weights, opened.path, computing.precision)
    hashes = FileHashes(cfg.cache_dir)
    changes: dict[str, Any] = {"latents": {}, "metrics": {}, "timing": {}}
    for writer in writers:
        split = writer.split
        speed = _fill(writer, moments, hashes, bad_files=run_folder.path / "unreadable_files.tsv")
        if speed is not None:
            changes["timing"][f"{split}_images_per_s"] = speed
        changes["latents"][split] = {
            "num_samples": LatentIndex.load(writer.folder).num_samples,
            **writer.index.provenance,
            **writer.index.made_at,
        }
        if split == "train":
            changes |= _statistics(writer, run_folder)
    return changes | {
        "memory": peak_memory(computing.device),
        "versions": package_versions(),
        "commit": git_commit(),
        "config": plain(cfg),
    }


def _with_run_defaults(cfg: DictConfig, opened: OpenedFirstStage) -> DictConfig:
    """Fill what was not given from the checkpoint and its run, the crop of its data included."""
    from ldm_lightning.restore.run_defaults import with_run_defaults

    takes_run_data = cfg.get("data") is None
    # It fills feature networks too; there is no use for them here.
    cfg = with_run_defaults(OmegaConf.merge({"features": {}}, cfg), opened)  # type: ignore[arg-type]
    if takes_run_data and "eval_crop" in cfg.data:
        cfg.data.eval_crop = cfg.eval_crop
    return cfg


def _writer(
    cfg: DictConfig,
    split: str,
    data: ImageDataModule,
    opened: OpenedFirstStage,
    folder: Path,
    precision: str,
) -> SplitWriter:
    """Plan what is written for a split, after refusing a folder that holds something else."""
    import torch

    from ldm_lightning.data.latents.cache import INDEX, LatentIndex, files_of_others
    from ldm_lightning.data.latents.writing import SplitWriter
    from ldm_lightning.data.samples import image_facts
    from ldm_lightning.utils.collectives import num_processes, process_rank

    dataset = data.val_dataset if split == "val" else data.train_dataset
    dataset = dataset.without_augmentation()
    indices = data.val_indices if split == "val" else list(range(len(dataset)))
    facts = image_facts(dataset, indices)
    _, *latent_shape = opened.autoencoder.latent_shape((1, 0, *dataset.resolution))
    index = LatentIndex(
        provenance={
            "first_stage_hash": opened.weights_hash,
            **{name: value for name, value in facts.items() if name != "root"},
            "flip": bool(cfg.flip) and split == "train",  # nothing mirrors what is evaluated
            "dtype": cfg.dtype,
            "precision": precision,
            "images_per_shard": cfg.images_per_shard,
        },
        made_at={
            "first_stage": str(opened.path.absolute()),
            "weights": opened.weights,
            "root": str(facts["root"]),
        },
        latent_shape=(latent_shape[0], latent_shape[1], latent_shape[2]),
        has_variance=opened.autoencoder.bottleneck.is_stochastic,
        num_classes=dataset.num_classes,
        class_names=dataset.class_names,
    )
    if (folder / INDEX).exists():
        LatentIndex.load(folder).check(
            index.provenance,
            folder=folder,
            remedy=f"Choose another output=, or delete {folder}.",
        )
    elif strange := files_of_others(folder):
        raise ValueError(
            f"{strange[0]} belongs to no latent cache, and encoding could replace it. Choose "
            "another output."
        )
    return SplitWriter(
        folder,
        index,
        dataset,
        indices,
        images_per_shard=cfg.images_per_shard,
        dtype=getattr(torch, cfg.dtype),
        batch_size=data.loading.val_batch_size,
        num_workers=data.loading.num_workers,
        worker_timeout_seconds=data.loading.worker_timeout_seconds,
        rank=process_rank(),
        num_processes=num_processes(),
    )


def _fill(
    writer: SplitWriter, encode: Encode, hashes: FileHashes, *, bad_files: Path
) -> float | None:
    """Write what is missing, then the index; returns images a second of this process."""
    from ldm_lightning.data.latents.cache import INDEX
    from ldm_lightning.utils.collectives import wait_for_all

    writer.folder.mkdir(exist_ok=True)
    if writer.rank == 0 and not (writer.folder / INDEX).exists():
        writer.index.save(writer.folder)  # an interrupted cache is recognized by it
    if writer.dataset.bad_file_log is not None:
        writer.dataset.bad_file_log.write_to(bad_files)
    pending = writer.pending()
    log.info(
        "%s: %d images, %d shards, of which %d are to be made.",
        writer.split,
        len(writer.indices),
        len(writer.own_shards),
        len(pending),
    )
    speed = _write_shards(writer, pending, encode) if pending else None
    wait_for_all()
    if writer.rank == 0:
        writer.finished_index(hashes).save(writer.folder)
    wait_for_all()  # all read the index
    return speed


def _write_shards(writer: SplitWriter, pending: list[int], encode: Encode) -> float:
    """Write shards under a bar with the time left; returns images a second."""
    from ldm_lightning.utils.progress import long_task

    total, done, start = writer.num_images(pending), 0, time.monotonic()
    with long_task(f"encoding {writer.split}", total=total, unit="images") as advance:
        for number in writer.write(pending, encode):
            done += number
            advance(number)
    return done / (time.monotonic() - start)


def _statistics(writer: SplitWriter, run_folder: RunFolder) -> dict[str, Any]:
    """Measure what the shards hold, over all processes; write ``statistics.json``."""
    from ldm_lightning.data.latents.cache import STATISTICS
    from ldm_lightning.metrics.latents import measure_statistics

    provenance = dict(writer.index.provenance)
    del provenance["images_per_shard"]  # changes no value
    statistics = measure_statistics(
        writer.moments(),
        num_channels=writer.index.latent_shape[0],
        first_stage_hash=str(provenance.pop("first_stage_hash")),
        protocol=provenance,
    )
    if writer.rank == 0:
        statistics.save(run_folder.path / STATISTICS)
        log.info(
            "Latents of %d images: mean %.4f, standard deviation %.4f.",
            statistics.num_images,
            statistics.mean,
            statistics.std,
        )
    return {
        "metrics": {"latent/mean": statistics.mean, "latent/std": statistics.std},
        "per_channel": {
            "latent/mean": list(statistics.channel_means),
            "latent/std": list(statistics.channel_stds),
        },
    }


def main() -> None:
    """Entry point of ``ldm-encode`` and ``python -m ldm_lightning.encode``."""
    end_with_parent()
    run_entry_point(_encode)


if __name__ == "__main__":
    main()
