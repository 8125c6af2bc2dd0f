"""How long a sweep will still take."""

from pathlib import Path

from ldm_lightning.jobs.sweep.jobs import Job
from ldm_lightning.jobs.sweep.reached import Reached
from ldm_lightning.jobs.sweep.remaining import Remaining
from ldm_lightning.jobs.sweep.status import Status


def statuses(*found: tuple[str, int]) -> list[Status]:
    """Jobs of 100 updates: the state of each, and its updates."""
    return [
        Status(Job((), Path(str(i))), state, Reached(state, step=step, max_steps=100))
        for i, (state, step) in enumerate(found)
    ]


def seconds_left(before, now, *, elapsed: float) -> float | None:
    times = iter([0.0, elapsed])
    remaining = Remaining(lambda: next(times))
    assert remaining.seconds(statuses(*before)) is None
    return remaining.seconds(statuses(*now))


def test_what_is_left_takes_as_long_as_what_was_done():
    before = [("running", 0), ("running", 0), ("waiting", 0), ("waiting", 0)]
    now = [("finished", 100), ("running", 50), ("waiting", 0), ("waiting", 0)]
    assert seconds_left(before, now, elapsed=30.0) == 30.0 / 1.5 * 2.5


def test_what_was_done_before_this_start_took_none_of_its_time():
    before = [("finished", 100), ("running", 50), ("waiting", 0)]
    now = [("finished", 100), ("early_stopped", 60), ("waiting", 0)]
    assert seconds_left(before, now, elapsed=10.0) == 20.0


def test_failed_jobs_are_not_waited_for():
    before = [("running", 0), ("running", 0), ("waiting", 0)]
    now = [("failed", 90), ("running", 50), ("waiting", 0)]
    assert seconds_left(before, now, elapsed=10.0) == 30.0


def test_nothing_is_said_too_early_or_at_the_end():
    assert seconds_left([("running", 0)], [("running", 1)], elapsed=10.0) is None
    assert seconds_left([("running", 0)], [("finished", 100)], elapsed=10.0) is None
