"""Counts the bytes of gradients that two processes exchange.

``python -m tests.distributed.reduced_bytes FOLDER`` with LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT set is one of several processes; each trains and writes what it counted.
"""

import json
import os
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from ldm_lightning.builders.data import build_data
from ldm_lightning.builders.first_stage import build_first_stage_module
from ldm_lightning.builders.training import build_trainer
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.utils import collectives as distributed
from tests.module.composed import compose_tiny

WORDS = (
    "kl_f8",
    "resolution=16",
    "accumulate_batches=3",
    "loss.discriminator_start_steps=0",
    "loss.discriminator_warmup_steps=0",
    "loss.discriminator_ramp_steps=0",
)
NUM_UPDATES = 2


class ReducedBytes(pl.Callback):
    """Counts what DDP hands over to be averaged, and what is averaged by hand."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.by_hand = 0
        self._reduce_mean = distributed.all_reduce_mean

    def setup(self, trainer, pl_module, stage):
        distributed.all_reduce_mean = self._by_hand

    def teardown(self, trainer, pl_module, stage):
        distributed.all_reduce_mean = self._reduce_mean

    def on_train_start(self, trainer, pl_module):
        trainer.strategy.model.register_comm_hook(None, self._reduce)

    def _by_hand(self, value):
        self.by_hand += value.nbytes
        return self._reduce_mean(value)

    def _reduce(self, _, bucket):
        self.num_bytes += bucket.buffer().nbytes
        return allreduce_hook(None, bucket)


def count(words: tuple[str, ...], folder: Path) -> dict[str, int]:
    """Train and count."""
    cfg = compose_tiny(
        *words,
        "trainer=ddp_cpu",
        f"max_steps={NUM_UPDATES}",
        "data.batch_size=2",
        "data.num_val_images=2",
        "data.val_batch_size=1",
        "trainer.precision=32",
        folder=folder,
    )
    cfg.cache_dir = str(folder.parent / "cache")
    torch.manual_seed(cfg.seed)
    data = build_data(cfg)
    data.num_train_batches = cfg.max_steps * cfg.accumulate_batches
    trainer = build_trainer(cfg, RunFolder.create(folder))
    module = build_first_stage_module(
        cfg, protocol=data.protocol("val"), num_devices=trainer.world_size
    )
    counted = ReducedBytes()
    trainer.callbacks.append(counted)
    trainer.fit(module, data)
    generator, *others = (
        sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
        for optimizer in trainer.optimizers
    )
    return {
        "reduced": counted.num_bytes,
        "by_hand": counted.by_hand,
        "generator": generator,
        "discriminator": sum(others),
    }


def main() -> None:
    """Count as one of several processes."""
    folder, rank = Path(sys.argv[1]), os.environ["LOCAL_RANK"]
    torch.set_num_threads(1)
    counted = count(WORDS, folder / "run")
    (folder / f"counted_{rank}.json").write_text(json.dumps(counted))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
