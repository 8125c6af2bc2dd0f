"""Conditions: stacking two for guidance, and refusing those that do not fit a denoiser."""

import pytest
import torch

from ldm_lightning.nn.condition import Condition, check_inputs, stack

NOISY = torch.zeros(2, 4, 8, 8)
TIMES = torch.zeros(2)
FITS = {"in_channels": 4, "vector_width": 6, "context_width": None}


def test_stacked_conditions_hold_the_unconditional_rows_first():
    first = Condition(vector=torch.zeros(2, 3), concat=torch.zeros(2, 1, 4, 4))
    second = Condition(vector=torch.ones(2, 3), concat=torch.ones(2, 1, 4, 4))
    both = stack(first, second)
    assert both.context is None
    assert both.vector[:, 0].tolist() == [0, 0, 1, 1]
    assert both.concat[:, 0, 0, 0].tolist() == [0, 0, 1, 1]
    assert stack(Condition(), Condition()) == Condition()


def test_conditions_of_other_parts_are_not_stacked():
    vector = Condition(vector=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"\bconditional\b.*'vector'"):
        stack(Condition(), vector)
    with pytest.raises(ValueError, match=r"unconditional\b.*'vector'"):
        stack(vector, Condition())


@pytest.mark.parametrize(
    ("condition", "fits"),
    [
        (Condition(), FITS),
        (Condition(vector=torch.zeros(2, 6)), FITS),
        (Condition(concat=torch.zeros(2, 3, 8, 8)), FITS | {"in_channels": 7}),
        (Condition(context=torch.zeros(2, 5, 9)), FITS | {"context_width": 9}),
    ],
)
def test_what_fits_is_accepted(condition, fits):
    assert check_inputs(NOISY, TIMES, condition, **fits) is None


@pytest.mark.parametrize(
    ("condition", "fits", "named"),
    [
        (Condition(concat=torch.zeros(2, 3, 8, 8)), FITS, r"in_channels=4\b.*\b7\."),
        (Condition(concat=torch.zeros(2, 3, 4, 8)), FITS | {"in_channels": 7}, r"8x8.*4x8"),
        (Condition(vector=torch.zeros(2, 5)), FITS, r"\[2, 6\].*\[2, 5\]"),
        (Condition(vector=torch.zeros(1, 6)), FITS, r"\[2, 6\].*\[1, 6\]"),
        (Condition(context=torch.zeros(2, 5, 9)), FITS, r"denoiser\.context_width"),
        (Condition(), FITS | {"context_width": 9}, r"context_width=9\b"),
        (Condition(context=torch.zeros(2, 5, 8)), FITS | {"context_width": 9}, r"\[2, n, 9\]"),
    ],
)
def test_what_does_not_fit_is_named(condition, fits, named):
    with pytest.raises(ValueError, match=named):
        check_inputs(NOISY, TIMES, condition, **fits)


def test_times_must_be_one_a_sample():
    with pytest.raises(ValueError, match=r"\[2\].*\[3\]"):
        check_inputs(NOISY, torch.zeros(3), Condition(), **FITS)
