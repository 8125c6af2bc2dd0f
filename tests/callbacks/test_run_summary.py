import re
import time

import pytest
import torch

from ldm_lightning.callbacks import run_summary
from ldm_lightning.callbacks.codebook_alarm import CodebookAlarm
from ldm_lightning.callbacks.run_summary import RunSummary
from ldm_lightning.runs.run_folder import RunFolder
from tests.callbacks.recorder import Recorder
from tests.callbacks.tiny_module import TinyModule, TinyReport, fit, make_trainer, without_advice


def summary_of(tmp_path, module, *, extra=(), **options):
    folder = RunFolder.create(tmp_path)
    callbacks = [*extra, RunSummary(folder)]
    fit(make_trainer(callbacks, enable_checkpointing=False, **options), module)
    return folder.read_summary()


def test_a_finished_run_says_what_it_reached(tmp_path):
    module = TinyModule()
    module.next_report = TinyReport(
        per_channel={"latent/std": [1.0, 2.0]}, protocol={"psnr": {"split": "val", "num_images": 4}}
    )
    module.scripted = {"val/rfid": [9.0, float("nan")]}
    summary = summary_of(tmp_path, module)
    assert summary["state"] == "finished"
    assert summary["step"] == 10
    assert summary["metrics"] == {"val/psnr": 20.0, "val/rfid": None}
    assert summary["not_finite"] == {"metrics > val/rfid": "nan"}
    assert summary["per_channel"] == {"latent/std": [1.0, 2.0]}
    expected = {"split": "val", "num_images": 4, "weights": "raw"}  # there is no average
    assert summary["protocol"] == {"val/psnr": expected}
    assert summary["parameters"] == {"autoencoder": 53, "discriminator": 13}
    assert summary["versions"]["torch"] == torch.__version__.split("+")[0]
    assert summary["memory"]["peak_host_mib"] > 1
    assert "pid" not in summary


def test_timing_separates_steps_from_validations_and_data(tmp_path):
    module = TinyModule()
    module.on_batch = lambda module, batch_idx: time.sleep(0.02)
    module.on_validation_batch = lambda module, batch_idx: time.sleep(0.1)
    timing = summary_of(tmp_path, module)["timing"]
    # The first batch pays for start-up and is left out; the one after a validation is apart.
    assert timing["step_s"] >= 8 * 0.02
    assert timing["validation_s"] >= 4 * 0.1
    assert timing["after_validation_s"] >= 0.02
    assert timing["images_per_s"] == pytest.approx(16 / (timing["step_s"] + timing["data_s"]))
    parts = ("data_s", "step_s", "validation_s", "after_validation_s")
    assert timing["total_s"] == pytest.approx(sum(timing[part] for part in parts))


def test_heartbeat_and_process_are_written_while_running(tmp_path, monkeypatch):
    monkeypatch.setattr(run_summary, "HEARTBEAT_SECONDS", 0.0)
    module, seen = TinyModule(), []
    folder = RunFolder.create(tmp_path)
    module.on_batch = lambda module, batch_idx: seen.append(folder.read_summary())
    summary_of(tmp_path, module)
    assert {one["state"] for one in seen} == {"running"}
    beats = [one["heartbeat"] for one in seen]
    assert beats == sorted(beats)
    assert len(set(beats)) == 10
    assert [one["step"] for one in seen[1:]] == list(range(1, 10))


def test_heartbeats_are_at_least_ten_seconds_apart(tmp_path):
    module, seen = TinyModule(), []
    folder = RunFolder.create(tmp_path)
    module.on_batch = lambda module, batch_idx: seen.append(folder.read_summary()["heartbeat"])
    summary_of(tmp_path, module, limit_val_batches=0, val_check_interval=None)
    assert len(set(seen)) == 1


def test_a_crash_is_failed_and_named(tmp_path):
    module = TinyModule()

    def fail(module, batch_idx):
        raise FloatingPointError("train/loss_kl is nan")

    module.on_batch = fail
    with pytest.raises(FloatingPointError):
        summary_of(tmp_path, module)
    summary = RunFolder(tmp_path).read_summary()
    assert summary["state"] == "failed"
    assert re.match(r"FloatingPointError: train/loss_kl\b.*\bnan$", summary["reason"])


def test_validation_alone_is_validated(tmp_path):
    folder = RunFolder.create(tmp_path)
    trainer = make_trainer([RunSummary(folder)], enable_checkpointing=False)
    with without_advice():
        trainer.validate(TinyModule(), verbose=False)
    summary = folder.read_summary()
    assert summary["state"] == "validated"
    assert summary["metrics"] == {"val/psnr": 10.0}


@pytest.mark.parametrize("function", ["fit", "validate"])
def test_dashboards_hear_what_the_figures_were_made_with(tmp_path, function):
    folder, recorder = RunFolder.create(tmp_path), Recorder()
    trainer = make_trainer([RunSummary(folder)], enable_checkpointing=False, logger=recorder)
    with without_advice():
        getattr(trainer, function)(TinyModule())
    summary = folder.read_summary()
    for name in ("commit", "versions", "device"):
        assert recorder.config[name] == summary[name]
    assert recorder.config["versions"]["torch"]


def test_alarms_are_collected(tmp_path):
    module = TinyModule()
    module.next_report = TinyReport(
        codebook_histogram=torch.tensor([500.0] + [0.0] * 99), num_images=4
    )
    summary = summary_of(tmp_path, module, extra=[CodebookAlarm(patience=2)])
    assert len(summary["alarms"]) == 1
    assert "codebook" in summary["alarms"][0]
