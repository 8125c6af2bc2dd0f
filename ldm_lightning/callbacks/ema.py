"""Exponential moving average of the weights that a module trains for use."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from ldm_lightning.utils.collectives import local_shard

logger = logging.getLogger(__name__)


class Ema(pl.Callback):
    """Average ``pl_module.averaged`` over updates, and validate with the average.

    After update t (counted from 1) each parameter's average moves by ``1 - decay`` of the way to
    its value; with ``warm_up`` the decay is min(decay, (1 + t) / (10 + t)), so that the random
    start is forgotten in short runs too. The average begins at the values before the first update.
    Buffers are not averaged but taken from the network as they are, and so are rows that were
    assigned rather than learned (``pl_module.take_assigned``), such as codes placed by k-means: an
    average would take many updates to follow a jump.

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
        # What this process holds, in the averages' order: of the averages, of the network's
        # parameters, and of the network's own weights while the averages stand in.
        self._own_averages: list[Tensor] = []
        self._followed: list[Tensor] = []
        self._raw: list[Tensor] = []
        self._seen_step = 0

    def decay_at(self, update: int) -> float:
        """Decay applied after update ``update``, counted from 1."""
        return min(self.decay, (1 + update) / (10 + update)) if self.warm_up else self.decay

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin at the current weights, or bring a continued average to their device and type."""
        parameters = _parameters(pl_module)
        if not self._averages:
            if trainer.ckpt_path is not None:
                logger.warning("%s has no moving average; it begins here.", trainer.ckpt_path)
            self._averages = {name: value.clone() for name, value in parameters.items()}
        self._averages = {
            name: self._averages[name].to(value.device, value.dtype)
            for name, value in parameters.items()
        }
        self._own_averages = [local_shard(average) for average in self._averages.values()]
        self._followed = [local_shard(value) for value in parameters.values()]
        self._seen_step = trainer.global_step

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
        torch._foreach_lerp_(self._own_averages, self._followed, weight)
        self._take_over(pl_module)

    def _take_over(self, pl_module: pl.LightningModule) -> None:
        """Copy the rows that this update has assigned."""
        assigned: dict[str, Tensor] = pl_module.take_assigned()  # type: ignore[operator]
        if not assigned:
            return
        parameters = _parameters(pl_module)
        for name in assigned.keys() & parameters.keys():  # buffers are not averaged
            value = parameters[name]
            rows = assigned[name].view(-1, *[1] * (value.ndim - 1))
            self._averages[name].copy_(torch.where(rows, value, self._averages[name]))

    @torch.no_grad()
    def _swap_in(self) -> None:
        if self._raw or not self._own_averages:
            return
        self._raw = [value.clone() for value in self._followed]
        torch._foreach_copy_(self._followed, self._own_averages)

    @torch.no_grad()
    def _swap_out(self) -> None:
        if not self._raw:
            return
        torch._foreach_copy_(self._followed, self._raw)
        self._raw = []

    @contextmanager
    def raw_weights(self) -> Iterator[None]:
        """Give the network its own weights back for a while inside a validation."""
        averaged = bool(self._raw)
        self._swap_out()
        try:
            yield
        finally:
            if averaged:
                self._swap_in()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate with the average."""
        self._swap_in()

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
        with self.raw_weights(), trainer.precision_plugin.val_step_context():
            output = pl_module.autoencoder(batch["image"])  # type: ignore[operator]
            metrics.update(batch["image"], output.reconstructions, output.bottleneck)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Train on with the raw weights."""
        self._swap_out()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Restore the raw weights wherever a validation was left."""
        self._swap_out()

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
