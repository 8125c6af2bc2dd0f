"""Which folder is whose, and what is read from it."""

import json

import pytest

from ldm_lightning.sweep.jobs import Reached, differing_words, hash_of, jobs_of, reached
from ldm_lightning.sweep.record import keep_record, only_one

WORDS = ["experiment=kl_f4", "loss.kl_weight=1e-06", "sweep_name=a"]


def test_the_hash_depends_on_the_words_alone():
    assert hash_of(WORDS) == hash_of(reversed(WORDS))
    assert hash_of(WORDS) == hash_of([*WORDS[:2], "sweep_name=another"])
    assert hash_of(WORDS) != hash_of([*WORDS, "seed=1"])
    assert hash_of(["a=1", "b=2"]) != hash_of(["a=12", "b="])


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


def test_the_record_says_whose_each_folder_is(tmp_path):
    keep_record(tmp_path, jobs_of(tmp_path, [["seed=0"]]), threads=2)
    keep_record(tmp_path, jobs_of(tmp_path, [["seed=0", "max_steps=2"]]), threads=2)
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert record["threads"] == 2
    assert sorted(record["jobs"].values()) == [["seed=0"], ["seed=0", "max_steps=2"]]


def test_jobs_of_other_threads_are_refused(tmp_path):
    keep_record(tmp_path, [], threads=2)
    with pytest.raises(ValueError, match="2 threads each.* asks for 1.*hydra.launcher.threads=2"):
        keep_record(tmp_path, [], threads=1)
    (tmp_path / "sweep.json").write_text('{"threads": 2')
    with pytest.raises(ValueError, match="is damaged"):
        keep_record(tmp_path, [], threads=2)


def test_one_process_runs_a_sweep_at_a_time(tmp_path):
    folder = tmp_path / "sweep"
    with only_one(folder):
        with pytest.raises(ValueError, match="Another process runs the sweep"), only_one(folder):
            pass
        with only_one(tmp_path / "other"):
            pass
    with only_one(folder):
        pass
