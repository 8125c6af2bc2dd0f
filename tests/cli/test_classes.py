"""Classes of a second stage: their names and ids from training to sampling."""

import json
import shutil

import pytest
import torch
from omegaconf import OmegaConf

from ldm_lightning.builders.data import build_labeled_data
from ldm_lightning.checkpoints.checkpoint import load_checkpoint
from tests.cli.run import ROOT, command, run_folder, write_images
from tests.cli.second_stage import tiny_second, trained_first_stage

STORED = {"names": ["dog", "bee"], "without_images": []}


def write_classes(root, *names, first=0):
    for number, name in enumerate(names, start=first):
        write_images(root / name, 4, seed=number, size=32)
    return root


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A folder with images of two classes and a third without, and a model of them."""
    folder = tmp_path_factory.mktemp("classes")
    first = trained_first_stage(folder / "first", max_steps=1)
    write_classes(folder / "train", "bee", "cow")
    (folder / "train" / "ant").mkdir()
    write_classes(folder / "val", "bee", "cow", first=5)
    words = tiny_second(
        first,
        conditioner="class_label",
        data="image_folder",
        data__root=folder / "train",
        data__val_root=folder / "val",
        data__classes="[dog,cow,bee]",
        max_steps=1,
    )
    ended = command("train", words, folder)
    assert ended.code == 0, ended.output
    return folder


def checkpoint(chain):
    return run_folder(chain, "ldm_kl_f4") / "checkpoints" / "last.ckpt"


def test_the_checkpoint_holds_names_and_which_have_no_image(chain):
    stored = load_checkpoint(checkpoint(chain))["second_stage"]["classes"]
    assert stored == {"names": ["dog", "cow", "bee"], "without_images": [0]}


def sampled(chain, output, *words):
    words = [f"checkpoint={checkpoint(chain)}", f"output={output}", "num_samples=3", *words]
    return command("sample", words, output.parent)


def test_classes_without_an_image_are_not_sampled(chain, tmp_path):
    ended = sampled(chain, tmp_path / "all")
    assert ended.code == 0, ended.output
    written = json.loads((tmp_path / "all" / "labels.json").read_text())
    assert written == {"labels": [1, 2, 1], "names": ["cow", "bee", "cow"]}


@pytest.mark.parametrize(
    ("words", "named"),
    [("labels=0", "dog"), ("labels=[bee,x]", "'x'")],
)
def test_what_the_model_never_saw_is_refused_by_name(chain, tmp_path, words, named):
    ended = sampled(chain, tmp_path / "none", words)
    assert ended.code == 1
    assert named in ended.said


@pytest.mark.slow
def test_ids_stay_those_of_training_when_the_folder_changes(chain, tmp_path):
    run = shutil.copytree(run_folder(chain, "ldm_kl_f4"), tmp_path / "run")
    write_classes(tmp_path / "new", "bee", "dog", first=9)
    words = [f"resume={run}", "max_steps=2", "data=image_folder", f"data.root={tmp_path / 'new'}"]
    ended = command("train", words, tmp_path)
    assert ended.code == 0, ended.output
    stored = load_checkpoint(run / "checkpoints" / "last.ckpt")["second_stage"]["classes"]
    assert stored == {"names": ["dog", "cow", "bee"], "without_images": [1]}
    write_classes(tmp_path / "new", "elk", first=12)
    ended = command("train", [*words, "max_steps=3"], tmp_path)
    assert ended.code == 1
    assert "'elk'" in ended.said


@pytest.mark.parametrize(("given", "expected"), [(None, ["dog", "bee"]), (["dog", "bee"], None)])
def test_data_of_a_continued_model_take_the_names_of_its_checkpoint(tmp_path, given, expected):
    cfg = described(write_classes(tmp_path / "images", "bee", "dog"), given)
    torch.save({"second_stage": {"classes": STORED}}, tmp_path / "last.ckpt")
    data = build_labeled_data(cfg, start=tmp_path / "last.ckpt")
    assert data.class_names == ["dog", "bee"]
    assert expected is None or cfg.data.classes == expected


def test_data_that_number_their_classes_otherwise_are_refused(tmp_path):
    cfg = described(write_classes(tmp_path / "images", "bee", "dog"), ["bee", "dog"])
    torch.save({"second_stage": {"classes": STORED}}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="data.classes"):
        build_labeled_data(cfg, start=tmp_path / "last.ckpt")


def described(root, classes):
    """As much of a configuration as the data need."""
    data = OmegaConf.load(ROOT / "conf" / "data" / "image_folder.yaml")
    values = {"resolution": 8, "image_channels": 3, "train_crop": "center", "eval_crop": "center"}
    values |= {"seed": 0, "root": str(root), "val_fraction": 0.5, "classes": classes}
    values |= {"cache_dir": None} if "cache_dir" in data else {}
    data = OmegaConf.merge(data, values)
    return OmegaConf.create({"conditioner": {"num_classes": None}, "data": data})
