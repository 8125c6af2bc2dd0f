import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ldm_lightning.callbacks.checkpointing import Checkpointing
from ldm_lightning.callbacks.ema import Ema
from ldm_lightning.callbacks.run_summary import RunSummary
from ldm_lightning.checkpoints.checkpoint import load_checkpoint
from ldm_lightning.reporting.metrics_csv import MetricsCsv
from ldm_lightning.reporting.metrics_file import read_metrics
from ldm_lightning.runs.run_folder import RunFolder
from tests.callbacks.tiny_module import TinyModule, fit, make_trainer


def checkpointing(folder: RunFolder, **options) -> Checkpointing:
    settings = {"monitor": "val/psnr", "higher_is_better": True, "every_num_steps": 1000}
    return Checkpointing(folder, **{**settings, **options})


class RecordingCheckpointing(Checkpointing):
    """Remembers at which updates last.ckpt was written."""

    def _save_last(self, trainer):
        super()._save_last(trainer)
        saved = load_checkpoint(self.last_path)["global_step"]
        assert saved == trainer.global_step
        self.saved_at = [*getattr(self, "saved_at", []), saved]


@pytest.mark.parametrize("discriminator_start", [0, 3])
@pytest.mark.parametrize("every", [2, 3])
def test_a_checkpoint_every_n_updates_is_written_every_n_updates(
    tmp_path, every, discriminator_start
):
    callback = RecordingCheckpointing(
        RunFolder.create(tmp_path), monitor=None, every_num_steps=every
    )
    trainer = make_trainer([callback], max_steps=12, limit_val_batches=0, val_check_interval=None)
    fit(trainer, TinyModule(discriminator_start=discriminator_start))
    assert callback.saved_at == list(range(every, 13, every))


def test_accumulated_batches_do_not_count_as_updates(tmp_path):
    callback = RecordingCheckpointing(RunFolder.create(tmp_path), monitor=None, every_num_steps=2)
    trainer = make_trainer([callback], max_steps=6, limit_val_batches=0, val_check_interval=None)
    fit(trainer, TinyModule(accumulate=3))
    assert callback.saved_at == [2, 4, 6]


@pytest.mark.parametrize(("higher_is_better", "best_step"), [(True, 10), (False, 15)])
def test_best_is_the_best_validation_and_last_is_the_last(tmp_path, higher_is_better, best_step):
    folder = RunFolder.create(tmp_path)
    module = TinyModule()
    module.scripted = {"val/psnr": [20.0, 30.0, 5.0, float("nan")]}
    callback = checkpointing(folder, higher_is_better=higher_is_better)
    fit(make_trainer([callback], max_steps=22), module)
    assert load_checkpoint(folder.checkpoints / "best.ckpt")["global_step"] == best_step
    assert load_checkpoint(folder.checkpoints / "last.ckpt")["global_step"] == 22
    assert sorted(os.listdir(folder.checkpoints)) == ["best.ckpt", "last.ckpt"]


def test_a_continued_run_keeps_the_best_of_the_interrupted_one(tmp_path):
    folder = RunFolder.create(tmp_path)
    module = TinyModule()
    module.scripted = {"val/psnr": [30.0]}
    fit(make_trainer([checkpointing(folder)], max_steps=5), module)
    continued = TinyModule()
    continued.scripted = {"val/psnr": [20.0]}
    last = folder.checkpoints / "last.ckpt"
    fit(make_trainer([checkpointing(folder)], max_steps=10), continued, last)
    assert load_checkpoint(folder.checkpoints / "best.ckpt")["global_step"] == 5
    assert load_checkpoint(last)["global_step"] == 10


def test_a_monitor_that_is_not_measured_is_named(tmp_path):
    callback = checkpointing(RunFolder.create(tmp_path), monitor="val/rfid")
    with pytest.raises(ValueError, match=r"monitor=val/rfid\b.*val/psnr"):
        fit(make_trainer([callback]), TinyModule())


def run(folder: RunFolder, *, steps: int, module: TinyModule, resume: bool = False) -> None:
    """Train with all that a checkpoint and metrics.csv depend on."""
    callbacks = [Ema(decay=0.9), RunSummary(folder), checkpointing(folder, every_num_steps=4)]
    trainer = make_trainer(callbacks, max_steps=steps, logger=MetricsCsv(folder.path))
    fit(trainer, module, folder.checkpoints / "last.ckpt" if resume else None)


