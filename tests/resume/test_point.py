"""From which checkpoint a run goes on, and that no other one is lost."""

import pytest
import torch

from ldm_lightning.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from ldm_lightning.reporting.metrics_csv import MetricsCsv
from ldm_lightning.resume.point import go_back, resume_point
from ldm_lightning.runs.run_folder import RunFolder


@pytest.fixture
def run(tmp_path):
    """Checkpoints by name and update, and rows up to an update."""

    def make(rows: int = 0, **steps: int) -> RunFolder:
        folder = RunFolder.create(tmp_path / "run")
        for name, step in steps.items():
            content = {"global_step": step, "state_dict": {"a": torch.tensor(float(step))}}
            save_checkpoint(content, folder.checkpoints / f"{name}.ckpt")
        log = MetricsCsv(folder.path)
        for step in range(1, rows + 1):
            log.log_metrics({"train/loss_total": 1.0}, step=step)
        return folder

    return make


def point(folder, resume=None, *, first_save=2):
    path = resume_point(folder, str(resume or folder.path), first_save=first_save)
    return path and path.name


def steps_of(folder):
    return {
        path.stem: load_checkpoint(path)["global_step"] for path in folder.checkpoints.iterdir()
    }


def test_a_run_goes_on_from_its_last_or_the_named_checkpoint(run):
    folder = run(rows=9, last=9, best=6, mine=3)
    assert point(folder) == "last.ckpt"
    for name in ("last", "best", "mine"):
        assert point(folder, folder.checkpoints / f"{name}.ckpt") == f"{name}.ckpt"


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_a_run_killed_before_its_first_checkpoint_starts_anew(run, rows):
    assert point(run(rows=rows)) is None


def test_without_its_checkpoints_a_run_is_not_started_anew(run):
    with pytest.raises(ValueError, match=r"metrics\.csv.*update 3"):
        point(run(rows=3))


def test_a_run_killed_between_its_first_two_files_goes_on_from_the_one(run):
    folder = run(rows=2, best=2)
    assert point(folder) == "best.ckpt"
    go_back(folder, folder.checkpoints / "best.ckpt")
    assert steps_of(folder) == {"best": 2, "last": 2}


@pytest.mark.parametrize("names", [{"best": 6}, {"mine": 9}, {"best": 6, "mine": 3}])
def test_a_missing_last_checkpoint_is_told_with_the_words_for_those_there_are(run, names):
    folder = run(rows=9, **names)
    with pytest.raises(ValueError, match=r"last\.ckpt") as told:
        point(folder)
    for name in names:
        assert f"resume={folder.checkpoints / f'{name}.ckpt'}" in str(told.value)
    assert steps_of(folder) == names


def test_a_damaged_last_checkpoint_is_told_with_the_words_for_the_best(run):
    folder = run(rows=9, last=9, best=6)
    path = folder.checkpoints / "last.ckpt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"last\.ckpt.*damaged.*resume=.*best\.ckpt"):
        point(folder)
    go_back(folder, folder.checkpoints / "best.ckpt")
    assert steps_of(folder) == {"best": 6, "last": 6}


def test_a_named_checkpoint_that_is_not_there_is_told(run):
    folder = run(rows=9, last=9, best=6)
    with pytest.raises(ValueError, match=r"typo\.ckpt.*best\.ckpt.*last\.ckpt"):
        point(folder, folder.checkpoints / "typo.ckpt")


def test_going_back_keeps_what_is_newer_and_says_how_much(run, caplog):
    folder = run(rows=9, last=9, best=6, mine=3)
    go_back(folder, folder.checkpoints / "mine.ckpt")
    assert steps_of(folder) == {
        "mine": 3,
        "last": 3,
        "last_of_update_9": 9,
        "best_of_update_6": 6,
    }
    for number in ("update 9 to update 3", "update 6 to update 3", "4 to 9"):
        assert number in caplog.text


def test_the_last_checkpoint_is_nothing_to_go_back_to(run, caplog):
    folder = run(rows=9, last=9, best=6)
    go_back(folder, folder.checkpoints / "last.ckpt")
    assert steps_of(folder) == {"last": 9, "best": 6}
    assert not caplog.text
