"""``-m`` on the command line, with jobs that take no time."""

import json
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from ldm_lightning.checks.keys import check_keys
from ldm_lightning.config import CONF_DIR, check_values, register_resolvers
from ldm_lightning.jobs.sweep.job_process import Command
from ldm_lightning.jobs.sweep.jobs import Job, hash_of
from ldm_lightning.jobs.sweep.running import Ended
from tests.cli.run import ROOT, command, process, summary_of
from tests.jobs.sweep.fake_job import MODULE, REFUSAL, starts_of

FAKE = [f"hydra.launcher.module={MODULE}", "hydra.launcher.threads=1", "page=false"]

NO_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails from here on
from ldm_lightning.train import main
sys.argv[0] = "train"
main()
"""

DOCS = "\n".join(
    (ROOT / name).read_text(encoding="utf-8") for name in ("docs/training.md", "docs/sweeps.md")
)
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", DOCS, flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("python -m ldm_lightning.train -m ")
]
SEARCH = next(line for line in COMMANDS if "hparams_search=" in line)
# docs/training.md repeats some of docs/sweeps.md.
SWEEPS = {
    line.split()[-1]: line.split()[3:]
    for line in COMMANDS
    if line != SEARCH and "hydra/" not in line
}.values()


@pytest.fixture(autouse=True)
def _found_by_jobs(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def composed(name: str, words: list[str]) -> DictConfig:
    """What a job makes of its words, with its keys checked."""
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose(name, overrides=words, return_hydra_config=True)
        choices = dict(cfg.hydra.runtime.choices)
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        check_keys(cfg, choices)
    return cfg


@pytest.fixture
def words_of(monkeypatch):
    """Ask for a sweep, and get the words of its jobs, which are not run."""
    asked = []

    def noted(folder, overrides_of_jobs, **_):
        asked.extend(overrides_of_jobs)
        return Ended((), signal=0, started=0)

    monkeypatch.setattr("ldm_lightning.jobs.sweep.running.run_sweep", noted)

    def ask(folder: Path, *words: str) -> list[Sequence[str]]:
        ended = command("train", [*words, *FAKE], folder)
        assert ended.code == 0, ended.output
        return asked

    return ask


def parsed(word: str) -> tuple[str, Any]:
    """Key and value of a word, as the Hydra of a job reads it."""
    override = OverridesParser.create().parse_override(word)
    value = override.value()
    return override.key_or_group, getattr(value, "text", value)


def sweep(folder: Path, *words: str):
    return command("train", ["-m", *words, *FAKE], folder)


def folders(folder: Path, name: str) -> list[Path]:
    return sorted((folder / "outputs" / "sweeps" / name).glob("[0-9]*_*"))


@pytest.mark.slow
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
        [f"experiment={experiment}", f"loss.kl_weight={weight}", "sweep_name=grid", "page=False"]
        for experiment in ("kl_f4", "kl_f8")
        for weight in ("1e-06", "0.0001")
    ]
    assert [path.name for path in found] == [f"{i}_{hash_of(w)}" for i, w in enumerate(expected)]
    for path, job_words in zip(found, expected, strict=True):
        (start,) = starts_of(path)
        assert start["words"] == [
            "hydra.verbose=[nobody]",
            *job_words,
            "hydra.mode=RUN",
            f"hydra.run.dir={path}",
        ]
        assert summary_of(path)["state"] == "finished"
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["sweeps"]
    record = json.loads((tmp_path / "outputs/sweeps/grid/sweep.json").read_text())
    assert list(record["jobs"].values()) == expected


def test_a_failed_job_is_told_and_the_same_command_runs_it_alone(tmp_path, monkeypatch):
    words = ["name=finishes,refused", "sweep_name=some"]
    ended = sweep(tmp_path, *words)
    assert ended.code == 1
    assert "1 of 2 jobs" in ended.said
    assert shlex.join(["python", "-m", MODULE, "-m", *words, *FAKE]) in ended.said
    assert f"{REFUSAL} (outputs/sweeps/some/1_" in ended.said
    assert "Traceback" not in ended.output
    monkeypatch.setenv("ALL_WELL", "1")
    again = sweep(tmp_path, *words)
    assert again.code == 0, again.output
    assert re.search(r"\b2 jobs, 1\b", again.said)
    counts = [len(starts_of(path)) for path in folders(tmp_path, "some")]
    assert counts == [1, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=1,2"], "give sweep_name=NAME"),
        (["seed=1", "sweep_name=a,b"], "give sweep_name=NAME"),
        (["seed=1,2", "sweep_name=a", "resume=auto"], "resume=auto"),
        (["seed=1,2", "sweep_name=a", "output_dir=x"], "output_dir=x"),
        (["seed=1,2", "sweep_name=../a"], "'../a'"),
        (["seed=1,2", "sweep_name=a", "hydra.run.dir=x"], "hydra.run.dir=x"),
        (["seed=1,2", "sweep_name=a", "hydra.launcher.module=nothing"], "module=nothing"),
        (
            ["seed=1,2", "sweep_name=a", "hydra.sweeper.max_batch_size=1"],
            "hydra.sweeper.max_batch_size=1",
        ),
        (["loss.kl_wait=1,2", "sweep_name=a"], "kl_wait"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_job(tmp_path, words, message):
    ended = command("train", ["-m", *FAKE, *words], tmp_path)
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


def test_words_reach_the_jobs_as_they_were_meant(tmp_path, words_of):
    roots = [
        "photos of me",
        "it's",
        'a "quoted" one',
        "bäume/🌳",
        "a,b",
        "[x]",
        "50%",
        "~/x",
        "a=b",
    ]
    quoted = ["'" + root.replace("'", "\\'") + "'" for root in roots]
    words = ["autoencoder.attention_at=[2,4]", "data=image_folder", "sweep_name=awkward"]
    jobs = words_of(tmp_path, "-m", f"data.root={','.join(quoted)}", *words)
    found = [root.replace("~", str(Path.home())) for root in roots]
    assert [parsed(job[0]) for job in jobs] == [("data.root", root) for root in found]
    assert parsed(jobs[0][1]) == ("autoencoder.attention_at", [2, 4])
    assert len({hash_of(job) for job in jobs}) == len(jobs)


def test_a_job_finds_its_folder_wherever_it_is(tmp_path):
    folder = tmp_path / "my 'own' sweeps, bäume" / "0_abcdef00"
    words = Command("m").overrides(Job(("seed=1",), folder))
    assert [parsed(word) for word in words[3:]] == [
        ("seed", 1),
        ("hydra.mode", "RUN"),
        ("hydra.run.dir", str(folder)),
    ]


def test_a_page_compares_the_jobs_and_is_written_where_there_is_news(tmp_path):
    words = ["seed=1,2", "sweep_name=paged", *FAKE[:2]]
    page = tmp_path / "outputs" / "sweeps" / "paged" / "report.html"
    ended = command("train", ["-m", *words], tmp_path)
    assert ended.code == 0, ended.output
    assert f"Page: {page}" in ended.said
    written = page.read_text().replace("<wbr>", "")  # where names may break
    for path in folders(tmp_path, "paged"):
        assert path.name in written
    page.write_text("mine")
    again = command("train", ["-m", *words], tmp_path)
    assert again.code == 0, again.output
    assert f"Page: {page}" in again.said
    assert page.read_text() == "mine"
    page.unlink()
    page.mkdir()
    third = command("train", ["-m", *words], tmp_path)
    assert third.code == 0, third.output  # the jobs are done, page or not
    assert "report.html" in third.said


@pytest.mark.parametrize("name", ["evaluate", "encode", "sample", "plan", "report"])
def test_commands_without_sweeps_say_so(tmp_path, name):
    ended = command(name, ["-m", "hydra.verbose=[nobody,none]"], tmp_path)
    assert ended.code == 1
    assert re.search(rf"-m .*\btrain\b.*\bpipeline\b.*\b{name}\b", ended.said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", SWEEPS, ids=lambda words: words[-1])
def test_every_sweep_of_the_documentation_makes_jobs_that_fit(tmp_path, words, words_of):
    """Jobs compose, and their values go together; what a job does is tested elsewhere."""
    jobs = words_of(tmp_path, *(word.replace("PHOTOS", str(tmp_path)) for word in words))
    assert len(jobs) == math.prod(word.count(",") + 1 for word in words) > 1
    assert not check_values(composed("train", jobs[-1]))  # of the last values of all lists


def test_the_documentation_names_sweeps():
    said = " ".join(word for words in SWEEPS for word in words)
    keys = ("kl_weight", "latent_channels", "num_codes", "adversarial_weight")
    assert all(key in said for key in keys)
