"""Damaged small files, every kind in every place where one is read.

A run's own damage is an error of one line that names the file. Another run's damage is passed over
by name and hides nothing else.
"""

import csv
import json
import shutil
from pathlib import Path

import pytest

from ldm_lightning.autoencoder.normalizer import StoredStatistics
from ldm_lightning.data.latents.cache import LatentCacheError, LatentIndex
from ldm_lightning.evaluation.cache import EvaluationCache, FirstStageRecord
from ldm_lightning.jobs.chain.running import Chain
from ldm_lightning.jobs.sweep.jobs import Job
from ldm_lightning.jobs.sweep.record import keep_record
from ldm_lightning.jobs.sweep.status import status_at_rest
from ldm_lightning.reporting.metrics_csv import MetricsCsv
from ldm_lightning.reporting.metrics_file import read_metrics
from ldm_lightning.reporting.page.write import write_report
from ldm_lightning.reporting.training_record import TrainingRecord, read_training_record
from ldm_lightning.runs import folder_choice as run_dir
from ldm_lightning.runs.run_folder import RunFolder
from ldm_lightning.storage.small_files import SmallFileError
from tests.reporting.page.runs_on_disk import write_run
from tests.storage.damaged_files import DAMAGE, damage

kinds = pytest.mark.parametrize("kind", DAMAGE)


def own_error(read, path, *, error=ValueError) -> None:
    """``read`` fails in one line that names the file."""
    with pytest.raises(error) as caught:
        read()
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@kinds
def test_the_own_summary_is_refused_by_name(tmp_path, kind):
    run = RunFolder.create(tmp_path)
    damage(run.summary, kind)
    own_error(run.read_summary, run.summary)
    own_error(lambda: run.update_summary({"state": "running"}), run.summary)


@pytest.mark.parametrize(
    ("name", "value"),
    [("state", 1), ("step", "many"), ("metrics", []), ("steps", "x"), ("timing", 3), ("config", 0)],
)
def test_values_of_another_kind_in_the_own_summary_are_refused_by_name(tmp_path, name, value):
    run = RunFolder.create(tmp_path)
    run.summary.write_text(json.dumps({name: value}))
    own_error(run.read_summary, run.summary)


@kinds
def test_resume_auto_passes_over_a_run_with_a_damaged_summary(tmp_path, kind, caplog):
    interrupted = {"state": "interrupted"}
    for name in ("first", "strange"):
        RunFolder.create(tmp_path / name).update_summary(interrupted)
        (tmp_path / name / "config.yaml").touch()
    strange = tmp_path / "strange" / "summary.json"
    damage(strange, kind)
    before = sorted(path.name for path in strange.parent.iterdir())
    assert run_dir._unfinished_folder(tmp_path) == tmp_path / "first"
    assert str(strange) in caplog.text
    assert sorted(path.name for path in strange.parent.iterdir()) == before


def test_a_report_shows_all_runs_beside_strange_ones(tmp_path):
    write_run(tmp_path / "good")
    files = ("summary.json", "metrics.csv", "config.yaml", "images/reconstruction_latest.png")
    for file in files:
        for kind in DAMAGE:
            damage(write_run(tmp_path / f"{Path(file).stem}_{kind}") / file, kind)
    report = write_report([str(tmp_path)], tmp_path / "report.html")
    assert report.num_runs == 1 + len(files) * len(DAMAGE)
    with report.results.open(newline="") as rows:
        states = {row["folder"]: row["state"] for row in csv.DictReader(rows)}
    damaged = {f"summary_{kind}" for kind in DAMAGE}
    assert {folder for folder, state in states.items() if state != "finished"} == damaged


@kinds
def test_a_report_does_not_replace_what_is_no_report(tmp_path, kind):
    run = write_run(tmp_path / "run")
    damage(tmp_path / "results.csv", kind)
    with pytest.raises((ValueError, OSError), match="results.csv"):
        write_report([str(run)], tmp_path / "report.html")


METRICS = "step,metric,value\n1,val/psnr,20.0\n"


@kinds
def test_own_metrics_without_a_row_are_begun_anew_and_others_are_refused(tmp_path, kind):
    path = tmp_path / "metrics.csv"
    damage(path, kind)

    def read():
        MetricsCsv(tmp_path).drop_rows_after(5, validated=True)

    if kind == "empty":
        read()
        assert read_metrics(path) == []
    else:
        own_error(read, path, error=(ValueError, OSError))


