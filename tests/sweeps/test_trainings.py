"""Sweeps of real trainings: what a job reaches is what the same run reaches alone."""

import pytest

from ldm_lightning.reporting.metrics_csv import read_metrics
from tests.cli.run import ROOT, command, process, run_folder, summary_of, tiny
from tests.sweeps.test_launcher import folders

ALARM = "ldm_lightning.callbacks.codebook_alarm.CodebookAlarm"
SABOTAGED = "tests.cli.sabotage.Sabotage"


def train(folder, *words, rank: str = "none", how: str = "SIGKILL"):
    """Train in a process of its own; process ``rank`` of sabotaged jobs fails."""
    environment = {
        "PYTHONPATH": str(ROOT),
        "SABOTAGE_RANK": "7" if rank == "none" else rank,
        "SABOTAGE_HOW": how,
        "SABOTAGE_FILE": str(folder / "when"),
    }
    return process(["-m", "ldm_lightning.train", *words], folder, env=environment)


def test_a_killed_job_goes_on_later_and_all_jobs_equal_runs_of_their_own(tmp_path):
    common = tiny("vqvae_f8", validation__every_steps=1)
    swept = f"callbacks.codebook_alarm._target_={ALARM},{SABOTAGED}"
    words = ["-m", *common, swept, "sweep_name=two", "hydra.launcher.n_jobs=2"]
    words += ["hydra.launcher.threads=1"]
    first = train(tmp_path, *words, rank="0")
    assert first.code == 1, first.output
    whole, killed = folders(tmp_path, "two")
    assert summary_of(whole)["state"] == "finished"
    assert summary_of(killed)["state"] == "failed"
    assert "SIGKILL" in summary_of(killed)["reason"]
    assert "SIGKILL" in first.said
    again = train(tmp_path, *words)
    assert again.code == 0, again.output
    assert "Continuing the run in" in (killed / "job.log").read_text()
    assert folders(tmp_path, "two") == [whole, killed]

    alone = command("train", common, tmp_path)  # this process has one thread too
    assert alone.code == 0, alone.output
    run = run_folder(tmp_path, "vqvae_f8")
    for job in (whole, killed):
        summary = summary_of(job)
        assert summary["state"] == "finished"
        assert summary["num_threads"] == 1
        assert summary["metrics"] == summary_of(run)["metrics"]
        assert read_metrics(job / "metrics.csv") == read_metrics(run / "metrics.csv")
        assert summary["config"]["sweep_name"] == "two"


@pytest.mark.slow
def test_jobs_of_two_processes_have_a_folder_each_and_equal_runs_of_their_own(tmp_path):
    common = tiny("vqvae_f8", trainer="ddp_cpu", max_steps=2)
    words = ["-m", *common, "seed=0,1", "sweep_name=ddp", "hydra.launcher.threads=1"]
    ended = train(tmp_path, *words)
    assert ended.code == 0, ended.output
    found = folders(tmp_path, "ddp")
    assert len(found) == 2
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {"sweeps"}
    assert train(tmp_path, *common, "seed=1", "output_dir=alone").code == 0
    summary, alone = summary_of(found[1]), summary_of(tmp_path / "alone")
    assert summary["num_processes"] == alone["num_processes"] == 2
    assert summary["metrics"] == alone["metrics"]
    assert summary["metrics"] != summary_of(found[0])["metrics"]
