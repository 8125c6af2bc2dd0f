"""Keeps ``summary.json`` up to date: state, metrics, timing, memory."""

import logging
import time
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from ldm_lightning.callbacks.codebook_alarm import CodebookAlarm
from ldm_lightning.callbacks.ema import Ema
from ldm_lightning.callbacks.stall_stopping import StallStopping
from ldm_lightning.callbacks.throughput import throughput_of
from ldm_lightning.module.update_loop import validation_is_missing
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.utils.errors import error_line
from ldm_lightning.utils.provenance import device_name, git_commit, package_versions, peak_memory

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10.0

CallbackT = TypeVar("CallbackT", bound=pl.Callback)


@runtime_checkable
class ContinuedLog(Protocol):
    """A logger that drops what a continued run will write again."""

    def drop_rows_after(self, step: int, *, validated: bool) -> None:
        """Forget everything logged after update ``step``.

        Args:
            step: The update that the run is continued from.
            validated: Whether it includes the validation after that update, where there is one.
        """


class RunSummary(pl.Callback):
    """Write the state of the run and what it has reached, on the first process.

    Metrics come from what the module logs outside ``train/``; ``protocol`` (how each was made) and
    ``per_channel`` from ``pl_module.report``.

    ``timing`` splits training into waiting for data, steps, validations and what follows them, in
    seconds, summed over interruptions; see ``Spent``.

    Args:
        run_folder: Whose ``summary.json`` is written.
    """

    def __init__(self, run_folder: RunFolder) -> None:
        self.run_folder = run_folder
        self._written = 0.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what runs, and where."""
        parts = {
            name: getattr(pl_module, name, None)
            for name in ("autoencoder", "discriminator", "denoiser")
        }
        parameters = {
            name: sum(parameter.numel() for parameter in part.parameters())
            for name, part in parts.items()
            if isinstance(part, nn.Module)
        }
        facts: dict[str, Any] = {
            "parameters": parameters,
            "num_processes": trainer.world_size,
            "num_threads": torch.get_num_threads(),
            **_made_with(trainer),
        }
        if first_stage := getattr(pl_module, "first_stage_used", None):
            facts["first_stage_used"] = first_stage
        if trainer.is_global_zero:
            self._write(trainer, {"state": "running", **facts})
            _tell_loggers(trainer, facts)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the loggers drop what is going to be written again."""
        validated = not validation_is_missing(trainer)
        for log in trainer.loggers:
            if isinstance(log, ContinuedLog):
                log.drop_rows_after(trainer.global_step, validated=validated)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show a sign of life."""
        if trainer.is_global_zero and time.monotonic() - self._written >= HEARTBEAT_SECONDS:
            self._write(trainer, {})

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the metrics."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.split("/")[0] not in ("step", "train")
        }
        changes: dict[str, Any] = {"metrics": metrics}
        report: Any = pl_module.report
        if report is not None:
            changes["protocol"] = _protocol(report.protocol, metrics, _weights(trainer))
            if per_channel := getattr(report, "per_channel", None):
                changes["per_channel"] = per_channel
            if floor := getattr(report, "linear_floor", None):
                changes["linear_floor"] = {**floor.scalars, "protocol": floor.protocol}
        if trainer.state.fn == "validate":
            facts = _made_with(trainer)
            changes |= {"state": "validated", **facts}
            _tell_loggers(trainer, facts)
        self._write(trainer, changes)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how the run ended."""
        if not trainer.is_global_zero:
            return
        reasons = [c.stop_reason for c in _callbacks(trainer, StallStopping) if c.stop_reason]
        if reasons and trainer.global_step < trainer.max_steps:
            self._write(trainer, {"state": "early_stopped", "reason": reasons[0]})
        else:
            self._write(trainer, {"state": "finished"})

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Say what ended the run. A summary that cannot be written does not hide the reason."""
        if not trainer.is_global_zero:
            return
        stopped = isinstance(exception, (KeyboardInterrupt, SIGTERMException))
        changes: dict[str, Any] = {"state": "interrupted" if stopped else "failed"}
        if not stopped:
            changes["reason"] = error_line(exception)
        try:
            self._write(trainer, changes)
        except OSError as err:
            logger.error("%s could not be written (%s).", self.run_folder.summary, err)

    def _write(self, trainer: pl.Trainer, changes: Mapping[str, Any]) -> None:
        spent = throughput_of(trainer).total
        timing: dict[str, float] = {
            "data_s": spent.waiting_s,
            "step_s": spent.step_s,
            "validation_s": spent.validation_s,
            "after_validation_s": spent.after_validation_s,
            "total_s": spent.total_s,
        }
        if spent.images_per_s is not None:
            timing["images_per_s"] = spent.images_per_s
        alarms = [text for c in _callbacks(trainer, CodebookAlarm) for text in c.alarms]
        current = {
            "step": trainer.global_step,
            "timing": timing,
            "memory": peak_memory(trainer.strategy.root_device),
            "alarms": alarms,
        }
        self.run_folder.update_summary({**current, **changes})
        self._written = time.monotonic()


def _made_with(trainer: pl.Trainer) -> dict[str, Any]:
    """Conditions of the figures besides the configuration."""
    return {
        "device": device_name(trainer.strategy.root_device),
        "versions": package_versions(),
        "commit": git_commit(),
    }


def _tell_loggers(trainer: pl.Trainer, facts: Mapping[str, Any]) -> None:
    """Show facts beside the configuration."""
    for log in trainer.loggers:
        log.log_hyperparams(dict(facts))


def _weights(trainer: pl.Trainer) -> dict[str, str]:
    """Kind of weights that a validation during training sees."""
    if trainer.state.fn != "fit":
        return {}
    return {"weights": "ema" if _callbacks(trainer, Ema) else "raw"}


def _protocol(
    entries: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, float], facts: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Protocol of each metric, by full name; raw weights are measured on the same images."""
    protocol: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        full_name = name if "/" in name else f"val/{name}"
        protocol[full_name] = {**entry, **facts}
        raw_name = f"val_raw/{name.removeprefix('val/')}"
        if raw_name in metrics:
            protocol[raw_name] = {**entry, "weights": "raw"}
    return protocol


def _callbacks(trainer: pl.Trainer, kind: type[CallbackT]) -> list[CallbackT]:
    """The trainer's callbacks of one kind."""
    found: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in found if isinstance(callback, kind)]
