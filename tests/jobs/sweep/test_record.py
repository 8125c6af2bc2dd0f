"""The files of a sweep's own folder."""

import json

import pytest

from ldm_lightning.jobs.sweep.jobs import jobs_of
from ldm_lightning.jobs.sweep.record import keep_record, only_one
from ldm_lightning.storage.locking import LockedError


def test_the_record_says_whose_each_folder_is(tmp_path):
    keep_record(tmp_path, jobs_of(tmp_path, [["seed=0"]]), module="m", threads=2)
    keep_record(tmp_path, jobs_of(tmp_path, [["seed=0", "max_steps=2"]]), module="m", threads=2)
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert record["threads"] == 2
    assert sorted(record["jobs"].values()) == [["seed=0"], ["seed=0", "max_steps=2"]]


def test_jobs_of_another_module_or_other_threads_are_refused(tmp_path):
    keep_record(tmp_path, [], module="m", threads=2)
    with pytest.raises(ValueError, match=r"\b2 threads\b.*\b1\b.*hydra\.launcher\.threads=2"):
        keep_record(tmp_path, [], module="m", threads=1)
    with pytest.raises(ValueError, match=r"\bm\b.*\bother\b.*sweep_name"):
        keep_record(tmp_path, [], module="other", threads=2)
    (tmp_path / "sweep.json").write_text('{"threads": 2')
    with pytest.raises(ValueError, match=r"sweep\.json"):
        keep_record(tmp_path, [], module="m", threads=2)


def test_one_process_runs_a_sweep_at_a_time(tmp_path):
    folder = tmp_path / "sweep"
    with only_one(folder):
        with pytest.raises(LockedError, match=str(folder)), only_one(folder):
            pass
        with only_one(tmp_path / "other"):
            pass
    with only_one(folder):
        pass
