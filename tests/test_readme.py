"""Every command of README.md and docs/training.md runs, in a short form."""

import contextlib
import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.run import make_commands
from tests.jobs.sweep.fake_job import MODULE

ROOT = Path(__file__).parent.parent
PAGES = [(ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/training.md")]
COMMANDS = [
    line.split("  #")[0].strip()
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]

# Turns any command into seconds of work; the command's own words stay.
SHORT_DATA = [
    "data.batch_size=2",
    "data.val_batch_size=4",
    "data.max_val_images=4",
    "data.num_workers=0",
    "trainer=cpu",
]
SHORT_RUN = [
    "resolution=32",
    "max_steps=2",
    "validation.every_steps=1",
    "log_every_steps=1",
    *SHORT_DATA,
]
SHORT_FIRST = [
    *SHORT_RUN,
    "autoencoder.base_width=8",
    "autoencoder.num_res_blocks=1",
    "data.num_train_images=40",
]
SHORT_SECOND = [
    *SHORT_RUN,
    "denoiser.base_width=32",
    "denoiser.width_multipliers=[1]",
    "denoiser.num_res_blocks=1",
    "validation.num_samples=2",
    "sampler.num_steps=2",
    "gate.mode=warn",  # two updates make no good first stage
]


def images(folder: Path) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(12):
        pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 40)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> dict[str, Path]:
    """A working folder with what the README's placeholders stand for."""
    place = tmp_path_factory.mktemp("readme")
    return {
        "cwd": place,
        "PHOTOS": images(place / "photos"),
        "HELD_OUT": images(place / "held_out"),
        "SAMPLES": place / "samples",
        "LATENTS": place / "latents",
    }


def run(words: list[str], monkeypatch, place) -> None:
    """Run `python -m ldm_lightning.X ...` in this process, which saves importing torch again."""
    module = importlib.import_module(words[2])
    monkeypatch.chdir(place["cwd"])
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}", *words[3:]])
    module.main()


def newest(place, name: str) -> Path:
    return sorted((place["cwd"] / "outputs" / name).glob("*/checkpoints"))[-1].parent


def short_form(command: str, place: dict[str, Path]) -> list[str]:
    """The words of a command with what its placeholders stand for, cut down to seconds."""
    for name in ("PHOTOS", "HELD_OUT", "SAMPLES", "LATENTS"):
        command = re.sub(rf"\b{name}\b", str(place[name]), command)
    for path, name in re.findall(r"(outputs/(\w+)/RUN)", command):
        command = command.replace(path, str(newest(place, name)))
    words = shlex.split(command)
    if {"--help", "dry_run=true"} & set(words):
        return words
    if "-m" in words[3:]:  # tests/jobs/sweep/test_trainings.py runs real ones
        return [*words, f"hydra.launcher.module={MODULE}"]
    if words[2] == "ldm_lightning.train":
        words += SHORT_SECOND if "experiment=ldm" in command else SHORT_FIRST
    if words[2] == "ldm_lightning.floor":
        words += ["downsampling_factors=[8]", "latent_channels=[4]", "data.val_crops_per_image=2"]
    if words[2] == "ldm_lightning.pipeline":
        return [*words, "dry_run=true"]  # tests/cli/test_chain.py runs a whole one
    if "data=image_folder" in command:
        words = [word for word in words if "num_train_images" not in word]
        words += [] if "val_root" in command else ["data.val_fraction=0.3"]
    if "data=latents" in command:
        words = [word for word in words if "num_train_images" not in word]
    if words[2] == "ldm_lightning.sample":
        words = [word.replace("num_samples=100", "num_samples=3") for word in words]
    return words


def test_the_pages_name_commands():
    assert sum(command.startswith("make ") for command in COMMANDS) == 2
    for name, number in (("train", 4), ("plan", 2), ("evaluate", 2), ("encode", 1), ("sample", 1)):
        assert sum(f"ldm_lightning.{name}" in command for command in COMMANDS) >= number
    assert sum("ldm_lightning.pipeline" in command for command in COMMANDS) == 1


def run_all(commands: list[str], place, monkeypatch, capsys) -> None:
    for command in commands:
        with contextlib.suppress(SystemExit):  # Hydra ends the process after its help
            run(short_form(command, place), monkeypatch, place)
        output = capsys.readouterr()
        said = output.out + output.err
        assert "Error" not in said, f"{command}: {said}"
        if "--help" in command:
            assert "vqgan_f16" in said


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_help_and_a_dry_run_of_the_readme(place, monkeypatch, capsys):
    cheap = [line for line in COMMANDS if line.endswith(("--help", "dry_run=true"))]
    assert len(cheap) == 2
    run_all(cheap, place, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_python_command_of_the_readme_runs(place, monkeypatch, capsys):
    """One after the other, because each uses what those before it made."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # jobs of a sweep run elsewhere
    python = [line for line in COMMANDS if line.startswith("python ")]
    run_all(python, place, monkeypatch, capsys)
    for summary in place["cwd"].glob("outputs/*/*/summary.json"):
        assert json.loads(summary.read_text())["state"] in ("finished", "dry_run"), summary
    assert len(list((place["SAMPLES"] / "images").glob("*.png"))) == 3


def test_make_test_runs_the_tests():
    assert any("-m pytest" in line for line in make_commands("test"))
