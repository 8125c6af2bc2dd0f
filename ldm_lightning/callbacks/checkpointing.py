"""Checkpoints of a run: ``last.ckpt`` to continue from, ``best.ckpt`` to evaluate.

When ``last.ckpt`` is written: every ``every_num_steps`` updates, before and after each validation,
at the end, and on Ctrl-C or SIGTERM. An interrupted run always stops between two updates: a
checkpoint from the middle of one would hold a stepped generator beside a discriminator that has not
moved, or lack the gradients of the batches accumulated so far. A second Ctrl-C stops at once and
saves nothing.

Every file says which update was last validated. A run continued from one that was saved before the
validation due after its update begins with that validation (see ``update_loop.py``).

Of several processes one signal is enough, wherever it arrives: they agree after every batch.

With ``trainer=fsdp`` each of the two is a file that names its tensors' files, in ``last.shards``
and ``best.shards`` beside it; see ``utils/sharded_checkpoint.py``.
"""

import logging
import math
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ldm_lightning.callbacks.comparison import differing, protocol_of
from ldm_lightning.checkpoints.checkpoint import load_checkpoint, remove_shards, save_checkpoint
from ldm_lightning.checkpoints.sharded import link_checkpoint
from ldm_lightning.module.update_loop import validation_is_missing
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.utils.launch import launched

logger = logging.getLogger(__name__)

TERMINATED = 128 + signal.SIGTERM
"""Exit code after SIGTERM, as shells have it."""


