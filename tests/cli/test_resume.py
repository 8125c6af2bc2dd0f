"""An interrupted and continued run ends as the uninterrupted one: bit for bit, row for row."""

import os
import signal
from contextlib import contextmanager

import pytest
import torch

from ldm_lightning.checkpoints.checkpoint import load_checkpoint
from ldm_lightning.module.autoencoder import AutoencoderModule
from ldm_lightning.reporting.metrics_file import read_metrics
from ldm_lightning.runs.run_folder import RunFolder
from tests.cli.run import (
    command,
    process,
    run_folder,
    summary_of,
    tensors_of,
    tiny,
    write_images,
)

STOP = """
import os, sys
from ldm_lightning import train
from ldm_lightning.module.autoencoder import AutoencoderModule
step, sent = int(sys.argv[1]), int(sys.argv[2])
training_step = AutoencoderModule.training_step

def stop(self, batch, batch_idx):
    training_step(self, batch, batch_idx)
    if self.global_step == step:
        os.kill(os.getpid(), sent)

AutoencoderModule.training_step = stop
sys.argv = ["train", *sys.argv[3:]]
train.main()
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", 22)  # five batches and a rest an epoch
    write_images(folder / "val", 6, seed=1)
    return folder


def words_for(images, experiment="kl_f4", **changes):
    """Twelve updates over images of a folder, validated every third."""
    settings = {
        "data": "image_folder",
        "data__root": images / "train",
        "data__val_root": images / "val",
        "train_crop": "random_resized",
        "eval_crop": "center",
        "max_steps": 12,
        "validation__every_steps": 3,
    }
    return tiny(experiment, **(settings | changes))


@pytest.fixture(scope="module")
def uninterrupted(images, tmp_path_factory):
    """The run that nothing stopped, by experiment."""
    runs = {}

    def run(experiment):
        if experiment not in runs:
            parent = tmp_path_factory.mktemp("uninterrupted")
            ended = command("train", words_for(images, experiment), parent)
            assert ended.code == 0, ended.output
            runs[experiment] = run_folder(parent, experiment)
        return runs[experiment]

    return run


@contextmanager
def interrupted(is_time):
    """Send Ctrl-C to this process after the batch at which ``is_time(module, batch_idx)``."""
    original = AutoencoderModule.training_step

    def step(self, batch, batch_idx):
        original(self, batch, batch_idx)
        if is_time(self, batch_idx):
            os.kill(os.getpid(), signal.SIGINT)

    AutoencoderModule.training_step = step
    try:
        yield
    finally:
        AutoencoderModule.training_step = original


def assert_same_end(one, other):
    expected, actual = (
        {
            name: tensor
            for name, tensor in tensors_of(load_checkpoint(run / "checkpoints/last.ckpt")).items()
            if not name.startswith("/loops")
        }
        for run in (one, other)
    )
    assert expected.keys() == actual.keys()
    for part in ("/state_dict/autoencoder", "/state_dict/discriminator", "/ema", "/optimizer"):
        assert any(name.startswith(part) for name in expected), part
    different = [name for name in expected if not torch.equal(expected[name], actual[name])]
    assert not different
    assert read_metrics(one / "metrics.csv") == read_metrics(other / "metrics.csv")
    assert summary_of(other)["metrics"] == summary_of(one)["metrics"]
    assert summary_of(other)["state"] == "finished"


@pytest.mark.parametrize(
    ("experiment", "num_workers", "after"),
    [("kl_f4", 2, 8), ("vq_f4", 0, 9)],
)
@pytest.mark.slow
def test_ctrl_c_and_resume_equal_the_uninterrupted_run(
    tmp_path, images, uninterrupted, experiment, num_workers, after
):
    """Update 8 lies in the middle of an epoch; after update 9 a validation is due."""
    words = words_for(images, experiment, data__num_workers=num_workers)
    with interrupted(lambda module, batch_idx: module.global_step == after):
        ended = command("train", words, tmp_path)
    assert ended.code != 0
    run = run_folder(tmp_path, experiment)
    assert summary_of(run)["state"] == "interrupted"
    assert load_checkpoint(run / "checkpoints/last.ckpt")["global_step"] == after
    continued = command("train", [*words, "resume=auto"], tmp_path)
    assert continued.code == 0, continued.output
    assert str(run) in continued.said
    assert run_folder(tmp_path, experiment) == run
    assert_same_end(uninterrupted(experiment), run)


@pytest.mark.slow
def test_ctrl_c_between_the_batches_of_an_update_loses_nothing(tmp_path, images):
    words = words_for(images, max_steps=4, accumulate_batches=2)
    (tmp_path / "whole").mkdir()
    assert command("train", words, tmp_path / "whole").code == 0
    (tmp_path / "parts").mkdir()
    with interrupted(lambda module, batch_idx: batch_idx == 6):  # the first of two of update 4
        assert command("train", words, tmp_path / "parts").code != 0
    assert command("train", [*words, "resume=auto"], tmp_path / "parts").code == 0
    assert_same_end(
        run_folder(tmp_path / "whole", "kl_f4"), run_folder(tmp_path / "parts", "kl_f4")
    )


@pytest.mark.slow
def test_a_finished_run_can_be_made_longer(tmp_path, images, uninterrupted):
    assert command("train", words_for(images, max_steps=6), tmp_path).code == 0
    run = run_folder(tmp_path, "kl_f4")
    ended = command("train", [f"resume={run}", "max_steps=12"], tmp_path)
    assert ended.code == 0, ended.output
    assert_same_end(uninterrupted("kl_f4"), run)


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_is_begun_again(tmp_path, images, uninterrupted):
    """tests/kills kills later."""
    after = 2
    words = words_for(images)
    ended = process(["-c", STOP, str(after), str(int(signal.SIGKILL)), *words], tmp_path)
    assert ended.code == -signal.SIGKILL
    run = run_folder(tmp_path, "kl_f4")
    assert summary_of(run)["state"] == "running"  # nobody could say more
    assert read_metrics(run / "metrics.csv")[-1][0] >= after - 1
    continued = command("train", ["experiment=kl_f4", "resume=auto"], tmp_path)
    assert continued.code == 0, continued.output
    assert "no checkpoint" in continued.said
    assert_same_end(uninterrupted("kl_f4"), run)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_ends_the_process_and_says_how_to_go_on(tmp_path, images):
    words = words_for(images, "vqvae_f8")
    ended = process(["-c", STOP, "4", str(int(signal.SIGINT)), *words], tmp_path)
    assert ended.code != 0
    assert "Stopping" in ended.said
    assert "Traceback" not in ended.output
    run = run_folder(tmp_path, "vqvae_f8")
    assert summary_of(run)["state"] == "interrupted"
    assert load_checkpoint(run / "checkpoints/last.ckpt")["global_step"] == 4


def test_resume_auto_without_an_unfinished_run_begins_one(tmp_path):
    words = [*tiny("vqvae_f8", max_steps=2), "resume=auto"]
    assert command("train", words, tmp_path).code == 0
    assert command("train", words, tmp_path).code == 0
    runs = list((tmp_path / "outputs" / "vqvae_f8").iterdir())
    assert [summary_of(run)["state"] for run in runs] == ["finished", "finished"]


def test_resuming_what_is_no_run_is_refused(tmp_path):
    ended = command("train", [*tiny("kl_f4"), "resume=outputs/kl_f4/typo"], tmp_path)
    assert ended.code != 0
    assert "resume=outputs/kl_f4/typo" in ended.said
    assert not (tmp_path / "outputs").exists()


def test_a_run_that_another_process_trains_is_left_alone(tmp_path):
    words = tiny("vqvae_f8", max_steps=2)
    assert command("train", words, tmp_path).code == 0
    run = run_folder(tmp_path, "vqvae_f8")
    before = (run / "summary.json").read_text()
    with RunFolder.create(run).only_writer():
        ended = command("train", [f"resume={run}", "max_steps=4"], tmp_path)
    assert ended.code != 0
    assert str(os.getpid()) in ended.said
    assert str(run) in ended.said
    assert (run / "summary.json").read_text() == before


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_as_one(tmp_path, images):
    """From the middle of an epoch, and an update: its batches are as large together."""
    settings = {"max_steps": 12, "trainer": "ddp_cpu", "accumulate_batches": 2}
    whole = words_for(images, "vae_f8", **settings, trainer__devices=1, data__batch_size=4)
    assert command("train", whole, tmp_path).code == 0
    two = words_for(images, "vae_f8", **settings, trainer__devices=2, data__batch_size=2)
    two += ["max_steps=3", "output_dir=two"]
    ended = process(["-m", "ldm_lightning.train", *two], tmp_path)
    assert ended.code == 0, ended.output
    changes = ["max_steps=12", "trainer.devices=1", "data.batch_size=4"]
    ended = command("train", ["resume=two", *changes], tmp_path)
    assert ended.code == 0, ended.output
    expected, actual = (
        {(step, name): value for step, name, value in read_metrics(run / "metrics.csv")}
        for run in (run_folder(tmp_path, "vae_f8"), tmp_path / "two")
    )
    assert actual == pytest.approx(expected, rel=1e-3, abs=1e-3)
