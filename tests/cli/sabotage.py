"""A callback that lets one process of a training run fail, when and how the environment says."""

import os
import signal
import time
from pathlib import Path

import lightning.pytorch as pl

from ldm_lightning.utils.launch import launched


class Sabotage(pl.Callback):
    """In process SABOTAGE_RANK, after two updates: send itself a signal, or raise an error.

    Writes the time into SABOTAGE_FILE first. Stands in for the codebook's alarm, and so takes its
    arguments.
    """

    def __init__(self, perplexity_fraction: float, patience: int) -> None:
        self.rank, self.how = int(os.environ["SABOTAGE_RANK"]), os.environ["SABOTAGE_HOW"]

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step != 2 or launched().rank != self.rank:
            return
        Path(os.environ["SABOTAGE_FILE"]).write_text(str(time.time()))
        if self.how == "raise":
            raise ValueError("photograph_17.jpg is no image")
        if self.how == "broken":
            raise RuntimeError("a mistake of ours")
        os.kill(os.getpid(), signal.Signals[self.how])
