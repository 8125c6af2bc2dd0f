"""Quality of an autoencoder while it trains, on fixed images, written to one table of all arms."""

import csv
import fcntl
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from benchmarks.time_to_quality.clock import TrainingClock
from ldm_lightning.autoencoder.autoencoder import Autoencoder
from ldm_lightning.callbacks.ema import Ema
from ldm_lightning.metrics.features import tiny_features
from ldm_lightning.metrics.first_stage import FirstStageMetrics

METRICS = {"psnr": True, "perceptual_tiny": False, "rfd_tiny": False}
"""What is measured; True where more is better."""

FRACTIONS = (
    *(0.0, 1 / 180, 1 / 90, 1 / 60, 1 / 45, 1 / 30, 2 / 45, 1 / 18),
    *(step / 30 for step in range(2, 6)),
    *(step / 15 for step in range(3, 16)),
)
"""Fractions of the minutes at which quality is measured: closely at first, then every 1/15."""


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        case: The experiment.
        arm: Ours, or a way of the original.
        seed: Of the run.
        learning_rate: At its highest.
        minutes: That the run was given.
        threads: It trained with.
        precision: ``32`` or ``bf16``.
        num_parameters: Of the autoencoder.
        updates: Done.
        seconds: Of training, what was fitted before included.
        cpu_seconds: The same on the processor.
        psnr: In dB.
        perceptual_tiny: Mean over images.
        rfd_tiny: Fréchet distance of reconstructions.
    """

    case: str
    arm: str
    seed: int
    learning_rate: float
    minutes: float
    threads: int
    precision: str
    num_parameters: int
    updates: int
    seconds: float
    cpu_seconds: float
    psnr: float
    perceptual_tiny: float
    rfd_tiny: float


def append(point: Point, path: Path) -> None:
    """Add a line to a table, which several processes may be writing to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = csv.DictWriter(file, [field.name for field in fields(Point)], lineterminator="\n")
        if not path.stat().st_size:
            writer.writeheader()
        writer.writerow(asdict(point))


def read(path: Path) -> list[Point]:
    """Every line of a table.

    Raises:
        ValueError: If one is not complete.
    """
    kinds: Mapping[str, Any] = {field.name: field.type for field in fields(Point)}
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Point(**{name: kinds[name](text) for name, text in row.items()})
            for row in csv.DictReader(file)
        ]


class Measuring(pl.Callback):
    """Measures at ``FRACTIONS`` of the clock's limit, and ends the training at the limit.

    It must be the last callback: a moving average has followed the update then, and stands in for
    the network while it is measured.

    Args:
        clock: Stands while anything is measured.
        start: Of each point; time, updates and metrics are filled in.
        batches: Images to measure on, [B, C, H, W] in [-1, 1].
        output: The table.
    """

    def __init__(
        self,
        clock: TrainingClock,
        start: Mapping[str, Any],
        batches: Sequence[Tensor],
        output: Path,
    ) -> None:
        self.clock = clock
        self.start = start
        self.batches = batches
        self.output = output
        self._due = list(FRACTIONS)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure before the first update, then start the clock."""
        self._measure(trainer, pl_module, updates=0)
        self.clock.run()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Measure where it is due; an update may have passed several fractions."""
        has_ended = 0 < trainer.max_steps <= trainer.global_step
        if has_ended or self.clock.fraction >= self._due[0]:
            self.clock.stand()
            self._measure(trainer, pl_module, updates=batch_idx + 1)
            if has_ended or not self._due:
                trainer.should_stop = True
                return
            self.clock.run()
        self.clock.give_turn()

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, updates: int) -> None:
        while self._due and self.clock.fraction >= self._due[0]:
            self._due.pop(0)
        autoencoder = pl_module.autoencoder
        assert isinstance(autoencoder, Autoencoder)
        averages = [one for one in callbacks_of(trainer) if isinstance(one, Ema)]
        with ExitStack() as stack:
            for average in averages:
                average.on_validation_start(trainer, pl_module)
                stack.callback(average.on_validation_end, trainer, pl_module)
            pl_module.eval()
            stack.callback(pl_module.train)
            stack.enter_context(torch.no_grad())
            stack.enter_context(trainer.precision_plugin.val_step_context())
            quality = quality_of(autoencoder, self.batches)
        time = self.clock.time
        point = Point(
            **{
                **self.start,
                "updates": updates,
                "seconds": round(time.seconds, 2),
                "cpu_seconds": round(time.cpu_seconds, 2),
                **{name: round(quality[name], 4) for name in METRICS},
            }
        )
        append(point, self.output)
        print(
            f"{point.case} {point.arm} seed {point.seed}: {point.seconds:.0f} s, {point.updates} "
            f"updates, {point.psnr:.2f} dB, {point.perceptual_tiny:.3f}, {point.rfd_tiny:.3f}",
            file=sys.stderr,
        )


def callbacks_of(trainer: pl.Trainer) -> list[pl.Callback]:
    """Callbacks of a trainer, in the order in which they are called."""
    return trainer.callbacks  # type: ignore[attr-defined]


def quality_of(autoencoder: Autoencoder, batches: Sequence[Tensor]) -> dict[str, float]:
    """Scalars of an autoencoder on images, by name."""
    num_images = sum(len(batch) for batch in batches)
    metrics = FirstStageMetrics(
        tiny_features(),
        latent_channels=autoencoder.latent_channels,
        num_codes=autoencoder.bottleneck.num_codes,
        protocol={"num_images": num_images},
    )
    device = autoencoder.last_layer.device
    metrics.to(device)
    for batch in batches:
        images = batch.to(device)
        output = autoencoder(images)
        metrics.update(images, output.reconstructions, output.bottleneck)
    return metrics.compute().scalars
