"""Measure a first stage from its checkpoint, or one folder of images against another.

    python -m ldm_lightning.evaluate checkpoint=outputs/kl_f8/RUN
    python -m ldm_lightning.evaluate checkpoint=RUN data=image_folder data.root=PHOTOS
    python -m ldm_lightning.evaluate images=SAMPLES reference=PHOTOS
    python -m ldm_lightning.evaluate images=SAMPLES/images data=image_folder data.root=PHOTOS

With the data of the run, the same weights and the same precision the figures are those of its
validation, under ``test/*``. Processes that torchrun or srun starts share the images.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ldm_lightning.checks.keys import check_keys
from ldm_lightning.cli import handle_user_errors, record_end, run_entry_point, run_lock
from ldm_lightning.config import CONF_DIR
from ldm_lightning.distributed.processes import end_with_parent
from ldm_lightning.utils.launch import launched

if TYPE_CHECKING:
    from ldm_lightning.data.images.folder_batches import FolderSizes
    from ldm_lightning.runs.run_folder import RunFolder

log = logging.getLogger(__name__)


SIZES_MATTER = (
    "the feature network sees all at one size, and the distance counts what resizing changes. "
    "Bring both to one size."
)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="evaluate")
def _evaluate(cfg: DictConfig) -> None:
    with handle_user_errors():
        runtime = HydraConfig.get().runtime
        check_keys(cfg, runtime.choices, command="evaluate")
        evaluate(cfg, Path(runtime.output_dir))


def evaluate(cfg: DictConfig, folder: Path) -> dict[str, float]:
    """Measure what the configuration names; print, write ``summary.json``, return the metrics.

    Raises:
        ValueError: If neither or both of a checkpoint and two folders are named.
    """
    measure = _choose(cfg)
    from ldm_lightning.runs.run_folder import RunFolder
    from ldm_lightning.utils.collectives import joined_processes
    from ldm_lightning.utils.memory import keep_freed_memory

    keep_freed_memory()
    run_folder, is_first = RunFolder.create(folder, folders=["images"]), launched().is_first
    with run_lock(run_folder, is_first=is_first), record_end(run_folder, is_first=is_first):
        with joined_processes():
            if is_first:
                run_folder.update_summary({"state": "running", "name": "evaluate"})
            changes = measure(cfg, run_folder)
        if is_first:
            _finish(changes, run_folder)
    return dict(changes["metrics"])


def _choose(cfg: DictConfig) -> Callable[[DictConfig, RunFolder], dict[str, Any]]:
    """Choose the action for the arguments given.

    Raises:
        ValueError: If that is nothing, or too much.
    """
    named = {key for key in ("checkpoint", "images", "reference") if cfg[key] is not None}
    if named == {"checkpoint"}:
        return _measure_checkpoint
    if named == {"images", "reference"}:
        return _compare_folders
    if named == {"images"} and cfg.get("data") is not None:
        return _compare_with_data
    raise ValueError(
        "Give either checkpoint=..., or images=DIR and reference=DIR, or images=DIR and data=...; "
        f"got checkpoint={cfg.checkpoint}, images={cfg.images}, reference={cfg.reference}."
    )


def _measure_checkpoint(cfg: DictConfig, run_folder: RunFolder) -> dict[str, Any]:
    """Reconstruct a split with the autoencoder of a checkpoint."""
    import torch

    from ldm_lightning.builders.data import build_images
    from ldm_lightning.builders.first_stage import build_linear_floor, build_metrics
    from ldm_lightning.builders.hardware import choose_computing
    from ldm_lightning.builders.training import build_features
    from ldm_lightning.config import plain
    from ldm_lightning.evaluation.reconstruct import evaluation_cache, own_metrics_key, reconstruct
    from ldm_lightning.metrics.efficiency import (
        bits_per_pixel,
        compression_ratio,
        measure_throughput,
    )
    from ldm_lightning.restore.first_stage import open_first_stage
    from ldm_lightning.restore.run_defaults import with_run_defaults
    from ldm_lightning.utils.image import save_grid
    from ldm_lightning.utils.provenance import peak_memory

    first_stage = open_first_stage(
        cfg.checkpoint, weights=cfg.weights, trusted_packages=cfg.trusted_packages
    )
    cfg = with_run_defaults(cfg, first_stage)
    computing = choose_computing(str(cfg.precision))
    features = build_features(cfg)  # first: weights may be missing, data may be slow to list
    data = build_images(cfg)
    data.bad_files_path = run_folder.path / "unreadable_files.tsv"
    protocol, autoencoder = data.protocol("val"), first_stage.autoencoder
    metrics = build_metrics(cfg, features, autoencoder=autoencoder, protocol=protocol)
    floor = None
    if cfg.linear_floor:
        floor = build_linear_floor(
            autoencoder, features, metrics=metrics, protocol=protocol, seed=data.loading.seed
        )
    measured = reconstruct(first_stage, data, metrics, computing=computing, floor=floor)
    with torch.inference_mode(), computing.autocast():
        throughput = measure_throughput(autoencoder, measured.first)
    cache = evaluation_cache(
        first_stage,
        features,
        protocol=protocol,
        precision=computing.precision,
        cache_dir=cfg.cache_dir,
        own_metrics=own_metrics_key(cfg),
        with_floor=cfg.linear_floor,
    )
    if launched().is_first:
        grid = run_folder.images / "reconstruction_latest.png"
        save_grid(measured.grid, grid, num_columns=measured.num_columns)
        cache.save(measured.record(), grid)  # the gate reads it
    report = measured.report
    named = {f"test/{name}": value for name, value in report.scalars.items()}
    extra = {
        "perf/encode_images_per_s": throughput.encode_images_per_s,
        "perf/decode_images_per_s": throughput.decode_images_per_s,
        "test/compression_ratio": compression_ratio(autoencoder, tuple(measured.first.shape)),
    }
    bits = bits_per_pixel(autoencoder)
    if bits is not None:
        extra["test/bits_per_pixel"] = bits
    facts = {
        "weights": first_stage.weights,
        "precision": computing.precision,
        "checkpoint": str(first_stage.path),
    }
    told = {}
    if report.linear_floor is not None:
        told["linear_floor"] = {
            **report.linear_floor.scalars,
            "protocol": report.linear_floor.protocol,
        }
    return {
        **told,
        "metrics": {**named, **report.latent_scalars, **extra},
        "protocol": {f"test/{name}": {**entry, **facts} for name, entry in report.protocol.items()},
        "per_channel": report.per_channel,
        "parameters": {"autoencoder": sum(p.numel() for p in autoencoder.parameters())},
        "memory": peak_memory(computing.device),
        "config": plain(cfg),
        "num_unreadable_files": len(data.bad_files()),
    }


def _compare_folders(cfg: DictConfig, run_folder: RunFolder) -> dict[str, Any]:
    """Measure one folder against another; paired where all names agree."""
    import torch
    from hydra.utils import instantiate

    from ldm_lightning.data.images.folder_batches import FolderSizes, folder_batches
    from ldm_lightning.data.images.folder_listing import list_images
    from ldm_lightning.data.left_out import say_what_is_not_read
    from ldm_lightning.evaluation.folders import (
        ImagePair,
        compare_pairs,
        compare_sets,
        measured_facts,
        reference_facts,
    )
    from ldm_lightning.metrics.features import tiny_features
    from ldm_lightning.storage.content import FileHashes
    from ldm_lightning.utils.collectives import num_processes, process_rank

    features = instantiate(cfg.features) if cfg.get("features") else tiny_features()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    channels = cfg.image_channels or 3
    roots = [Path(cfg.images), Path(cfg.reference)]
    listings = [list_images(roots[0], key="images"), list_images(roots[1], key="reference")]
    for listing, key in zip(listings, ("images", "reference"), strict=True):
        say_what_is_not_read(listing.left_out, f"{key}={listing.root}")
    names = [listing.names for listing in listings]
    sizes = [FolderSizes(root, listed) for root, listed in zip(roots, names, strict=True)]
    hashes = FileHashes(cfg.cache_dir)
    protocol = {
        **measured_facts(roots[0], names[0], hashes),
        "measured_size": str(sizes[0]),
        **reference_facts(roots[1], names[1], hashes),
        "reference_size": str(sizes[1]),
    }
    paired = names[0] == names[1]
    _check_sizes(sizes, names[0] if paired else None)
    names = [listed[process_rank() :: num_processes()] for listed in names]
    if paired:
        # One image at a time: a pair must have one size, images beside each other need not.
        batches = [
            folder_batches(root, listed, channels=channels, batch_size=1)
            for root, listed in zip(roots, names, strict=True)
        ]
        pairs = (ImagePair(left, right) for left, right in zip(*batches, strict=True))
        report = compare_pairs(pairs, features, device=device, protocol=protocol)
    else:
        log.info("The names of the two folders differ: compared as sets, not pair by pair.")
        left, right = (
            folder_batches(root, listed, channels=channels, batch_size=cfg.batch_size)
            for root, listed in zip(roots, names, strict=True)
        )
        report = compare_sets(left, right, features, device=device, protocol=protocol)
    return {
        "metrics": {f"test/{name}": value for name, value in report.scalars.items()},
        "protocol": {f"test/{name}": entry for name, entry in report.protocol.items()},
    }


def _check_sizes(sizes: Sequence[FolderSizes], pairs: Sequence[str] | None) -> None:
    """Warn where two folders hold images of different sizes.

    Raises:
        ValueError: If the two images of a pair differ in size.
    """
    for name, one, other in zip(pairs or (), sizes[0].each, sizes[1].each, strict=False):
        if one != other:
            raise ValueError(
                f"{name} is {one[0]}x{one[1]} in images and {other[0]}x{other[1]} in reference; "
                "images of the same names are compared pixel by pixel. Bring both to one size."
            )
    if len(sizes[0].distinct | sizes[1].distinct) > 1 and launched().is_first:
        log.warning("images are %s, reference %s: %s", *sizes, SIZES_MATTER)


def _compare_with_data(cfg: DictConfig, run_folder: RunFolder) -> dict[str, Any]:
    """Measure a folder of generated images against the held-out images of a data set."""
    import torch
    from hydra.utils import instantiate

    from ldm_lightning.builders.data import build_images
    from ldm_lightning.data.images.folder_batches import FolderSizes, folder_batches
    from ldm_lightning.data.images.folder_listing import list_images
    from ldm_lightning.data.left_out import say_what_is_not_read
    from ldm_lightning.evaluation.folders import compare_sets, measured_facts
    from ldm_lightning.metrics.features import tiny_features
    from ldm_lightning.storage.content import FileHashes
    from ldm_lightning.utils.collectives import num_processes, process_rank

    root, cfg = Path(cfg.images), cfg.copy()
    OmegaConf.set_struct(cfg, False)
    listing = list_images(root, key="images")
    say_what_is_not_read(listing.left_out, f"images={root}")
    names, sizes = listing.names, FolderSizes(root, listing.names)
    features = instantiate(cfg.features) if cfg.get("features") else tiny_features()
    first = next(folder_batches(root, names[:1], channels=cfg.image_channels or 3, batch_size=1))
    cfg.image_channels = first.shape[1]
    cfg.resolution = cfg.resolution or list(first.shape[2:])
    cfg.eval_crop = cfg.eval_crop or "center"
    cfg.train_crop = cfg.train_crop or "center"
    data = build_images(cfg)
    data.bad_files_path = run_folder.path / "unreadable_files.tsv"
    if sizes.distinct != {data.resolution} and launched().is_first:
        log.warning(
            "images=%s are %s, the references %dx%d: %s",
            *(root, sizes, *data.resolution, SIZES_MATTER),
        )
    report = compare_sets(
        folder_batches(
            root,
            names[process_rank() :: num_processes()],
            channels=cfg.image_channels,
            batch_size=cfg.batch_size,
        ),
        (batch["image"] for batch in data.val_dataloader()),
        features,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        protocol={
            **data.protocol("val"),
            **measured_facts(root, names, FileHashes(cfg.cache_dir)),
            "measured_size": str(sizes),
        },
    )
    return {
        "metrics": {f"gen/{name}": value for name, value in report.scalars.items()},
        "protocol": {f"gen/{name}": entry for name, entry in report.protocol.items()},
        "num_unreadable_files": len(data.bad_files()),
    }


def _finish(changes: dict[str, Any], run_folder: RunFolder) -> None:
    from ldm_lightning.metrics.names import meanings, own_meanings
    from ldm_lightning.reporting.table import print_metrics
    from ldm_lightning.utils.metadata import count_told
    from ldm_lightning.utils.provenance import git_commit, package_versions

    provenance = {"versions": package_versions(), "commit": git_commit()}
    told = {"state": "finished", "own_metrics": own_meanings(), **provenance}
    run_folder.update_summary({**told, **changes})
    print_metrics(
        changes["metrics"],
        meanings(),
        title="evaluation",
        counts={name: count_told(entry) for name, entry in changes["protocol"].items()},
    )
    log.info("Run folder: %s", run_folder.path)


def main() -> None:
    """Entry point of ``ldm-evaluate`` and ``python -m ldm_lightning.evaluate``."""
    end_with_parent()
    run_entry_point(_evaluate)


if __name__ == "__main__":
    main()
