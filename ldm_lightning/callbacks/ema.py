"""Exponential moving average of the weights that a module trains for use."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)


class Ema(pl.Callback):
    """Average ``pl_module.averaged`` over updates, and validate with the average.

    After update t (counted from 1) each parameter's average moves by ``1 - decay`` of the way to
    its value; with ``warm_up`` the decay is min(decay, (1 + t) / (10 + t)), so that the random
    start is forgotten in short runs too. The average begins at the values before the first update.
    Buffers are not averaged but taken from the network as they are.

    That is the autoencoder in a first stage, denoiser and conditioner in a second: no
    discriminator, loss or metric network. Checkpoints keep the raw weights in ``state_dict`` and
    the average under ``ema``, named as ``averaged.state_dict()`` names them.

    Args:
        decay: Share of the average that one update keeps, in [0, 1).
        warm_up: Lower the decay at the start, as above.

    Raises:
        ValueError: If ``decay`` is outside [0, 1).
    """

    def __init__(self, *, decay: float, warm_up: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.decay must be in [0, 1), got {decay}.")
        self.decay = decay
        self.warm_up = warm_up
        self.num_updates = 0
        self._averages: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] = {}  # the network's own weights while the averages stand in
        self._followed: list[Tensor] = []  # the network's parameters, in the averages' order
        self._seen_step = 0

    def decay_at(self, update: int) -> float:
        """Decay applied after update ``update``, counted from 1."""
        return min(self.decay, (1 + update) / (10 + update)) if self.warm_up else self.decay

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin at the current weights, or bring a continued average to the device."""
        parameters = _parameters(pl_module)
        if not self._averages:
            if trainer.ckpt_path is not None:
                logger.warning("%s has no moving average; it begins here.", trainer.ckpt_path)
            self._averages = {name: value.clone() for name, value in parameters.items()}
        self._averages = {
            name: self._averages[name].to(value.device) for name, value in parameters.items()
        }

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count updates from where the run stands, and look up once what is followed."""
        self._seen_step = trainer.global_step
        self._followed = list(_parameters(pl_module).values())

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move the average once for every generator update, not for every batch."""
        if trainer.global_step == self._seen_step:
            return
        self._seen_step = trainer.global_step
        self.num_updates += 1
        weight = 1 - self.decay_at(self.num_updates)
        torch._foreach_lerp_(list(self._averages.values()), self._followed, weight)

    @torch.no_grad()
    def _swap_in(self, pl_module: pl.LightningModule) -> None:
        if self._raw or not self._averages:
            return
        parameters = _parameters(pl_module)
        self._raw = {name: value.clone() for name, value in parameters.items()}
        averages = [self._averages[name].to(value.device) for name, value in parameters.items()]
        torch._foreach_copy_(list(parameters.values()), averages)

    @torch.no_grad()
    def _swap_out(self, pl_module: pl.LightningModule) -> None:
        if not self._raw:
            return
        torch._foreach_copy_(list(_parameters(pl_module).values()), list(self._raw.values()))
        self._raw = {}

    @contextmanager
    def raw_weights(self, pl_module: pl.LightningModule) -> Iterator[None]:
        """Give the network its own weights back for a while inside a validation."""
        averaged = bool(self._raw)
        self._swap_out(pl_module)
        try:
            yield
        finally:
            if averaged:
                self._swap_in(pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate with the average."""
        self._swap_in(pl_module)

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure the raw weights beside the average where the module asks for it."""
        metrics = getattr(pl_module, "raw_metrics", None)
        if metrics is None:
            return
        with self.raw_weights(pl_module), trainer.precision_plugin.val_step_context():
            output = pl_module.autoencoder(batch["image"])  # type: ignore[operator]
            metrics.update(batch["image"], output.reconstructions, output.bottleneck)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Train on with the raw weights."""
        self._swap_out(pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Restore the raw weights wherever a validation was left."""
        self._swap_out(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The count of updates; the weights go under a key of their own."""
        return {"num_updates": self.num_updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the count."""
        self.num_updates = state_dict["num_updates"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the average, buffers included, so that it can be loaded by itself."""
        if self._averages:
            averaged: nn.Module = pl_module.averaged  # type: ignore[assignment]
            own = averaged.state_dict()
            checkpoint["ema"] = {name: self._averages.get(name, own[name]).detach() for name in own}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the average of the interrupted run."""
        if "ema" in checkpoint:
            names = _parameters(pl_module)
            self._averages = {name: checkpoint["ema"][name].clone() for name in names}


def _parameters(pl_module: pl.LightningModule) -> dict[str, Tensor]:
    """The averaged parameters by name, detached but sharing memory."""
    averaged: nn.Module = pl_module.averaged  # type: ignore[assignment]
    return {name: parameter.detach() for name, parameter in averaged.named_parameters()}
