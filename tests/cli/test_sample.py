"""Sampling from the command line: image i follows from (seed, i) and from nothing else."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from ldm_lightning.data.shapes.module import CLASS_NAMES
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.sample import _refuse_others
from tests.cli.run import command, environment_of, process, run_folder, summary_of
from tests.cli.second_stage import tiny_second, trained_first_stage


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A folder with a first and a class-conditional second stage."""
    folder = tmp_path_factory.mktemp("chain")
    first = trained_first_stage(folder / "first")
    shutil.move(first, folder / "first_stage")
    words = tiny_second(
        folder / "first_stage", conditioner="class_label", sampler__guidance_scale=2
    )
    ended = command("train", words, folder)
    assert ended.code == 0, ended.output
    shutil.move(run_folder(folder, "ldm_kl_f4"), folder / "second_stage")
    return folder


def sample(chain, output, *words):
    values = [f"checkpoint={chain / 'second_stage'}", f"output={output}"]
    return command("sample", [*values, *words], output.parent)


def images_of(folder):
    paths = sorted((folder / "images").glob("*.png"))
    return {path.name: np.asarray(Image.open(path)) for path in paths}


@pytest.fixture(scope="module")
def samples(chain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples") / "all"
    ended = sample(chain, folder, "num_samples=12", "npz=true")
    assert ended.code == 0, ended.output
    assert not (folder / "checkpoints").exists()
    return folder


def assert_same_images(one, other, *, exact=True):
    assert one.keys() == other.keys()
    for name, image in one.items():
        difference = np.abs(image.astype(int) - other[name].astype(int))
        assert difference.max() == 0 if exact else (difference <= 1).mean() >= 0.999, name


def test_images_labels_grid_and_npz_are_written(samples):
    images = images_of(samples)
    assert list(images) == [f"{number:06d}.png" for number in range(12)]
    assert all(image.shape == (32, 32, 3) for image in images.values())
    written = json.loads((samples / "labels.json").read_text())
    labels = written["labels"]
    assert written["names"] == [CLASS_NAMES[label] for label in labels]
    assert labels == [number % 8 for number in range(12)]
    assert (samples / "grid.png").is_file()
    arrays = np.load(samples / "samples.npz")
    assert arrays["arr_0"].shape == (12, 32, 32, 3)
    assert arrays["arr_0"].dtype == np.uint8
    np.testing.assert_array_equal(arrays["arr_0"][5], images["000005.png"])
    assert arrays["arr_1"].tolist() == labels
    summary = summary_of(samples)
    assert summary["state"] == "finished"
    assert summary["samples"]["sampler"]["guidance_scale"] == 2


def test_an_image_depends_neither_on_batch_nor_on_number_of_images(chain, samples, tmp_path):
    ended = sample(chain, tmp_path / "five", "num_samples=5", "batch_size=2")
    assert ended.code == 0, ended.output
    expected = dict(list(images_of(samples).items())[:5])
    assert_same_images(expected, images_of(tmp_path / "five"), exact=False)


@pytest.mark.slow
def test_two_processes_make_the_images_of_one(chain, samples, tmp_path):
    words = [f"checkpoint={chain / 'second_stage'}", "output=two", "num_samples=12"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = process(
        [*launch, "-m", "ldm_lightning.sample", *words], tmp_path, env=environment_of(tmp_path)
    )
    assert ended.code == 0, ended.output
    assert_same_images(images_of(samples), images_of(tmp_path / "two"), exact=False)


def test_started_again_only_what_is_missing_is_made(chain, samples, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(samples, copy)
    (copy / "images/000003.png").unlink()
    kept = (copy / "images/000004.png").stat().st_mtime_ns
    ended = sample(chain, copy, "num_samples=13", "npz=true")
    assert ended.code == 0, ended.output
    assert re.search(r"\b13 images\b.*\b2\b", ended.said)
    assert (copy / "images/000004.png").stat().st_mtime_ns == kept
    images = images_of(copy)
    assert images.pop("000012.png") is not None
    assert_same_images(images_of(samples), images, exact=False)


def test_other_words_are_refused_and_nothing_is_lost(chain, samples, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(samples, copy)
    ended = sample(chain, copy, "num_samples=12", "seed=1")
    assert ended.code == 1
    assert "seed=0 there, 1 now" in ended.said
    assert summary_of(copy)["state"] == "finished"
    assert_same_images(images_of(samples), images_of(copy))


@pytest.mark.parametrize("name", ["grid.png", "samples.npz", "labels.json", "images/a.png"])
def test_files_of_others_are_refused_and_kept(tmp_path, name):
    folder = RunFolder.create(tmp_path)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=name):
        _refuse_others(folder, {})
    assert (tmp_path / name).read_text() == "mine"


def test_labels_samplers_and_prior_change_the_images(chain, samples, tmp_path):
    expected = images_of(samples)["000001.png"]
    for name, words in {
        "label": ["labels=[star,2]"],
        "sampler": ["sampler=dpm_solver", "sampler.num_steps=3"],
        "guidance": ["sampler.guidance_scale=1"],
        "prior": ["prior=true"],
        "seed": ["seed=7"],
    }.items():
        ended = sample(chain, tmp_path / name, "num_samples=2", *words)
        assert ended.code == 0, ended.output
        assert not np.array_equal(images_of(tmp_path / name)["000001.png"], expected), name
    assert json.loads((tmp_path / "label/labels.json").read_text())["labels"] == [3, 2]
    assert json.loads((tmp_path / "prior/labels.json").read_text())["labels"] == [None, None]


def test_a_moved_chain_finds_its_first_stage(chain, samples, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(chain, moved)
    (chain / "first_stage").rename(chain / "hidden")
    try:
        ended = sample(moved, tmp_path / "out", "num_samples=2")
        assert ended.code == 0, ended.output
        ended = sample(chain, tmp_path / "lost", "num_samples=2")
        assert ended.code == 1
        assert "first_stage.checkpoint=RUN" in ended.said
        given = f"first_stage.checkpoint={chain / 'hidden'}"
        assert sample(chain, tmp_path / "given", "num_samples=2", given).code == 0
    finally:
        (chain / "hidden").rename(chain / "first_stage")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["num_samples=0"], "num_samples=0"),
        (["labels=8"], r"\b0 to 7\b"),
        (["labels=[]"], r"labels=\[\]"),
        (["labels=Circel"], "circle"),
        (["sampler.num_steps=1001"], "1001"),
        (["prior=true", "labels=1"], r"\blabels?\b"),
    ],
)
def test_what_cannot_be_sampled_is_told(chain, tmp_path, words, message):
    ended = sample(chain, tmp_path / "out", *words)
    assert ended.code == 1
    assert re.search(message, ended.said), ended.said
    assert not images_of(tmp_path / "out")


def test_a_first_stage_has_nothing_to_sample(chain, tmp_path):
    words = [f"checkpoint={chain / 'first_stage'}", f"output={tmp_path / 'out'}"]
    ended = command("sample", words, tmp_path)
    assert ended.code == 1
    assert "second stage" in ended.said


def test_samples_are_measured_against_held_out_images(chain, samples, tmp_path):
    words = [f"images={samples / 'images'}", "data=shapes", "data.num_val_images=20"]
    ended = command("evaluate", words, tmp_path)
    assert ended.code == 0, ended.output
    summary = summary_of(run_folder(tmp_path, "evaluate"))
    assert summary["metrics"]["gen/fd_tiny"] > 0
    entry = summary["protocol"]["gen/fd_tiny"]
    assert (entry["num_images"], entry["num_references"]) == (12, 20)
    ended = command("evaluate", [f"checkpoint={chain / 'second_stage'}"], tmp_path)
    assert ended.code == 1
    assert "ldm_lightning.sample" in ended.said
