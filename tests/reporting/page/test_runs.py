import json
import subprocess
import sys
import threading
import time

import pytest

from ldm_lightning.reporting.page.runs import find_runs, read_run
from ldm_lightning.runs.run_folder import RunFolder
from tests.reporting.page.runs_on_disk import METRICS, write_run


def edit(folder, **changes):
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_reads_what_a_run_wrote(tmp_path):
    (run,) = find_runs([str(write_run(tmp_path / "one", kl_weight=1e-4))])
    assert (run.number, run.name, run.kind, run.state) == (1, "kl_f8", "first stage", "finished")
    assert run.metrics == METRICS
    assert run.settings["loss.kl_weight"] == 1e-4
    assert run.protocols["val/psnr"]["num_images"] == 512
    assert (run.seconds, run.step, run.device) == (90.0, 100, "cpu (2 threads)")


def test_finds_runs_at_any_depth_and_numbers_them_by_age(tmp_path):
    write_run(tmp_path / "outputs" / "new", written=2000.0)
    write_run(tmp_path / "outputs" / "sweeps" / "s" / "0_ab", written=1000.0)
    runs = find_runs([str(tmp_path / "outputs")])
    assert [(run.number, run.place) for run in runs] == [(1, "sweeps/s/0_ab"), (2, "new")]


