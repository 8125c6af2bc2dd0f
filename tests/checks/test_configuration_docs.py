"""docs/configuration.md: its commands run, its tables tell what conf/ holds."""

import re
import shlex
import subprocess

import pytest
from omegaconf import OmegaConf

from ldm_lightning.checks.composition import Composer
from ldm_lightning.config import register_resolvers
from tests.cli.run import ROOT, command

TEXT = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)
SHARED_VALUES = ["experiment=ae_f8", "experiment=ldm_kl_f8"]
"""Experiments of either stage whose numbers no recipe changes."""


@pytest.fixture(autouse=True)
def _resolvers():
    register_resolvers()


def section(title: str) -> str:
    return TEXT.split(f"## {title}\n")[1].split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of a table below its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_experiment_in_five_lines_is_composed_as_the_page_says(tmp_path):
    [block] = [block for block in BLOCKS if "mkdir" in block]
    shell, _, last = block.strip().rpartition("\n")
    subprocess.run(["bash", "-e"], input=shell, text=True, cwd=tmp_path, check=True)
    [file] = (tmp_path / "mine" / "experiment").iterdir()
    assert len(file.read_text().splitlines()) == 5

    words = shlex.split(last)
    assert words[:3] == ["python", "-m", "ldm_lightning.train"]
    ended = command("train", [*words[3:], "dry_run=true"], tmp_path)
    assert ended.code == 0, ended.output
    [config] = tmp_path.glob("outputs/kl_f8_wide/*/config.yaml")
    values = OmegaConf.load(config)
    assert (values.max_steps, values.autoencoder.latent_channels) == (5000, 16)
    assert values.loss.discriminator_start_fraction == 0.3  # of the recipe of kl_f8

    ended = command("train", [*words[3:], "explain=max_steps", "scale=paper"], tmp_path)
    assert ended.code == 0, ended.output
    lines = ended.output.splitlines()
    assert lines[-2].split() == ["mine/experiment/kl_f8_wide.yaml", "5000"]
    assert lines[-1] == "max_steps=5000"


def test_the_explanation_on_the_page_is_what_the_command_prints(tmp_path):
    [block] = [block for block in BLOCKS if "explain=" in block]
    words = shlex.split(block)
    ended = command("train", words[3:], tmp_path)
    assert ended.code == 0, ended.output
    printed = "".join(f"    {line}\n" for line in ended.output.splitlines())
    assert printed in TEXT
    assert not any(tmp_path.iterdir())


def test_the_table_of_scales_holds_the_numbers_of_the_files():
    composer = Composer()
    for scale, _, resolution, first, second, features in rows(section("Scales")):
        name = re.findall(r"\w+", scale)[0]
        for experiment, told in zip(SHARED_VALUES, (first, second), strict=True):
            composed = composer.compose([experiment, f"scale={name}"])
            cfg = composed.cfg
            part = cfg.denoiser if cfg.stage == "second" else cfg.autoencoder
            numbers = [part.base_width, cfg.max_steps, cfg.data.batch_size]
            assert told == ", ".join(map(str, numbers))
            assert str(cfg.resolution) == resolution
            assert composed.choices["features"] == features


def test_the_names_for_users_of_the_original_code_are_keys_and_groups():
    composer = Composer()
    composed = [composer.compose([f"experiment={name}"]) for name in ("vq_f8", "ldm_kl_f8")]
    named = [
        re.findall(r"`([^`]+)`", row[1])
        for row in rows(section("Names for users of the original code"))
    ]
    assert len(named) > 25
    for name in (name for names in named for name in names):
        key, _, choice = name.partition("=")
        if choice:
            assert (ROOT / "conf" / key / f"{choice}.yaml").is_file(), name
        elif name != "scalar":  # a value
            assert any(_holds(found.cfg, key) for found in composed), name


def _holds(cfg, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return node is not None and name in node.keys()  # noqa: SIM118 - null and ??? are keys too
