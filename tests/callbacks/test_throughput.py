"""The stopwatch against a clock that only batches, loading, validations and saving put forward."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest

from ldm_lightning.callbacks import throughput
from ldm_lightning.callbacks.checkpointing import Checkpointing
from ldm_lightning.callbacks.throughput import Spent, throughput_of
from ldm_lightning.runs.run_folder import RunFolder
from tests.callbacks.tiny_module import CountingLoader, TinyModule, fit, make_trainer

WAIT, STEP, START_UP, VALIDATION_BATCH, SAVE = 0.125, 0.5, 100.0, 30.0, 8.0  # seconds
IMAGES = 2  # in a batch


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(throughput, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def run(clock, *, accumulate=1, callbacks=(), ckpt_path=None, max_steps=10):
    """A run that validates after updates 5 and 10, and saves after validating."""

    def spend(seconds):
        clock.now += seconds

    class SlowLoader(CountingLoader):
        def __iter__(self):
            for batch in super().__iter__():
                spend(WAIT)
                yield batch

    class Saves(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            spend(SAVE)

    module = TinyModule(accumulate=accumulate)
    module.train_dataloader = lambda: SlowLoader(max_steps * accumulate)
    seen = []

    def step(batch, batch_idx):
        spend(STEP if len(seen) >= accumulate else START_UP)
        seen.append(batch_idx)

    module.on_train_batch_start = step
    module.on_validation_batch = lambda module, batch_idx: spend(VALIDATION_BATCH)
    trainer = make_trainer(
        [Saves(), *callbacks],
        val_check_interval=5 * accumulate,
        enable_checkpointing=bool(callbacks),
        max_steps=max_steps,
    )
    fit(trainer, module, ckpt_path)
    return throughput_of(trainer)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_second_is_counted_once_and_start_up_not_at_all(clock, accumulate):
    measured = run(clock, accumulate=accumulate)
    num_batches = 9 * accumulate - 1  # one follows a validation
    expected = Spent(
        waiting_s=num_batches * WAIT,
        step_s=num_batches * STEP,
        validation_s=4 * VALIDATION_BATCH,
        after_validation_s=SAVE + WAIT + STEP,
        num_images=num_batches * IMAGES,
        num_batches=num_batches,
    )
    assert measured.spent == expected
    assert measured.batches_per_update == accumulate
    assert measured.seconds_per_update == pytest.approx(accumulate * (WAIT + STEP))
    assert measured.spent.images_per_s == pytest.approx(IMAGES / (WAIT + STEP))
    assert measured.last_validation_s == 2 * VALIDATION_BATCH


def test_a_continued_run_adds_to_the_time_of_the_first(clock, tmp_path):
    folder = RunFolder.create(tmp_path)
    saving = Checkpointing(folder, monitor=None)
    first = run(clock, callbacks=[saving], max_steps=5).spent
    saving = Checkpointing(folder, monitor=None)
    path = folder.checkpoints / "last.ckpt"
    second = run(clock, callbacks=[saving], max_steps=10, ckpt_path=path)
    assert second.spent_before == first
    assert second.total == first + second.spent
    assert second.spent.num_batches == 4


def test_a_trainer_without_stopwatch_is_refused():
    with pytest.raises(LookupError, match="Throughput"):
        throughput_of(pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False))
