"""A checkpoint that is not finite is never written, and the last good one stays."""

import os
import signal

import lightning.pytorch as pl
import pytest
import torch

from ldm_lightning.callbacks.checkpointing import Checkpointing
from ldm_lightning.callbacks.ema import Ema
from ldm_lightning.checkpoints.checkpoint import load_checkpoint
from ldm_lightning.module.update_loop import use_update_loop
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.utils.finite import not_finite
from tests.module.small import loader, small_module, trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)

GOOD, BAD = 3, 4
SAVES = {
    "interval": {"every_num_steps": 1},
    "validation": {"val_check_interval": BAD},
    "end": {"max_steps": BAD},
    "stop": {},
}
DAMAGES = {
    "autoencoder.decoder.conv_out.weight": lambda trainer, module: module.autoencoder.last_layer,
    "discriminator": lambda trainer, module: next(module.discriminator.parameters()),
    "ema": lambda trainer, module: next(iter(trainer.callbacks[0]._averages.values())),
    "exp_avg_sq": lambda trainer, module: next(iter(trainer.optimizers[0].state.values()))[
        "exp_avg_sq"
    ],
}


class Damage(pl.Callback):
    """Puts a value into a tensor after an update, and may ask the run to stop there."""

    def __init__(self, find, value, *, stop):
        self.find, self.value, self.stop, self.done = find, value, stop, False

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step != BAD or self.done:
            return
        self.done = True
        with torch.no_grad():
            self.find(trainer, pl_module).view(-1)[-1] = self.value
        if self.stop:
            os.kill(os.getpid(), signal.SIGTERM)


def run(tmp_path, damage, *, max_steps=6, every_num_steps=GOOD, val_check_interval=100):
    folder = RunFolder.create(tmp_path)
    run = trainer(
        tmp_path,
        max_steps=max_steps,
        val_check_interval=val_check_interval,
        check_val_every_n_epoch=None,
        enable_checkpointing=True,
        callbacks=[
            Ema(decay=0.9),
            damage,
            Checkpointing(folder, monitor=None, every_num_steps=every_num_steps),
        ],
    )
    use_update_loop(run, accumulate_batches=1)
    module = small_module(log_every_steps=100, perceptual=None)
    with pytest.raises(FloatingPointError) as refusal:
        run.fit(module, loader(8, batch_size=2), loader(2))
    last = load_checkpoint(folder.checkpoints / "last.ckpt")
    return str(refusal.value), last


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("save", SAVES)
def test_no_kind_of_save_replaces_a_good_state_by_a_bad_one(tmp_path, save, value):
    damage = Damage(DAMAGES["autoencoder.decoder.conv_out.weight"], value, stop=save == "stop")
    told, last = run(tmp_path, damage, **SAVES[save])
    for part in (f"Update {BAD} ", "autoencoder.decoder.conv_out.weight", "optim.learning_rate"):
        assert part in told
    assert last["global_step"] == GOOD
    assert not_finite(last) == []
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["last.ckpt"]


@pytest.mark.parametrize("name", DAMAGES)
def test_all_that_a_run_continues_from_is_looked_at(tmp_path, name):
    damage = Damage(DAMAGES[name], float("nan"), stop=False)
    told, last = run(tmp_path, damage, every_num_steps=1)
    assert name in told
    assert last["global_step"] == GOOD
