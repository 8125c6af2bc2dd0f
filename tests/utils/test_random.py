"""Noise as a function of (seed, purpose, step, row)."""

import pytest
import torch

from ldm_lightning.utils.random import RowDraws, derive_seed

SINGLE = torch.empty(0)


def rows(num_rows, **changes):
    return RowDraws(**({"seed": 1, "step": 5, "first_row": 0, "num_rows": num_rows} | changes))


def normal(draws, purpose="posterior", *, like=SINGLE):
    return draws.normal(purpose, (4, 8, 8), like=like)


def uniform(draws, purpose="posterior"):
    return draws.uniform(purpose, device=torch.device("cpu"))


@pytest.mark.parametrize("draw", [normal, uniform])
def test_two_processes_draw_the_rows_of_one(draw):
    both = torch.cat([draw(rows(4)), draw(rows(4, first_row=4))])
    assert torch.equal(both, draw(rows(8)))


@pytest.mark.parametrize("draw", [normal, uniform])
def test_every_part_of_the_key_changes_the_numbers(draw):
    reference = draw(rows(2))
    for change in ({"seed": 2}, {"step": 6}, {"first_row": 1}):
        assert not torch.equal(draw(rows(2, **change)), reference)
    assert not torch.equal(draw(rows(2), "other"), reference)


def test_the_noise_is_standard_normal():
    noise = normal(rows(200))
    assert abs(noise.mean().item()) < 0.01
    assert abs(noise.std().item() - 1) < 0.01


def test_the_uniform_numbers_fill_the_unit_interval_evenly():
    numbers = uniform(rows(2000))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, bins=4, min=0, max=1)
    assert (counts - 500).abs().max() < 80  # four standard deviations


def test_double_precision_sees_the_same_values():
    double = normal(rows(2), like=SINGLE.double())
    assert double.dtype == torch.float64
    assert torch.equal(double.float(), normal(rows(2)))


def test_seeds_do_not_depend_on_where_parts_are_joined():
    assert derive_seed("a", "bc") != derive_seed("ab", "c")
