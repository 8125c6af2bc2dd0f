"""``perf/*``: how fast a run is while it trains, and what it holds.

For the dashboards alone. ``metrics.csv`` has what a repeated run repeats, and times are not;
``summary.json`` has the totals, as ``timing`` and ``memory``.
"""

from typing import Any

import lightning.pytorch as pl

from ldm_lightning.callbacks.dashboards import dashboards
from ldm_lightning.callbacks.throughput import Spent, throughput_of
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
        self._before: Spent | None = None  # at the last row; None before the first

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin; what is first done is slower than the rest, and is left out."""
        self._seen_step = trainer.global_step
        self._before = None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show a row where it is due."""
        step = trainer.global_step
        if step == self._seen_step:
            return
        self._seen_step = step
        if step % self.every_num_steps:
            return
        spent = throughput_of(trainer).spent
        if self._before is not None:
            since = spent - self._before
            if since.images_per_s is not None:
                row = {
                    "perf/train_images_per_s": since.images_per_s,
                    "perf/data_wait_fraction": since.waiting_s / since.training_s,
                }
                self._show(trainer, pl_module, row)
        self._before = spent

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show how long it took."""
        seconds = throughput_of(trainer).last_validation_s
        if not trainer.sanity_checking and seconds is not None:
            self._show(trainer, pl_module, {"perf/validation_s": seconds})

    def _show(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, row: dict[str, float]
    ) -> None:
        memory = peak_memory(pl_module.device)
        row |= {f"perf/{name}": value for name, value in memory.items() if value is not None}
        for dashboard in dashboards(trainer):
            dashboard.log_metrics(row, step=trainer.global_step)