def everything(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint by path, optimizer states and averages included."""
    found: dict[str, torch.Tensor] = {}

    def walk(value, where):
        if isinstance(value, torch.Tensor):
            found[where] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{where}/{key}")
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                walk(item, f"{where}/{i}")

    walk({k: v for k, v in load_checkpoint(path).items() if k != "loops"}, "")
    return found


def assert_same_end(one: RunFolder, other: RunFolder) -> None:
    expected = everything(one.checkpoints / "last.ckpt")
    actual = everything(other.checkpoints / "last.ckpt")
    assert expected.keys() == actual.keys()
    assert len([name for name in expected if name.startswith("/ema")]) == 6
    for name, value in expected.items():
        assert torch.equal(value, actual[name]), name
    assert read_metrics(one.metrics) == read_metrics(other.metrics)
    assert other.read_summary()["state"] == "finished"


@pytest.fixture
def uninterrupted(tmp_path):
    folder = RunFolder.create(tmp_path / "uninterrupted")
    module = TinyModule()
    run(folder, steps=14, module=module)
    assert module.validated_at == [5, 10]
    rows = read_metrics(folder.metrics)
    assert [step for step, name, _ in rows if name == "train/loss_total"] == list(range(1, 15))
    assert [step for step, name, _ in rows if name == "val/psnr"] == [5, 10]
    return folder


def signal_at(step: int, sent: int):
    """A hook for TinyModule that signals its own process in one update."""

    def hook(module, batch_idx):
        if module.global_step == step:
            os.kill(os.getpid(), sent)

    return hook


def crash_at(step: int):
    def hook(module, batch_idx):
        if module.global_step == step:
            raise FloatingPointError

    return hook


@pytest.mark.parametrize("step", [7, 8, 10])
def test_ctrl_c_in_an_update_finishes_it_and_the_continued_run_is_exact(
    tmp_path, uninterrupted, step
):
    folder = RunFolder.create(tmp_path / "interrupted")
    module = TinyModule()
    module.on_batch = signal_at(step, signal.SIGINT)
    with pytest.raises(SystemExit):
        run(folder, steps=14, module=module)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning leaves it ignored
    assert load_checkpoint(folder.checkpoints / "last.ckpt")["global_step"] == step
    assert folder.read_summary()["state"] == "interrupted"
    continued = TinyModule()
    run(folder, steps=14, module=continued, resume=True)
    assert module.validated_at + continued.validated_at == [5, 10]
    assert_same_end(uninterrupted, folder)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_validation_that_was_left_is_done_again_from_its_start(tmp_path, uninterrupted, sent):
    folder = RunFolder.create(tmp_path / "interrupted")
    module = TinyModule()
    module.on_validation_batch = signal_at(10, sent)
    with pytest.raises((SystemExit, SIGTERMException)):
        run(folder, steps=14, module=module)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert load_checkpoint(folder.checkpoints / "last.ckpt")["global_step"] == 10
    assert module.validated_at == [5]
    continued = TinyModule()
    run(folder, steps=14, module=continued, resume=True)
    assert continued.validated_at == [10]
    assert len(continued.validated_weights) == 2
    assert_same_end(uninterrupted, folder)


def test_sigterm_saves_between_updates_and_the_continued_run_is_exact(tmp_path, uninterrupted):
    folder = RunFolder.create(tmp_path / "interrupted")
    module = TinyModule()
    module.on_batch = signal_at(7, signal.SIGTERM)
    with pytest.raises(SIGTERMException):
        run(folder, steps=14, module=module)
    assert load_checkpoint(folder.checkpoints / "last.ckpt")["global_step"] == 7
    continued = TinyModule()
    run(folder, steps=14, module=continued, resume=True)
    assert continued.validated_at == [10]
    assert_same_end(uninterrupted, folder)


@pytest.mark.parametrize("step", [6, 9, 10])
def test_a_crash_keeps_the_checkpoint_before_it_and_the_continued_run_is_exact(
    tmp_path, uninterrupted, step
):
    folder = RunFolder.create(tmp_path / "crashed")
    module = TinyModule()
    module.on_batch = crash_at(step)
    with pytest.raises(FloatingPointError):
        run(folder, steps=14, module=module)
    assert load_checkpoint(folder.checkpoints / "last.ckpt")["global_step"] == (
        5 if step < 8 else 8
    )
    continued = TinyModule()
    run(folder, steps=14, module=continued, resume=True)
    assert continued.validated_at == [10]
    assert_same_end(uninterrupted, folder)


def test_a_full_disk_ends_the_run_as_failed_and_keeps_the_previous_checkpoint(tmp_path):
    folder = RunFolder.create(tmp_path)
    last = folder.checkpoints / "last.ckpt"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk(module, batch_idx):
        if module.global_step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (last.stat().st_size // 2, limits[1]))

    module = TinyModule()
    module.on_batch = fill_disk
    callbacks = [RunSummary(folder), Checkpointing(folder, monitor=None, every_num_steps=3)]
    without_validation = {"limit_val_batches": 0, "val_check_interval": None}
    try:
        with pytest.raises(OSError, match=r"last\.ckpt"):
            fit(make_trainer(callbacks, max_steps=9, **without_validation), module)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(folder.checkpoints) == ["last.ckpt"]
    assert load_checkpoint(last)["global_step"] == 3
    summary = folder.read_summary()
    assert summary["state"] == "failed"
    assert "last.ckpt" in summary["reason"]


def test_resuming_from_a_checkpoint_with_code_is_refused_by_the_trainer(tmp_path):
    folder = RunFolder.create(tmp_path)
    evil = tmp_path / "evil.ckpt"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was_run"),)

    torch.save({"state_dict": Evil()}, evil)
    with pytest.raises(ValueError, match=f"{evil.name}.*mkdir"):
        fit(make_trainer([checkpointing(folder)]), TinyModule(), evil)
    assert not (tmp_path / "was_run").exists()
