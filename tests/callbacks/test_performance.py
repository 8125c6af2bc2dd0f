from types import SimpleNamespace

import lightning.pytorch as pl
import pytest

from ldm_lightning.callbacks import throughput
from ldm_lightning.callbacks.performance import Performance
from tests.callbacks.recorder import Recorder
from tests.callbacks.tiny_module import CountingLoader, TinyModule, fit, make_trainer

WAIT, STEP, VALIDATION_BATCH, SAVE = 0.125, 0.5, 30.0, 8.0  # seconds
IMAGES, VALIDATION_BATCHES = 2, 2  # in a batch, in a validation


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is put forward."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(throughput, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def rows_of(clock, *, every_num_steps, accumulate=1):
    """What a run of ten updates shows by update, validated after five and ten."""

    def spend(seconds):
        clock.now += seconds

    class SlowLoader(CountingLoader):
        def __iter__(self):
            for batch in super().__iter__():
                spend(WAIT)
                yield batch

    class Saves(pl.Callback):  # as Checkpointing does, which comes after all others
        def on_validation_end(self, trainer, pl_module):
            spend(SAVE)

    module, recorder = TinyModule(accumulate=accumulate), Recorder()
    module.train_dataloader = lambda: SlowLoader(10 * accumulate)
    module.on_train_batch_start = lambda batch, batch_idx: spend(STEP)
    module.on_validation_batch = lambda module, batch_idx: spend(VALIDATION_BATCH)
    trainer = make_trainer(
        [Performance(every_num_steps=every_num_steps), Saves()],
        val_check_interval=5 * accumulate,
        enable_checkpointing=False,
        logger=recorder,
    )
    fit(trainer, module)
    return {
        step: {name: value for name, value in row.items() if name.startswith("perf/")}
        for step, row in recorder.scalars.items()
    }


def series(rows, name):
    return {step: row[name] for step, row in rows.items() if name in row}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_speed_is_of_training_alone_and_begins_after_the_first_row(clock, accumulate):
    speed = series(
        rows_of(clock, every_num_steps=2, accumulate=accumulate), "perf/train_images_per_s"
    )
    assert speed == pytest.approx(dict.fromkeys((4, 6, 8, 10), IMAGES / (WAIT + STEP)))


def test_waiting_for_data_is_a_share_of_the_time(clock):
    shares = series(rows_of(clock, every_num_steps=3), "perf/data_wait_fraction")
    assert shares == pytest.approx(dict.fromkeys((6, 9), WAIT / (WAIT + STEP)))


def test_validations_are_timed_by_themselves(clock):
    seconds = series(rows_of(clock, every_num_steps=3), "perf/validation_s")
    assert seconds == dict.fromkeys((5, 10), VALIDATION_BATCHES * VALIDATION_BATCH)


def test_every_row_says_how_much_memory_was_held(clock):
    rows = rows_of(clock, every_num_steps=1)
    assert all(row["perf/peak_host_mib"] > 1 for row in rows.values() if row)


def test_refuses_an_interval_below_one():
    with pytest.raises(ValueError, match=r"every_num_steps.*\b0\b"):
        Performance(every_num_steps=0)
