"""What is read from the folder of a job."""

import json
from pathlib import Path

import pytest

from ldm_lightning.jobs.sweep.reached import Reached, reached


def test_a_folder_that_is_not_there_has_reached_nothing(tmp_path):
    assert reached(tmp_path / "none") == Reached()


def test_what_a_running_job_has_reached_is_read_from_its_files(tmp_path):
    (tmp_path / "config.yaml").write_text("monitor: val/psnr\nmax_steps: 500\n")
    summary = {"state": "running", "step": 40, "timing": {"total_s": 3.5}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert reached(tmp_path) == Reached("running", "", 40, 500, 3.5, "val/psnr", None)
    rows = "".join(f"{step},train/loss_total,{step / 7}\n" for step in range(1000))
    (tmp_path / "metrics.csv").write_text("step,metric,value\n" + rows + "12345,train/lo")
    assert reached(tmp_path).step == 999  # the last row is half written
    (tmp_path / "metrics.csv").write_text("step,metric,value\n")
    assert reached(tmp_path).step == 40
    summary |= {"state": "finished", "metrics": {"val/psnr": 20.5, "val/ssim": 0.5}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert (reached(tmp_path).state, reached(tmp_path).value) == ("finished", 20.5)


def test_a_configuration_that_changes_is_read_again(tmp_path):
    for number in (4, 8):
        (tmp_path / "config.yaml").write_text(f"monitor: val/psnr\nmax_steps: {number}\n")
        assert reached(tmp_path).max_steps == number


@pytest.mark.parametrize("content", ['{"state": "runn', "[1]", ""])
def test_a_damaged_summary_is_a_failure_that_says_what_to_do(tmp_path, content):
    (tmp_path / "summary.json").write_text(content)
    found = reached(tmp_path)
    assert found.state == "failed"
    assert str(tmp_path / "summary.json") in found.reason


@pytest.mark.parametrize("content", ["a: [", "- 1", "monitor: [a]", "\0"])
def test_a_damaged_configuration_shows_nothing(tmp_path, content):
    (tmp_path / "summary.json").write_text('{"state": "running", "step": 3}')
    (tmp_path / "config.yaml").write_text(content)
    assert reached(tmp_path) == Reached("running", "", 3)


def write(folder: Path, **summary) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary))


def test_a_chain_has_reached_what_its_step_has(tmp_path):
    second = tmp_path / "second_stage"
    commands = {"first_stage": "train", "latents": "encode", "second_stage": "train"}
    steps = [{"name": name, "command": command} for name, command in commands.items()]
    (tmp_path / "chain.json").write_text(json.dumps({"steps": steps}))
    config = "monitor: val/loss\nmax_steps: 700\n"
    (tmp_path / "config.yaml").write_text(config)
    done = {"state": "finished", "seconds": 60.0}

    write(tmp_path, state="running", steps={"first_stage": done})
    found = reached(tmp_path)
    assert (found.part, found.max_steps, found.seconds) == ("latents (2 of 3)", None, 60.0)
    assert found.share is None

    write(tmp_path, state="running", steps={"first_stage": done, "latents": done})
    write(second, state="running", step=5, metrics={"val/loss": 0.5}, timing={"total_s": 9})
    (second / "config.yaml").write_text(config)
    found = reached(tmp_path)
    assert (found.part, found.step, found.max_steps) == ("second_stage (3 of 3)", 5, 700)
    assert (found.seconds, found.monitor, found.value) == (129.0, "val/loss", 0.5)

    write(tmp_path, state="finished", steps=dict.fromkeys(commands, done), metrics={"gen/kd": 2.0})
    found = reached(tmp_path)
    assert (found.part, found.max_steps, found.seconds) == ("3 steps", None, 180.0)
    assert (found.monitor, found.value, found.share) == ("val/loss", 0.5, 1.0)
    write(tmp_path, state="finished", steps=dict.fromkeys(commands, done), metrics={"val/loss": 2})
    assert reached(tmp_path).value == 2


@pytest.mark.parametrize("content", ["{}", "[", '{"steps": [1]}', '{"steps": []}'])
def test_a_damaged_chain_has_reached_what_its_summary_says(tmp_path, content):
    (tmp_path / "chain.json").write_text(content)
    write(tmp_path, state="running", step=3)
    assert reached(tmp_path) == Reached("running", "", 3)
