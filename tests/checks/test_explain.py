"""``explain=``: every file that sets a key, in order, the command line, and the value."""

import pytest

from ldm_lightning.checks.explain import explanation, take_explain
from ldm_lightning.config import register_resolvers
from tests.cli.run import process


@pytest.fixture(autouse=True)
def _resolvers():
    register_resolvers()


def rows(text: str) -> list[list[str]]:
    """The rows of the tables, each a name and a value."""
    return [line.strip().split("  ", 1) for line in text.splitlines() if line.startswith("  ")]


def told(key: str, *arguments: str) -> tuple[list[list[str]], str]:
    """The rows about a key, and the last line."""
    text = explanation(key, arguments)
    table = [[name.strip(), value.strip()] for name, value in rows(text)]
    return table, text.splitlines()[-1]


def test_files_and_words_that_set_a_key_come_in_order():
    files = [
        ["conf/base.yaml", "???"],
        ["conf/scale/stage/first_cpu.yaml", "1600"],
        ["conf/recipe/cpu/kl_f8.yaml", "1400"],
    ]
    assert told("max_steps", "experiment=kl_f8") == (files, "max_steps=1400")
    words = ["max_steps=7", "seed=3", "++max_steps=8"]
    given = [["command line", "max_steps=7"], ["command line", "++max_steps=8"]]
    assert told("max_steps", "experiment=kl_f8", *words) == ([*files, *given], "max_steps=8")


def test_a_nested_key_and_a_mapping_on_the_command_line():
    table, last = told("optim.learning_rate", "experiment=kl_f8", "optim={learning_rate:0.5}")
    expected = ["null", "0.0007", "0.002", "optim={learning_rate:0.5}"]
    assert [value for _, value in table] == expected
    assert last == "optim.learning_rate=0.5"


def test_an_experiment_of_ones_own_is_among_the_files(tmp_path):
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "mine.yaml"
    file.write_text("# @package _global_\ndefaults: [kl_f8, _self_]\nname: mine\nmax_steps: 7\n")
    words = ["--config-dir", str(tmp_path), "experiment=mine", "scale=gpu"]
    table, last = told("max_steps", *words)
    assert table[-1] == [str(file), "7"]
    assert last == "max_steps=7"


def test_a_group_says_who_chose_its_file_and_what_it_holds():
    text = explanation("discriminator", ["experiment=vae_f8"])
    assert "discriminator=none" in text.splitlines()
    assert ["conf/experiment/vae_f8.yaml", "none"] in [
        [name.strip(), value.strip()] for name, value in rows(text)
    ]
    assert "discriminator._target_=null" in text.splitlines()
    text = explanation("diffusion.schedule", ["experiment=ldm_kl_f8", "diffusion/schedule=cosine"])
    assert "diffusion/schedule=cosine" in text.splitlines()
    assert "diffusion.schedule.shift=1.0" in text.splitlines()


def test_a_group_without_a_key_of_its_name():
    table, last = told("recipe", "experiment=vq_f4")
    files = [["conf/train.yaml", "null"], ["conf/experiment/vq_f4.yaml", "${scale}/vq_f4"]]
    assert (table, last) == (files, "recipe=cpu/vq_f4")
    table, last = told("recipe", "experiment=kl_f8", "scale=gpu", "recipe=gpu/kl_f8")
    assert table[-1] == ["command line", "recipe=gpu/kl_f8"]
    assert last.startswith("recipe=gpu/kl_f8, ")


def test_an_interpolation_is_shown_with_its_value():
    words = ["experiment=vq_f8", "scale=gpu"]
    table, last = told("autoencoder.width_multipliers", *words)
    raw = "${width_multipliers:${.downsampling_factor},${.patch_size},vq}"
    assert table[-1] == ["conf/experiment/vq_f8.yaml", raw]
    assert last.startswith("autoencoder.width_multipliers=[1,2,2,4], ")
    assert last.endswith(raw)
    assert told("data.seed", "seed=5")[1].startswith("data.seed=5, ")


def test_a_value_that_is_missing_or_cannot_be_computed_is_told():
    assert told("data.root", "data=image_folder")[1].startswith("data.root=???")
    words = ["experiment=kl_f8", "autoencoder.downsampling_factor=3"]
    assert "=${width_multipliers:" in told("autoencoder.width_multipliers", *words)[1]


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("max_step", "'max_steps'"),
        ("loss.kl_wieght", "'kl_weight'"),
        ("optim.zzzz", "clip_norm"),
        ("seed.below", "'seed.below'"),
        ("recipes", "'recipe'"),
    ],
)
def test_an_unknown_key_is_refused_with_near_ones(key, near):
    with pytest.raises(ValueError, match=near):
        explanation(key, [])


def test_the_keys_to_choose_from_are_named_once_and_without_those_of_hydra():
    with pytest.raises(ValueError, match="nosuch") as caught:
        explanation("nosuch", [])
    names = str(caught.value).rstrip(".").rpartition(": ")[2].split(", ")
    assert sorted(set(names)) == names
    assert {"optim", "recipe", "max_steps"} <= set(names)
    assert not any(name.startswith("hydra/") for name in names)


def test_several_runs_are_not_explained():
    with pytest.raises(ValueError, match="-m"):
        explanation("seed", ["-m", "seed=1,2"])


def test_the_word_is_taken_from_the_others():
    words = ["--config-dir", "c", "experiment=kl_f8", "explain=seed", "seed=1"]
    assert take_explain(words) == ("seed", [*words[:3], "seed=1"])
    assert take_explain(["seed=1"]) == (None, ["seed=1"])


def test_the_command_ends_without_torch_and_leaves_no_folder(tmp_path):
    code = """
import runpy, sys
sys.modules["torch"] = None  # importing it fails from here on
sys.argv = ["train", "experiment=kl_f8", "explain=max_steps"]
runpy.run_module("ldm_lightning.train", run_name="__main__", alter_sys=True)
"""
    ended = process(["-c", code], tmp_path, env={"PYTHONWARNINGS": "ignore"})
    assert ended.code == 0, ended.output
    assert ended.output.splitlines()[-1] == "max_steps=1400"
    assert not any(tmp_path.iterdir())
