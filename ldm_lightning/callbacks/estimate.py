"""Says what a run will still take: once its first updates are timed, and after a validation."""

import logging
import math
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from ldm_lightning.callbacks.ema import Ema
from ldm_lightning.callbacks.throughput import throughput_of
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
        self._is_said = False
        self._has_validated = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin anew: a continued run may be on another machine."""
        self._first_step = trainer.global_step
        self._is_said = self._has_validated = False

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Say what follows when enough whole updates are timed."""
        throughput = throughput_of(trainer)
        spent, batches_per_update = throughput.spent, throughput.batches_per_update
        if self._is_said or not batches_per_update or not spent.num_batches:
            return
        num_updates, more = divmod(spent.num_batches, batches_per_update)
        enough = num_updates >= AFTER_UPDATES or spent.training_s >= AFTER_SECONDS
        if num_updates and not more and enough:
            throughput.wait_for_device(pl_module)
            self._say(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Correct the estimate once it is known how long a validation takes."""
        if trainer.state.fn == "fit" and not self._has_validated:
            self._has_validated = True
            self._say(trainer, pl_module)

    def _say(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step, last = trainer.global_step, trainer.max_steps
        throughput = throughput_of(trainer)
        seconds, validation_s = throughput.seconds_per_update, throughput.last_validation_s
        if not trainer.is_global_zero or seconds is None or step >= last:
            return
        assert throughput.batches_per_update is not None
        self._is_said = True
        num_validations = _validations_left(trainer, throughput.batches_per_update)
        validations = num_validations * (validation_s or 0.0)
        memory = peak_memory(pl_module.device)
        facts: dict[str, Any] = {
            "after_updates": step - self._first_step,
            "seconds_per_update": seconds,
            "images_per_s": throughput.spent.images_per_s,
            "seconds_per_validation": validation_s,
            "validations_left": num_validations,
            "seconds_left": (last - step) * seconds + validations,
            "peak_bytes": (memory["peak_device_mib"] or memory["peak_host_mib"] or 0.0) * 2**20,
            "checkpoint_bytes": _checkpoint_bytes(trainer, pl_module),
        }
        self.run_folder.update_summary({"estimate": facts})
        with_validations = f"{num_validations} validation{'s' if num_validations != 1 else ''}"
        if not num_validations:
            with_validations = ""
        elif validation_s is None:
            with_validations = f" and {with_validations} not timed yet"
        else:
            with_validations = f" with {with_validations} of "
            with_validations += format_seconds(validation_s)
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
