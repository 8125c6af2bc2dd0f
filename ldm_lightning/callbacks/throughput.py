"""The one stopwatch of a run: what its time goes into, and how many images are trained in it."""

import dataclasses
import time
from dataclasses import dataclass
from typing import Any, Self

import lightning.pytorch as pl
import torch


@dataclass(frozen=True)
class Spent:
    """Time of a run and what was trained in it.

    The first update of a start pays for start-up and is left out.

    Attributes:
        waiting_s: Between one batch's end and the next one's start: in the main waiting for data.
        step_s: Between a batch's start and its end. On a GPU a step that returns before the device
            is done shows up later.
        validation_s: Validations.
        after_validation_s: From a validation's end to the end of the batch that follows: saving,
            and starting to train again.
        num_images: Of all processes, trained in ``waiting_s`` and ``step_s``.
        num_batches: Of one process, likewise.
    """

    waiting_s: float = 0.0
    step_s: float = 0.0
    validation_s: float = 0.0
    after_validation_s: float = 0.0
    num_images: int = 0
    num_batches: int = 0

    @property
    def training_s(self) -> float:
        """Time of the images counted."""
        return self.waiting_s + self.step_s

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.training_s + self.validation_s + self.after_validation_s

    @property
    def images_per_s(self) -> float | None:
        """Of all processes while they train; None before anything is counted."""
        return self.num_images / self.training_s if self.num_images else None

    def __add__(self, other: Self) -> Self:
        return self._combined(other, sign=1)

    def __sub__(self, other: Self) -> Self:
        return self._combined(other, sign=-1)

    def _combined(self, other: Self, *, sign: int) -> Self:
        others = dataclasses.asdict(other)
        changes = {
            name: own + sign * others[name] for name, own in dataclasses.asdict(self).items()
        }
        return dataclasses.replace(self, **changes)


class Throughput(pl.Callback):
    """Time batches and validations, for the callbacks after it, which find it by ``throughput_of``.

    Attributes:
        spent: Since this start.
        spent_before: In the runs that this one continues.
        batches_per_update: Batches that make an update; None during the first one.
        last_validation_s: How long the latest validation of this start took; None before it.
    """

    def __init__(self) -> None:
        self.spent = Spent()
        self.spent_before = Spent()
        self.batches_per_update: int | None = None
        self.last_validation_s: float | None = None
        self._first_step = 0
        self._num_first_batches = 0
        self._mark = 0.0
        self._has_validated = False  # since the last batch's end

    @property
    def total(self) -> Spent:
        """Over all starts."""
        return self.spent_before + self.spent

    @property
    def seconds_per_update(self) -> float | None:
        """Of this start; None before the second update."""
        if self.batches_per_update is None or not self.spent.num_batches:
            return None
        return self.spent.training_s / self.spent.num_batches * self.batches_per_update

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin anew: a continued run may be on another machine."""
        self.spent, self.last_validation_s = Spent(), None
        self.batches_per_update, self._num_first_batches = None, 0
        self._first_step = trainer.global_step
        self._mark, self._has_validated = time.monotonic(), False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Since the last batch's end the run has waited for data, or validated and saved."""
        if self.batches_per_update is not None and not self._has_validated:
            self._lap("waiting_s")

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Time the batch and count it."""
        if self.batches_per_update is None:
            self._num_first_batches += 1
            if trainer.global_step > self._first_step:
                self.batches_per_update = self._num_first_batches
            self._mark = _now(pl_module) if self.batches_per_update else time.monotonic()
        elif self._has_validated:
            self._lap("after_validation_s")
        else:
            self._lap("step_s")
            num_images = len(next(iter(batch.values()))) * trainer.world_size
            self._count(num_images=num_images, num_batches=1)
        self._has_validated = False

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the device end the updates before it, and start timing the validation."""
        self._mark = time.monotonic()
        self.wait_for_device(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Time the validation."""
        if trainer.sanity_checking:
            return
        now = _now(pl_module)
        self.last_validation_s = now - self._mark
        self._lap("validation_s", now)
        self._has_validated = True

    def wait_for_device(self, pl_module: pl.LightningModule) -> None:
        """Let a GPU end what it was asked for, and count the time as the last step's."""
        now = _now(pl_module)
        if self.spent.num_batches:
            self._lap("step_s", now)
        self._mark = now

    def state_dict(self) -> dict[str, Any]:
        """Time spent so far, over all starts."""
        return dataclasses.asdict(self.total)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Add to the time of the interrupted run."""
        self.spent_before = Spent(**state_dict)

    def _lap(self, part: str, now: float | None = None) -> None:
        """Add the time since the last mark to one part."""
        now = time.monotonic() if now is None else now
        self._count(**{part: now - self._mark})
        self._mark = now

    def _count(self, **changes: float) -> None:
        self.spent = self.spent + Spent(**changes)  # type: ignore[arg-type]


def throughput_of(trainer: pl.Trainer) -> Throughput:
    """Find the stopwatch of a trainer.

    Raises:
        LookupError: If it has none.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, Throughput):
            return callback
    raise LookupError("The trainer has no callback Throughput; put one before the others.")


def _now(pl_module: pl.LightningModule) -> float:
    """The time once a GPU has done what was asked of it."""
    if pl_module.device.type == "cuda":
        torch.cuda.synchronize(pl_module.device)
    return time.monotonic()
