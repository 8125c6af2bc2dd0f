"""A run counts generator updates, saves every n of them, and averages by them.

Whenever the discriminator starts, and however many batches make an update.
"""

import lightning.pytorch as pl
import pytest
import torch

from ldm_lightning.callbacks.checkpointing import Checkpointing
from ldm_lightning.checkpoints.checkpoint import load_checkpoint
from ldm_lightning.runs.run_folder import RunFolder
from tests.module.small import loader, small_module, trainer

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


@pytest.mark.parametrize(
    ("start_step", "accumulate_batches"),
    [(None, 2), (0, 2), (4, 1)],
)
def test_last_is_saved_every_n_updates_with_any_discriminator_start(
    tmp_path, start_step, accumulate_batches
):
    run_folder = RunFolder.create(tmp_path)
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


def test_two_batches_make_the_update_of_one_twice_their_size(tmp_path):
    """Noise by row of the update, and LeCam's running means moved once."""
    states = []
    for accumulate_batches in (1, 2):
        adversarial = {"adaptive": False, "lecam_weight": 0.3}
        module = small_module(accumulate_batches=accumulate_batches, adversarial=adversarial)
        run = trainer(tmp_path, max_steps=3, precision="64-true")
        run.fit(module, loader(3 * accumulate_batches, batch_size=8 // accumulate_batches))
        states.append(module.state_dict())
    assert states[0]["lecam.mean_real"] != 0
    for name, tensor in states[0].items():
        torch.testing.assert_close(
            states[1][name], tensor, rtol=1e-8, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}"
        )
