"""Training a second stage from the command line: what it keeps, repeats and refuses."""

import json
import os
import re
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from ldm_lightning.builders import second_stage
from ldm_lightning.checkpoints.checkpoint import load_checkpoint
from ldm_lightning.module.diffusion import DiffusionModule
from ldm_lightning.reporting.metrics_file import read_metrics
from tests.cli.run import command, process, run_folder, summary_of, tensors_of
from tests.cli.second_stage import tiny_second, trained_first_stage


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    return trained_first_stage(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def other_first_stage(tmp_path_factory):
    return trained_first_stage(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="module")
def trained(first_stage, tmp_path_factory):
    """A class-conditional second stage after 4 updates."""
    parent = tmp_path_factory.mktemp("second")
    ended = command("train", tiny_second(first_stage, conditioner="class_label"), parent)
    assert ended.code == 0, ended.output
    return run_folder(parent, "ldm_kl_f4")


def checkpoint_of(run, name="last"):
    return load_checkpoint(run / "checkpoints" / f"{name}.ckpt")


def values_of(run, prefix):
    rows = read_metrics(run / "metrics.csv")
    return {(step, name): value for step, name, value in rows if name.startswith(prefix)}


def test_a_run_leaves_pictures_figures_and_where_its_first_stage_is(trained, first_stage):
    summary = summary_of(trained)
    assert summary["state"] == "finished"
    assert {"val/loss", "gen/fd_tiny", "gen/kd_tiny"} <= summary["metrics"].keys()
    assert summary["protocol"]["gen/fd_tiny"]["num_images"] == 4
    assert summary["protocol"]["gen/fd_tiny"]["small_sample"]
    assert summary["protocol"]["gen/fd_tiny"]["weights"] == "ema"
    assert summary["parameters"]["denoiser"] > 0
    for picture in ("samples_2", "samples_4", "samples_latest", "ceiling", "prior"):
        assert (trained / "images" / f"{picture}.png").is_file()
    stored = checkpoint_of(trained)["second_stage"]
    assert stored["first_stage"]["path"] == str(first_stage / "checkpoints/best.ckpt")
    assert len(stored["first_stage"]["hash"]) == 64
    assert stored["conditioner"]["num_classes"] == 8


def test_the_first_stage_stays_as_it_was_and_is_no_part_of_the_second(
    first_stage, tmp_path, monkeypatch
):
    seen = {}

    def copy_of(module):
        return {name: value.clone() for name, value in module.first_stage.state_dict().items()}

    def start(self):
        seen["before"], seen["module"] = copy_of(self), self
        seen["optimized"] = {
            id(p) for group in self.optimizers().param_groups for p in group["params"]
        }

    monkeypatch.setattr(DiffusionModule, "on_train_start", start)
    ended = command("train", tiny_second(first_stage), tmp_path)
    assert ended.code == 0, ended.output
    module, after = seen["module"], copy_of(seen["module"])
    assert after.keys() == seen["before"].keys()
    assert all(torch.equal(after[name], seen["before"][name]) for name in after)
    assert not module.first_stage.autoencoder.training
    assert not {id(p) for p in module.first_stage.parameters()} & seen["optimized"]
    checkpoint = checkpoint_of(run_folder(tmp_path, "ldm_kl_f4"))
    for part in ("state_dict", "ema"):
        assert not any("first_stage" in name or "encoder" in name for name in checkpoint[part])
    assert all(name.startswith("model.") for name in checkpoint["state_dict"])


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["ldm_vq_f4", "ldm_dit_s", "ldm_celebahq"])
def test_other_experiments_train(tmp_path, first_stage, experiment):
    first = first_stage
    changes = {"downsampling_factor": 4}
    if experiment == "ldm_vq_f4":
        first = trained_first_stage(tmp_path / "first", "vq_f4")
    ended = command("train", tiny_second(first, experiment, **changes), tmp_path)
    assert ended.code == 0, ended.output
    losses = values_of(run_folder(tmp_path, experiment), "train/loss_total")
    assert len(losses) == 4


