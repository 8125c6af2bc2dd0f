"""Runs over several machines, played by processes of one: one folder, the numbers of one process.

The files under docs/ are the ones that run here.
"""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from ldm_lightning import config
from ldm_lightning.builders.hardware import trainer_settings
from ldm_lightning.checkpoints.checkpoint import load_checkpoint
from ldm_lightning.reporting.metrics_file import read_metrics
from ldm_lightning.runs import folder_choice as run_dir
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.utils import launch
from ldm_lightning.utils.collectives import joined_processes
from tests.cli.run import (
    ROOT,
    Ended,
    command,
    environment_of,
    process,
    run_folder,
    summary_of,
    tiny,
)
from tests.cli.test_killed_process import SABOTAGED
from tests.module.composed import compose_tiny

DOCS = ROOT / "docs"
WORDS = {"trainer.precision": 64, "discriminator.normalization": "group", "data.num_val_images": 7}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def together(commands, folder: Path, environments) -> list[Ended]:
    """Run commands at the same time; none is left behind."""
    started = [
        subprocess.Popen(
            words,
            cwd=folder,
            env=os.environ | environment_of(folder) | {"PYTHONPATH": str(ROOT)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for words, environment in zip(commands, environments, strict=True)
    ]
    try:
        said = [each.communicate(timeout=120)[0] for each in started]
    finally:
        for each in started:
            each.kill()
    return [Ended(each.returncode, text) for each, text in zip(started, said, strict=True)]


def rows_of(run: Path, *groups: str) -> dict[tuple[int, str], float]:
    rows = read_metrics(run / "metrics.csv")
    return {(step, name): value for step, name, value in rows if name.split("/")[0] in groups}


@pytest.mark.slow
def test_two_machines_under_torchrun_equal_one_process_and_share_one_folder(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    assert command("train", tiny("kl_f4", **WORDS), tmp_path / "one").code == 0
    alone = run_folder(tmp_path / "one", "kl_f4")

    words = [word for word in tiny("kl_f4", **WORDS, data__batch_size=2) if "trainer=" not in word]
    python = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    settings = {"NUM_NODES": "2", "PER_NODE": "1", "TRAINER": "ddp_cpu"}
    settings |= {"FIRST_NODE": f"localhost:{free_port()}"}
    commands = [[str(DOCS / "torchrun.sh"), *words]] * 2
    for ended in together(commands, tmp_path / "two", [python | settings] * 2):
        assert ended.code == 0, ended.output
    run = run_folder(tmp_path / "two", "kl_f4")  # there is one
    expected = rows_of(alone, "train", "val", "latent")
    assert rows_of(run, "train", "val", "latent") == pytest.approx(expected, rel=1e-10, abs=1e-10)
    one, two = (
        load_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
        for folder in (alone, run)
    )
    for name, tensor in one.items():  # Adam divides small gradients by themselves
        torch.testing.assert_close(two[name], tensor, rtol=1e-8, atol=1e-8)
    summary = summary_of(run)
    assert summary["state"] == "finished"
    assert summary["num_processes"] == 2
    assert summary["protocol"]["val/psnr"]["num_images"] == 7


def slurm(rank: int, port: int) -> dict[str, str]:
    """What srun tells one of two tasks on two machines."""
    names = {"PROCID": rank, "NODEID": rank, "LOCALID": 0, "NTASKS": 2, "NNODES": 2}
    names |= {"NTASKS_PER_NODE": 1, "JOB_ID": 4242, "STEP_ID": 0, "JOB_NAME": "ldm_train"}
    names |= {"NODELIST": "127.0.0.1", "JOB_NODELIST": "127.0.0.1"}
    variables = {f"SLURM_{name}": str(value) for name, value in names.items()}
    return variables | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


@pytest.mark.slow
def test_a_job_of_slurm_saves_on_sigterm_and_goes_on_in_its_folder(tmp_path):
    changes = {"trainer": "ddp_cpu", "trainer.devices": 1, "trainer.num_nodes": 2, "max_steps": 6}
    words = [*tiny("vqvae_f8", **changes), SABOTAGED, "resume=auto"]
    commands = [[sys.executable, "-m", "ldm_lightning.train", *words]] * 2
    told = {"SABOTAGE_RANK": "1", "SABOTAGE_HOW": "SIGTERM", "SABOTAGE_FILE": str(tmp_path / "t")}
    port = free_port()
    first = together(commands, tmp_path, [slurm(rank, port) | told for rank in range(2)])
    assert [ended.code for ended in first] == [143, 143], first
    run = run_folder(tmp_path, "vqvae_f8")
    assert run.name == "slurm_4242_0"
    assert summary_of(run)["state"] == "interrupted"
    assert load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 3

    told["SABOTAGE_RANK"] = "7"  # none of them
    port = free_port()
    second = together(commands, tmp_path, [slurm(rank, port) | told for rank in range(2)])
    assert [ended.code for ended in second] == [0, 0], second
    assert run_folder(tmp_path, "vqvae_f8") == run
    assert summary_of(run)["state"] == "finished"
    steps = [step for step, name in rows_of(run, "train") if name == "train/loss_total"]
    assert steps == [1, 2, 3, 4, 5, 6]


# What the files of docs/ run


def run_by_slurm(folder: Path, *words: str, code: int) -> tuple[int, list[str], list[str]]:
    """Run the job's script where srun writes down its words and ends with a code.

    Returns:
        The script's own code, the words of srun, and what scontrol was asked for.
    """
    programs = folder / "bin"
    programs.mkdir()
    for name, lines in {
        "srun": f'printf "%s\\n" "$@" > "{folder}/srun"; exit {code}',
        "scontrol": f'echo "$@" >> "{folder}/scontrol"; echo node0; echo node1',
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{lines}\n")
        (programs / name).chmod(0o755)
    variables = {"SLURM_JOB_ID": "123456", "SLURM_NTASKS_PER_NODE": "8", "SLURM_NNODES": "2"}
    variables |= {"SLURM_JOB_NODELIST": "node[0-1]", "PATH": f"{programs}:{os.environ['PATH']}"}
    ended = subprocess.run(
        ["bash", DOCS / "train.sbatch", *words], env=os.environ | variables, check=False
    )
    lines = [(folder / name).read_text().splitlines() for name in ("srun", "scontrol")]
    return ended.returncode, *lines


@pytest.mark.parametrize("code", [0, 1, 143])
def test_the_script_for_slurm_starts_one_task_a_gpu_and_comes_back_when_it_was_told_to_stop(
    tmp_path, code
):
    given = ["experiment=kl_f8", "scale=paper", "data.root=/shared/MY PHOTOS", "data=image_folder"]
    own, words, asked = run_by_slurm(tmp_path, *given, code=code)
    assert own == code
    assert asked[0].split() == ["show", "hostnames", "node[0-1]"]
    assert asked[1:] == ["requeue 123456"] * (code == 143)
    assert words[:4] == ["--kill-on-bad-exit=1", "python", "-m", "ldm_lightning.train"]
    assert words[4:8] == given
    overrides = [word.replace("/shared/MY PHOTOS", "'/shared/MY PHOTOS'") for word in words[4:]]
    config.register_resolvers()
    with initialize_config_dir(str(config.CONF_DIR), version_base="1.3"):
        cfg = compose("train", overrides=overrides)
    config.check_values(cfg)
    assert (cfg.trainer.devices, cfg.trainer.num_nodes, cfg.resume) == (8, 2, "auto")
    assert cfg.trainer.accelerator == "gpu"


# Which process is which


@pytest.fixture
def alone(monkeypatch):
    for name in tuple(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in (
            *("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
        ):
            monkeypatch.delenv(name)
    return monkeypatch


def set_variables(patch: pytest.MonkeyPatch, **variables) -> None:
    for name, value in variables.items():
        patch.setenv(name, str(value))


def tiny_config(*words: str, folder: Path) -> DictConfig:
    start = "loss.discriminator_start_steps=0"
    return compose_tiny("kl_f8", "trainer=ddp_cpu", start, *words, folder=folder)


def test_the_first_process_is_the_first_of_all_machines(alone):
    assert launch.launched() == launch.Launch(0, 1, 0)
    set_variables(alone, LOCAL_RANK=0, NODE_RANK=1)  # the first of the second machine
    assert not launch.launched().is_first
    set_variables(alone, SLURM_NTASKS=16, SLURM_PROCID=8, SLURM_LOCALID=0, SLURM_JOB_ID=1)
    assert launch.launched() == launch.Launch(8, 16, 0)
    set_variables(alone, TORCHELASTIC_RUN_ID="a", RANK=4, WORLD_SIZE=8)  # inside of a job
    assert launch.launched() == launch.Launch(4, 8, 0)


def test_a_shell_in_a_job_of_slurm_is_no_task_of_it(alone):
    set_variables(alone, SLURM_NTASKS=16, SLURM_JOB_ID=1, SLURM_JOB_NAME="interactive")
    assert launch.launched().is_alone


def test_processes_started_by_hand_must_be_told_their_folder(alone):
    set_variables(alone, LOCAL_RANK=1, WORLD_SIZE=2)
    with pytest.raises(ValueError, match=r"Process 1\b.*output_dir=DIR"):
        run_dir.run_dir("kl_f4", None)


def test_other_numbers_of_processes_than_were_started_are_refused(alone, tmp_path):
    set_variables(alone, TORCHELASTIC_RUN_ID="a", RANK=0, WORLD_SIZE=4)
    cfg = tiny_config("trainer.num_nodes=3", folder=tmp_path)
    with pytest.raises(ValueError, match=r"4 process\(es\) were started.*devices=2.*makes 6"):
        trainer_settings(cfg)


@pytest.mark.parametrize(
    ("word", "match"),
    [
        ("trainer.timeout_seconds=0", r"timeout_seconds.*\b0\b"),
        ("trainer.strategy=ddp_spawn", r"ddp_spawn\b.*strategy=auto\b.*\bddp\b"),
    ],
)
def test_settings_that_processes_cannot_keep_are_refused(alone, tmp_path, word, match):
    with pytest.raises(ValueError, match=match):
        trainer_settings(tiny_config(word, folder=tmp_path))


def test_one_task_of_slurm_does_not_train_alone_what_was_meant_for_many(alone, tmp_path):
    set_variables(alone, SLURM_NTASKS=1, SLURM_PROCID=0, SLURM_LOCALID=0, SLURM_JOB_ID=1)
    cfg = tiny_config(folder=tmp_path)
    with pytest.raises(ValueError, match=r"1 process\(es\) were started.*SLURM_JOB_NAME=bash"):
        trainer_settings(cfg)


def test_the_run_continued_is_the_one_started_last_and_of_a_job_its_own(alone, tmp_path):
    alone.chdir(tmp_path)
    for age, name in enumerate(["slurm_7_0", "2030-01-01", "slurm_9_0"]):
        folder = RunFolder.create(Path("outputs") / "kl_f4" / name)
        folder.update_summary({"state": "interrupted"})
        folder.config.write_text("")
        os.utime(folder.config, (1e9 - age, 1e9 - age))
    assert run_dir.run_dir("kl_f4", "auto") == "outputs/kl_f4/slurm_7_0"
    RunFolder.create("outputs/kl_f4/slurm_7_0").update_summary({"state": "finished"})
    assert run_dir.run_dir("kl_f4", "auto") == "outputs/kl_f4/2030-01-01"
    set_variables(alone, SLURM_NTASKS=2, SLURM_PROCID=1, SLURM_LOCALID=0, SLURM_JOB_ID=9)
    assert run_dir.run_dir("kl_f4", "auto") == "outputs/kl_f4/slurm_9_0"
    assert run_dir.run_dir("kl_f4", None) == "outputs/kl_f4/slurm_9_0"


def test_a_chain_is_not_run_by_several_processes(alone, tmp_path):
    set_variables(alone, TORCHELASTIC_RUN_ID="a", RANK=0, WORLD_SIZE=2)
    ended = process(["-m", "ldm_lightning.pipeline"], tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert ended.code == 1
    assert re.search(r"\b2 processes\b.*\bpipeline\b", ended.said)
    assert not list(tmp_path.iterdir())


def test_encode_under_srun_needs_a_place_to_meet(alone):
    set_variables(alone, SLURM_NTASKS=2, SLURM_PROCID=1, SLURM_LOCALID=0, SLURM_JOB_ID=1)
    with (
        pytest.raises(ValueError, match="MASTER_ADDR.*MASTER_PORT"),
        joined_processes(),
    ):
        pass
