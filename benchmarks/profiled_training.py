"""Train for some minutes with a torch profile of a few updates, and say how fast the rest was.

    python -m benchmarks.profiled_training FOLDER MINUTES experiment=kl_f8 scale=gpu ...

Writes ``profile.txt`` (the operations that take most time), ``trace.json.gz`` (for
https://ui.perfetto.dev) and ``speed.json`` into FOLDER.
"""

import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.device import DEVICE, now
from ldm_lightning import train
from ldm_lightning.utils.provenance import peak_memory

WARM_UP_UPDATES = 20
"""Compilation, choice of algorithms, first allocations; the discriminator is in by then."""

PROFILED_UPDATES = 5
NUM_OPERATIONS = 30


class ProfiledMinutes(pl.Callback):
    """Profile a few updates, time those after them, and end the run.

    Args:
        folder: What is measured is written here.
        minutes: From the first batch to the end.
        warm_up_updates: Updates before the profile.
    """

    def __init__(
        self, folder: Path, *, minutes: float, warm_up_updates: int = WARM_UP_UPDATES
    ) -> None:
        self.folder = folder
        self.minutes = minutes
        self.warm_up_updates = warm_up_updates
        activities = [ProfilerActivity.CPU]
        if DEVICE.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self._is_profiling = False
        self._started = 0.0
        self._timed_from: tuple[int, float] | None = None  # update and time after the profile
        self._num_images = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = now()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Go from warming up to profiling to timing; end when the minutes are over."""
        step = trainer.global_step
        if self._timed_from is not None:
            self._num_images += len(next(iter(batch.values())))
        if step == self.warm_up_updates and not self._is_profiling:
            self._is_profiling = True
            self._profile.start()
        elif step == self.warm_up_updates + PROFILED_UPDATES and self._timed_from is None:
            now()  # until the device has done what it was asked for
            self._profile.stop()
            self._write_profile()
            self._timed_from = (step, now())
        if time.perf_counter() - self._started > 60 * self.minutes and self._num_images:
            self._write_speed(step, pl_module.device)
            trainer.should_stop = True

    def _write_profile(self) -> None:
        averages = self._profile.key_averages()
        key = "self_device_time_total" if DEVICE.type == "cuda" else "self_cpu_time_total"
        table = averages.table(sort_by=key, row_limit=NUM_OPERATIONS, max_name_column_width=60)
        (self.folder / "profile.txt").write_text(
            f"{PROFILED_UPDATES} updates\n{table}\n", encoding="utf-8"
        )
        self._profile.export_chrome_trace(str(self.folder / "trace.json.gz"))

    def _write_speed(self, step: int, device: torch.device) -> None:
        assert self._timed_from is not None
        first, began = self._timed_from
        seconds = now() - began
        speed = {
            "updates": step - first,
            "seconds": seconds,
            "images_per_s": self._num_images / seconds,
            "seconds_per_update": seconds / (step - first) if step > first else None,
            **peak_memory(device),
        }
        path = self.folder / "speed.json"
        path.write_text(json.dumps(speed, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Run ``train`` with the words of the command line and one callback more."""
    folder, minutes, *words = sys.argv[1:]
    callback = ProfiledMinutes(Path(folder), minutes=float(minutes))
    fit = pl.Trainer.fit

    @functools.wraps(fit)
    def fit_with_profile(self: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        self.callbacks.append(callback)  # type: ignore[attr-defined]
        fit(self, *args, **kwargs)

    pl.Trainer.fit = fit_with_profile  # type: ignore[method-assign]
    sys.argv[1:] = words
    train.main()


if __name__ == "__main__":
    main()