def test_resumed_equals_uninterrupted_to_the_bit(tmp_path, first_stage):
    # not in float64: Lightning loads a checkpoint before it widens the module
    words = tiny_second(first_stage, conditioner="class_label", max_steps=5, trainer__precision=32)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    assert command("train", words, tmp_path / "whole").code == 0
    original = DiffusionModule.training_step

    def step(self, batch, batch_idx):
        original(self, batch, batch_idx)
        if self.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    DiffusionModule.training_step = step
    try:
        assert command("train", words, tmp_path / "parts").code != 0
    finally:
        DiffusionModule.training_step = original
    ended = command("train", [*words, "resume=auto"], tmp_path / "parts")
    assert ended.code == 0, ended.output
    whole, parts = (run_folder(tmp_path / name, "ldm_kl_f4") for name in ("whole", "parts"))
    expected, actual = (
        {
            name: tensor
            for name, tensor in tensors_of(checkpoint_of(run)).items()
            if not name.startswith("/loops")
        }
        for run in (whole, parts)
    )
    assert expected.keys() == actual.keys()
    assert not [name for name in expected if not torch.equal(expected[name], actual[name])]
    assert read_metrics(whole / "metrics.csv") == read_metrics(parts / "metrics.csv")


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path, first_stage):
    words = {"max_steps": 6, "conditioner": "class_label", "trainer": "ddp_cpu"}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = tiny_second(first_stage, **words, trainer__devices=1, data__batch_size=4)
    two = tiny_second(first_stage, **words, trainer__devices=2, data__batch_size=2)
    assert command("train", one, tmp_path / "one").code == 0
    ended = process(["-m", "ldm_lightning.train", *two], tmp_path / "two")
    assert ended.code == 0, ended.output
    runs = [run_folder(tmp_path / name, "ldm_kl_f4") for name in ("one", "two")]
    first, second = (values_of(run, ("train/", "val/")) for run in runs)
    assert len(first) > 6 * 3
    assert second == pytest.approx(first, rel=1e-10, abs=1e-10)
    weights = [checkpoint_of(run)["state_dict"] for run in runs]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-10, atol=1e-10)


def encode(first_stage, folder):
    values = [f"checkpoint={first_stage}", f"output={folder}", "precision=64"]
    return command("encode", values, folder.parent)


def test_cached_latents_give_the_losses_of_encoding_now(tmp_path, first_stage):
    ended = encode(first_stage, tmp_path / "latents")
    assert ended.code == 0, ended.output
    words = {"max_steps": 8, "conditioner": "class_label", "validation__num_samples": 0}
    words["monitor"] = "val/loss"
    for name in ("now", "cached"):
        (tmp_path / name).mkdir()
    now = tiny_second(first_stage, **words)
    cached = tiny_second(first_stage, **words, data="latents", data__root=tmp_path / "latents")
    for name, command_line in (("now", now), ("cached", cached)):
        ended = command("train", command_line, tmp_path / name)
        assert ended.code == 0, ended.output
    losses = [
        values_of(run_folder(tmp_path / name, "ldm_kl_f4"), ("train/loss", "val/loss"))
        for name in ("now", "cached")
    ]
    assert len(losses[0]) > 8
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_latents_and_statistics_of_another_first_stage_are_refused(
    tmp_path, first_stage, other_first_stage
):
    assert encode(first_stage, tmp_path / "latents").code == 0
    words = tiny_second(other_first_stage, data="latents", data__root=tmp_path / "latents")
    ended = command("train", words, tmp_path)
    assert ended.code == 1
    assert "first_stage_hash" in ended.said
    assert "encode" in ended.said


@pytest.mark.slow
def test_each_data_set_and_each_weights_have_statistics_of_their_own(
    tmp_path, first_stage, other_first_stage
):
    copy = tmp_path / "first_stage"
    shutil.copytree(first_stage, copy)
    checkpoints = copy / "checkpoints"
    for path in checkpoints.glob("best.latents_*.json"):
        path.unlink()

    def statistics():
        found = [json.loads(p.read_text()) for p in checkpoints.glob("best.latents_*.json")]
        return {(entry["num_images"], entry["first_stage_hash"]): entry for entry in found}

    for num_images in (22, 25, 22):
        words = tiny_second(copy, data__num_train_images=num_images, max_steps=1)
        assert command("train", words, tmp_path).code == 0
    first = statistics()
    assert sorted(count for count, _ in first) == [22, 25]
    # the same file has been trained on: what was measured of its former weights is left alone
    shutil.copy(other_first_stage / "checkpoints/best.ckpt", checkpoints / "best.ckpt")
    assert command("train", tiny_second(copy, max_steps=1), tmp_path).code == 0
    assert statistics().items() > first.items()
    assert len(statistics()) == 3


