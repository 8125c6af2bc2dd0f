import importlib.util

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ldm_lightning.reporting.tensorboard import TensorBoardDashboard


def test_a_continued_run_hides_what_it_writes_again(tmp_path):
    first = TensorBoardDashboard(tmp_path)
    for step in (1, 2, 3):
        first.log_metrics({"val/psnr": 10.0 + step}, step=step)
    first.finalize("failed")
    second = TensorBoardDashboard(tmp_path)
    second.drop_rows_after(2, validated=True)
    second.log_metrics({"val/psnr": 20.0}, step=3)
    second.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    seen = [(event.step, event.value) for event in events.Scalars("val/psnr")]
    assert seen == [(1, 11.0), (2, 12.0), (3, 20.0)]


def test_bars_keep_their_places_and_moments(tmp_path):
    logger = TensorBoardDashboard(tmp_path)
    logger.log_histogram("codebook/histogram", [3, 0, 5], [0, 1, 2, 4], step=7)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (event,) = events.Histograms("codebook/histogram")
    value = event.histogram_value
    assert event.step == 7
    assert (value.bucket, value.bucket_limit) == ([3, 0, 5], [1, 2, 4])
    drawn = np.array([0.5] * 3 + [3.0] * 5)
    assert (value.num, value.min, value.max) == (8, 0, 4)
    assert (value.sum, value.sum_squares) == (drawn.sum(), (drawn**2).sum())


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'ldm_lightning\[tensorboard\]'"):
        TensorBoardDashboard(tmp_path)


def test_its_files_lie_in_the_run_folder_whatever_that_is_called(tmp_path, monkeypatch):
    monkeypatch.setenv("LR", "1e-3")
    folder = tmp_path / "$LR"
    logger = TensorBoardDashboard(folder)
    logger.log_hyperparams({"seed": 0})
    logger.log_metrics({"val/psnr": 1.0}, step=1)
    logger.finalize("success")
    (written,) = tmp_path.glob("**/*.*")
    assert written.parent == folder / "tensorboard"
    assert written.name.startswith("events.")
