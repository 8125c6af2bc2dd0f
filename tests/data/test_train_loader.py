"""An interrupted Lightning run continues with exactly the batches of an uninterrupted one."""

import logging

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from PIL import Image
from torch import nn

from ldm_lightning.data.images.image_folder import image_folder_data_module
from ldm_lightning.data.shapes.module import shapes_data_module

NUM_BATCHES = 30


def data_module(num_workers, **changes):
    settings = {
        "resolution": 16,
        "image_channels": 3,
        "textures": False,
        "num_train_images": 42,  # ten batches and a rest an epoch
        "num_val_images": 8,
        "batch_size": 4,
        "val_batch_size": 4,
        "num_workers": num_workers,
        "max_val_images": None,
        "seed": 3,
    }
    module = shapes_data_module(**(settings | changes))
    module.num_train_batches = NUM_BATCHES
    return module


class InterruptedRunError(Exception):
    pass


class TwoOptimizers(LightningModule):
    """Manual optimization with two optimizers, as a first stage with a discriminator has."""

    def __init__(self, *, stop_in_batch=None, validate=False):
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.networks = nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1)])
        self.stop_in_batch = stop_in_batch
        self.keys = []

    def configure_optimizers(self):
        return [torch.optim.SGD(network.parameters(), 0.1) for network in self.networks]

    def training_step(self, batch, batch_idx):
        self.keys.append(batch["key"])
        if self.stop_in_batch == batch_idx:
            raise InterruptedRunError
        for optimizer, network in zip(self.optimizers(), self.networks, strict=True):
            optimizer.zero_grad()
            self.manual_backward(network(batch["image"].mean((2, 3))).square().mean())
            optimizer.step()

    def validation_step(self, batch, batch_idx):
        self.keys.append(["validation", *batch["key"]])


def trainer(**options):
    return Trainer(
        accelerator="cpu",
        max_epochs=-1,  # one that is over would not be resumed
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **({"limit_val_batches": 0, "enable_checkpointing": False} | options),
    )


def run(num_workers, module, *, path=None, num_batches=NUM_BATCHES, **options):
    # Lightning counts a step of either optimizer.
    run_trainer = trainer(max_steps=2 * num_batches, **options)
    run_trainer.fit(module, data_module(num_workers), ckpt_path=path, weights_only=True)
    return run_trainer


pytestmark = [
    # What Lightning says about torch's trees is not tested here.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
]


@pytest.fixture(scope="module")
def uninterrupted():
    module = TwoOptimizers()
    run(0, module)
    assert len(module.keys) == NUM_BATCHES
    return module


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stop", [7, 10, 13])
def test_resuming_after_a_stop_repeats_the_uninterrupted_run(
    tmp_path, uninterrupted, num_workers, stop
):
    first = TwoOptimizers()
    first_trainer = run(num_workers, first, num_batches=stop)
    assert first.keys == uninterrupted.keys[:stop]
    first_trainer.save_checkpoint(tmp_path / "last.ckpt")
    second = TwoOptimizers()
    run(num_workers, second, path=tmp_path / "last.ckpt")
    assert second.keys == uninterrupted.keys[stop:]
    for name, value in second.state_dict().items():
        assert torch.equal(value, uninterrupted.state_dict()[name])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_that_was_interrupted_is_repeated(tmp_path, uninterrupted, num_workers):
    first = TwoOptimizers(stop_in_batch=12)
    save = LambdaCallback(
        on_exception=lambda trainer, module, err: trainer.save_checkpoint(tmp_path / "last.ckpt")
    )
    with pytest.raises(InterruptedRunError):
        run(num_workers, first, callbacks=[save])
    second = TwoOptimizers()
    run(num_workers, second, path=tmp_path / "last.ckpt")
    assert first.keys[:12] + second.keys == uninterrupted.keys


def test_checkpoints_during_the_run_and_validations_in_between_keep_the_order(tmp_path):
    def fit(path=None):
        module = TwoOptimizers()

        def save(trainer, module, outputs, batch, batch_idx):
            if batch_idx == 7:
                trainer.save_checkpoint(tmp_path / "eight.ckpt")

        run(
            0,
            module,
            path=path,
            callbacks=[LambdaCallback(on_train_batch_end=save)],
            limit_val_batches=None,
            val_check_interval=6,
            check_val_every_n_epoch=None,
        )
        return module.keys

    whole = fit()
    assert len(whole) == NUM_BATCHES + 5 * 2
    # Before the checkpoint lie eight batches and a validation of two.
    assert fit(tmp_path / "eight.ckpt") == whole[10:]


def test_a_checkpoint_of_other_data_is_announced(tmp_path, caplog):
    first = TwoOptimizers()
    run(0, first, num_batches=5).save_checkpoint(tmp_path / "last.ckpt")
    resumed = data_module(0, num_train_images=44)
    with caplog.at_level(logging.WARNING):
        trainer(max_steps=20).fit(
            TwoOptimizers(), resumed, ckpt_path=tmp_path / "last.ckpt", weights_only=True
        )
    assert "images=" in caplog.text
    assert "global_batch_size" not in caplog.text


def test_lightning_validates_what_is_left_where_no_image_of_a_batch_can_be_read(tmp_path):
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
        for number in range(9):
            Image.new("RGB", (8, 8)).save(tmp_path / folder / f"{number}.png")
    (tmp_path / "val" / "8.png").write_bytes(b"damaged")  # alone in the last batch of four
    data = image_folder_data_module(
        root=str(tmp_path / "train"),
        val_root=str(tmp_path / "val"),
        val_fraction=0.5,
        resolution=8,
        image_channels=3,
        train_crop="center",
        crop_scale=(1.0, 1.0),
        flip=False,
        eval_crop="center",
        val_crops_per_image=1,
        max_bad_fraction=0.2,
        batch_size=4,
        val_batch_size=4,
        num_workers=0,
        max_val_images=None,
        seed=0,
    )
    module = TwoOptimizers()
    trainer(limit_val_batches=None).validate(module, data, verbose=False)
    expected = [[f"{number}.png" for number in rows] for rows in (range(4), range(4, 8))]
    assert [keys[1:] for keys in module.keys] == expected
    assert len(data.bad_files()) == 1


def test_the_number_of_batches_must_be_set_first():
    module = data_module(0)
    module.num_train_batches = None
    with pytest.raises(ValueError, match="Set num_train_batches"):
        module.train_dataloader()