def test_a_run_goes_on_with_its_own_first_stage_only(trained, other_first_stage, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    words = ["experiment=ldm_kl_f4", f"resume={run}", "max_steps=6"]
    words.append(f"first_stage.checkpoint={other_first_stage}")
    ended = command("train", words, tmp_path)
    assert ended.code == 1
    assert "first_stage_hash" in ended.said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": 3}, r"latent_channels=3\b.*\b4\b"),
        ({"validation__num_samples": -1}, r"validation\.num_samples=-1\b"),
        ({"validation__num_samples": 0}, "monitor=gen/fd_tiny"),
        ({"diffusion__schedule__zero_terminal_snr": "true"}, "zero"),
        ({"conditioner": "class_label", "conditioner__num_classes": 3}, r"\b0 to 7\b"),
        ({"gate__mode": "off"}, r"gate\.mode"),
        ({"first_stage__normalizer": "half"}, "identity, scalar, channel"),
        ({"first_stage__checkpoint": "nowhere"}, "nowhere"),
        ({"first_stage__checkpoint": "null"}, "ldm_lightning.pipeline"),
    ],
)
def test_what_cannot_work_is_told_before_the_training(tmp_path, first_stage, changes, message):
    ended = command("train", tiny_second(first_stage, **changes), tmp_path)
    assert ended.code == 1
    assert re.search(message, ended.said), ended.said
    assert not list(tmp_path.glob("outputs/*/*/metrics.csv"))


def test_mistakes_are_found_before_latents_are_measured(tmp_path, first_stage, monkeypatch):
    def measured(*_arguments, **_options):
        raise AssertionError("statistics were measured first")

    monkeypatch.setattr(second_stage, "_stored_or_measured", measured)
    mistakes = {"1001": {"sampler__num_steps": 1001}, "guidance": {"sampler__guidance_scale": 2}}
    for told, changes in mistakes.items():
        ended = command("train", tiny_second(first_stage, **changes), tmp_path)
        assert ended.code == 1, ended.output
        assert told in ended.said
    (tmp_path / "gated").mkdir()
    ended = command("train", tiny_second(first_stage, gate__mode="stop"), tmp_path / "gated")
    assert ended.code == 1  # two updates make no good first stage
    assert "gate" in ended.said
    run = run_folder(tmp_path / "gated", "ldm_kl_f4")
    assert not summary_of(run)["gate"]["passed"]
    assert (run / "images/gate.png").is_file()
    assert not (run / "checkpoints/last.ckpt").exists()


def test_a_loss_that_is_not_finite_names_the_images(tmp_path, first_stage):
    ended = command("train", tiny_second(first_stage, optim__learning_rate=1e200), tmp_path)
    assert ended.code == 1
    assert "finite" in ended.said
    run = run_folder(tmp_path, "ldm_kl_f4")
    told = json.loads((run / "not_finite_0.json").read_text())
    assert told["update"] >= 2
    assert "loss_total" in told["not_finite"]
    assert all(len(keys) == 4 for keys in told["image_keys_by_update"].values())
    assert summary_of(run)["state"] == "failed"


def test_a_latent_cache_is_plain_safetensors(tmp_path, first_stage):
    assert encode(first_stage, tmp_path / "latents").code == 0
    shards = sorted((tmp_path / "latents/train").glob("*.safetensors"))
    assert load_file(shards[0])["mean"].shape[1:] == (4, 8, 8)


def test_an_image_condition_is_concatenated(tmp_path, first_stage):
    words = tiny_second(
        first_stage,
        conditioner="image",
        conditioner__latent_size=8,
        denoiser__in_channels=7,
        max_steps=1,
        validation__num_samples=0,
        monitor="val/loss",
    )
    ended = command("train", words, tmp_path)
    assert ended.code == 0, ended.output


def test_a_context_is_attended_to(tmp_path, first_stage):
    words = tiny_second(
        first_stage,
        conditioner="class_label",
        conditioner__kind="context",
        denoiser__context_width=16,
        max_steps=1,
    )
    ended = command("train", words, tmp_path)
    assert ended.code == 0, ended.output
