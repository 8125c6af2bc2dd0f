"""A run folder may come from a stranger: nothing in it is built, resolved or read elsewhere."""

import os

import pytest
import yaml

from ldm_lightning.restore.stored_config import (
    FORMAT,
    own_targets,
    read_composition,
    read_config,
    read_config_keys,
)
from ldm_lightning.resume.arguments import continued_arguments
from ldm_lightning.runs.overrides import parsed, value_of
from tests.resume.test_arguments import STARTS, begin


@pytest.fixture(scope="module")
def began(tmp_path_factory):
    folder = tmp_path_factory.mktemp("began") / "run"
    return begin(folder, STARTS["first"]).values


@pytest.fixture
def folder(tmp_path, began):
    choices = {"experiment": "vqgan_f16", "stage": "first", "scale": "cpu", "data": "shapes"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(began))
    (tmp_path / "overrides.yaml").write_text(
        yaml.safe_dump({"format": FORMAT, "choices": choices, "given": []})
    )
    return tmp_path


def change(path, *place, value):
    content = yaml.safe_load(path.read_text())
    node = content
    for name in place[:-1]:
        node = node[name]
    node[place[-1]] = value
    path.write_text(yaml.safe_dump(content))


def test_what_conf_builds_is_on_the_list_and_nothing_else():
    assert "ldm_lightning.callbacks.ema.Ema" in own_targets()
    assert all(name.startswith("ldm_lightning.") for name in own_targets())
    assert len(own_targets()) > 40


def test_an_honest_run_is_read(folder, began):
    assert read_config(folder) == began
    assert read_composition(folder).choices["scale"] == "cpu"


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("data", "_target_"), "torch.load", "torch.load"),
        (("data", "_target_"), "pathlib.Path.write_text", "pathlib.Path.write_text"),
        (("callbacks", "ema"), {"_target_": "os.system", "command": "true"}, "os.system"),
        (
            ("callbacks", "ema", "_target_"),
            "ldm_lightning.reporting.page.write.write_own_page",
            "write_own_page",
        ),
        (("name",), "${oc.env:HOME}", "oc.env"),
        (("cache_dir",), "${created:made}", "created"),
        (("data", "extra"), ["a", {"b": "\\${oc.env:HOME}"}], "oc.env"),
        (("hydra",), {"run": {"dir": "made"}}, "hydra"),
        (("name=1 hydra.run.dir",), "made", "hydra.run.dir"),
        (("gate",), {"mode": "skip"}, "gate"),  # of the other stage
    ],
)
def test_a_hostile_configuration_is_refused_before_anything_happens(
    folder, monkeypatch, place, value, told
):
    monkeypatch.chdir(folder)
    change(folder / "config.yaml", *place, value=value)
    before = sorted(os.listdir(folder))
    with pytest.raises(ValueError, match=told):
        continued_arguments([f"resume={folder}"])
    assert sorted(os.listdir(folder)) == before


def test_text_from_a_file_stays_text(folder):
    """Whatever it holds, it is one value of its key, and no word of its own."""
    texts = ["a' hydra.run.dir=x", "\\", "[1,2]", "null", "a\nb", "$x", "it's \\' {a:1}"]
    change(folder / "config.yaml", "run_group", value=texts)
    words = parsed(continued_arguments([f"resume={folder}"]))
    assert value_of(words, "run_group") == texts
    keys = {word.key_or_group.partition(".")[0] for word in words}
    assert keys <= {*yaml.safe_load((folder / "config.yaml").read_text()), "experiment", "scale"}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("choices", "experiment"), "../../../evil"),
        (("choices", "experiment"), "/evil"),
        (("choices", "data"), "shapes seed=1"),
        (("choices", "hydra/launcher@x"), "evil"),
        (("choices", "data"), "${oc.env:HOME}"),
        (("choices", "data"), ["shapes"]),
        (("choices",), []),
        (("format",), 0),
        (("format",), None),
        (("given",), ["data.root=1"]),
        (("given",), {"data.root": 1}),
    ],
)
def test_a_hostile_composition_is_refused_by_the_files_name(folder, place, value):
    change(folder / "overrides.yaml", *place, value=value)
    with pytest.raises(ValueError, match=r"overrides\.yaml"):
        continued_arguments([f"resume={folder}"])


def test_without_a_composition_a_run_cannot_be_continued(folder):
    (folder / "overrides.yaml").unlink()
    with pytest.raises(ValueError, match=r"overrides\.yaml.*checkpoint="):
        continued_arguments([f"resume={folder}"])


def test_packages_of_ones_own_are_trusted_by_the_command_alone(folder, monkeypatch):
    change(
        folder / "config.yaml",
        "callbacks",
        "ema",
        "_target_",
        value="tests.restore.test_stored_config.Mine",
    )
    change(folder / "config.yaml", "trusted_packages", value=["tests"])
    with pytest.raises(ValueError, match=r"tests\.restore\.test_stored_config\.Mine"):
        continued_arguments([f"resume={folder}"])
    arguments = continued_arguments([f"resume={folder}", "trusted_packages=[tests]"])
    assert "++callbacks.ema._target_='tests.restore.test_stored_config.Mine'" in arguments


class Mine:
    """A part of a user's own."""


def test_only_what_is_used_of_another_run_is_checked(folder):
    change(folder / "config.yaml", "callbacks", "ema", "_target_", value="os.system")
    used = read_config_keys(folder, ("data", "eval_crop", "absent"))
    assert used.keys() == {"data", "eval_crop"}
    change(folder / "config.yaml", "data", "_target_", value="torch.load")
    with pytest.raises(ValueError, match=r"torch\.load.*config\.yaml"):
        read_config_keys(folder, ("data",))
