"""Jobs as processes: how many at a time, how they end, what is run again."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ldm_lightning.distributed.processes import ended_by_signal
from ldm_lightning.jobs.sweep.job_process import LOG, Command, JobProcess
from ldm_lightning.jobs.sweep.jobs import jobs_of
from ldm_lightning.jobs.sweep.resources import Resources
from ldm_lightning.jobs.sweep.running import run_sweep
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.storage.locking import Holder
from tests.cli.run import ROOT, summary_of
from tests.jobs.sweep.fake_job import FAILURE, LOG_LINE, MODULE, REFUSAL, starts_of

SWEEP = """
import logging, sys
from pathlib import Path
from tests.jobs.sweep.test_running import run
logging.basicConfig(level=logging.INFO)
run(Path(sys.argv[1]), [[word] for word in sys.argv[2:]], n_jobs=2)
"""


@pytest.fixture(autouse=True)
def _found_by_jobs(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def run(folder: Path, words, *, n_jobs: int = 1, **resources):
    return run_sweep(
        folder,
        words,
        command=Command(MODULE),
        resources=Resources(n_jobs, 1, **resources),
    )


def states(ended) -> list[str]:
    return [status.state for status in ended.statuses]


def wait_for(is_so, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(folder: Path) -> list[int]:
    """Process ids of the jobs that have begun."""
    summaries = [json.loads(path.read_text()) for path in folder.glob("*/summary.json")]
    return [summary["pid"] for summary in summaries if summary["state"] == "running"]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_so_many_jobs_run_at_a_time_each_with_its_own_environment(tmp_path):
    words = [["name=meets", f"seed={seed}"] for seed in range(3)]
    ended = run(tmp_path, words, n_jobs=2, gpus=("4", "5"))
    assert states(ended) == ["finished"] * 3
    assert [status.reached.value for status in ended.statuses] == [0.0, 1.0, 2.0]
    starts = [starts_of(status.job.folder) for status in ended.statuses]
    assert [len(of_job) for of_job in starts] == [1, 1, 1]
    for (start,), job in zip(starts, jobs_of(tmp_path, words), strict=True):
        assert start["words"] == [*job.overrides, "hydra.mode=RUN", f"hydra.run.dir={job.folder}"]
        assert start["threads"] == "1"
        assert start["beside"] <= 1
    assert {start["gpus"] for (start,) in starts} == {"4", "5"}


def test_a_job_that_fails_leaves_the_others_running_and_only_it_is_run_again(
    tmp_path, monkeypatch, capsys
):
    names = ["raises", "killed", "refused", "finishes"]
    words = [[f"name={name}", "seed=7"] for name in names]
    ended = run(tmp_path, words, n_jobs=2)
    assert states(ended) == ["failed", "failed", "failed", "finished"]
    reasons = [status.reached.reason for status in ended.statuses]
    assert reasons == [
        FAILURE,
        ended_by_signal(-signal.SIGKILL),
        REFUSAL,
        "",
    ]
    assert [status.job.overrides[0] for status in ended.unfinished] == [w[0] for w in words[:3]]
    table = capsys.readouterr().out
    for status in ended.unfinished:
        assert f"{status.reached.reason} ({status.job.folder / LOG})" in table
        assert status.job.overrides[0] in table
    assert LOG_LINE in (ended.statuses[2].job.folder / LOG).read_text()

    monkeypatch.setenv("ALL_WELL", "1")
    again = run(tmp_path, list(reversed(words)), n_jobs=2)
    assert states(again) == ["finished"] * 4
    assert not again.unfinished
    assert [status.reached.value for status in again.statuses] == [7.0] * 4
    starts = {status.job.overrides[0]: starts_of(status.job.folder) for status in again.statuses}
    assert [len(starts[f"name={name}"]) for name in names] == [2, 2, 2, 1]
    for name in ("raises", "killed"):  # had begun
        folder = next(s.job.folder for s in again.statuses if s.job.overrides[0] == f"name={name}")
        assert starts[f"name={name}"][1]["words"] == [
            f"resume={folder}",
            "hydra.mode=RUN",
            f"hydra.run.dir={folder}",
        ]
    assert starts["name=refused"][1]["words"][:2] == ["name=refused", "seed=7"]


def test_what_is_done_is_not_run_again_and_what_is_new_is(tmp_path):
    assert states(run(tmp_path, [["seed=1"], ["seed=1"]])) == ["finished"] * 2
    ended = run(tmp_path, [["seed=2"], ["seed=1"]])
    assert states(ended) == ["finished"] * 2
    assert [len(starts_of(status.job.folder)) for status in ended.statuses] == [1, 1]
    assert len(list(tmp_path.glob("*_*"))) == 2


def test_ctrl_c_lets_jobs_save_and_starts_no_more(tmp_path):
    words = [["name=waits"], ["name=finishes"]]

    def interrupt():
        wait_for(lambda: running(tmp_path))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    ended = run(tmp_path, words)
    assert ended.signal == signal.SIGINT
    assert states(ended) == ["interrupted", "waiting"]
    assert len(ended.unfinished) == 2
    again = run(tmp_path, words)
    assert (states(again), again.signal) == (["finished"] * 2, 0)
    assert len(starts_of(again.statuses[0].job.folder)) == 2


def test_the_second_ctrl_c_kills(tmp_path):
    def interrupt():
        wait_for(lambda: list(tmp_path.glob("*/deaf")))
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    start = time.monotonic()
    ended = run(tmp_path, [["name=deaf"]])
    assert time.monotonic() - start < 30
    assert states(ended) == ["interrupted"]
    assert "reason" not in summary_of(ended.statuses[0].job.folder)


@pytest.mark.slow
def test_a_killed_sweep_leaves_no_job_behind_and_goes_on_when_it_is_started_again(tmp_path):
    words = ["name=waits", "name=finishes"]
    sweep = subprocess.Popen([sys.executable, "-c", SWEEP, str(tmp_path), *words], cwd=ROOT)
    jobs = jobs_of(tmp_path, [[word] for word in words])
    wait_for(lambda: (jobs[1].folder / "summary.json").is_file() and running(tmp_path))
    pid = summary_of(jobs[0].folder)["pid"]
    sweep.kill()
    sweep.wait()
    wait_for(lambda: not is_alive(pid), seconds=5)
    assert summary_of(jobs[0].folder)["state"] == "interrupted"
    assert f"pid {sweep.pid}" in (jobs[0].folder / LOG).read_text()
    again = run(tmp_path, [[word] for word in words])
    assert states(again) == ["finished"] * 2
    assert [len(starts_of(status.job.folder)) for status in again.statuses] == [2, 1]


def test_a_job_that_another_process_still_writes_is_waited_for(tmp_path, monkeypatch):
    (job,) = jobs_of(tmp_path, [["seed=1"]])
    answers = iter([Holder(4711), Holder(4711), None])
    job.folder.mkdir()
    monkeypatch.setattr(RunFolder, "writer", lambda self: next(answers))
    assert states(run(tmp_path, [["seed=1"]])) == ["finished"]
    assert next(answers, "exhausted") == "exhausted"


def test_what_is_wrong_with_one_job_does_not_touch_the_others(tmp_path):
    words = [["name=damaged"], ["seed=1"], ["seed=2"]]
    jobs = jobs_of(tmp_path, words)
    jobs[1].folder.touch()  # a file where its folder should be
    ended = run(tmp_path, list(reversed(words)))
    assert states(ended) == ["finished", "failed", "failed"]
    assert f"[Errno {errno.EEXIST}]" in ended.statuses[1].note
    assert "summary.json" in ended.statuses[2].note
    assert ended.started == 2
    (ended.statuses[2].job.folder / "summary.json").unlink()
    jobs[1].folder.unlink()
    again = run(tmp_path, words)
    assert (states(again), again.started) == (["finished"] * 3, 2)


def test_a_job_that_fails_after_it_has_finished_is_done_and_told(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    ended = run(tmp_path, [["name=late"]])
    assert (states(ended), ended.unfinished) == (["finished"], ())
    assert any("code 1" in line and LOG in line for line in caplog.messages)


def test_only_what_a_job_says_this_time_is_its_reason(tmp_path):
    (job,) = jobs_of(tmp_path, [["name=refused"]])
    job.folder.mkdir()
    (job.folder / LOG).write_text("ValueError: of another day\n")
    process = JobProcess(job, Command("tests.jobs.sweep.silent_job"), {})
    wait_for(process.has_ended)
    process.note_end(stopped=False)
    assert summary_of(job.folder)["reason"]  # a sentence, though nothing was printed


def test_a_full_disk_is_told_and_the_others_go_on(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)

    def full(self, changes):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "update_summary", full)
    ended = run(tmp_path, [["name=killed"], ["seed=1"]])
    assert states(ended) == ["interrupted", "finished"]
    assert any(f"[Errno {errno.ENOSPC}]" in line for line in caplog.messages)


@pytest.mark.slow
def test_the_end_of_the_terminal_ends_jobs_too(tmp_path):
    # What started the tests, such as nohup, may have had the signal ignored.
    code = f"import signal\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\n{SWEEP}"
    sweep = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), "name=waits"], cwd=ROOT)
    wait_for(lambda: running(tmp_path))
    (pid,) = running(tmp_path)
    sweep.send_signal(signal.SIGHUP)
    assert sweep.wait() == -signal.SIGHUP
    wait_for(lambda: not is_alive(pid), seconds=5)
    assert summary_of(jobs_of(tmp_path, [["name=waits"]])[0].folder)["state"] == "interrupted"
