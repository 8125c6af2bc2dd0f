"""``perf/*``: how fast a run is while it trains, and what it holds.

For the dashboards alone. ``metrics.csv`` has what a repeated run repeats, and times are not;
``summary.json`` has the totals, as ``timing`` and ``memory``.
"""

import time
from typing import Any

import lightning.pytorch as pl

from ldm_lightning.callbacks.dashboards import dashboards
from ldm_lightning.utils.provenance import peak_memory


class Performance(pl.Callback):
    """Show speed, waiting and memory beside the losses.

    ``perf/train_images_per_s``: of all processes; validations, what is saved after them and the
    batch that follows are left out. ``perf/data_wait_fraction``: share of that time between one
    batch's end and the next one's start, 0 to 1, on the first process: in the main waiting for
    data. ``perf/validation_s``. ``perf/peak_host_mib``, and on a GPU ``perf/peak_device_mib``.

    Args:
        every_num_steps: Updates between two rows; those that the module logs its losses at, because
            reading a loss waits for the device.
    """

    def __init__(self, *, every_num_steps: int) -> None:
        if every_num_steps < 1:
            raise ValueError(f"every_num_steps must be at least 1, got {every_num_steps}.")
        self.every_num_steps = every_num_steps
        self._seen_step = 0
        self._began = 0.0  # the last row; later by what is left out
        self._mark = 0.0  # the last batch's end
        self._waited = 0.0
        self._has_validated = False  # since the last batch's end
        self._num_images: int | None = None  # None: nothing is timed before the first row
        self._validation_began = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin; what is first done is slower than the rest, and is left out."""
        self._seen_step = trainer.global_step
        self._num_images = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Since the last batch's end the run has waited for data, or validated and saved."""
        if not self._has_validated:
            self._waited += time.monotonic() - self._mark

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count images; show a row where it is due."""
        now = time.monotonic()
        if self._has_validated:  # saving comes after this callback's end of the validation
            self._began += now - self._mark
        elif self._num_images is not None:
            self._num_images += len(next(iter(batch.values()))) * trainer.world_size
        self._mark, self._has_validated = now, False
        step = trainer.global_step
        if step == self._seen_step:
            return
        self._seen_step = step
        if step % self.every_num_steps:
            return
        if self._num_images:
            seconds = self._mark - self._began
            row = {
                "perf/train_images_per_s": self._num_images / seconds,
                "perf/data_wait_fraction": self._waited / seconds,
            }
            self._show(trainer, pl_module, row)
        self._begin()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start timing the validation."""
        self._validation_began = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show how long it took."""
        if trainer.sanity_checking:
            return
        self._has_validated = True
        seconds = time.monotonic() - self._validation_began
        self._show(trainer, pl_module, {"perf/validation_s": seconds})

    def _begin(self) -> None:
        self._began = self._mark
        self._waited = 0.0
        self._num_images = 0

    def _show(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, row: dict[str, float]
    ) -> None:
        memory = peak_memory(pl_module.device)
        row |= {f"perf/{name}": value for name, value in memory.items() if value is not None}
        for dashboard in dashboards(trainer):
            dashboard.log_metrics(row, step=trainer.global_step)