@pytest.mark.parametrize("content", ["", "step", "step,metric,value", "step,metric,value\n"])
def test_metrics_that_a_killed_process_had_begun_are_begun_anew(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    MetricsCsv(tmp_path).log_metrics({"val/psnr": 20.0}, step=1)
    assert path.read_text() == METRICS


@pytest.mark.parametrize("blank", ["\n", "\r\n", " \n", ",,\n"])
def test_blank_rows_in_the_own_metrics_are_dropped(tmp_path, blank):
    path = tmp_path / "metrics.csv"
    path.write_text(METRICS + blank + "2,val/psnr,21.0\n" + blank)
    MetricsCsv(tmp_path).drop_rows_after(2, validated=True)
    assert path.read_text() == METRICS + "2,val/psnr,21.0\n"


@pytest.mark.parametrize("row", ["x,a,1", "1,a,b", "1,a", "1,a,1,1", "\x00"])
def test_a_damaged_row_of_the_own_metrics_is_refused_by_name(tmp_path, row):
    path = tmp_path / "metrics.csv"
    path.write_text(METRICS + row + "\n2,a,3\n")
    own_error(lambda: MetricsCsv(tmp_path).drop_rows_after(2, validated=True), path)
    assert path.read_text() == METRICS + row + "\n2,a,3\n"


@kinds
def test_what_a_first_stage_wrote_down_tells_nothing_where_it_is_damaged(tmp_path, kind):
    (tmp_path / "metrics.csv").write_text(METRICS)
    damage(tmp_path / "summary.json", kind)
    assert read_training_record(tmp_path, step=1) == TrainingRecord({"val/psnr": 20.0})
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    damage(tmp_path / "metrics.csv", kind)
    assert read_training_record(tmp_path, step=1) == TrainingRecord()


@kinds
def test_the_status_of_a_sweep_shows_a_damaged_job(tmp_path, kind):
    good, strange = (Job((), write_run(tmp_path / name)) for name in ("0_good", "1_strange"))
    damage(strange.folder / "summary.json", kind)
    for name in ("config.yaml", "metrics.csv", "chain.json"):
        damage(good.folder / name, kind)
    assert status_at_rest(good).state == "finished"
    found = status_at_rest(strange)
    assert found.state == "failed"
    assert str(strange.folder / "summary.json") in found.note


@pytest.mark.parametrize(
    "strange",
    [
        {"metrics": {"val/psnr": "high"}},
        {"timing": {"total_s": "long"}},
        {"steps": {"first_stage": 3}},
        {"reason": ["a", {"b": 1}]},
        {"protocol": {"val/psnr": 1}, "name": {"x": 1}, "device": [1]},
    ],
)
def test_values_of_another_kind_hide_no_run(tmp_path, strange):
    run = write_run(tmp_path / "run", **strange)
    (run / "config.yaml").write_text("monitor: [a]\nmax_steps: many\n")
    (run / "chain.json").write_text('{"steps": [{"name": ["x"]}, 3]}')
    assert status_at_rest(Job((), run)).line
    assert write_report([str(tmp_path)], tmp_path / "report.html").num_runs == 1
    assert read_training_record(run, step=1) == TrainingRecord()


@kinds
def test_the_record_of_a_sweep_and_of_a_chain_are_refused_by_name(tmp_path, kind):
    damage(tmp_path / "sweep.json", kind)
    damage(tmp_path / "chain.json", kind)
    own_error(lambda: keep_record(tmp_path, [], module="train", threads=1), tmp_path / "sweep.json")
    own_error(lambda: Chain.load(tmp_path / "chain.json"), tmp_path / "chain.json")


@kinds
def test_a_latent_cache_with_a_damaged_index_or_statistics_is_refused_by_name(tmp_path, kind):
    damage(tmp_path / "index.json", kind)
    damage(tmp_path / "statistics.json", kind)
    own_error(lambda: LatentIndex.load(tmp_path), tmp_path / "index.json", error=LatentCacheError)
    path = tmp_path / "statistics.json"
    own_error(lambda: StoredStatistics.load(path), path)


@kinds
def test_a_damaged_evaluation_is_made_anew(tmp_path, kind, caplog):
    cache = EvaluationCache(tmp_path, {"images": "a"})
    record = FirstStageRecord({"psnr": 20.0}, {}, 10.0, 4, (3, 8, 8))
    grid = tmp_path / "grid.png"
    grid.write_bytes(b"")
    cache.save(record, grid)
    assert cache.load() == record
    damage(cache.path, kind)
    assert cache.load() is None
    if cache.path.is_file():
        assert str(cache.path) in caplog.text
    if not cache.path.is_dir():  # a folder in its place is left alone
        cache.save(record, grid)
        assert cache.load() == record


def test_a_reader_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "run")
    for name in ("config.yaml", "summary.json", "chain.json", "metrics.csv"):
        damage(run / name, "a_tag")
    write_report([str(tmp_path)], tmp_path / "report.html")
    status_at_rest(Job((), run))
    assert not (tmp_path / "was_run").exists()
    with pytest.raises(SmallFileError):
        RunFolder(run).read_summary()
