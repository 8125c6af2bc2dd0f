"""Every command of the README runs, in a short form."""

import contextlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_lightning import evaluate, train

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]

# Turns any training command into seconds of work; the command's own words stay.
SHORT = [
    "resolution=32",
    "max_steps=2",
    "validation.every_steps=1",
    "log_every_steps=1",
    "autoencoder.base_width=8",
    "autoencoder.num_res_blocks=1",
    "data.batch_size=2",
    "data.val_batch_size=4",
    "data.max_val_images=4",
    "data.num_workers=0",
    "trainer=cpu",
]
VALUES_OF_CODES = ["bottleneck.num_codes=8", "bottleneck.unquantised_steps=1"]


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
        "SAMPLES": images(place / "samples"),
    }


def run(words: list[str], monkeypatch, place) -> None:
    """Run `python -m ldm_lightning.X ...` in this process, which saves importing torch again."""
    module = {"ldm_lightning.train": train, "ldm_lightning.evaluate": evaluate}[words[2]]
    monkeypatch.chdir(place["cwd"])
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}", *words[3:]])
    module.main()


def short_form(command: str, place: dict[str, Path]) -> list[str]:
    for name in ("PHOTOS", "HELD_OUT", "SAMPLES"):
        command = re.sub(rf"\b{name}\b", str(place[name]), command)
    runs = sorted((place["cwd"] / "outputs" / "kl_f8").glob("*/checkpoints"))
    if "kl_f8/RUN" in command:
        command = command.replace("outputs/kl_f8/RUN", str(runs[-1].parent))
    words = shlex.split(command)
    if "ldm_lightning.train" in words and not {"--help", "dry_run=true"} & set(words):
        words += SHORT
        if any("vq" in word for word in words):
            words += VALUES_OF_CODES
        if "data=image_folder" in command and "val_root" not in command:
            words.append("data.val_share=0.3")
    return words


def test_the_readme_names_commands():
    assert sum(command.startswith("make ") for command in COMMANDS) == 2
    assert sum("ldm_lightning.train" in command for command in COMMANDS) >= 5
    assert sum("ldm_lightning.evaluate" in command for command in COMMANDS) >= 2


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python ")])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_python_command_of_the_readme_runs(command, place, monkeypatch, capsys):
    if "--help" in command:
        with contextlib.suppress(SystemExit):  # Hydra ends the process after its help
            run(short_form(command, place), monkeypatch, place)
        assert "vqgan_f16" in capsys.readouterr().out
        return
    if "outputs/kl_f8/RUN" in command and not (place["cwd"] / "outputs" / "kl_f8").exists():
        run(["python", "-m", "ldm_lightning.train", "experiment=kl_f8", *SHORT], monkeypatch, place)
    before = set(place["cwd"].glob("outputs/*/*/summary.json"))
    run(short_form(command, place), monkeypatch, place)
    if "resume=auto" not in command:
        (new,) = set(place["cwd"].glob("outputs/*/*/summary.json")) - before
        assert '"state": "running"' not in new.read_text()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_every_make_target_of_the_readme_exists_and_names_commands_that_run(
    command, place, monkeypatch
):
    planned = subprocess.run(
        ["make", "--dry-run", *command.split()[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [line for line in planned.splitlines() if "-m ldm_lightning" in line]
    if command == "make demo":
        assert len(lines) == 1
        words = ["python", *shlex.split(lines[0])[1:]]
        codes = VALUES_OF_CODES if "experiment=vq" in lines[0] else []
        run([*words, *SHORT, *codes], monkeypatch, place)
        assert list(place["cwd"].glob("outputs/demo/*/images/reconstruction_latest.png"))
    else:
        assert "-m pytest" in planned
