"""Sweeps of real trainings: what a job reaches is what the same run reaches alone."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ldm_lightning.checkpoints.checkpoint import load_checkpoint
from ldm_lightning.reporting.metrics_file import read_metrics
from tests.cli.run import (
    ROOT,
    command,
    environment_of,
    process,
    run_folder,
    summary_of,
    tensors_of,
    tiny,
)
from tests.jobs.sweep.test_launcher import folders

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


@pytest.mark.slow
def test_a_killed_job_goes_on_later_and_all_jobs_equal_runs_of_their_own(tmp_path):
    common = tiny("vqvae_f8", validation__every_steps=1)
    swept = f"callbacks.codebook_alarm._target_={ALARM},{SABOTAGED}"
    words = ["-m", *common, swept, "sweep_name=two", "hydra.launcher.n_jobs=2"]
    words += ["hydra.launcher.threads=1"]
    first = train(tmp_path, *words, rank="0")
    assert first.code == 1, first.output
    *whole, killed = folders(tmp_path, "two")
    assert len(whole) == 1
    assert all(summary_of(job)["state"] == "finished" for job in whole)
    assert summary_of(killed)["state"] == "failed"
    assert "SIGKILL" in summary_of(killed)["reason"]
    assert "SIGKILL" in first.said
    again = train(tmp_path, *words)
    assert again.code == 0, again.output
    assert "Continuing" in (killed / "job.log").read_text()
    assert folders(tmp_path, "two") == [*whole, killed]

    alone = command("train", common, tmp_path)  # this process has one thread too
    assert alone.code == 0, alone.output
    run = run_folder(tmp_path, "vqvae_f8")
    for job in (*whole, killed):
        summary = summary_of(job)
        assert summary["state"] == "finished"
        assert summary["num_threads"] == 1
        assert summary["metrics"] == summary_of(run)["metrics"]
        assert read_metrics(job / "metrics.csv") == read_metrics(run / "metrics.csv")
        assert summary["config"]["sweep_name"] == "two"


@pytest.mark.slow
def test_jobs_of_two_processes_have_a_folder_each_and_equal_runs_of_their_own(tmp_path):
    common = tiny("kl_f8", trainer="ddp_cpu", trainer__devices=2, max_steps=3)
    words = ["-m", *common, "seed=0,1", "sweep_name=ddp", "hydra.launcher.threads=1"]
    ended = train(tmp_path, *words, "hydra.launcher.n_jobs=2")
    assert ended.code == 0, ended.output
    found = folders(tmp_path, "ddp")
    assert len(found) == 2
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {"sweeps"}
    job, alone = found[1], tmp_path / "alone"
    assert train(tmp_path, *common, "seed=1", f"output_dir={alone}").code == 0
    for summary in (summary_of(job), summary_of(alone)):
        assert (summary["num_processes"], summary["num_threads"]) == (2, 1)
    assert (job / "metrics.csv").read_text() == (alone / "metrics.csv").read_text()
    one, other = (tensors_of(load_checkpoint(p / "checkpoints/last.ckpt")) for p in (job, alone))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert summary_of(found[0])["metrics"] != summary_of(found[1])["metrics"]


@pytest.mark.slow
def test_a_killed_sweep_of_two_processes_a_job_goes_on(tmp_path):
    common = tiny("vqvae_f8", trainer="ddp_cpu", trainer__devices=2, max_steps=60)
    words = ["-m", *common, "seed=0,1", "sweep_name=ddp", "hydra.launcher.threads=1"]
    words += ["validation.every_steps=30"]
    environment = {**os.environ, **environment_of(tmp_path), "PYTHONPATH": str(ROOT)}
    sweep = subprocess.Popen(
        [sys.executable, "-m", "ldm_lightning.train", *words], cwd=tmp_path, env=environment
    )
    job = wait_for_updates(tmp_path, 3)
    assert len(processes_with(f"{job}", "train_process_1")) == 1
    sweep.kill()
    sweep.wait()
    deadline = time.monotonic() + 30
    while processes_with(str(tmp_path)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first = summary_of(job)
    assert first["state"] == "interrupted"
    assert first["step"] < 60
    again = train(tmp_path, *words)
    assert again.code == 0, again.output
    assert [summary_of(path)["state"] for path in folders(tmp_path, "ddp")] == ["finished"] * 2
    assert train(tmp_path, *common, "validation.every_steps=30", "output_dir=alone").code == 0
    assert summary_of(job)["metrics"] == summary_of(tmp_path / "alone")["metrics"]


def wait_for_updates(folder: Path, number: int) -> Path:
    """The first job, once it has done so many updates."""
    deadline = time.monotonic() + 120
    while True:
        for path in folders(folder, "ddp"):
            if (path / "metrics.csv").is_file() and any(
                step >= number for step, _, _ in read_metrics(path / "metrics.csv")
            ):
                return path
        assert time.monotonic() < deadline
        time.sleep(0.1)


def processes_with(*texts: str) -> list[int]:
    """Living processes with all of the texts in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            said = path.read_text(errors="replace")
        except OSError:
            continue
        if all(text in said for text in texts):
            found.append(int(path.parent.name))
    return found
