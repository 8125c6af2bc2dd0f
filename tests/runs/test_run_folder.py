import errno
import json
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm_lightning.runs.run_folder import RunFolder, find_checkpoint
from ldm_lightning.storage.locking import LockedError


def strict(path):
    """Parse JSON as the standard has it: no NaN, no Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_creates_its_folders(tmp_path):
    folder = RunFolder.create(tmp_path / "a" / "b")
    assert folder.checkpoints.is_dir()
    assert folder.images.is_dir()
    assert folder.read_summary() == {}


def test_changes_are_merged_key_by_key(tmp_path):
    folder = RunFolder.create(tmp_path)
    folder.update_summary({"metrics": {"val/psnr": 20.0, "val/ssim": 0.5}, "alarms": ["one"]})
    folder.update_summary({"metrics": {"val/psnr": 21.0}, "alarms": []})
    assert strict(folder.summary) == {
        "metrics": {"val/psnr": 21.0, "val/ssim": 0.5},
        "alarms": [],
    }


def test_a_running_summary_names_its_process_and_a_finished_one_does_not(tmp_path):
    folder = RunFolder.create(tmp_path)
    before = time.time()
    folder.update_summary({"state": "running"})
    summary = strict(folder.summary)
    assert summary["pid"] == os.getpid()
    assert summary["host"] == socket.gethostname()
    assert before <= summary["heartbeat"] <= time.time()
    folder.update_summary({"state": "finished"})
    assert strict(folder.summary) == {"state": "finished"}


def test_numbers_that_json_lacks_become_null_and_are_named(tmp_path):
    folder = RunFolder.create(tmp_path)
    folder.update_summary(
        {"metrics": {"val/rfid": math.nan, "val/kl": math.inf}, "list": [1.0, -math.inf]}
    )
    summary = strict(folder.summary)
    assert summary["metrics"] == {"val/rfid": None, "val/kl": None}
    assert summary["list"] == [1.0, None]
    expected = {"metrics > val/rfid": "nan", "metrics > val/kl": "inf", "list > 1": "-inf"}
    assert summary["not_finite"] == expected
    RunFolder.create(tmp_path).update_summary({"metrics": {"val/rfid": 3.0}, "list": [1.0]})
    assert strict(folder.summary)["not_finite"] == {"metrics > val/kl": "inf"}
    folder.update_summary({"metrics": {"val/kl": 3.0}})
    assert "not_finite" not in strict(folder.summary)


def test_scalars_of_other_libraries_and_paths_are_accepted(tmp_path):
    folder = RunFolder.create(tmp_path)
    folder.update_summary(
        {"a": np.float32(0.5), "b": torch.tensor(3), "c": Path("x"), "d": (1, True)}
    )
    assert strict(folder.summary) == {"a": 0.5, "b": 3, "c": "x", "d": [1, True]}


def test_values_without_a_json_form_are_refused_by_name_and_nothing_is_lost(tmp_path):
    folder = RunFolder.create(tmp_path)
    folder.update_summary({"state": "finished"})
    with pytest.raises(TypeError, match="config > model: Linear"):
        folder.update_summary({"config": {"model": torch.nn.Linear(1, 1)}})
    assert strict(folder.summary) == {"state": "finished"}


def test_refuses_unknown_states(tmp_path):
    with pytest.raises(ValueError, match="state.*running, finished.*'done'"):
        RunFolder.create(tmp_path).update_summary({"state": "done"})


def test_a_path_below_a_file_is_refused_and_the_file_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"/file/run/now.*: \S*/file\b"):
        RunFolder.create(tmp_path / "file" / "run" / "now")
    with pytest.raises(ValueError, match=r"/file\b.*\bfolder\b"):
        RunFolder.create(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=f"{tmp_path}.*writable"):
        RunFolder.create(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="/proc/run"):
        RunFolder.create("/proc/run")


def test_a_full_disk_keeps_the_previous_summary(tmp_path):
    folder = RunFolder.create(tmp_path)
    folder.update_summary({"state": "finished"})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"\[Errno {errno.EFBIG}\]"):
            folder.update_summary({"config": {"text": "x" * 5000}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert strict(folder.summary) == {"state": "finished"}
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "images", "summary.json"]


WRITER = """
    import sys
    from ldm_lightning.runs.run_folder import RunFolder

    folder = RunFolder.create(sys.argv[1])
    number = 0
    while True:
        number += 1
        folder.update_summary({"state": "running", "number": number, "text": "x" * 200_000})
        print(number, flush=True)
"""


def test_a_writer_killed_at_any_time_leaves_valid_json(tmp_path):
    folder = RunFolder.create(tmp_path)
    for attempt in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), tmp_path],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "1\n"
        time.sleep(0.003 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()
        summary = strict(folder.summary)
        assert len(summary["text"]) == 200_000
        assert summary["pid"] == process.pid
    folder.update_summary({"state": "failed"})
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "images", "summary.json"]


def test_one_command_writes_at_a_time(tmp_path):
    folder = RunFolder.create(tmp_path)
    assert folder.writer() is None
    with folder.only_writer():
        assert folder.writer().pid == os.getpid()
        with (
            pytest.raises(LockedError, match=str(os.getpid())),
            RunFolder.create(tmp_path).only_writer(),
        ):
            pass
    assert folder.writer() is None


def test_a_summary_that_is_no_object_is_refused(tmp_path):
    folder = RunFolder.create(tmp_path)
    folder.summary.write_text("[1]")
    for read in (folder.read_summary, lambda: folder.update_summary({})):
        with pytest.raises(ValueError, match=r"summary\.json.*\blist\b"):
            read()


def test_a_run_folder_means_its_best_checkpoint_else_its_last(tmp_path):
    folder = RunFolder.create(tmp_path)
    best, last = folder.checkpoints / "best.ckpt", folder.checkpoints / "last.ckpt"
    with pytest.raises(ValueError, match=r"best\.ckpt.*last\.ckpt"):
        find_checkpoint(tmp_path)
    last.touch()
    assert find_checkpoint(tmp_path) == last
    best.touch()
    assert find_checkpoint(str(tmp_path)) == best
    assert find_checkpoint(last) == last


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint=\S*nowhere\b"):
        find_checkpoint(tmp_path / "nowhere")


def test_naming_a_folder_makes_none(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert folder.read_summary() == {}
    assert folder.writer() is None
    assert not folder.path.exists()


def test_importing_it_does_not_import_torch():
    code = "import sys, ldm_lightning.runs.run_folder; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_new_state_drops_the_reason_of_the_one_before(tmp_path):
    folder = RunFolder.create(tmp_path)
    folder.update_summary({"state": "failed", "reason": "ENOSPC"})
    folder.update_summary({"step": 3})
    assert folder.read_summary()["reason"] == "ENOSPC"
    folder.update_summary({"state": "running"})
    assert "reason" not in folder.read_summary()
