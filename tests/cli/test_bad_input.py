"""What a person can get wrong ends with a message that helps, and with nothing lost."""

import re
import resource
import shutil
import textwrap

import pytest
import torch
from omegaconf import OmegaConf

from ldm_lightning.callbacks.checkpointing import Checkpointing
from ldm_lightning.checkpoints.checkpoint import load_checkpoint
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.utils import pretrained
from tests.cli.run import command, run_folder, summary_of, tiny, write_images


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    ended = command("train", tiny("vqvae_f8", max_steps=2), folder)
    assert ended.code == 0, ended.output
    return folder


@pytest.fixture(scope="module")
def trained(runs):
    """A finished run; read it, copy it, leave it as it is."""
    return run_folder(runs, "vqvae_f8")


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of a finished run, to be harmed."""
    return shutil.copytree(trained, tmp_path / "copied")


def refused(name, words, folder, *parts):
    """Run a command that must fail, and say all of ``parts`` on the way."""
    ended = command(name, words, folder)
    assert ended.code not in (0, None), ended.output
    assert "Traceback" not in ended.output
    assert "HYDRA_FULL_ERROR" not in ended.output
    missing = [part for part in parts if part not in ended.said]
    assert not missing, ended.output
    return ended


def failed_reason(folder, name):
    summary = summary_of(run_folder(folder, name))
    assert summary["state"] == "failed"
    assert "Traceback" not in summary["reason"]
    return summary["reason"]


# Data


def test_a_missing_folder_is_named(tmp_path):
    words = tiny("kl_f4", data="image_folder", data__root=tmp_path / "nothing")
    refused("train", words, tmp_path, f"data.root={tmp_path / 'nothing'}")
    assert "data.root=" in failed_reason(tmp_path, "kl_f4")


def test_an_empty_folder_is_named_with_what_belongs_there(tmp_path):
    (tmp_path / "empty").mkdir()
    words = tiny("kl_f4", data="image_folder", data__root=tmp_path / "empty")
    refused("train", words, tmp_path, f"data.root={tmp_path / 'empty'}", ".png")
    assert "data.root=" in failed_reason(tmp_path, "kl_f4")


def test_a_folder_that_was_not_given_is_asked_for(tmp_path):
    refused("train", tiny("kl_f4", data="image_folder"), tmp_path, "data.root=VALUE")


def folder_of_bad_files(parent):
    good, *others = write_images(parent / "train", 12)
    for path in others:
        path.write_bytes(path.read_bytes()[:60])  # truncated
    write_images(parent / "val", 4, seed=1)
    return {
        "data": "image_folder",
        "data__root": parent / "train",
        "data__val_root": parent / "val",
        "train_crop": "center",
        "eval_crop": "center",
    }


def test_one_good_file_among_bad_ones_stops_the_run_past_the_fraction(tmp_path):
    words = tiny("vqvae_f8", **folder_of_bad_files(tmp_path), data__num_workers=2)
    refused("train", words, tmp_path, "12 files", "data.max_bad_fraction", ".png")
    assert "data.max_bad_fraction" in failed_reason(tmp_path, "vqvae_f8")


def test_one_good_file_among_bad_ones_is_enough_when_that_is_allowed(tmp_path):
    words = tiny("vqvae_f8", **folder_of_bad_files(tmp_path), data__max_bad_fraction=1)
    ended = command("train", words, tmp_path)
    assert ended.code == 0, ended.output
    listed = (run_folder(tmp_path, "vqvae_f8") / "unreadable_files.tsv").read_text().splitlines()
    names = [line.split("\t")[1] for line in listed]
    assert len(names) == len(set(names)) >= 5
    assert all(name in ended.output for name in names)
    assert "000.png" not in names


# Values and keys


def test_a_size_that_the_factor_does_not_divide_is_corrected(tmp_path):
    words = tiny("kl_f8", resolution=36)
    parts = ("resolution=36", "autoencoder.downsampling_factor=8", "resolution=32")
    refused("train", words, tmp_path, *parts)


def test_an_unknown_experiment_is_answered_with_those_there_are(tmp_path):
    refused("train", ["experiment=kl_f5"], tmp_path, "'experiment/kl_f5'", "kl_f4, kl_f8")


@pytest.mark.parametrize("sign", ["", "+"])
def test_a_misspelt_key_on_the_command_line_is_refused_with_a_suggestion(tmp_path, sign):
    words = [*tiny("kl_f4"), f"{sign}loss.kl_wieght=1"]
    refused("train", words, tmp_path, "'loss.kl_wieght'", "'kl_weight'")


def test_a_recipe_that_is_at_no_scale_is_named(tmp_path):
    refused("train", [*tiny("kl_f4"), "recipe=cpu/kl_f5"], tmp_path, "recipe=cpu/kl_f5", "kl_f4")


@pytest.mark.parametrize("scale", ["gpu", "paper"])
def test_a_scale_without_the_standard_networks_names_what_needs_none(tmp_path, scale):
    words = [*tiny("kl_f4", scale=scale), f"features.weights_dir={tmp_path / 'none'}"]
    refused("train", words, tmp_path, "features=tiny")
    assert "features=tiny" in failed_reason(tmp_path, "kl_f4")


def test_a_misspelt_key_in_an_experiment_is_refused_with_a_suggestion(tmp_path):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    text = """
        # @package _global_
        name: mine
        max_steps: 2
        autoencoder:
          downsampling_factor: 8
          latent_chanels: 4
    """
    (folder / "mine.yaml").write_text(textwrap.dedent(text).lstrip())
    words = ["--config-dir", str(tmp_path / "mine"), "experiment=mine"]
    parts = ("'autoencoder.latent_chanels'", "'latent_channels'")
    refused("train", words, tmp_path, *parts)


def test_a_key_with_no_relative_is_answered_with_the_keys_there_are(tmp_path):
    refused("train", ["optim.zzzz=1"], tmp_path, "'optim.zzzz'", "clip_norm", "learning_rate")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"trainer.precision": 31}, r"trainer\.precision.*\b32\b.*\b31\b"),
        ({"autoencoder.downsampling_factor": 7}, r"factor.*\[1, 2, 4, 8, 16, 32\].*\b7\b"),
        ({"loss.discriminator_start_fraction": 0.5}, r"loss\.discriminator_start_steps.*_fraction"),
        ({"monitor": "val/psn"}, r"'val/psn'.*val/psnr"),
        ({"train": "false"}, r"checkpoint=\.\.\."),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_expected(tmp_path, change, named):
    ended = refused("train", tiny("kl_f4", **change), tmp_path)
    assert re.search(named, ended.said)
    assert re.search(named, failed_reason(tmp_path, "kl_f4"))


@pytest.mark.parametrize("word", ["max_steps=0", "loss.kl_weight=abc"])
def test_a_value_of_another_type_is_named_with_its_key(tmp_path, word):
    refused("train", [*tiny("kl_f4"), word], tmp_path, word)


def test_a_discriminator_start_beyond_the_run_is_warned_about(tmp_path):
    words = tiny("kl_f4", max_steps=2, loss__discriminator_start_steps=1000)
    ended = command("train", words, tmp_path)
    assert ended.code == 0
    assert re.search(r"\b1000\b.*max_steps=2\b", ended.said)


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_an_output_path_below_a_file_names_the_file(tmp_path, below):
    blocking = tmp_path / "notes.txt"
    blocking.write_text("keep me")
    words = tiny("kl_f4", output_dir=blocking / below)
    refused("train", words, tmp_path, str(blocking), "output_dir")
    assert blocking.read_text() == "keep me"


# Feature networks


def test_standard_features_without_weights_say_what_is_missing_before_data_is_read(tmp_path):
    weights = tmp_path / "weights"
    words = tiny("kl_f4", features="standard", features__weights_dir=weights, data="image_folder")
    ended = refused(
        "train",
        [*words, "data.root=nowhere"],
        tmp_path,
        "vgg16-397923af.pth",
        "alexnet-owt-7be5be79.pth",
        "weights-inception-2015-12-05-6726825d.pth",
        str(weights),
        "features=tiny",
    )
    assert "nowhere" not in ended.output
    assert "weights-inception" in failed_reason(tmp_path, "kl_f4")


def test_standard_features_that_cannot_be_downloaded_name_the_hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "_answers", lambda url: False)
    place = tmp_path / "cache" / "torch" / "hub" / "checkpoints"
    words = tiny("kl_f4", features="standard")
    refused("train", words, tmp_path, str(place), "features=tiny")


# Checkpoints


def test_a_run_folder_without_a_checkpoint_says_what_was_looked_for(tmp_path):
    refused("evaluate", ["checkpoint=nowhere"], tmp_path, "checkpoint=nowhere")
    (tmp_path / "empty").mkdir()
    refused("evaluate", ["checkpoint=empty"], tmp_path, "best.ckpt", "last.ckpt")


def test_weights_of_another_architecture_are_refused_at_the_start(tmp_path, trained):
    words = tiny("vqvae_f8", autoencoder__base_width=16, checkpoint=trained)
    refused("train", words, tmp_path, str(trained), "architecture", "encoder.")


def test_resuming_with_another_architecture_changes_nothing(tmp_path, copied):
    kept = ("config.yaml", "metrics.csv", "summary.json", "checkpoints/last.ckpt")
    before = [(copied / name).read_bytes() for name in kept]
    words = [f"resume={copied}", "autoencoder.base_width=16", "max_steps=4"]
    told = (str(copied), "autoencoder.base_width=16", "autoencoder.base_width=8")
    refused("train", words, tmp_path, *told)
    assert [(copied / name).read_bytes() for name in kept] == before


def test_a_description_that_does_not_fit_its_weights_is_refused(tmp_path, copied):
    path = copied / "checkpoints" / "best.ckpt"
    checkpoint = load_checkpoint(path)
    checkpoint["first_stage"]["autoencoder"]["base_width"] = 16
    torch.save(checkpoint, path)
    refused("evaluate", [f"checkpoint={path}"], tmp_path, str(path), "architecture")
    assert "architecture" in failed_reason(tmp_path, "evaluate")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace_by_text(path):
    path.write_text("<html>404</html>")


@pytest.mark.parametrize("harm", [flip_a_bit, replace_by_text])
def test_a_damaged_checkpoint_is_refused_by_every_command(tmp_path, copied, harm):
    (copied / "checkpoints" / "best.ckpt").unlink()  # a link to the same bytes
    path = copied / "checkpoints" / "last.ckpt"
    harm(path)
    refused("evaluate", [f"checkpoint={copied}"], tmp_path, str(path))
    refused("train", tiny("vqvae_f8", checkpoint=copied), tmp_path, str(path))
    refused("train", [f"resume={copied}", "max_steps=4"], tmp_path, str(path))
    assert summary_of(copied)["state"] == "finished"


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (self.path,)


def test_pickled_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, copied):
    sprung = tmp_path / "sprung"
    (copied / "checkpoints" / "best.ckpt").unlink()
    path = copied / "checkpoints" / "last.ckpt"
    torch.save({**load_checkpoint(path), "extra": Trap(str(sprung))}, path)
    told = (str(path), "mkdir")
    refused("evaluate", [f"checkpoint={copied}"], tmp_path, *told)
    refused("train", tiny("vqvae_f8", checkpoint=copied), tmp_path, *told)
    refused("train", [f"resume={copied}", "max_steps=4"], tmp_path, *told)
    assert not sprung.exists()


@pytest.mark.parametrize("part", ["autoencoder", "bottleneck"])
def test_a_foreign_target_in_a_checkpoint_is_refused_and_not_called(tmp_path, copied, part):
    sprung = tmp_path / "sprung"
    path = copied / "checkpoints" / "best.ckpt"
    checkpoint = load_checkpoint(path)
    checkpoint["first_stage"][part] = {"_target_": "os.mkdir", "path": str(sprung)}
    torch.save(checkpoint, path)
    refused("evaluate", [f"checkpoint={copied}"], tmp_path, "'os.mkdir'", "refused")
    assert not sprung.exists()


@pytest.mark.parametrize("group", ["data", "features"])
def test_a_foreign_target_beside_a_checkpoint_is_refused_and_not_called(tmp_path, copied, group):
    sprung = tmp_path / "sprung"
    config = OmegaConf.load(copied / "config.yaml")
    config[group] = {"_target_": "os.mkdir", "path": str(sprung)}
    OmegaConf.save(config, copied / "config.yaml")
    refused("evaluate", [f"checkpoint={copied}"], tmp_path, "'os.mkdir'", "refused")
    assert not sprung.exists()


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "other.ckpt")
    refused("evaluate", ["checkpoint=other.ckpt"], tmp_path, "other.ckpt", "first stage")
    words = tiny("vqvae_f8", checkpoint="other.ckpt")
    refused("train", words, tmp_path, "autoencoder")


def test_other_channels_than_the_checkpoints_are_refused(tmp_path, trained):
    words = [f"checkpoint={trained}", "image_channels=1"]
    ended = refused("evaluate", words, tmp_path)
    assert re.search(r"image_channels=1\b.*\b3\b", ended.said)


# Validating alone


def test_train_false_validates_a_checkpoint_and_trains_nothing(tmp_path, trained):
    words = tiny("vqvae_f8", checkpoint=trained, train="false")
    ended = command("train", words, tmp_path)
    assert ended.code == 0, ended.output
    folder = run_folder(tmp_path, "vqvae_f8")
    summary = summary_of(folder)
    assert summary["state"] == "validated"
    assert summary["protocol"]["val/psnr"]["weights"] == "ema"
    assert not list((folder / "checkpoints").iterdir())
    best = load_checkpoint(trained / "checkpoints" / "best.ckpt")["global_step"]
    rows = [line.split(",") for line in (trained / "metrics.csv").read_text().splitlines()[1:]]
    expected = {name: float(value) for step, name, value in rows if int(step) == best}
    assert summary["metrics"]["val/psnr"] == pytest.approx(expected["val/psnr"], rel=1e-6)


def test_training_can_begin_at_the_weights_of_another_run(tmp_path, trained):
    words = tiny("vqvae_f8", checkpoint=trained, max_steps=1, optim__learning_rate=0)
    assert command("train", words, tmp_path).code == 0
    start = load_checkpoint(run_folder(tmp_path, "vqvae_f8") / "checkpoints" / "last.ckpt")
    given = load_checkpoint(trained / "checkpoints" / "best.ckpt")["ema"]
    for name, tensor in given.items():
        if name.startswith(("encoder.", "decoder.")):
            assert torch.equal(start["state_dict"][f"autoencoder.{name}"], tensor)


# The disk


@pytest.mark.slow
def test_a_full_disk_keeps_the_previous_checkpoint_and_says_how_to_go_on(tmp_path, monkeypatch):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = Checkpointing._save_last

    def fill(self, trainer):
        if trainer.global_step == 4:
            room = self.last_path.stat().st_size // 2
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        save(self, trainer)

    monkeypatch.setattr(Checkpointing, "_save_last", fill)
    monkeypatch.setattr(Checkpointing, "_is_best", lambda self, trainer, pl_module: False)
    try:
        ended = command("train", tiny("vqvae_f8", max_steps=6), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        monkeypatch.undo()
    assert ended.code not in (0, None)
    assert "last.ckpt" in ended.said
    assert "resume=auto" in ended.said
    assert "Traceback" not in ended.output
    run = run_folder(tmp_path, "vqvae_f8")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 2
    assert "last.ckpt" in failed_reason(tmp_path, "vqvae_f8")
    continued = command("train", ["experiment=vqvae_f8", "resume=auto"], tmp_path)
    assert continued.code == 0, continued.output
    summary = summary_of(run)
    assert (summary["state"], summary["step"]) == ("finished", 6)
    assert "reason" not in summary


def test_an_error_before_training_is_written_down(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "ldm_lightning.training.steps.build_trainer", lambda *a: [][0]
    )  # a mistake of ours
    with pytest.raises(IndexError):
        command("train", tiny("vqvae_f8"), tmp_path)
    assert "IndexError" in failed_reason(tmp_path, "vqvae_f8")
    assert RunFolder(run_folder(tmp_path, "vqvae_f8")).writer() is None
