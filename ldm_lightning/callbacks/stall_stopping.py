"""Early stopping once no metric improves any more."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl

from ldm_lightning.callbacks.comparison import protocol_of

logger = logging.getLogger(__name__)


class StallStopping(pl.Callback):
    """Stop when every monitored metric has stalled for ``patience`` validations.

    One metric is not enough: while a discriminator sharpens the pictures, the Fréchet distance
    improves and the perceptual distance may not, or the reverse. Validations before the
    discriminator acts with full weight are not counted, and what was best before is forgotten then,
    because the balance of the losses changes.

    Args:
        monitors: ``min`` or ``max`` by metric name, such as ``{"val/rfid": "min"}``.
        patience: Validations without improvement, after which a metric counts as stalled.
        min_delta: Smallest improvement that counts, as a share of the best value so far.

    Raises:
        ValueError: If nothing is monitored, a direction is unknown, or a number is out of range.
    """

    def __init__(
        self, *, monitors: Mapping[str, str], patience: int, min_delta: float = 0.0
    ) -> None:
        if not monitors or set(monitors.values()) - {"min", "max"}:
            raise ValueError(
                "callbacks.stall_stopping.monitors must map metric names to min or max, got "
                f"{monitors}."
            )
        if patience < 1 or min_delta < 0:
            raise ValueError(
                f"callbacks.stall_stopping needs patience >= 1 and min_delta >= 0, got {patience} "
                f"and {min_delta}."
            )
        self.monitors = dict(monitors)
        self.patience = patience
        self.min_delta = min_delta
        self.stop_reason: str | None = None
        self._best: dict[str, float] = {}
        self._stalled = dict.fromkeys(self.monitors, 0)
        self._measured_as: dict[str, dict[str, Any]] = {}
        self._is_comparable = True  # False: to be found out, after loading

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once where the continued run had stalled, but was ended before it could stop."""
        self._stop_if_stalled(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare every metric with its best, and stop when all have stalled."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        missing = [name for name in self.monitors if name not in trainer.callback_metrics]
        if missing:
            measured = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise ValueError(
                f"callbacks.stall_stopping.monitors names {', '.join(missing)}, which validation "
                f"does not measure; choose from: {measured}."
            )
        if trainer.global_step < pl_module.adversarial_fully_on_step:  # type: ignore[operator]
            return
        self._forget_what_is_measured_otherwise(pl_module)
        for name in self.monitors:
            self._compare(name, float(trainer.callback_metrics[name]))
        self._stop_if_stalled(trainer)

    def _stop_if_stalled(self, trainer: pl.Trainer) -> None:
        stop = min(self._stalled.values()) >= self.patience
        if trainer.strategy.reduce_boolean_decision(stop, all=False):
            best = ", ".join(f"{name} {value:.4g}" for name, value in sorted(self._best.items()))
            self.stop_reason = (
                f"no improvement of {', '.join(sorted(self.monitors))} in {self.patience} "
                f"validations (best: {best or 'none'})"
            )
            logger.info("Stopping at update %d: %s.", trainer.global_step, self.stop_reason)
            trainer.should_stop = True

    def _forget_what_is_measured_otherwise(self, pl_module: pl.LightningModule) -> None:
        """After loading, start metrics anew whose best value was measured in another way."""
        measured_as = {name: protocol_of(pl_module, name) for name in self.monitors}
        if not self._is_comparable:
            for name in self.monitors:
                if self._measured_as.get(name) != measured_as[name]:
                    self._best.pop(name, None)
                    self._stalled[name] = 0
        self._is_comparable, self._measured_as = True, measured_as

    def _compare(self, name: str, value: float) -> None:
        """Count a validation as stalled unless the value is better than the best by enough."""
        sign = 1 if self.monitors[name] == "max" else -1
        best = self._best.get(name)
        if math.isfinite(value) and (
            best is None or sign * (value - best) > self.min_delta * abs(best)
        ):
            self._best[name] = value
            self._stalled[name] = 0
        else:
            self._stalled[name] += 1

    def state_dict(self) -> dict[str, Any]:
        """Best values and how long ago they were reached."""
        return {
            "best": dict(self._best),
            "stalled": dict(self._stalled),
            "measured_as": self._measured_as,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue counting; a metric that was not monitored before starts anew."""
        self._best = {name: v for name, v in state_dict["best"].items() if name in self.monitors}
        self._stalled = {name: state_dict["stalled"].get(name, 0) for name in self.monitors}
        self._measured_as = state_dict["measured_as"]
        self._is_comparable = False