def test_a_run_that_two_patterns_match_is_one_run(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    runs = find_runs([str(tmp_path / "*"), str(tmp_path / "a")])
    assert sorted(run.place for run in runs) == ["a", "b"]


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(tmp_path):
    write_run(tmp_path / "kl[4]")
    assert [run.place for run in find_runs([str(tmp_path / "kl[4]")])] == ["kl[4]"]


def test_says_where_it_looked_for_folders_and_for_runs(tmp_path):
    with pytest.raises(ValueError, match=r"runs=.*/nowhere/\*"):
        find_runs([str(tmp_path / "nowhere" / "*")])
    with pytest.raises(ValueError, match=f"runs={tmp_path}:"):
        find_runs([str(tmp_path)])


def test_a_run_without_a_summary_is_a_run(tmp_path):
    RunFolder.create(tmp_path / "early")
    (run,) = find_runs([str(tmp_path)])
    assert (run.name, run.state, run.metrics) == ("early", "no summary", {})


@pytest.mark.parametrize("keep", [0, 1, 100, 400])
def test_a_truncated_summary_does_not_hide_the_other_runs(tmp_path, keep):
    broken = write_run(tmp_path / "broken") / "summary.json"
    broken.write_text(broken.read_text()[:keep])
    write_run(tmp_path / "whole")
    states = {run.place: run.state for run in find_runs([str(tmp_path)])}
    assert states == {"broken": "unreadable", "whole": "finished"}


@pytest.mark.parametrize(
    "content",
    [b"[]", b"3", b"\xff\xfe", b'{"state": "unheard of"}', b'{"state": []}', b"[" * 100_000],
)
def test_a_summary_that_is_no_summary_is_unreadable(tmp_path, content):
    write_run(tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_bytes(content)
    run = read_run(tmp_path / "run")
    assert run.state == "unreadable"
    assert run.reason


def test_parts_of_another_shape_are_ignored(tmp_path):
    folder = write_run(tmp_path / "run")
    edit(folder, metrics=[1], protocol={"val/psnr": "mine"}, config="kl_f8", timing=3, step="many")
    run = read_run(folder)
    assert (run.state, run.metrics, run.protocols) == ("finished", {}, {})
    assert (run.settings, run.seconds, run.step) == ({}, None, None)


def test_values_that_are_not_finite_stay_in_sight(tmp_path):
    write_run(tmp_path / "run", metrics={"val/psnr": float("nan"), "val/kl": 3})
    assert read_run(tmp_path / "run").metrics == {"val/psnr": None, "val/kl": 3.0}


def test_a_running_run_whose_process_is_gone_was_killed(tmp_path):
    folder = write_run(tmp_path / "run", state="running")
    assert read_run(folder).state == "running"
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    edit(folder, pid=process.pid)
    run = read_run(folder)
    assert run.state == "killed"
    assert str(process.pid) in run.reason


def test_a_running_run_elsewhere_is_silent_after_a_while(tmp_path):
    folder = write_run(tmp_path / "run", state="running")
    edit(folder, host="elsewhere", heartbeat=time.time() - 60)
    assert read_run(folder).state == "running"
    edit(folder, heartbeat=time.time() - 3600)
    assert read_run(folder).state == "silent"


def test_duplicate_names_keep_their_own_number_and_place(tmp_path):
    for place in ("a", "b"):
        write_run(tmp_path / place, name="same")
    runs = find_runs([str(tmp_path)])
    assert {run.name for run in runs} == {"same"}
    assert len({(run.number, run.place) for run in runs}) == 2


def write_chain(folder, *, samples):
    chain = RunFolder.create(folder)
    chain.update_summary({"state": "finished", "steps": {"samples": {"seconds": 2.0}}})
    write_run(folder / "first_stage", factor=4)
    RunFolder.create(folder / "samples").update_summary({"state": samples, "samples": {}})


def test_what_a_chain_repeats_is_left_out_unless_it_failed(tmp_path):
    write_chain(tmp_path / "good", samples="finished")
    write_chain(tmp_path / "bad", samples="failed")
    places = sorted(run.place for run in find_runs([str(tmp_path)]))
    assert places == ["bad", "bad/first_stage", "bad/samples", "good", "good/first_stage"]


def test_a_chain_has_the_settings_of_its_first_stage(tmp_path):
    write_chain(tmp_path / "chain", samples="finished")
    run = read_run(tmp_path / "chain")
    assert (run.kind, run.seconds) == ("chain", 2.0)
    assert run.settings["autoencoder.downsampling_factor"] == 4


def test_kinds_are_told_by_what_was_built(tmp_path):
    for name, config, kind in (
        ("a", {"autoencoder": {}}, "first stage"),
        ("b", {"denoiser": {}, "autoencoder": {}}, "second stage"),
        ("c", {}, "run"),
    ):
        RunFolder.create(tmp_path / name).update_summary({"state": "finished", "config": config})
        assert read_run(tmp_path / name).kind == kind


def test_parts_of_a_chain_say_so(tmp_path):
    write_chain(tmp_path / "chain", samples="finished")
    runs = {run.kind: run for run in find_runs([str(tmp_path)])}
    ((_, number),) = runs["first stage"].relations
    assert number == runs["chain"].number
    assert runs["chain"].relations == ()


@pytest.mark.parametrize("checkpoint", ["{}", "{}/checkpoints/best.ckpt"])
def test_an_evaluation_has_the_settings_of_what_it_measures(tmp_path, checkpoint):
    first = write_run(tmp_path / "first", factor=16)
    RunFolder.create(tmp_path / "evaluation").update_summary(
        {
            "state": "finished",
            "name": "evaluate",
            "config": {"checkpoint": checkpoint.format(first), "resolution": 64},
            "metrics": {"test/psnr": 25.0},
        }
    )
    run, measured = sorted(find_runs([str(tmp_path)]), key=lambda run: run.kind)
    assert (run.kind, measured.kind) == ("evaluation", "first stage")
    assert run.settings["autoencoder.downsampling_factor"] == 16
    assert run.settings["resolution"] == 64
    assert run.relations == (("of run", measured.number),)


def test_a_second_stage_names_the_first_stage_it_trains_upon(tmp_path):
    first = write_run(tmp_path / "first", written=1000.0)
    config = {"denoiser": {}, "first_stage": {"checkpoint": str(first)}}
    RunFolder.create(tmp_path / "second").update_summary({"state": "finished", "config": config})
    assert [run.relations for run in find_runs([str(tmp_path)])] == [(), (("upon run", 1),)]


def test_links_that_lead_in_circles_or_nowhere_are_not_followed(tmp_path):
    write_run(tmp_path / "run")
    (tmp_path / "run" / "loop").symlink_to(tmp_path)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert len(find_runs([str(tmp_path)])) == 1


@pytest.mark.parametrize("value", [10**400, float("inf"), -1e308, True])
def test_numbers_that_nothing_measures_are_no_metrics(tmp_path, value):
    edit(write_run(tmp_path / "run"), metrics={"val/psnr": value}, timing={"total_s": value})
    run = read_run(tmp_path / "run")
    assert run.metrics.get("val/psnr") is None
    assert run.seconds is None


def test_a_summary_without_end_is_unreadable(tmp_path):
    deep = {}
    for _ in range(300):
        deep = {"a": deep}
    edit(write_run(tmp_path / "run"), config=deep)
    run = read_run(tmp_path / "run")
    assert (run.state, run.settings) == ("unreadable", {})


def test_a_summary_that_may_not_be_read_is_unreadable(tmp_path, monkeypatch):
    write_run(tmp_path / "run")

    def refused(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.open", refused)
    run = read_run(tmp_path / "run")
    assert (run.state, "Permission denied" in run.reason) == ("unreadable", True)


def test_a_summary_is_read_whole_while_it_is_replaced(tmp_path):
    folder = RunFolder.create(
        write_run(tmp_path / "run", metrics={f"val/{n}": 1.0 for n in range(2000)})
    )
    stop = threading.Event()

    def replace():
        while not stop.is_set():
            folder.update_summary({"step": 1})

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        runs = [read_run(folder.path) for _ in range(30)]
    finally:
        stop.set()
        writer.join()
    assert {(run.state, len(run.metrics)) for run in runs} == {("finished", 2000)}