class InterruptedBetweenUpdates(KeyboardInterrupt):
    """Ctrl-C, held back to a moment at which the run can be continued exactly."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lets Lightning write checkpoints whole or not at all, and read them without running code."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write ``checkpoint`` to ``path``; see ``utils.checkpoint.save_checkpoint``."""
        save_checkpoint(checkpoint, Path(path))
        remove_shards(Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read ``path`` onto the CPU; see ``utils.checkpoint.load_checkpoint``."""
        return load_checkpoint(path)


class Checkpointing(Checkpoint):
    """Write ``last.ckpt`` and ``best.ckpt`` atomically.

    Lightning runs checkpoint callbacks after all others, so what they changed is saved with them.

    Args:
        run_folder: Where ``checkpoints/`` is.
        monitor: Metric that decides which checkpoint is best, such as ``val/rfid``; None keeps only
            the last.
        higher_is_better: Direction of ``monitor``.
        every_num_steps: Updates between two writes of ``last.ckpt`` besides those after
            validations.

    Raises:
        ValueError: If ``every_num_steps`` is not positive.
    """

    def __init__(
        self,
        run_folder: RunFolder,
        *,
        monitor: str | None,
        higher_is_better: bool = False,
        every_num_steps: int = 1000,
    ) -> None:
        if every_num_steps < 1:
            raise ValueError(f"every_num_steps must be at least 1, got {every_num_steps}.")
        self.last_path = run_folder.checkpoints / "last.ckpt"
        self.best_path = run_folder.checkpoints / "best.ckpt"
        self.monitor = monitor
        self.higher_is_better = higher_is_better
        self.every_num_steps = every_num_steps
        self.best_value: float | None = None
        self.best_step: int | None = None
        self._measured_as: dict[str, Any] | None = None  # the best value; None: not known
        self._is_comparable = True  # False: to be found out, after loading
        self._saved_step = -1  # the update that last.ckpt holds
        self._seen_step = 0
        self._between_updates = True  # no batch of the next update has been seen
        self._signal = 0  # the one that asked this process to stop
        self._agreed_signal = 0  # the one that asked any process to stop, since the last batch
        self._previous_handlers: dict[int, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {
            "monitor": self.monitor,
            "best_value": self.best_value,
            "best_step": self.best_step,
            "measured_as": self._measured_as,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue comparing with the best of the interrupted run, if it is of this metric."""
        if state_dict["monitor"] != self.monitor:
            logger.warning(
                "The best checkpoint was chosen by %s; by monitor=%s the search starts anew.",
                state_dict["monitor"],
                self.monitor,
            )
            return
        self.best_value = state_dict["best_value"]
        self.best_step = state_dict["best_step"]
        self._measured_as = state_dict["measured_as"]
        self._is_comparable = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make every checkpoint this trainer writes or reads an atomic, code-free one."""
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hold Ctrl-C and SIGTERM back from now on; signals reach the main thread alone.

        Lightning's own handler of SIGTERM tells the other processes in the midst of whatever they
        are telling each other.
        """
        self._seen_step = self._saved_step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous_handlers[number] = signal.signal(number, self._request_stop)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop here when asked to: the last update is saved and logged, this one not begun."""
        if self._between_updates:
            self._stop_if_asked(trainer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save every ``every_num_steps`` updates, before validating, and before a run stops."""
        if trainer.world_size > 1:
            asked = torch.tensor(self._signal, device=trainer.strategy.root_device)
            self._agreed_signal = int(trainer.strategy.reduce(asked, reduce_op="max"))
        step = trainer.global_step
        self._between_updates = updated = step != self._seen_step
        self._seen_step = step
        # Before a validation too, which may fail or be killed, or show nothing but NaN.
        due = step % self.every_num_steps == 0 or validation_is_missing(trainer)
        if updated and (due or self._stop_signal(trainer)):
            self._save_last(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do not begin a validation when asked to stop; the continued run makes it up."""
        self._stop_if_asked(trainer)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Leave a validation when asked to stop; several processes finish it, in step."""
        if trainer.world_size == 1:
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last and, if it is, the best."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if not self._is_best(trainer, pl_module):
            self._save_last(trainer)
            return
        # Best first: a run killed in between continues from last.ckpt and finds its best again.
        trainer.save_checkpoint(self.best_path, weights_only=False)
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            link_checkpoint(self.best_path, self.last_path)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end of the run, unless its last update is saved already."""
        self._restore_handlers()
        if self._saved_step != trainer.global_step:
            self._save_last(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save an interrupted run where it can be continued exactly; else keep the last file."""
        self._restore_handlers()
        if trainer.state.fn != "fit":
            return
        if not isinstance(exception, (InterruptedBetweenUpdates, SIGTERMException)):
            return
        if not self._between_updates:
            return
        if self._saved_step == trainer.global_step:
            return
        try:
            self._save_last(trainer)
        except (OSError, FloatingPointError) as err:
            # the run is ending anyway; what stopped it must stay the reason
            logger.error("%s", err)

    def _save_last(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.last_path, weights_only=False)
        self._saved_step = trainer.global_step

    def _is_best(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Compare the monitored metric with the best so far, and remember it if it is better."""
        if self.monitor is None:
            return False
        if self.monitor not in trainer.callback_metrics:
            measured = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise ValueError(f"monitor={self.monitor} was not measured; choose one of: {measured}.")
        value = float(trainer.callback_metrics[self.monitor])
        if not math.isfinite(value):
            return False
        measured_as = protocol_of(pl_module, self.monitor)
        if not self._is_comparable and self._measured_as != measured_as:
            logger.warning(
                "%s is measured otherwise than before (%s): the search for the best starts anew.",
                self.monitor,
                differing(self._measured_as or {}, measured_as),
            )
            self.best_value = self.best_step = None
        self._is_comparable, self._measured_as = True, measured_as
        sign = 1 if self.higher_is_better else -1
        if self.best_value is not None and sign * value <= sign * self.best_value:
            return False
        self.best_value, self.best_step = value, trainer.global_step
        return True

    def _stop_signal(self, trainer: pl.Trainer) -> int:
        """The signal that asks all processes to stop here; 0 for none.

        One that arrives on one process between two batches counts after the next: the others do not
        know of it yet, and each would wait for what the other is not doing.
        """
        return self._signal if trainer.world_size == 1 else self._agreed_signal

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        number = self._stop_signal(trainer)
        if number == signal.SIGTERM:
            raise SIGTERMException(TERMINATED)
        if number:
            raise InterruptedBetweenUpdates

    def _request_stop(self, signum: int, frame: FrameType | None) -> None:
        """Stop after this update; a second Ctrl-C stops at once."""
        if self._signal and signum == signal.SIGINT:
            raise KeyboardInterrupt
        # Ctrl-C reaches all processes of a terminal at once; one of them tells it.
        if not self._signal and (signum != signal.SIGINT or launched().local_rank == 0):
            hint = " Ctrl-C again stops without saving." if signum == signal.SIGINT else ""
            logger.warning("Stopping after this update and saving it.%s", hint)
        self._signal = max(self._signal, signum)

    def _restore_handlers(self) -> None:
        for number, handler in self._previous_handlers.items():
            if handler is not None:  # None: not set by Python
                signal.signal(number, handler)
        self._previous_handlers = {}
