"""A run counts generator updates, saves every n of them, and averages by them.

Whenever the discriminator starts, and however many batches make an update.
"""

import lightning.pytorch as pl
import pytest
import torch

from ldm_lightning.callbacks.checkpointing import Checkpointing
from ldm_lightning.utils.checkpoint import load_checkpoint
from ldm_lightning.utils.run_folder import RunFolder
from tests.module.small import loader, quantizer, small_module, trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)

MAX_STEPS, EVERY = 7, 3


class SavedSteps(pl.Callback):
    """Updates that last.ckpt holds, looked at whenever the next batch begins."""

    def __init__(self, path):
        self.path, self.steps, self.counted = path, [], []

    def look(self):
        step = load_checkpoint(self.path)["global_step"] if self.path.is_file() else None
        if step is not None and step not in self.steps:
            self.steps.append(step)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.look()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.counted.append(trainer.global_step)


@pytest.mark.parametrize("accumulate_batches", [1, 2])
@pytest.mark.parametrize("start_step", [None, 0, 1, 2, 4, 100])
def test_last_is_saved_every_n_updates_with_any_discriminator_start(
    tmp_path, start_step, accumulate_batches
):
    run_folder = RunFolder(tmp_path)
    checkpointing = Checkpointing(run_folder, monitor=None, every_num_steps=EVERY)
    saved = SavedSteps(checkpointing.last_path)
    module = small_module(start_step=start_step, accumulate_batches=accumulate_batches)
    run = trainer(
        tmp_path,
        max_steps=MAX_STEPS,
        callbacks=[saved, checkpointing],
        enable_checkpointing=True,
        limit_val_batches=0,
    )
    run.fit(module, loader(MAX_STEPS * accumulate_batches, batch_size=2))
    saved.look()
    batches = range(1, MAX_STEPS * accumulate_batches + 1)
    assert saved.counted == [batch // accumulate_batches for batch in batches]
    assert saved.steps == [3, 6, 7]


def test_the_running_means_of_lecam_move_once_an_update(tmp_path):
    """Two batches of four make the update of one batch of eight."""
    means = []
    for accumulate_batches in (1, 2):
        adversarial = {"adaptive": False, "lecam_weight": 0.3}
        module = small_module(
            bottleneck=quantizer(), accumulate_batches=accumulate_batches, adversarial=adversarial
        )
        run = trainer(tmp_path, max_steps=3, precision="64-true")
        run.fit(module, loader(3 * accumulate_batches, batch_size=8 // accumulate_batches))
        means.append(torch.stack([module.lecam.mean_real, module.lecam.mean_fake]))
    assert means[0].abs().min() > 0
    torch.testing.assert_close(means[0], means[1], rtol=1e-9, atol=1e-12)
