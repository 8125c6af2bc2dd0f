"""The watch over the other processes of a machine, with a program that only sleeps as another."""

import subprocess
import threading
import time

import pytest

from ldm_lightning.distributed import processes
from ldm_lightning.runs.run_folder import RunFolder


class EndedError(Exception):
    pass


@pytest.fixture
def watch(tmp_path, monkeypatch):
    """Watch a sleeping process 1; returns the exit code of this one, the other's, and seconds."""

    def exit_with(code: int) -> None:
        raise EndedError(code)

    def watched(*, note: str = "", signaled: bool = False):
        folder = RunFolder(tmp_path)
        other = subprocess.Popen(["sleep", "60"])
        if note:
            processes._write_note(folder, 1, note)
        if signaled:
            other.kill()
        start = time.monotonic()
        with pytest.raises(EndedError) as ended:
            processes._watch({1: other}, folder, threading.Event())
        return ended.value.args[0], other.returncode, time.monotonic() - start

    monkeypatch.setattr(processes.os, "_exit", exit_with)
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.3)
    monkeypatch.setattr(processes, "CAUSE_SECONDS", 0.6)
    return watched


def test_a_process_that_said_why_it_fails_and_does_not_end_is_ended(watch, caplog):
    code, other, seconds = watch(note="ValueError: photograph_17.jpg")
    assert (code, other) == (1, -9)
    assert 0.6 <= seconds < 5
    assert "Process 1 ended first: ValueError: photograph_17.jpg" in caplog.text


def test_a_killed_process_is_told_by_its_signal(watch, caplog):
    code, other, seconds = watch(signaled=True)
    assert (code, other) == (1, -9)
    assert 0.3 <= seconds < 5
    assert "SIGKILL" in caplog.text


def test_a_run_that_was_asked_to_stop_ends_by_itself(tmp_path, monkeypatch):
    """The first process may still be writing when the others have ended, with code 1."""
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(processes.os, "_exit", lambda code: pytest.fail(f"ended with {code}"))
    folder = RunFolder(tmp_path)
    folder.update_summary({"state": "interrupted"})
    other = subprocess.Popen(["false"])
    processes._watch({1: other}, folder, threading.Event())
    assert other.returncode == 1
    assert folder.read_summary() == {"state": "interrupted"}
