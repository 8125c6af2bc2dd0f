"""The command that runs a whole chain: words, refusals, continuing; its steps are stood in for."""

import json
import re

import pytest

from ldm_lightning import pipeline
from ldm_lightning.config import CONF_DIR
from tests.cli import run
from tests.cli.run import command, run_folder, summary_of
from tests.jobs.chain.stand_in import StandIn


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda file: None)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Runs the pipeline in an empty folder with a stand-in for its commands."""
    monkeypatch.setitem(run.MAINS, "pipeline", pipeline.main)

    def start(*words, **ends):
        stand_in = StandIn(ends)
        monkeypatch.setattr(pipeline, "run_command", stand_in)
        return command("pipeline", words, tmp_path), stand_in

    return start


def test_a_chain_runs_in_one_folder(start, tmp_path):
    ended, stand_in = start("name=small", "samples.num_samples=4", "seed=3")
    assert ended.code == 0, ended.output
    chain = run_folder(tmp_path, "small_chain")
    assert {step.name for step in stand_in.steps} <= {path.name for path in chain.iterdir()}
    assert "1/8 first_stage: python -m ldm_lightning.train experiment=kl_f4 seed=3" in ended.said
    evaluation = stand_in.steps[-2].overrides
    assert {"data=shapes", "features=tiny", "eval_crop=crops", "seed=3"} <= {*evaluation}
    summary = summary_of(chain)
    assert summary["state"] == "finished"
    assert summary["metrics"]["gen/fd_tiny"] < summary["metrics"]["prior/fd_tiny"]
    stored = json.loads((chain / "chain.json").read_text(encoding="utf-8"))
    assert stored["overrides"] == ["name=small", "samples.num_samples=4", "seed=3"]
    assert [step["overrides"] for step in stored["steps"]] == [
        list(s.overrides) for s in stand_in.steps
    ]


@pytest.mark.slow
def test_a_stopped_chain_goes_on_with_its_own_commands(start, tmp_path):
    words = ["experiment=ldm_vq_f4", "seed=5", "samples.num_samples=9"]
    ended, _ = start(*words, latents=4)
    assert ended.code == 4
    chain = run_folder(tmp_path, "ldm_vq_f4_chain")
    ended, stand_in = start(*words, "resume=auto")
    assert ended.code == 0, ended.output
    assert run_folder(tmp_path, "ldm_vq_f4_chain") == chain
    assert "2/8 first_stage_evaluation: done" in ended.said
    assert stand_in.names[0] == "latents"
    by_name = {step.name: step.overrides for step in stand_in.steps}
    assert "seed=5" in by_name["second_stage"]
    assert "num_samples=9" in by_name["samples"]


def test_resume_takes_no_other_words(start, tmp_path):
    start("name=small", latents=4)
    chain = run_folder(tmp_path, "small_chain")
    ended, stand_in = start(f"resume={chain}", "name=small", "max_steps=7")
    assert ended.code == 1
    assert re.search(r"\bresume\b.*max_steps=7\b", ended.said)
    assert not stand_in.steps
    assert summary_of(chain)["state"] == "failed"


def test_resume_auto_without_an_unfinished_chain_starts_one(start):
    ended, stand_in = start("name=small", "resume=auto")
    assert ended.code == 0, ended.output
    assert len(stand_in.steps) == 8


def test_a_folder_with_a_chain_is_not_overwritten(start, tmp_path):
    start("output_dir=chain")
    ended, stand_in = start("output_dir=chain")
    assert ended.code == 1
    assert "resume=" in ended.said
    assert not stand_in.steps


def test_ctrl_c_ends_with_130_and_without_a_traceback(start):
    ended, _ = start(latents=KeyboardInterrupt)
    assert ended.code == 130
    assert "python -m ldm_lightning.pipeline resume=" in ended.said
    assert "Traceback" not in ended.output


def test_a_dry_run_says_all_commands_and_runs_the_trainings_dry(start, tmp_path):
    ended, stand_in = start("dry_run=true", "data=image_folder", "output_dir=chain")
    assert ended.code == 0, ended.output
    assert stand_in.names == ["first_stage", "second_stage"]
    assert all("dry_run=true" in step.overrides for step in stand_in.steps)
    assert all(f"{number}/8 " in ended.output for number in range(1, 9))
    assert summary_of(tmp_path / "chain")["state"] == "dry_run"
    ended, stand_in = start("output_dir=chain")  # the real thing may follow in the same folder
    assert ended.code == 0, ended.output
    assert "experiment=kl_f4" in stand_in.steps[0].overrides


@pytest.mark.slow
def test_every_step_finds_the_configurations_of_the_user(start, tmp_path):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "narrow.yaml").write_text((CONF_DIR / "experiment" / "kl_f4.yaml").read_text())
    words = ["first_stage.experiment=narrow", "name=small"]
    ended, stand_in = start("--config-dir", str(tmp_path / "mine"), *words, latents=4)
    assert "train --config-dir" in ended.said
    assert "experiment=narrow" in stand_in.steps[0].overrides
    resume = f"resume={run_folder(tmp_path, 'small_chain')}"
    ended, none = start(resume)
    assert ended.code == 1
    assert "--config-dir" in ended.said
    assert not none.steps
    ended, later = start("--config-dir", str(tmp_path / "mine"), resume)
    assert ended.code == 0, ended.output
    for step in (*stand_in.steps, *later.steps):
        assert step.arguments[:2] == ("--config-dir", str(tmp_path / "mine"))


@pytest.mark.slow
def test_a_chain_that_was_changed_runs_nothing(start, tmp_path):
    start("name=small", latents=4)
    file = run_folder(tmp_path, "small_chain") / "chain.json"
    stored = json.loads(file.read_text())
    for said, change in {
        "hydra.run.dir=/tmp": {"overrides": ["name=small", "hydra.run.dir=/tmp"]},
        "train experiment=kl_f4": {"steps": []},
    }.items():
        file.write_text(json.dumps(stored | change))
        ended, stand_in = start(f"resume={file.parent}")
        assert ended.code == 1
        assert str(file) in ended.said
        assert said in ended.said
        assert not stand_in.steps


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["encode.overrides=['output=elsewhere']"], "output=elsewhere"),
        (["experiment=kl_f4"], "experiment=kl_f4"),
        (["first_stage.overrides=['max_stepz=3']"], "'max_steps'"),
        (["samples.overrides=['samplr=ddim']"], "samplr"),
        (["first_stage.experiment=ldm_kl_f8"], "first_stage.experiment=ldm_kl_f8"),
        (["data=latents", "data.root=x"], "data=latents"),
        (["data=image_folder"], "data.root"),
        (["latent_channels=7"], "latent_channels is 7"),
        (["resolution=32", "first_stage.overrides=['resolution=64']"], "resolution=64"),
        (["resume=nowhere"], "resume=nowhere"),
    ],
)
def test_wrong_words_are_found_before_the_first_step(start, words, said):
    ended, stand_in = start(*words)
    assert ended.code == 1
    assert said in ended.said
    assert "Traceback" not in ended.output
    assert not stand_in.steps


@pytest.mark.slow
def test_the_second_stage_follows_what_the_first_is_told_about_images(start):
    ended, stand_in = start("dry_run=true", "first_stage.overrides=['resolution=[64,32]']")
    assert ended.code == 0, ended.output
    assert "resolution=[64, 32]" in stand_in.steps[1].overrides


QUICK = ("ldm_vq_f8", "ldm_celebahq")


@pytest.mark.parametrize(
    "experiment",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in run.SECOND_STAGES
    ],
)
def test_every_second_stage_fits_the_first_it_names(start, experiment):
    ended, stand_in = start(f"experiment={experiment}", "dry_run=true", "data=image_folder")
    assert ended.code == 0, ended.output
    assert len(stand_in.steps) == 2
