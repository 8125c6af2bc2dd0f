"""A run continued with other batches: every update sees its own images, an epoch each of them once.

Between the two starts change batches an update, images a batch, or both; in both stages, with data
in every order: shuffled as one, a group of shards after the other, and cached latents.
"""

import functools
from dataclasses import dataclass, field
from itertools import chain

import lightning.pytorch as pl
import pytest
import torch

from ldm_lightning.callbacks.checkpointing import Checkpointing
from ldm_lightning.conditioner.none import NoConditioner
from ldm_lightning.data.shapes.module import shapes_data_module
from ldm_lightning.module.diffusion import DiffusionModule
from ldm_lightning.module.settings import Optimization
from ldm_lightning.module.update_loop import use_update_loop
from ldm_lightning.runs.run_folder import RunFolder
from tests.autoencoder.first_stages import frozen
from tests.data.latents import test_module as test_latents
from tests.data.shards import test_webdataset
from tests.denoiser.small_unet import build
from tests.module.small import small_module, trainer
from tests.sampler.small import PROCESSES

STOPPED_AFTER, MAX_STEPS, EVERY = 4, 11, 3
BASE_RATE = 1e-3

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


def schedule(step):
    return 1 / (1 + step)


@dataclass
class Seen(pl.Callback):
    """What each update saw and was made with, by the number of updates before it."""

    keys: dict[int, list[list[str]]] = field(default_factory=dict)
    rates: dict[int, float] = field(default_factory=dict)
    validated: list[int] = field(default_factory=list)
    stop_at: int | None = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step = trainer.global_step
        if step == self.stop_at:
            raise InterruptedError
        self.keys.setdefault(step, []).append(batch["key"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step > max(self.keys):  # the batch has completed an update
            self.rates[trainer.global_step - 1] = trainer.optimizers[0].param_groups[0]["lr"]

    def on_validation_end(self, trainer, pl_module):
        self.validated.append(trainer.global_step)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Images as shards and as a latent cache."""
    folder = tmp_path_factory.mktemp("files")
    test_webdataset.write_shards(folder / "shards", "train", count=6, size=5)
    images = test_latents.image_module(test_latents.write_photos(folder / "photos"))
    test_latents.write_cache(folder / "latents", images)
    return folder


def data_of(kind, files, batch_size):
    if kind == "shapes":
        return shapes_data_module(
            resolution=16,
            image_channels=3,
            textures=False,
            num_train_images=26,
            num_val_images=4,
            batch_size=batch_size,
            val_batch_size=4,
            num_workers=0,
            max_val_images=None,
            seed=3,
        )
    if kind == "shards":
        changes = {"shuffle_shards": 2, "resolution": 16, "val_fraction": 0.2, "max_val_images": 4}
        return test_webdataset.data_module(files / "shards", batch_size=batch_size, **changes)
    return test_latents.latent_module(files / "latents", batch_size=batch_size, max_val_images=4)


def module_of(stage, accumulate, folder):
    if stage == "first":
        module = small_module(
            perceptual=None, start_step=2, accumulate_batches=accumulate, learning_rate=BASE_RATE
        )
        module.optimization = Optimization(
            module.optimization.optimizer, schedule, accumulate_batches=accumulate
        )
        return module
    return DiffusionModule(
        build(),
        NoConditioner(),
        PROCESSES["eps"],
        frozen(folder),
        optimization=Optimization(
            functools.partial(torch.optim.SGD, lr=BASE_RATE), schedule, accumulate
        ),
        seed=0,
        log_every_steps=1,
        stored_config={},
        protocol={},
    )


def run(stage, kind, files, folder, *, accumulate, batch_size, stop_at=None):
    """Train from the start, or on from ``last.ckpt``; returns what was seen and how many images."""
    seen = Seen(stop_at=stop_at)
    checkpointing = Checkpointing(
        RunFolder.create(folder), monitor=None, every_num_steps=STOPPED_AFTER
    )
    own = trainer(
        folder,
        max_steps=MAX_STEPS,
        callbacks=[seen, checkpointing],
        enable_checkpointing=True,
        val_check_interval=EVERY * accumulate,
        check_val_every_n_epoch=None,
    )
    use_update_loop(own, accumulate_batches=accumulate)
    data = data_of(kind, files, batch_size)
    data.num_train_batches = MAX_STEPS * accumulate
    last = checkpointing.last_path if checkpointing.last_path.exists() else None
    try:
        own.fit(module_of(stage, accumulate, folder), data, ckpt_path=last)
    except InterruptedError:
        assert own.global_step == stop_at
    return seen, len(data.train_dataset)


KINDS = [("first", "shapes"), ("first", "shards"), ("second", "latents"), ("second", "shards")]
CHANGES = [((2, 4), (1, 4)), ((1, 4), (2, 4)), ((2, 4), (1, 6)), ((1, 5), (3, 2))]
# Every kind and every change twice, once in `make test`.
CASES = [
    pytest.param(*kind, *change, marks=() if number == other else pytest.mark.slow)
    for number, kind in enumerate(KINDS)
    for other, change in enumerate(CHANGES)
    if (number - other) % len(CHANGES) < 2
]


@pytest.mark.parametrize(("stage", "kind", "before", "after"), CASES)
def test_every_update_sees_its_images_once_an_epoch(tmp_path, files, stage, kind, before, after):
    parts = [before, after]
    one, other = (
        run(stage, kind, files, tmp_path, accumulate=a, batch_size=b, stop_at=stop)
        for (a, b), stop in zip(parts, (STOPPED_AFTER, None), strict=True)
    )
    (first, num_images), (second, _) = one, other
    assert first.keys.keys() == set(range(STOPPED_AFTER))
    assert second.keys.keys() == set(range(STOPPED_AFTER, MAX_STEPS))
    for seen, (accumulate, batch_size) in zip((first, second), parts, strict=True):
        assert all(list(map(len, k)) == [batch_size] * accumulate for k in seen.keys.values())
    batches = chain.from_iterable((first.keys | second.keys).values())
    epochs: list[list[str]] = [[]]
    for key in chain.from_iterable(batches):
        if key in epochs[-1]:
            epochs.append([])
        epochs[-1].append(key)
    assert len(epochs) > 1
    largest = max(before[1], after[1])
    assert all(num_images - len(epoch) < largest for epoch in epochs[:-1])
    rates = first.rates | second.rates
    assert rates == {step: BASE_RATE * schedule(step) for step in range(MAX_STEPS)}
    assert first.validated + second.validated == [3, 6, 9, 11]
