"""A continued run validates where the updates ask for it, whatever was saved and has changed."""

import os
import signal
from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ldm_lightning.callbacks.checkpointing import Checkpointing
from ldm_lightning.callbacks.run_summary import RunSummary
from ldm_lightning.checkpoints.checkpoint import load_checkpoint
from ldm_lightning.module.update_loop import check_length
from ldm_lightning.reporting.metrics_csv import MetricsCsv
from ldm_lightning.reporting.metrics_file import read_metrics
from ldm_lightning.runs.run_folder import RunFolder
from tests.callbacks.tiny_module import TinyModule, fit, make_trainer

NUM_STEPS = 12  # validated after 5, 10 and, because it is the last, 12


class Validated(TinyModule):
    """Is validated after the last update too, as the modules of both stages are."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.global_step >= self.trainer.max_steps:
            self.trainer.should_stop = True


class KilledError(BaseException):
    """Ends a run at once; nothing saves on it."""


class EndIn(pl.Callback):
    """Ends the run in a hook after an update: at once, or by a signal that asks it to stop.

    ``late`` runs the hook after that of the callback that saves.
    """

    def __init__(self, hook: str, step: int, sent: int | None = None, *, late: bool = False):
        self.step, self.sent, self.late = step, sent, late
        setattr(self, hook, self._end)

    def _end(self, trainer, *_):
        if trainer.global_step == self.step:
            if self.sent is None:
                raise KilledError
            os.kill(os.getpid(), self.sent)


def run(path: Path, *ends: EndIn, steps=NUM_STEPS, every=5, save_every=1000) -> list[int]:
    """Start or continue a run; returns the updates that were validated."""
    folder = RunFolder.create(path)
    checkpointing = Checkpointing(folder, monitor=None, every_num_steps=save_every)
    trainer = make_trainer(
        [RunSummary(folder), checkpointing],
        max_steps=steps,
        val_check_interval=every,
        logger=MetricsCsv(folder.path),
    )
    for end in ends:
        trainer.callbacks.insert(len(trainer.callbacks) if end.late else 0, end)
    module = Validated()
    last = checkpointing.last_path
    try:
        fit(trainer, module, last if last.exists() else None)
    except (KilledError, SIGTERMException):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return module.validated_at


def rows_of(path: Path) -> list[tuple[int, str, float]]:
    rows = read_metrics(path / "metrics.csv")
    assert len({(step, name) for step, name, _ in rows}) == len(rows)
    return rows


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("uninterrupted")
    assert run(path) == [5, 10, 12]
    return rows_of(path)


ENDS = {
    "SIGTERM, then killed before a second save": lambda step: [
        EndIn("on_train_batch_start", step - 1, signal.SIGTERM, late=True),
        EndIn("on_exception", step),
    ],
    "SIGTERM": lambda step: [EndIn("on_train_batch_start", step - 1, signal.SIGTERM, late=True)],
    "killed as the validation begins": lambda step: [EndIn("on_validation_start", step)],
    "SIGTERM in the validation": lambda step: [
        EndIn("on_validation_batch_end", step, signal.SIGTERM)
    ],
    "killed when its rows are written": lambda step: [EndIn("on_validation_end", step)],
    "killed when it is saved": lambda step: [EndIn("on_validation_end", step, late=True)],
}


@pytest.mark.parametrize(
    ("step", "save_every"),
    [
        (5, 1000),
        (12, 1),
        pytest.param(12, 1000, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS.keys())
def test_a_validation_is_done_once_wherever_the_run_was_ended(
    tmp_path, uninterrupted, ends, step, save_every
):
    run(tmp_path, *ends(step), save_every=save_every)
    run(tmp_path, save_every=save_every)
    assert rows_of(tmp_path) == uninterrupted
    assert load_checkpoint(tmp_path / "checkpoints/last.ckpt")["global_step"] == NUM_STEPS


@pytest.mark.parametrize(
    ("stopped_at", "every", "expected"),
    [
        (7, 4, [8, 12]),
        (8, 4, [8, 12]),  # due by the new interval alone
        (5, 4, [8, 12]),  # the validation that was missing is no longer due
        (5, 5, [5, 10, 12]),
        (7, 100, [12]),
    ],
)
def test_another_interval_holds_from_the_next_update_on(tmp_path, stopped_at, every, expected):
    stop = EndIn("on_train_batch_start", stopped_at - 1, signal.SIGTERM, late=True)
    validated = [5] if stopped_at > 5 else []
    assert run(tmp_path, stop) == validated
    assert run(tmp_path, every=every) == expected


@pytest.mark.parametrize(
    ("stopped_at", "steps", "expected"),
    [
        (NUM_STEPS, 17, [15, 17]),  # finished, and made longer
        (NUM_STEPS, NUM_STEPS, []),  # finished: nothing to do
        (8, 9, [9]),
        (8, 8, [8]),  # shortened to where it is: the last update is validated
    ],
)
def test_another_length_holds(tmp_path, stopped_at, steps, expected):
    run(tmp_path, EndIn("on_train_batch_start", stopped_at - 1, signal.SIGTERM, late=True))
    if stopped_at == NUM_STEPS:
        assert run(tmp_path) == [12]
    assert run(tmp_path, steps=steps) == expected
    assert load_checkpoint(tmp_path / "checkpoints/last.ckpt")["global_step"] == steps
    assert RunFolder(tmp_path).read_summary()["state"] == "finished"


def test_fewer_updates_than_are_done_are_refused():
    check_length(8, done=8, path=Path("last.ckpt"))
    with pytest.raises(ValueError, match=r"max_steps=7.* 8 .*last\.ckpt"):
        check_length(7, done=8, path=Path("last.ckpt"))
