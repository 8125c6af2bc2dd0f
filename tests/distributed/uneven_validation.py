"""Trains and validates where the images of a validation do not divide among the processes."""

import os
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from ldm_lightning.autoencoder.normalizer import LatentNormalizer
from ldm_lightning.builders.data import build_data
from ldm_lightning.builders.training import build_features, build_trainer
from ldm_lightning.config import CONF_DIR, register_resolvers
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.training.stages import STAGES
from tests.cli.run import tiny
from tests.cli.second_stage import tiny_second

GLOBAL_BATCH_SIZE = 6
NUM_SAMPLES = 5
SCENARIOS = ("first 7", "first 2", "second 7", "second 2")
"""Stage, and number of images that are validated."""


def measured(scenario: str, folder: Path, first_stage: Path, *, num_processes: int) -> list[dict]:
    """What the validation of a fit and one of its own say, through the Trainer of a run."""
    stage, num_images = scenario.split()
    changes: dict[str, Any] = {
        "max_steps": 2,
        "trainer": "cpu" if num_processes == 1 else "ddp_cpu",
        "trainer.devices": num_processes,
        "trainer.precision": 64,
        "data.batch_size": GLOBAL_BATCH_SIZE // num_processes,
        "data.val_batch_size": 2,
        "data.num_val_images": num_images,
        "callbacks.progress": "null",
        "cache_dir": folder / "cache" / scenario.replace(" ", "_"),
    }
    if stage == "first":
        words = tiny("vqvae_f8", **changes)
    else:
        samples = {"validation.num_samples": NUM_SAMPLES}
        words = tiny_second(first_stage, "ldm_dit_s", **changes, **samples, downsampling_factor=8)
    run_folder = RunFolder.create(folder / scenario.replace(" ", "_"))
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("train", overrides=[*words, f"output_dir={run_folder.path}"])
    torch.manual_seed(cfg.seed)
    features, data = build_features(cfg), build_data(cfg)
    data.num_train_batches = cfg.max_steps
    trainer = build_trainer(cfg, run_folder)
    module = STAGES[stage].build_module(cfg, data, features, num_devices=trainer.world_size)
    STAGES[stage].measure(cfg, module, data)
    if stage == "second" and trainer.global_rank > 0:  # must follow what the first one measured
        module.first_stage.set_normalizer(LatentNormalizer.identity(cfg.latent_channels))
    reports = []
    for run in (trainer.fit, trainer.validate):
        run(module, data)
        report = module.report
        counts = {name: entry["num_images"] for name, entry in report.protocol.items()}
        seen = {"scalars": report.scalars, "num_images": report.num_images, "counts": counts}
        if stage == "first":
            seen["histogram"] = report.codebook_histogram
        reports.append(seen)
    return reports


def work(rank: int, folder: str, first_stage: str, place: dict[str, str]) -> None:
    """Measure every scenario as one of several processes; store it as ``<rank>.pt``."""
    torch.set_num_threads(1)
    found = {}
    for scenario in SCENARIOS:
        # Again, because Lightning removes WORLD_SIZE after each fit.
        os.environ |= {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        found[scenario] = measured(
            scenario, Path(folder), Path(first_stage), num_processes=int(place["WORLD_SIZE"])
        )
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
