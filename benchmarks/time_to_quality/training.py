"""One arm: a first stage trained for minutes, ours or the original's."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from omegaconf import DictConfig
from torch import Tensor

from benchmarks.ours import OURS
from benchmarks.time_to_quality.cases import (
    Setting,
    count,
    discriminator_fraction,
    original_configuration,
    our_configuration,
)
from benchmarks.time_to_quality.clock import TrainingClock
from benchmarks.time_to_quality.measuring import Measuring, callbacks_of
from benchmarks.time_to_quality.original import OriginalModule
from ldm_lightning.builders.data import build_images
from ldm_lightning.builders.first_stage import stored_first_stage
from ldm_lightning.builders.training import learning_rate
from ldm_lightning.data.image_module import ImageDataModule
from ldm_lightning.data.module import MapDataModule
from ldm_lightning.restore.first_stage import build_autoencoder
from ldm_lightning.restore.stored_config import Composition
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.training.check import CheckedRun
from ldm_lightning.training.steps import build, load, prepare
from ldm_lightning.utils.memory import keep_freed_memory

ORIGINAL = "original"
WITHOUT = "original_without_discriminator"
SEARCH = "search"
"""Arms; a search is the original without a discriminator, for one learning rate of several."""

ARMS = (OURS, ORIGINAL, WITHOUT)
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
"""Learning rates of which the original gets the best; published is 3.6e-5 for 8 images."""

MANY_BATCHES = 10**7
MEASURED_BATCH_SIZE = 32
PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed"}


def train(
    setting: Setting, arm: str, *, rate: float | None, clock: TrainingClock, output: Path
) -> None:
    """Train one arm, writing its points to a table.

    Args:
        setting: Of the comparison.
        arm: One of ``ARMS``, or ``SEARCH``.
        rate: Of the original; ours has its own.
        clock: Its limit is the setting's minutes.
        output: The table.

    Raises:
        ValueError: If the original is to be trained without a rate.
    """
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = our_configuration(setting, folder / "run")
        if arm == OURS:
            _train_ours(setting, ours, clock=clock, output=output)
        elif rate is None:
            raise ValueError("Search the original's learning rate first, or give --rate.")
        else:
            _train_original(setting, arm, ours, rate=rate, clock=clock, output=output)


def _train_ours(setting: Setting, cfg: DictConfig, *, clock: TrainingClock, output: Path) -> None:
    """Train our experiment; the clock counts what it fits before its first update."""
    run_folder = RunFolder.create(cfg.output_dir)
    built = build(CheckedRun(cfg, Composition({}, ()), run_folder, continues=None))
    built.data.identify()  # what files hold, remembered by every later run
    loaded = load(built)
    batches = _fixed_images(built.data, num_images=setting.num_images)
    clock.wait_for_turn()
    clock.timed(lambda: prepare(loaded))
    rate = learning_rate(cfg, num_devices=1)
    start = _start(setting, OURS, cfg, rate=rate)
    trainer = built.trainer
    trainer.limit_val_batches = 0  # quality is measured by the clock
    kept = [one for one in callbacks_of(trainer) if not isinstance(one, (ProgressBar, Checkpoint))]
    trainer.callbacks = [*kept, Measuring(clock, start, batches, output)]  # type: ignore[attr-defined]
    trainer.fit(built.module, built.data)


def _train_original(
    setting: Setting,
    arm: str,
    ours: DictConfig,
    *,
    rate: float,
    clock: TrainingClock,
    output: Path,
) -> None:
    """Train the original's network on the images that ours sees, in the same order."""
    cfg = original_configuration(setting, Path(ours.output_dir), num_parameters=count(ours))
    data = build_images(cfg)
    data.num_train_batches = MANY_BATCHES
    data.identify()
    batches = _fixed_images(data, num_images=setting.num_images)
    torch.manual_seed(cfg.seed)
    module = OriginalModule(
        build_autoencoder(stored_first_stage(cfg)),
        learning_rate=rate,
        has_begun=_has_begun(clock, discriminator_fraction(ours)) if arm == ORIGINAL else None,
        seed=cfg.seed,
    )
    trainer = pl.Trainer(
        accelerator="auto",
        devices=1,
        precision=PRECISIONS[setting.precision],  # type: ignore[arg-type]
        max_epochs=-1,
        limit_val_batches=0,
        use_distributed_sampler=False,
        default_root_dir=ours.output_dir,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Measuring(clock, _start(setting, arm, cfg, rate=rate), batches, output)],
    )
    clock.wait_for_turn()
    trainer.fit(module, data)


def _has_begun(clock: TrainingClock, fraction: float | None) -> Callable[[], bool] | None:
    """Return when the discriminator counts: at the fraction of the time at which ours does."""
    return None if fraction is None else lambda: clock.fraction >= fraction


def _start(
    setting: Setting, arm: str, cfg: DictConfig, *, rate: float
) -> dict[str, str | int | float]:
    """Columns that all points of a run share."""
    return {
        "case": setting.case,
        "arm": arm,
        "seed": setting.seed,
        "learning_rate": rate,
        "minutes": setting.minutes,
        "threads": torch.get_num_threads(),
        "precision": setting.precision,
        "num_parameters": count(cfg),
    }


def _fixed_images(data: MapDataModule, *, num_images: int) -> list[Tensor]:
    """Validation images, read before the clock starts.

    An image is a window where several are cut from a photograph; they are taken from all alike.
    """
    assert isinstance(data, ImageDataModule)
    images = torch.cat([batch["image"] for batch in data.val_dataloader()])
    chosen = torch.linspace(0, len(images) - 1, min(num_images, len(images))).round().long()
    return list(images[chosen].split(MEASURED_BATCH_SIZE))
