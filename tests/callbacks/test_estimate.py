import logging
import re

import pytest
import torch

from ldm_lightning.callbacks import estimate, throughput
from ldm_lightning.callbacks.checkpointing import Checkpointing
from ldm_lightning.callbacks.ema import Ema
from ldm_lightning.callbacks.estimate import Estimate
from ldm_lightning.runs.run_folder import RunFolder
from tests.callbacks.tiny_module import TinyModule, fit, make_trainer
from tests.figures import figures_of

UPDATE, VALIDATION = 0.5, 40.0  # seconds


class Clock:
    """Stands still unless an update or a validation moves it."""

    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr(estimate, "AFTER_UPDATES", 3)
    monkeypatch.setattr(throughput, "time", clock := Clock())
    return clock


@pytest.fixture
def timed(clock):
    """Makes modules whose batches and validations take their time; the first starts up as well."""

    def make(**options):
        module = TinyModule(**options)
        train, validate = module.training_step, module.validation_step

        def training_step(batch, batch_idx):
            train(batch, batch_idx)
            clock.now += 1000 if batch_idx < module.accumulate else UPDATE / module.accumulate

        def validation_step(batch, batch_idx):
            validate(batch, batch_idx)
            clock.now += VALIDATION / 2

        module.training_step, module.validation_step = training_step, validation_step
        return module

    return make


def estimates(tmp_path, caplog, module, *, callbacks=(), ckpt_path=None, **options):
    """The lines and what the summary holds at the end, of a run of 20 updates."""
    folder = RunFolder.create(tmp_path)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="ldm_lightning.callbacks.estimate"):
        options = {"enable_checkpointing": bool(callbacks)} | options
        options = {"max_steps": 20, "val_check_interval": 8 * module.accumulate} | options
        fit(make_trainer([*callbacks, Estimate(folder)], **options), module, ckpt_path)
    lines = [r.getMessage() for r in caplog.records if r.name.endswith("callbacks.estimate")]
    return lines, folder.read_summary().get("estimate")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_time_left_is_updates_and_validations_to_come(tmp_path, caplog, timed, accumulate):
    lines, facts = estimates(tmp_path, caplog, timed(accumulate=accumulate))
    assert len(lines) == 2
    speed = [0.5, 4 * accumulate]  # seconds an update, images a second
    assert figures_of(lines[0])[:6] == [4, *speed, 8, 20, 3]  # 8 s to update 20, 3 validations
    assert figures_of(lines[1])[:7] == [8, *speed, 86, 20, 2, 40]  # with 2 validations of 40 s
    assert facts["after_updates"] == 8
    assert facts["seconds_per_update"] == pytest.approx(UPDATE)
    assert facts["seconds_per_validation"] == pytest.approx(VALIDATION)
    assert facts["images_per_s"] == pytest.approx(2 * accumulate / UPDATE)
    assert facts["validations_left"] == 2  # at 16 and after the last update
    assert facts["seconds_left"] == pytest.approx(12 * UPDATE + 2 * VALIDATION)


def test_a_continued_run_is_estimated_from_its_own_updates(tmp_path, caplog, timed):
    folder = RunFolder.create(tmp_path)
    saving = [Checkpointing(folder, monitor=None)]
    estimates(tmp_path, caplog, timed(), callbacks=saving, max_steps=10)
    path = folder.checkpoints / "last.ckpt"
    lines, facts = estimates(tmp_path, caplog, timed(), callbacks=saving, ckpt_path=path)
    assert figures_of(lines[0])[0] == 4
    assert facts["after_updates"] == 6  # 16, the next validation
    assert facts["seconds_left"] == pytest.approx(4 * UPDATE + VALIDATION)


def test_without_validation_only_updates_count(tmp_path, caplog, timed):
    options = {"limit_val_batches": 0, "val_check_interval": None}
    lines, facts = estimates(tmp_path, caplog, timed(), **options)
    assert len(lines) == 1
    assert "validations" not in lines[0]
    assert facts["seconds_left"] == pytest.approx(16 * UPDATE)


def test_slow_updates_are_not_waited_for(tmp_path, caplog, timed, monkeypatch):
    monkeypatch.setattr(estimate, "AFTER_UPDATES", 1000)
    monkeypatch.setattr(estimate, "AFTER_SECONDS", 1.5 * UPDATE)
    lines, _ = estimates(tmp_path, caplog, timed())
    assert figures_of(lines[0])[0] == 3


def test_a_discriminator_that_comes_later_is_named(tmp_path, caplog, timed):
    module = timed()
    module.adversarial_fully_on_step = 15
    lines, _ = estimates(tmp_path, caplog, module)
    assert re.search(r"discriminator\b.*\bupdate 15\b", lines[0])


def test_the_size_of_a_checkpoint_is_that_of_its_tensors(tmp_path, caplog, timed):
    folder = RunFolder.create(tmp_path)
    module = timed()
    module.autoencoder.wide = torch.nn.Linear(100, 2000)  # enough to outweigh the file's text
    callbacks = [Ema(decay=0.9), Checkpointing(folder, monitor=None)]
    _, facts = estimates(tmp_path, caplog, module, callbacks=callbacks)
    size = (folder.checkpoints / "last.ckpt").stat().st_size
    # Adam makes no moments for what has no gradient, so weights and average are all there is
    assert facts["checkpoint_bytes"] == pytest.approx(size, rel=0.05)
