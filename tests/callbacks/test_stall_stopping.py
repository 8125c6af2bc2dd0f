import re

import pytest

from ldm_lightning.callbacks.checkpointing import Checkpointing
from ldm_lightning.callbacks.run_summary import RunSummary
from ldm_lightning.callbacks.stall_stopping import StallStopping
from ldm_lightning.runs.run_folder import RunFolder
from tests.callbacks.tiny_module import TinyModule, fit, make_trainer

BOTH = {"val/rfid": "min", "val/lpips": "min"}
STALLED = [1.0] * 20
IMPROVING = [1.0 - 0.01 * i for i in range(20)]


def stopped_at(module, *, fully_on=0, max_steps=20, **options):
    module.adversarial_fully_on_step = fully_on
    callback = StallStopping(monitors=BOTH, **options)
    settings = {"val_check_interval": 1, "enable_checkpointing": False}
    trainer = make_trainer([callback], max_steps=max_steps, **settings)
    fit(trainer, module)
    assert (callback.stop_reason is not None) == (trainer.global_step < max_steps)
    return trainer.global_step


def module_with(rfid, lpips):
    module = TinyModule()
    module.scripted = {"val/rfid": rfid, "val/lpips": lpips}
    return module


def test_stops_once_all_metrics_have_stalled_for_the_patience():
    # The first validation sets the best; the next three bring nothing.
    assert stopped_at(module_with(STALLED, STALLED), patience=3) == 4


@pytest.mark.parametrize(("rfid", "lpips"), [(STALLED, IMPROVING), (IMPROVING, STALLED)])
def test_one_improving_metric_keeps_the_run_going(rfid, lpips):
    assert stopped_at(module_with(rfid, lpips), patience=3) == 20


def test_an_improvement_starts_the_count_anew():
    assert stopped_at(module_with([1.0, 1.0, 1.0, 0.5] + [0.6] * 16, STALLED), patience=3) == 7


def test_patience_does_not_count_before_the_discriminator_is_fully_on():
    # Better values from before, when other losses ruled, are forgotten: 10 sets the best.
    early = [0.1] * 9 + [1.0, 0.9, 0.9, 0.9, 0.9] + [0.9] * 6
    assert stopped_at(module_with(early, early), fully_on=10, patience=3) == 14


def test_improvements_below_min_delta_do_not_count():
    slow = [1.0 - 0.001 * i for i in range(20)]
    assert stopped_at(module_with(slow, slow), patience=3, min_delta=0.02) == 4
    assert stopped_at(module_with(slow, slow), patience=3) == 20


def test_not_a_number_is_no_improvement():
    nan = [float("nan")] * 20
    assert stopped_at(module_with(nan, nan), patience=3) == 3


def test_the_count_survives_an_interruption(tmp_path):
    folder = RunFolder.create(tmp_path)

    def callbacks():
        stall = StallStopping(monitors=BOTH, patience=5)
        return [stall, RunSummary(folder), Checkpointing(folder, monitor=None)]

    first = make_trainer(callbacks(), max_steps=3, val_check_interval=1)
    fit(first, module_with(STALLED, STALLED))
    assert folder.read_summary()["state"] == "finished"
    second = make_trainer(callbacks(), max_steps=20, val_check_interval=1)
    fit(second, module_with(STALLED, STALLED), folder.checkpoints / "last.ckpt")
    assert second.global_step == 6
    summary = folder.read_summary()
    assert summary["state"] == "early_stopped"
    assert re.search("val/lpips, val/rfid.*5 validations", summary["reason"])


def test_a_run_that_was_killed_once_it_had_stalled_stops_where_it_had(tmp_path):
    folder = RunFolder.create(tmp_path)

    def callbacks():
        stall = StallStopping(monitors=BOTH, patience=2)
        return [stall, RunSummary(folder), Checkpointing(folder, monitor=None)]

    for _ in range(2):
        last = folder.checkpoints / "last.ckpt"
        trainer = make_trainer(callbacks(), max_steps=20, val_check_interval=1)
        fit(trainer, module_with(STALLED, STALLED), last if last.exists() else None)
        assert trainer.global_step == 3
        assert folder.read_summary()["state"] == "early_stopped"


def test_a_metric_that_is_not_measured_is_named():
    with pytest.raises(ValueError, match="val/rfid, val/lpips"):
        stopped_at(TinyModule(), patience=3)


@pytest.mark.parametrize("monitors", [{}, {"val/rfid": "lower"}])
def test_refuses_unknown_directions(monitors):
    with pytest.raises(ValueError, match=r"\bmin\b.*\bmax\b"):
        StallStopping(monitors=monitors, patience=3)
