"""Base of the modules of both stages: updates by hand, their learning rate, clipping and log."""

import json
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from ldm_lightning.checkpoints.checkpoint import check_fits, first_names
from ldm_lightning.module.settings import Optimization
from ldm_lightning.module.update_log import UpdateLog
from ldm_lightning.utils.collectives import full_tensor, num_processes, process_rank
from ldm_lightning.utils.finite import ADVICE, not_finite
from ldm_lightning.utils.random import RowDraws

Batch = Mapping[str, Any]


class ManualOptimizationModule(pl.LightningModule):
    """Updates its networks by hand, once every ``accumulate_batches`` batches.

    The first optimizer is the one that ``trainer.global_step`` counts.

    Args:
        optimization: Optimizer, schedule, accumulation, clipping.
        seed: Of everything drawn for an update.
        log_every_steps: Updates between two logged rows; losses are checked for finiteness then
            too.

    Attributes:
        part_names: What each optimizer trains, in their order; names logged gradient norms.
        stored_config: Plain description of what is trained, written into every checkpoint.
    """

    part_names: tuple[str, ...]
    stored_config: dict[str, Any]

    def __init__(self, *, optimization: Optimization, seed: int, log_every_steps: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.optimization = optimization
        self.seed = seed
        self.log_every_steps = log_every_steps
        self._log = UpdateLog(optimization.accumulate_batches)
        self._logs_update = False  # whether the update at hand is a logged one
        self._keys: dict[int, list[str]] = {}  # of the images of the updates since the last row

    @property
    @abstractmethod
    def networks(self) -> list[nn.Module]:
        """Networks to compile and lay out in memory, frozen ones included."""

    @property
    @abstractmethod
    def averaged(self) -> nn.Module:
        """The part that a moving average is taken of."""

    @abstractmethod
    def configure_optimizers(self) -> list[Optimizer]:
        """Make the optimizers anew, in the order of ``part_names``."""

    @abstractmethod
    def validation_names(self, *, num_images: int, size: tuple[int, int]) -> set[str]:
        """Full names of what a validation on so many images of height and width measures."""

    def take_assigned(self) -> dict[str, Tensor]:
        """Return which rows of ``averaged`` the last update has set past the optimizer.

        Returns:
            By parameter name: bool, one a row of its first dimension.
        """
        return {}

    # Updates

    def microbatch_index(self, batch_idx: int) -> int:
        """Index of a batch in its update, from 0."""
        return batch_idx % self.optimization.accumulate_batches

    def is_last_microbatch(self, batch_idx: int) -> bool:
        """Return whether a batch is the last one of its update."""
        return self.microbatch_index(batch_idx) + 1 == self.optimization.accumulate_batches

    def draws(self, batch_idx: int, num_rows: int) -> RowDraws:
        """Random numbers of this process' rows of the update's global batch."""
        first = (self.microbatch_index(batch_idx) * num_processes() + process_rank()) * num_rows
        return RowDraws(self.seed, self.global_step, range(first, first + num_rows))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Remember which images are trained on, until their update is known to be finite."""
        self._logs_update = (self.global_step + 1) % self.log_every_steps == 0
        self._keys.setdefault(self.global_step, []).extend(batch.get("key", ()))

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Ask for a validation after the last update, wherever the interval would put it."""
        if self.global_step >= self.trainer.max_steps:
            self.trainer.should_stop = True

    def _add_gradients(self, loss: Tensor, *, exchange: bool) -> None:
        """Differentiate the loss of a batch as its share of an update.

        Args:
            loss: Mean over the batch.
            exchange: Whether DDP averages all that was added since the last time: once an update,
                not once a batch.
        """
        strategy = self.trainer.strategy
        context: AbstractContextManager[None] = nullcontext()
        if not exchange and isinstance(strategy, ParallelStrategy):
            context = strategy.block_backward_sync()
        with context:
            self.manual_backward(loss / self.optimization.accumulate_batches)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip unscaled gradients, and note their norm where it is logged."""
        if (scaler := self._scaler()) and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)  # Lightning leaves it to the step of fused optimizers
        if self.optimization.clip_norm is None and not self._logs_update:
            return  # the norm reads every gradient once more
        parameters = [
            parameter for group in optimizer.param_groups for parameter in group["params"]
        ]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = full_tensor(nn.utils.get_total_norm(gradients))
        if self.optimization.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.optimization.clip_norm, norm)
        stepped = [optimizer is own.optimizer for own in self._optimizers()]
        self._log.set(f"grad_norm_{self.part_names[stepped.index(True)]}", norm)

    def _scaler(self) -> torch.amp.GradScaler | None:
        """Scaler of fp16 losses; None in other precisions."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _optimizers(self) -> list[LightningOptimizer]:
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def _set_learning_rate(self, step: int) -> None:
        factor = self.optimization.schedule(step)
        for optimizer in self._optimizers():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        self._log.set("learning_rate", self._optimizers()[0].param_groups[0]["lr"])

    # Logging

    def _log_update(self, step: int) -> None:
        """Log what this update collected, every ``log_every_steps`` updates.

        Raises:
            FloatingPointError: If a value is NaN or infinite.
        """
        if not self._logs_update:
            self._log.clear()
            return
        keys, self._keys = self._keys, {}
        values = self._log.take(self.device)
        bad = [name for name, value in values.items() if not bool(value.isfinite())]
        if (scaler := self._scaler()) and bad and scaler.get_scale() >= 1:
            # The scaler has skipped this update and lowered its scale, as it is meant to.
            bad = [name for name in bad if not name.startswith("grad_norm_")]
        if bad:
            told = self._save_keys(step + 1, bad, keys)
            raise FloatingPointError(
                f"Update {step + 1} is no longer finite in {', '.join(bad)}.{told} {ADVICE}"
            )
        named = {f"train/{name}": value for name, value in values.items()}
        self._publish(named, step=step + 1, sync=False)

    def _save_keys(self, update: int, bad: list[str], keys: Mapping[int, list[str]]) -> str:
        """Write down which images the updates since the last row saw; says where."""
        if not any(keys.values()):
            return ""
        path = Path(self.trainer.default_root_dir) / f"not_finite_{process_rank()}.json"
        updates = {str(step + 1): names for step, names in keys.items()}
        content = {"update": update, "not_finite": bad, "image_keys_by_update": updates}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return f" The images of the last {len(updates)} updates are named in {path}."

    def _publish(self, values: Mapping[str, Tensor | float], *, step: int, sync: bool) -> None:
        """Hand values, alike on every process, to callbacks and loggers by number of updates.

        Past Lightning's own logging, which counts batches and repeats a row until the next one.
        """
        self.log_dict(dict(values), logger=False, sync_dist=sync)
        row = {name: float(value) for name, value in values.items()}
        for logger in self.loggers:
            logger.log_metrics(row, step=step)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Count optimizer states; refuse to save what has diverged since the last row.

        The earlier file stays then.

        Raises:
            FloatingPointError: On every process, if one of them holds a value that is NaN or
                infinite: weights, their average, optimizer states.
        """
        # A missing one would silently begin with fresh moments.
        states = checkpoint.get("optimizer_states", [])
        checkpoint["num_optimizer_states"] = [len(state["state"]) for state in states]
        bad = not_finite(checkpoint)
        if self.trainer.strategy.reduce_boolean_decision(not bad, all=True):
            return
        where = first_names(bad) if bad else "tensors of another process"
        told = self._save_keys(self.global_step, bad, self._keys)
        raise FloatingPointError(
            f"Update {self.global_step} or one since the last row is no longer finite: NaN or "
            f"infinite values in {where}. It is not saved; an earlier checkpoint stays as it "
            f"is.{told} {ADVICE}"
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture before Lightning lists every key."""
        check_fits(self, checkpoint["state_dict"], str(self.trainer.ckpt_path))


def prepared(optimizers: list[Optimizer]) -> list[Optimizer]:
    """Note each optimizer's own learning rate, which the schedule multiplies.

    Settings stay those that the optimizers were made with when they are given a stored state.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        own = [
            {name: value for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]
        optimizer.register_load_state_dict_post_hook(partial(_put_back, settings=own))
    return optimizers


def _put_back(optimizer: Optimizer, settings: list[dict[str, Any]]) -> None:
    """Undo what a stored state says about learning rate, betas and the like."""
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
