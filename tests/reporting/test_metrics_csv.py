import math
import os
import subprocess
import sys
import textwrap

import pytest

from ldm_lightning.reporting.metrics_csv import MetricsCsv
from ldm_lightning.reporting.metrics_file import read_metrics


def test_writes_one_row_a_metric_and_has_them_on_disk_at_once(tmp_path):
    logger = MetricsCsv(tmp_path)
    logger.log_metrics({"train/loss_total": 0.1, "epoch": 0}, step=1)
    assert (tmp_path / "metrics.csv").read_text() == "step,metric,value\n1,train/loss_total,0.1\n"
    logger.log_metrics({"val/psnr": 20.5, "val/rfid": math.nan}, step=2)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert rows[:2] == [(1, "train/loss_total", 0.1), (2, "val/psnr", 20.5)]
    assert math.isnan(rows[2][2])


def test_values_survive_exactly(tmp_path):
    MetricsCsv(tmp_path).log_metrics({"a": 1 / 3, "b": 1e-300, "c": 123456789.123456789}, step=7)
    values = [value for _, _, value in read_metrics(tmp_path / "metrics.csv")]
    assert values == [1 / 3, 1e-300, 123456789.123456789]


def test_a_second_logger_appends(tmp_path):
    for step in (1, 2):
        logger = MetricsCsv(tmp_path)
        logger.log_metrics({"a": 0.5}, step=step)
        logger.finalize("success")
        logger.finalize("success")
    assert read_metrics(tmp_path / "metrics.csv") == [(1, "a", 0.5), (2, "a", 0.5)]


def test_logging_goes_on_after_the_end(tmp_path):
    logger = MetricsCsv(tmp_path)
    logger.log_metrics({"a": 0.5}, step=1)
    logger.finalize("success")
    logger.log_metrics({"b": 1.0}, step=1)
    assert read_metrics(tmp_path / "metrics.csv") == [(1, "a", 0.5), (1, "b", 1.0)]


def test_a_continued_run_drops_what_it_writes_again(tmp_path):
    logger = MetricsCsv(tmp_path)
    logger.drop_rows_after(5, validated=True)  # nothing there yet
    for step in range(1, 8):
        logger.log_metrics({"a": step / 10, "val/b, with comma": 1.0}, step=step)
    logger.drop_rows_after(4, validated=True)
    logger.log_metrics({"a": 5.5}, step=5)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [step for step, name, _ in rows if name == "a"] == [1, 2, 3, 4, 5]
    assert rows[-1] == (5, "a", 5.5)
    assert len(rows) == 9
    assert os.listdir(tmp_path) == ["metrics.csv"]


def test_a_validation_that_is_repeated_is_dropped(tmp_path):
    logger = MetricsCsv(tmp_path)
    for step in (1, 2, 3):
        logger.log_metrics({"train/loss": 0.5}, step=step)
        logger.log_metrics({"val/psnr": 20.0, "gen/fd": 1.0}, step=step)
    logger.drop_rows_after(2, validated=False)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [name for step, name, _ in rows if step == 1] == ["train/loss", "val/psnr", "gen/fd"]
    assert [name for step, name, _ in rows if step > 1] == ["train/loss"]


def test_a_row_that_a_killed_process_left_half_written_is_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,metric,value\n1,a,0.5\n2,a,0.")
    assert read_metrics(path) == [(1, "a", 0.5)]
    MetricsCsv(tmp_path).log_metrics({"a": 0.25}, step=2)
    assert path.read_text() == "step,metric,value\n1,a,0.5\n2,a,0.25\n"


KILLED = """
    import os, signal, sys
    from ldm_lightning.reporting.metrics_csv import MetricsCsv
    logger = MetricsCsv(sys.argv[1])
    logger.log_metrics({"a": 0.5}, step=1)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_process_has_written_what_it_logged(tmp_path):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), tmp_path])
    assert done.returncode == -9
    assert read_metrics(tmp_path / "metrics.csv") == [(1, "a", 0.5)]


def test_a_row_needs_a_step(tmp_path):
    with pytest.raises(ValueError, match=r"\bstep\b.*val/psnr"):
        MetricsCsv(tmp_path).log_metrics({"val/psnr": 1.0})
