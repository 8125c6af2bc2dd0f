"""Which folder is whose, and what is read from it."""

import json
from pathlib import Path

import pytest

from ldm_lightning.sweep.jobs import Reached, differing_words, hash_of, jobs_of, reached
from ldm_lightning.sweep.record import keep_record, only_one

WORDS = ["experiment=kl_f4", "loss.kl_weight=1e-06", "sweep_name=a"]


def test_the_hash_depends_on_the_words_alone():
    assert hash_of(WORDS) == hash_of(reversed(WORDS))
    assert hash_of(WORDS) == hash_of([*WORDS[:2], "sweep_name=another"])
    assert hash_of(WORDS) != hash_of([*WORDS, "seed=1"])
    assert hash_of(["a=1", "b=2"]) != hash_of(["a=12", "b="])


def test_of_two_values_for_a_key_the_last_counts():
    assert hash_of(["a=1", "b=0", "a=2"]) == hash_of(["b=0", "a=2"])
    assert hash_of(["a=1", "a=2"]) != hash_of(["a=2", "a=1"])
    assert hash_of(["~a", "+a=2"]) != hash_of(["+a=2"])


def test_a_job_keeps_its_folder_and_a_new_one_gets_the_next_number(tmp_path):
    first = jobs_of(tmp_path, [["seed=0"], ["seed=1"]])
    assert [job.name for job in first] == [
        f"0_{hash_of(['seed=0'])}",
        f"1_{hash_of(['seed=1'])}",
    ]
    for job in first:
        job.folder.mkdir()
    (tmp_path / "7_not_a_job").mkdir()
    again = jobs_of(tmp_path, [["seed=2"], ["seed=1"], ["seed=0"], ["seed=3"]])
    assert [job.name.partition("_")[0] for job in again] == ["2", "1", "0", "3"]
    assert again[2].folder == first[0].folder


def test_the_same_words_are_one_job(tmp_path):
    one, other, third = jobs_of(tmp_path, [["a=1", "b=2"], ["b=2", "a=1"], ["a=1"]])
    assert one.folder == other.folder != third.folder


def test_a_job_is_told_by_the_words_that_others_have_not(tmp_path):
    jobs = jobs_of(tmp_path, [[*WORDS, "seed=0"], [*WORDS, "seed=1", "max_steps=3"]])
    assert list(differing_words(jobs).values()) == ["seed=0", "seed=1 max_steps=3"]
    alone = "experiment=kl_f4 loss.kl_weight=1e-06 seed=0"
    assert list(differing_words(jobs[:1]).values()) == [alone]


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
    assert "summary.json cannot be read" in found.reason
    assert "move it away" in found.reason


@pytest.mark.parametrize("content", ["a: [", "- 1", "monitor: ${nothing}", "\0"])
def test_a_damaged_configuration_shows_nothing(tmp_path, content):
    (tmp_path / "summary.json").write_text('{"state": "running", "step": 3}')
    (tmp_path / "config.yaml").write_text(content)
    assert reached(tmp_path) == Reached("running", "", 3)


def test_only_what_can_be_continued_has_begun(tmp_path):
    (job,) = jobs_of(tmp_path, [["train=false"]])
    job.folder.mkdir()
    (job.folder / "config.yaml").touch()  # its words begin it as well
    assert not job.has_begun
    (job.folder / "chain.json").touch()
    assert job.has_begun
    (job.folder / "chain.json").unlink()
    (job.folder / "checkpoints").mkdir()
    (job.folder / "checkpoints" / "last.ckpt").touch()
    assert job.has_begun


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


def test_the_record_says_whose_each_folder_is(tmp_path):
    keep_record(tmp_path, jobs_of(tmp_path, [["seed=0"]]), module="m", threads=2)
    keep_record(tmp_path, jobs_of(tmp_path, [["seed=0", "max_steps=2"]]), module="m", threads=2)
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert record["threads"] == 2
    assert sorted(record["jobs"].values()) == [["seed=0"], ["seed=0", "max_steps=2"]]


def test_jobs_of_another_module_or_other_threads_are_refused(tmp_path):
    keep_record(tmp_path, [], module="m", threads=2)
    with pytest.raises(ValueError, match="2 threads each.* asks for 1.*hydra.launcher.threads=2"):
        keep_record(tmp_path, [], module="m", threads=1)
    with pytest.raises(ValueError, match="run m, and this command asks for other"):
        keep_record(tmp_path, [], module="other", threads=2)
    (tmp_path / "sweep.json").write_text('{"threads": 2')
    with pytest.raises(ValueError, match="is damaged"):
        keep_record(tmp_path, [], module="m", threads=2)


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, caplog):
    def refuse(file, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with only_one(tmp_path):
        pass
    assert "start it only once" in caplog.text


def test_one_process_runs_a_sweep_at_a_time(tmp_path):
    folder = tmp_path / "sweep"
    with only_one(folder):
        with pytest.raises(ValueError, match="Another process runs the sweep"), only_one(folder):
            pass
        with only_one(tmp_path / "other"):
            pass
    with only_one(folder):
        pass
