"""Says what a run will still take: once its first updates are timed, and after a validation."""

import logging
import math
import time
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from ldm_lightning.callbacks.ema import Ema
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.utils.collectives import local_shard
from ldm_lightning.utils.provenance import peak_memory
from ldm_lightning.utils.units import format_bytes, format_seconds

logger = logging.getLogger(__name__)

AFTER_UPDATES, AFTER_SECONDS = 10, 20.0
"""Timed updates, or seconds of them, after which the first estimate is given."""


class Estimate(pl.Callback):
    """Log one line and write ``estimate`` to ``summary.json``: speed, time left, memory, disk.

    The first update of each start pays for start-up and is not timed; nor are validations, whose
    time is unknown until the first one is over, and which the line after it accounts for.

    Args:
        run_folder: Whose ``summary.json`` is written.
    """

    def __init__(self, run_folder: RunFolder) -> None:
        self.run_folder = run_folder
        self._first_step = 0
        self._timed_from: int | None = None  # update after which timing began
        self._seconds = 0.0
        self._num_images = 0
        self._num_batches = 0
        self._mark = 0.0
        self._validation_began = 0.0
        self._validation_seconds: float | None = None
        self._is_said = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin anew: a continued run may be on another machine."""
        self._first_step = trainer.global_step
        self._timed_from, self._validation_seconds, self._is_said = None, None, False
        self._seconds, self._num_images, self._num_batches = 0.0, 0, 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Time whole updates, and say what follows when there are enough."""
        if self._timed_from is None:
            if trainer.global_step > self._first_step:
                self._timed_from = trainer.global_step
                self._mark = _now(pl_module)
            return
        self._num_batches += 1
        self._num_images += len(next(iter(batch.values()))) * trainer.world_size
        self._lap(time.monotonic())
        num_updates = trainer.global_step - self._timed_from
        enough = num_updates >= AFTER_UPDATES or self._seconds >= AFTER_SECONDS
        is_whole = self._num_batches % self._batches_per_update(num_updates) == 0
        if not self._is_said and num_updates and enough and is_whole:
            self._lap(_now(pl_module))
            self._say(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the validation out of the updates' time."""
        self._validation_began = _now(pl_module)
        if self._timed_from is not None:
            self._lap(self._validation_began)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Correct the estimate once it is known how long a validation takes."""
        self._mark = _now(pl_module)
        is_first = self._validation_seconds is None
        self._validation_seconds = self._mark - self._validation_began
        if trainer.state.fn == "fit" and is_first and self._num_batches:
            self._say(trainer, pl_module)

    def _lap(self, now: float) -> None:
        self._seconds += now - self._mark
        self._mark = now

    def _batches_per_update(self, num_updates: int) -> int:
        return max(1, round(self._num_batches / num_updates)) if num_updates else 1

    def _say(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step, last = trainer.global_step, trainer.max_steps
        assert self._timed_from is not None
        num_updates = step - self._timed_from
        if not trainer.is_global_zero or not num_updates or step >= last:
            return
        self._is_said = True
        seconds = self._seconds / num_updates
        num_validations = _validations_left(trainer, self._batches_per_update(num_updates))
        validations = num_validations * (self._validation_seconds or 0.0)
        memory = peak_memory(pl_module.device)
        facts: dict[str, Any] = {
            "after_updates": step - self._first_step,
            "seconds_per_update": seconds,
            "images_per_s": self._num_images / self._seconds,
            "seconds_per_validation": self._validation_seconds,
            "validations_left": num_validations,
            "seconds_left": (last - step) * seconds + validations,
            "peak_bytes": (memory["peak_device_mib"] or memory["peak_host_mib"] or 0.0) * 2**20,
            "checkpoint_bytes": _checkpoint_bytes(trainer, pl_module),
        }
        self.run_folder.update_summary({"estimate": facts})
        with_validations = f"{num_validations} validation{'s' if num_validations != 1 else ''}"
        if not num_validations:
            with_validations = ""
        elif self._validation_seconds is None:
            with_validations = f" and {with_validations} not timed yet"
        else:
            with_validations = f" with {with_validations} of "
            with_validations += format_seconds(self._validation_seconds)
        logger.info(
            "Estimate after %s updates: %s an update (%.3g images/s), %s to update %s%s; peak "
            "memory %s; checkpoints %s each.%s",
            f"{facts['after_updates']:,}",
            format_seconds(seconds),
            facts["images_per_s"],
            format_seconds(facts["seconds_left"]),
            f"{last:,}",
            with_validations,
            format_bytes(facts["peak_bytes"]),
            format_bytes(facts["checkpoint_bytes"]),
            _discriminator_note(pl_module, step, last),
        )


def _now(pl_module: pl.LightningModule) -> float:
    """The time once a GPU has done what was asked of it."""
    if pl_module.device.type == "cuda":
        torch.cuda.synchronize(pl_module.device)
    return time.monotonic()


def _validations_left(trainer: pl.Trainer, batches_per_update: int) -> int:
    """Those at the interval, and the one after the last update."""
    if not trainer.enable_validation or not trainer.val_check_batch:
        return 0
    every = trainer.val_check_batch / batches_per_update
    return math.ceil(trainer.max_steps / every) - math.floor(trainer.global_step / every)


def _checkpoint_bytes(trainer: pl.Trainer, pl_module: pl.LightningModule) -> int:
    """Bytes of the tensors in a checkpoint: weights, optimizers, moving average."""
    tensors = list(pl_module.state_dict().values())
    for optimizer in trainer.optimizers:
        for state in optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, Ema) for callback in callbacks):
        averaged: Any = pl_module.averaged
        return _bytes(tensors) + _bytes(averaged.state_dict().values())
    return _bytes(tensors)


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of whole tensors; memory that several share counts once, as in a file."""
    return sum({local_shard(tensor).data_ptr(): tensor.nbytes for tensor in tensors}.values())


def _discriminator_note(pl_module: pl.LightningModule, step: int, last: int) -> str:
    """Note on costs that a speed measured before the discriminator starts leaves out."""
    fully_on = getattr(pl_module, "adversarial_fully_on_step", 0)
    if step < fully_on < last:
        return f" The discriminator, fully on from update {fully_on:,}, will cost more."
    return ""
