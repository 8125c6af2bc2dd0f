"""Lightning's training loop, continued by updates instead of by batches.

Lightning stores how many batches it has seen. A run that is continued with other
``accumulate_batches``, batch size, validation interval or number of processes has other batches, so
the number of updates is all that is taken from a checkpoint. The place in the data is stored by the
data's own loader, in images (see ``data/position.py``).
"""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.progress import _BatchProgress, _ProcessedTracker, _Progress
from lightning.pytorch.trainer.states import RunningStage, TrainerFn


class UpdateLoop(_FitLoop):
    """Train until ``max_steps`` updates; make up a validation that a checkpoint was saved before.

    Checkpoints must be saved between two updates. ``use_update_loop`` puts it into a trainer.

    Args:
        trainer: Has Lightning's own loop, which this one replaces.
        accumulate_batches: Batches that make one update.
    """

    def __init__(self, trainer: pl.Trainer, *, accumulate_batches: int) -> None:
        replaced = trainer.fit_loop
        super().__init__(trainer, min_epochs=replaced.min_epochs, max_epochs=replaced.max_epochs)
        self.epoch_loop = replaced.epoch_loop
        self.validation_loop = _ValidationLoop(trainer)
        self.epoch_loop.val_loop = self.validation_loop
        self.accumulate_batches = accumulate_batches

    @property
    def validation_is_missing(self) -> bool:
        """True if the validation that is due after the update of the checkpoint is yet to be done.

        One is due every ``val_check_interval`` batches, and after the last update.
        """
        step = self.epoch_loop.global_step
        if not step or step == self.validation_loop.validated_step:
            return False
        if not self.trainer.enable_validation:
            return False
        every = int(self.trainer.val_check_interval)
        return step >= self.max_steps or step * self.accumulate_batches % every == 0

    @property
    def skip(self) -> bool:
        """True if there is nothing to do."""
        return super().skip and not self.validation_is_missing

    def on_run_start(self) -> None:
        """Call ``on_train_start``, then validate where that is missing."""
        super().on_run_start()
        if self.validation_is_missing:
            connector = self.trainer._logger_connector
            first_loop_iter = connector._first_loop_iter
            self.trainer.validating = True
            self.validation_loop.restarting = False
            self.validation_loop.run()
            self.trainer.training = True
            connector._first_loop_iter = first_loop_iter

    def load_state_dict(self, state_dict: dict[str, Any], prefix: str = "") -> None:
        """Continue after the updates that were done, whatever batches they were made of."""
        super().load_state_dict(state_dict, prefix)
        num_batches = self.epoch_loop.global_step * self.accumulate_batches
        self.epoch_progress = _Progress(*(_ProcessedTracker(ready=1, started=1) for _ in range(2)))
        done = dict.fromkeys(("ready", "started", "processed", "completed"), num_batches)
        self.epoch_loop.batch_progress = _BatchProgress(
            total=_ProcessedTracker(**done), current=_ProcessedTracker(**done)
        )
        self.validation_loop.batch_progress = _BatchProgress()


class _ValidationLoop(_EvaluationLoop):
    """Remembers the update that was last validated, so that checkpoints say whether one is missing.

    Attributes:
        validated_step: Updates done when the latest validation ended; None before the first.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        super().__init__(
            trainer,
            TrainerFn.FITTING,
            RunningStage.VALIDATING,
            verbose=False,
            inference_mode=False,
        )
        self.validated_step: int | None = None

    def _on_evaluation_end(self, *args: Any, **kwargs: Any) -> None:
        """Note the end before the callbacks hear of it and save."""
        self.validated_step = self.trainer.global_step
        super()._on_evaluation_end(*args, **kwargs)

    def on_save_checkpoint(self) -> dict[str, Any]:
        """Store which update was validated."""
        return {**super().on_save_checkpoint(), "validated_step": self.validated_step}

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        """Continue from what was stored."""
        super().on_load_checkpoint(state_dict)
        self.validated_step = state_dict["validated_step"]


def check_length(max_steps: int, *, done: int, path: Path) -> None:
    """Refuse to continue a run that is longer than it is asked to become.

    Raises:
        ValueError: Naming both numbers of updates and the checkpoint.
    """
    if done > max_steps:
        raise ValueError(
            f"max_steps={max_steps} is less than the {done} updates that {path} holds. Give at "
            f"least {done}."
        )


def use_update_loop(trainer: pl.Trainer, *, accumulate_batches: int) -> pl.Trainer:
    """Give a trainer this module's loop; returns the trainer."""
    trainer.fit_loop = UpdateLoop(trainer, accumulate_batches=accumulate_batches)
    return trainer


def validation_is_missing(trainer: pl.Trainer) -> bool:
    """Return whether a trainer first validates; see ``UpdateLoop.validation_is_missing``."""
    loop = trainer.fit_loop
    return isinstance(loop, UpdateLoop) and loop.validation_is_missing
