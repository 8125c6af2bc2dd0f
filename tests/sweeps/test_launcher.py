"""``-m`` on the command line, with jobs that take no time."""

import json
import re
from pathlib import Path

import pytest

from ldm_lightning.sweep.jobs import hash_of
from tests.cli.run import ROOT, command, process, summary_of
from tests.sweeps.fake_job import MODULE, starts_of

FAKE = [f"hydra.launcher.module={MODULE}", "hydra.launcher.threads=1"]

NO_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails from here on
from ldm_lightning.train import main
sys.argv[0] = "train"
main()
"""

DOCS = "\n".join(
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/sweeps.md")
)
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", DOCS, flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("python -m ldm_lightning.train -m ")
]
SEARCH = next(line for line in COMMANDS if "hparams_search=" in line)
SWEEPS = [line.split()[3:] for line in COMMANDS if line != SEARCH and "hydra/" not in line]


@pytest.fixture(autouse=True)
def _found_by_jobs(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def sweep(folder: Path, *words: str):
    return command("train", ["-m", *words, *FAKE], folder)


def folders(folder: Path, name: str) -> list[Path]:
    return sorted((folder / "outputs" / "sweeps" / name).glob("[0-9]*_*"))


def test_a_sweep_over_experiments_has_one_folder_and_a_job_for_each_combination(tmp_path):
    words = ["experiment=kl_f4,kl_f8", "loss.kl_weight=1e-6,1e-4", "sweep_name=grid"]
    ended = process(
        ["-c", NO_TORCH, "-m", *words, "hydra.verbose=[nobody]", *FAKE],
        tmp_path,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert ended.code == 0, ended.output
    found = folders(tmp_path, "grid")
    expected = [
        [f"experiment={experiment}", f"loss.kl_weight={weight}", "sweep_name=grid"]
        for experiment in ("kl_f4", "kl_f8")
        for weight in ("1e-06", "0.0001")
    ]
    assert [path.name for path in found] == [f"{i}_{hash_of(w)}" for i, w in enumerate(expected)]
    for path, job_words in zip(found, expected, strict=True):
        (start,) = starts_of(path)
        assert start["words"] == ["hydra.verbose=[nobody]", *job_words, f"hydra.run.dir={path}"]
        assert summary_of(path)["state"] == "finished"
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["sweeps"]
    record = json.loads((tmp_path / "outputs/sweeps/grid/sweep.json").read_text())
    assert list(record["jobs"].values()) == expected


def test_a_failed_job_is_told_and_the_same_command_runs_it_alone(tmp_path, monkeypatch):
    words = ["name=finishes,refused", "sweep_name=some"]
    ended = sweep(tmp_path, *words)
    assert ended.code == 1
    assert "Not done: 1 of 2 jobs. To go on: python -m" in ended.said
    assert "ValueError: there is no photograph (outputs/sweeps/some/1_" in ended.said
    assert "Traceback" not in ended.output
    monkeypatch.setenv("ALL_WELL", "1")
    again = sweep(tmp_path, *words)
    assert again.code == 0, again.output
    assert "2 jobs, 1 of them done already" in again.said
    counts = [len(starts_of(path)) for path in folders(tmp_path, "some")]
    assert counts == [1, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=1,2"], "give sweep_name=NAME"),
        (["seed=1", "sweep_name=a,b"], "give sweep_name=NAME"),
        (["seed=1,2", "sweep_name=a", "resume=auto"], "resume=auto is not for a sweep"),
        (["seed=1,2", "sweep_name=a", "output_dir=x"], "output_dir=x is not for a sweep"),
        (["seed=1,2", "sweep_name=a", "hydra.launcher.n_jobs=0"], "n_jobs must be a positive"),
        (["loss.kl_wait=1,2", "sweep_name=a"], "kl_wait"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_job(tmp_path, words, message):
    ended = sweep(tmp_path, *words)
    assert ended.code == 1
    assert message in ended.said
    assert "Traceback" not in ended.output
    assert not list(tmp_path.glob("outputs/sweeps/*/*_*"))


def test_experiments_of_ones_own_reach_the_jobs(tmp_path):
    folder = tmp_path / "my" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\nname: mine\n")
    ended = sweep(tmp_path, "--config-dir", "my", "experiment=mine", "seed=1,2", "sweep_name=a")
    assert ended.code == 0, ended.output
    for path in folders(tmp_path, "a"):
        (start,) = starts_of(path)
        assert start["words"][:3] == ["--config-dir", str(tmp_path / "my"), "experiment=mine"]


@pytest.mark.slow
@pytest.mark.parametrize("words", SWEEPS, ids=lambda words: words[-1])
def test_every_sweep_of_the_documentation_runs(tmp_path, words):
    placed = [word.replace("PHOTOS", str(tmp_path)) for word in words]
    ended = command("train", [*placed, *FAKE], tmp_path)
    assert ended.code == 0, ended.output
    (name,) = (word.partition("=")[2] for word in words if word.startswith("sweep_name="))
    assert len(folders(tmp_path, name)) > 1


def test_the_documentation_names_sweeps():
    said = " ".join(word for words in SWEEPS for word in words)
    keys = ("kl_weight", "latent_channels", "num_codes", "adversarial_weight")
    assert all(key in said for key in keys)
