"""What a finished run leaves behind is what design.md promises."""

import os

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ldm_lightning.reporting.metrics_file import read_metrics
from ldm_lightning.utils.provenance import git_commit
from tests.cli.run import command, run_folder, summary_of, tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    words = tiny("kl_f4", max_steps=6, validation__raw="true")
    ended = command("train", words, folder)
    assert ended.code == 0, ended.output
    return run_folder(folder, "kl_f4"), ended


@pytest.fixture(scope="module")
def folder(trained):
    return trained[0]


@pytest.fixture(scope="module")
def summary(folder):
    return summary_of(folder)


@pytest.fixture(scope="module")
def rows(folder):
    return read_metrics(folder / "metrics.csv")


def test_a_run_folder_holds_what_it_should_and_nothing_else(folder):
    names = {"checkpoints", "config.yaml", "images", "metrics.csv", "overrides.yaml"}
    assert set(os.listdir(folder)) == names | {".lock", "summary.json", "train.log"}
    assert sorted(os.listdir(folder / "checkpoints")) == ["best.ckpt", "last.ckpt"]
    grids = {f"reconstruction_{step}.png" for step in (2, 4, 6, "latest")}
    assert set(os.listdir(folder / "images")) == grids | {"legend.txt"}


def test_a_grid_shows_input_reconstruction_and_error(folder):
    grid = np.asarray(Image.open(folder / "images" / "reconstruction_6.png"))
    assert grid.shape[0] >= 3 * 32
    assert grid.shape[1] >= 8 * 32
    latest = np.asarray(Image.open(folder / "images" / "reconstruction_latest.png"))
    assert np.array_equal(grid, latest)
    earlier = np.asarray(Image.open(folder / "images" / "reconstruction_2.png"))
    height = grid.shape[0] // 3
    assert np.array_equal(grid[: height - 4], earlier[: height - 4])  # the same images every time
    assert not np.array_equal(grid[height + 4 :], earlier[height + 4 :])


def test_every_update_and_every_validation_is_a_row_of_metrics_csv(rows):
    assert [step for step, name, _ in rows if name == "train/loss_total"] == [1, 2, 3, 4, 5, 6]
    assert [step for step, name, _ in rows if name == "val/psnr"] == [2, 4, 6]
    names = {name for _, name, _ in rows}
    terms = ("pixel", "perceptual", "kl", "adversarial", "discriminator", "total")
    assert {f"train/loss_{term}" for term in terms} <= names
    assert {"train/grad_norm_autoencoder", "train/grad_norm_discriminator"} <= names
    measured = ("psnr", "ssim", "high_frequency_deficit", "perceptual_tiny", "rfd_tiny", "kl")
    assert {f"val/{name}" for name in measured} | {"latent/mean", "latent/std"} <= names
    assert not any("lpips" in name or "rfid" in name for name in names)


def test_no_row_stands_twice(rows):
    keys = [(step, name) for step, name, _ in rows]
    assert len(keys) == len(set(keys))


def test_metrics_of_the_summary_are_the_last_rows(summary, rows):
    last = {name: value for _, name, value in rows if not name.startswith("train/")}
    assert summary["metrics"] == pytest.approx(last, rel=1e-6)
    assert {"val/psnr", "val_raw/psnr", "latent/std"} <= last.keys()


def test_the_summary_says_what_the_run_was_and_how_it_ended(summary, folder):
    assert summary["state"] == "finished"
    assert summary["step"] == 6
    assert summary["name"] == "kl_f4"
    assert summary["config"] == OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert summary["config"]["output_dir"] == str(folder)
    assert summary["versions"]["torch"] == torch.__version__.split("+")[0]
    assert summary["commit"] == git_commit()
    assert summary["device"].startswith("cpu")
    assert summary["memory"]["peak_host_mib"] > 100
    timing = summary["timing"]
    assert timing["total_s"] >= timing["step_s"] > 0
    assert timing["images_per_s"] > 0
    assert "pid" not in summary  # only while it runs


def test_the_summary_counts_parameters_by_part(summary, folder):
    stored = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    tensors = stored["state_dict"]
    for part in ("autoencoder", "discriminator"):
        count = sum(t.numel() for name, t in tensors.items() if name.startswith(f"{part}."))
        assert summary["parameters"][part] == count


def test_the_protocol_says_how_each_number_was_made(summary):
    protocol = summary["protocol"]
    measured = ("psnr", "ssim", "high_frequency_deficit", "perceptual_tiny", "rfd_tiny", "kl")
    for kind, weights in (("val", "ema"), ("val_raw", "raw")):
        for name in measured:
            entry = protocol[f"{kind}/{name}"]
            assert entry["data"] == "shapes"
            assert entry["split"] == "val"
            assert entry["num_images"] == 10
            assert entry["resolution"] == "32x32"
            assert "crop" in entry
            assert entry["weights"] == weights
            if name.endswith("_tiny"):
                assert entry["feature_network"] == "tiny"
                assert len(entry["weights_hash"]) == 64
    assert protocol["val/rfd_tiny"]["small_sample"] is True


def test_best_is_the_validation_with_the_best_monitor(rows, folder):
    monitored = {step: value for step, name, value in rows if name == "val/perceptual_tiny"}
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == min(monitored, key=monitored.get)
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 6


def test_a_checkpoint_describes_its_first_stage_in_plain_values(folder):
    stored = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    description = stored["first_stage"]
    assert description["autoencoder"]["_target_"].startswith("ldm_lightning.autoencoder.")
    assert description["resolution"] == 32
    assert "ema" in stored
    frozen = ("metrics", "perceptual")
    assert not any(part in name for name in stored["state_dict"] for part in frozen)


def test_the_terminal_ends_with_the_metrics_the_grid_and_the_folder(trained):
    folder, ended = trained
    lines = [line for line in ended.output.splitlines() if line]
    assert lines[-1] == f"Run folder: {folder}"
    assert lines[-2] == f"Reconstructions: {folder}/images/reconstruction_latest.png"
    assert any(line.startswith("val/psnr") and "peak signal-to-noise" in line for line in lines)
    assert "Warning" not in ended.output
    assert "deprecated" not in ended.output


def test_a_run_with_codes_measures_their_use(tmp_path):
    words = tiny("vqvae_f8", max_steps=2)
    assert command("train", words, tmp_path).code == 0
    summary = summary_of(run_folder(tmp_path, "vqvae_f8"))
    metrics = summary["metrics"]
    assert 0 < metrics["val/codebook_usage"] <= 1
    assert 1 <= metrics["val/codebook_perplexity"] <= 16
    assert "val/kl" not in metrics
    assert "discriminator" not in summary["parameters"]


def test_a_textbook_vae_draws_samples_and_logs_its_likelihood(tmp_path):
    assert command("train", tiny("vae_f8", max_steps=2), tmp_path).code == 0
    folder = run_folder(tmp_path, "vae_f8")
    assert (folder / "images" / "prior_latest.png").is_file()
    rows = read_metrics(folder / "metrics.csv")
    variances = [value for _, name, value in rows if name == "train/log_variance"]
    assert len(set(variances)) == 2  # it is optimized
    values = {name: value for _, name, value in rows}
    assert values["val/elbo"] == pytest.approx(-values["val/nll"] - values["val/kl"], rel=1e-5)


def test_two_runs_never_share_a_folder_unasked(folder, tmp_path):
    ended = command("train", tiny("kl_f4", output_dir=folder), tmp_path)
    assert ended.code != 0
    assert f"resume={folder}" in ended.said
    assert summary_of(folder)["state"] == "finished"
