"""Lightning's side of training with sharded weights: ``trainer=fsdp``.

Differs from Lightning's own ModelParallelStrategy, which shards alike: that one writes a checkpoint
over the previous one, beside a pickle, keeps the moving average whole, names the optimizer's state
so that no other strategy continues from it, and refuses float64, in which our tests compare.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from ldm_lightning.checkpoints.sharded import cut_alike, load_sharded, save_sharded
from ldm_lightning.distributed.ddp import TwoTimeoutDDP
from ldm_lightning.distributed.sharding import gather, release, shard
from ldm_lightning.module.diffusion import DiffusionModule


class ShardedStrategy(TwoTimeoutDDP):
    """Processes as in DDP, but each keeps one part of what a second stage trains.

    The first stage and the metrics stay whole on every process.

    Args:
        answer_seconds: As of ``TwoTimeoutDDP``.
    """

    def __init__(self, *, answer_seconds: float) -> None:
        super().__init__(find_unused_parameters=False, answer_seconds=answer_seconds)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Weights are cut in ``setup``, and a checkpoint is read part by part."""
        return True

    def setup(self, trainer: pl.Trainer) -> None:
        """Cut the weights, alike on every process by the seed, before there is an optimizer."""
        assert isinstance(self.lightning_module, DiffusionModule)  # config.py has refused others
        self._mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        if trainer.state.fn == "fit":  # validation alone would put them together at once
            shard(self.lightning_module.model, self._mesh)
        super().setup(trainer)

    def configure_ddp(self) -> None:
        """Wrap nothing: torch's hooks in the blocks average gradients over processes."""

    def on_validation_start(self) -> None:
        """Put the weights together; after the callbacks, of which one may exchange them."""
        gather(self.lightning_module.model)  # type: ignore[union-attr, arg-type]

    def on_validation_end(self) -> None:
        """Cut the weights again."""
        release(self.lightning_module.model)  # type: ignore[union-attr, arg-type]

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint, each process its part."""
        save_sharded(checkpoint, Path(filepath))

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read each process' part of a checkpoint, whatever number of processes wrote it."""
        checkpoint = load_sharded(Path(checkpoint_path), self._mesh)
        module = self.lightning_module
        assert isinstance(module, DiffusionModule)
        checkpoint["state_dict"] = _cut(checkpoint["state_dict"], module)
        if "ema" in checkpoint:
            checkpoint["ema"] = _cut(checkpoint["ema"], module.averaged)
        return checkpoint

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give every optimizer its state, cut as its parameters are."""
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for index, state in stored["state"].items():
                for name, value in state.items():
                    if value.ndim:  # no count of steps
                        state[name] = cut_alike(value, parameters[index])
        super().load_optimizer_state_dict(checkpoint)

    def teardown(self) -> None:
        """End without moving the weights, which belong to the mesh's device."""
        assert self.cluster_environment is not None
        assert self.accelerator is not None
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()


def _cut(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Cut tensors as the module's parameters of the same names are; leave those of other names."""
    parameters = dict(module.named_parameters())
    return {
        name: cut_alike(tensor, parameters.get(name, tensor)) for name, tensor in tensors.items()
    }
