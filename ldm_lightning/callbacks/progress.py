"""Progress on the terminal: a bar where somebody watches, a line now and then where not."""

import logging
import sys
import time
from typing import Any, TextIO

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ldm_lightning.callbacks.throughput import throughput_of

logger = logging.getLogger(__name__)


class TrainingProgress(ProgressBar):
    """Show updates done, time left, images per second, losses and the last validation.

    On a terminal this is a bar. Elsewhere (a file, CI) it is one log line every
    ``plain_every_seconds``.

    Args:
        losses: Names of the logged values shown while training, such as ``train/loss_total``.
        metrics: Names of the validation metrics shown.
        plain_every_seconds: Pause between two lines where there is no terminal.
    """

    def __init__(
        self,
        *,
        losses: tuple[str, ...] = ("train/loss_total",),
        metrics: tuple[str, ...] = ("val/psnr",),
        plain_every_seconds: float = 30.0,
    ) -> None:
        super().__init__()
        self.losses = tuple(losses)
        self.metrics = tuple(metrics)
        self.plain_every_seconds = plain_every_seconds
        self._enabled = True
        self._bar: Progress | None = None
        self._shown = 0.0  # time of the last refresh
        self._shown_step = -1
        self._validation = ""
        self._handlers: list[tuple[logging.StreamHandler, TextIO]] = []

    def enable(self) -> None:
        """Show progress; called by Lightning."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing; called by Lightning on all processes but the first."""
        self._enabled = False
        self._close()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar where there is a terminal."""
        self._shown = time.monotonic()
        console = Console(stderr=True)
        if self._enabled and console.is_terminal:
            streams = (sys.stdout, sys.stderr)
            columns = (
                TextColumn("update {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
            )
            self._bar = Progress(*columns, console=console, redirect_stdout=sys.stdout.isatty())
            self._bar.add_task("", total=trainer.max_steps, completed=trainer.global_step)
            self._bar.start()
            self._route_logs_through_bar(streams)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show at most once a second what would cost a wait for the device to read."""
        now = time.monotonic()
        pause = 1.0 if self._bar is not None else self.plain_every_seconds
        if self._enabled and now - self._shown >= pause:
            self._shown = now
            self._show(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say that this takes a while."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description="validating ...")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the metrics on show."""
        self._validation = _values(trainer, self.metrics)
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._enabled:
            self._show(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar at its end."""
        if self._enabled and self._shown_step != trainer.global_step:
            self._show(trainer)
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the terminal in order."""
        self._close()

    def _show(self, trainer: pl.Trainer) -> None:
        throughput = throughput_of(trainer)
        speed = throughput.spent.images_per_s or 0.0
        text = f"{speed:.1f} img/s  {_values(trainer, self.losses)}  {self._validation}".rstrip()
        step = self._shown_step = trainer.global_step
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, description=text)
            return
        left = ""
        seconds = throughput.seconds_per_update
        if seconds is not None and step < trainer.max_steps:
            left = f", {seconds * (trainer.max_steps - step) / 60:.1f} min left"
        logger.info("update %d of %d%s: %s", step, trainer.max_steps, left, text)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        for handler, stream in self._handlers:
            handler.setStream(stream)
        self._handlers = []

    def _route_logs_through_bar(self, streams: tuple[TextIO, TextIO]) -> None:
        """Let log lines appear above the bar: rich replaced the streams that they hold."""
        replaced = dict(zip(streams, (sys.stdout, sys.stderr), strict=True))
        for handler in logging.root.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream in replaced:
                self._handlers.append((handler, handler.stream))
                handler.setStream(replaced[handler.stream])


def _values(trainer: pl.Trainer, names: tuple[str, ...]) -> str:
    """Format the named values that have been logged, by the last part of their names."""
    logged = trainer.callback_metrics
    shown = []
    for name in names:
        if name in logged:
            value, word = float(logged[name]), name.split("/")[-1]
            shown.append(f"{word} {value:.4g}")
            if name == "val/psnr" and (floor := logged.get("val/linear_floor_psnr")) is not None:
                way = "above" if value >= floor else "below"
                shown[-1] += f" ({abs(value - float(floor)):.1f} dB {way} the linear floor)"
    return "  ".join(shown)
