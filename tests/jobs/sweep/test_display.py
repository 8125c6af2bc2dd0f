"""What a sweep shows."""

import io
import logging

import pytest
from rich.console import Console

from ldm_lightning.jobs.sweep.display import SweepDisplay, print_statuses
from ldm_lightning.jobs.sweep.jobs import Job, differing_overrides, jobs_of
from ldm_lightning.jobs.sweep.reached import Reached
from ldm_lightning.jobs.sweep.status import Status, status_at_rest


def statuses_in(folder):
    jobs = jobs_of(folder, [[f"seed={seed}", "resolution=[32,32]"] for seed in range(4)])
    running = Reached("running", "", 120, 700, 95.0, "val/psnr", 20.123456)
    failed = Reached("failed", "ValueError: [bold] is no image", 3, 700)
    finished = Reached("early_stopped", "no improvement", 300, 700, 200.0, "val/psnr", 21.0)
    return [
        Status(jobs[0], "running", running),
        Status(jobs[1], "failed", failed),
        Status(jobs[2], "early_stopped", finished),
        Status(jobs[3], "waiting", Reached()),
    ]


def terminal(width: int = 200, height: int = 50) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None
    )


def test_a_terminal_shows_one_table_and_what_happens_above_it(tmp_path):
    console = terminal()
    statuses = statuses_in(tmp_path)
    differing = differing_overrides([status.job for status in statuses])
    with SweepDisplay(title="Sweep [x]", differing=differing, console=console) as display:
        display.show(lambda: statuses)  # too early
        assert "seed=0" not in console.file.getvalue()
        display._shown -= 1.0
        display.show(lambda: statuses)
        display.say("0_ab [red] started")
    shown = console.file.getvalue()
    for text in ("Sweep [x]", "seed=0", "running", "120 of 700", "1.6 min", "val/psnr 20.12"):
        assert text in shown
    assert "resolution" not in shown
    assert "0_ab [red] started" in shown


def test_a_low_terminal_shows_what_runs_and_what_failed_and_counts_all(tmp_path):
    console = terminal(height=9)
    jobs = jobs_of(tmp_path, [[f"seed={seed}"] for seed in range(40)])
    states = ["finished"] * 20 + ["failed"] + ["finished"] * 10 + ["running"] + ["waiting"] * 8
    found = [Status(job, state, Reached(state)) for job, state in zip(jobs, states, strict=True)]
    with SweepDisplay(
        title="Sweep x", differing=differing_overrides(jobs), console=console
    ) as display:
        display._shown -= 1.0
        display.show(lambda: found)
    shown = console.file.getvalue()
    assert "30 done, 1 failed, 1 running, 8 waiting" in shown
    assert "seed=20 " in shown
    assert "seed=31 " in shown
    assert "seed=0 " not in shown


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_shows_every_job(tmp_path, width):
    console = terminal(width=width)
    statuses = statuses_in(tmp_path)
    differing = differing_overrides([status.job for status in statuses])
    with SweepDisplay(title="x", differing=differing, console=console) as display:
        display._shown -= 1.0
        display.show(lambda: statuses)
    lines = console.file.getvalue().splitlines()
    for status, seed in zip(statuses, range(4), strict=True):
        (line, *_) = (line for line in lines if f"seed={seed}" in line)
        assert len(line) <= width
        assert status.state in line


def test_without_a_terminal_it_is_a_line_now_and_then(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    statuses = statuses_in(tmp_path)
    name = statuses[0].job.name
    display = SweepDisplay(
        title="x", differing={}, plain_every_seconds=0.0, console=Console(file=io.StringIO())
    )
    with display:
        display.show(lambda: statuses)
    assert caplog.messages == [
        f"1 done, 1 failed, 1 running, 1 waiting: {name} 120 of 700 val/psnr 20.12"
    ]


def test_the_last_table_says_why_and_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    console = Console(file=io.StringIO(), width=80)
    statuses = statuses_in(tmp_path)
    differing = differing_overrides([status.job for status in statuses])
    print_statuses(statuses, differing, title="Sweep x", console=console)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "Sweep x"
    log = f"{statuses[1].job.name}/job.log"
    assert statuses[1].reached.reason in lines[3]
    assert f"({log})" in lines[3]
    assert "early_stopped" in lines[4]
    assert statuses[2].reached.reason not in lines[4]


def test_a_narrow_terminal_cuts_no_path(tmp_path):
    console = terminal(width=60)
    statuses = statuses_in(tmp_path)
    differing = differing_overrides([status.job for status in statuses])
    print_statuses(statuses, differing, title="x", console=console)
    shown = console.file.getvalue()
    assert "…" not in shown  # what is too long is folded


def test_a_run_that_was_killed_with_its_sweep_is_interrupted(tmp_path):
    (tmp_path / "summary.json").write_text('{"state": "running", "step": 5}')
    status = status_at_rest(Job(("seed=0",), tmp_path))
    assert status.state == "interrupted"
    assert not status.is_done
    assert f"{tmp_path.name}/job.log" in status.note
