"""Choices that change how a run computes, what it writes, or where its settings come from."""

import re
import textwrap

import pytest
import torch
from omegaconf import OmegaConf

from ldm_lightning.checkpoints.checkpoint import load_checkpoint
from ldm_lightning.reporting.metrics_file import read_metrics
from tests.cli.run import EXPERIMENTS, command, process, run_folder, summary_of, tiny


def trained(folder, experiment, **changes):
    ended = command("train", tiny(experiment, **changes), folder)
    assert ended.code == 0, ended.output
    return run_folder(folder, experiment)


QUICK = ("kl_f4", "vqgan_f16", "vae_f8")


@pytest.mark.parametrize(
    "experiment",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in EXPERIMENTS],
)
def test_every_experiment_trains_and_validates(tmp_path, experiment):
    run = trained(tmp_path, experiment, max_steps=2)
    summary = summary_of(run)
    assert (summary["state"], summary["step"]) == ("finished", 2)
    losses = [v for _, name, v in read_metrics(run / "metrics.csv") if name == "train/loss_total"]
    assert len(losses) == 2


@pytest.mark.slow
def test_precisions_differ_but_agree_and_keep_weights_of_full_precision(tmp_path):
    kept = {"32": torch.float32, "64": torch.float64, "bf16": torch.float32}
    values = {}
    for precision, dtype in kept.items():
        folder = tmp_path / precision
        folder.mkdir()
        run = trained(folder, "kl_f4", max_steps=2, trainer__precision=precision)
        weights = load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
        kinds = {tensor.dtype for name, tensor in weights.items() if "autoencoder." in name[:12]}
        assert kinds == {dtype}
        assert str(summary_of(run)["config"]["trainer"]["precision"]) == precision
        rows = read_metrics(run / "metrics.csv")
        values[precision] = next(v for _, name, v in rows if name == "train/loss_pixel")
    assert values["32"] == pytest.approx(values["64"], rel=1e-5)
    assert values["bf16"] == pytest.approx(values["64"], rel=1e-2)
    assert values["bf16"] != values["32"]


def test_the_device_and_precision_are_said(tmp_path):
    ended = command("train", tiny("vqvae_f8", max_steps=1), tmp_path)
    assert re.search("precision 32.*AdamW", ended.said)


@pytest.mark.slow
def test_wandb_is_written_offline_and_asks_nothing(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    run = trained(tmp_path, "vqvae_f8", max_steps=2, logger="wandb")
    assert list((run / "wandb").glob("offline-run-*/*.wandb"))
    assert read_metrics(run / "metrics.csv")


def test_wandb_online_without_a_key_is_refused_at_once(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    words = [*tiny("vqvae_f8", logger="wandb"), "logger.offline=false"]
    ended = command("train", words, tmp_path)
    assert ended.code != 0
    assert "logger.offline=true" in ended.said
    assert summary_of(run_folder(tmp_path, "vqvae_f8"))["state"] == "failed"


def test_raw_weights_are_measured_only_on_request(tmp_path):
    run = trained(tmp_path, "vqvae_f8", max_steps=2)
    assert not any(name.startswith("val_raw/") for name in summary_of(run)["metrics"])


def test_without_an_average_the_raw_weights_are_validated(tmp_path):
    run = trained(tmp_path, "vqvae_f8", max_steps=2, callbacks__ema="null")
    assert summary_of(run)["protocol"]["val/psnr"]["weights"] == "raw"
    assert "ema" not in load_checkpoint(run / "checkpoints" / "last.ckpt")


def test_the_last_update_is_validated_whatever_the_interval(tmp_path):
    run = trained(tmp_path, "vqvae_f8", max_steps=5, validation__every_steps=3)
    rows = read_metrics(run / "metrics.csv")
    assert [step for step, name, _ in rows if name == "val/psnr"] == [3, 5]


def test_an_experiment_of_ones_own_is_found_and_keeps_its_values(tmp_path):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    text = """
        # @package _global_
        defaults:
          - kl_f8
          - _self_

        name: mine
        loss:
          kl_weight: 1.0e-4
    """
    (folder / "mine.yaml").write_text(textwrap.dedent(text).lstrip())
    words = tiny("mine", max_steps=2)
    ended = command("train", ["--config-dir", str(tmp_path / "mine"), *words], tmp_path)
    assert ended.code == 0, ended.output
    config = OmegaConf.load(run_folder(tmp_path, "mine") / "config.yaml")
    assert config.loss.kl_weight == 1e-4
    assert config.autoencoder.downsampling_factor == 8


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path):
    rows = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        run = trained(folder, "kl_f4", max_steps=2, seed=seed)
        rows.append(read_metrics(run / "metrics.csv"))
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]


def test_images_need_not_be_square(tmp_path):
    run = trained(tmp_path, "kl_f4", max_steps=1, resolution="[24,32]")
    assert summary_of(run)["protocol"]["val/psnr"]["resolution"] == "24x32"


@pytest.mark.slow
def test_two_processes_write_one_run_and_continue_it(tmp_path):
    words = tiny("vqvae_f8", trainer="ddp_cpu", max_steps=2)
    ended = process(["-m", "ldm_lightning.train", *words], tmp_path)
    assert ended.code == 0, ended.output
    run = run_folder(tmp_path, "vqvae_f8")
    words = ["-m", "ldm_lightning.train", f"resume={run}", "max_steps=4"]
    ended = process(words, tmp_path)
    assert ended.code == 0, ended.output
    summary = summary_of(run_folder(tmp_path, "vqvae_f8"))
    assert (summary["state"], summary["step"], summary["num_processes"]) == ("finished", 4, 2)
    assert summary["protocol"]["val/psnr"]["num_images"] == 10
    rows = [(step, name) for step, name, _ in read_metrics(run / "metrics.csv")]
    assert len(rows) == len(set(rows))
