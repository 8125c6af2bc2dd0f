"""Noise as a function of (seed, purpose, step, row)."""

import pytest
import torch
from scipy import stats

from ldm_lightning.utils import philox
from ldm_lightning.utils.random import RowDraws, box_muller, derive_seed

SINGLE = torch.empty(0)


def rows(numbers, **changes):
    return RowDraws(**({"seed": 1, "step": 5, "rows": numbers} | changes))


def normal(draws, purpose="posterior", *, like=SINGLE):
    return draws.normal(purpose, (4, 8, 8), like=like)


def odd_normal(draws, purpose="posterior"):
    return draws.normal(purpose, (3, 5, 1), like=SINGLE)


def uniform(draws, purpose="posterior"):
    return draws.uniform(purpose, device=torch.device("cpu"))


DRAWS = pytest.mark.parametrize("draw", [normal, odd_normal, uniform])


@DRAWS
@pytest.mark.parametrize("parts", [[4, 4], [1, 6, 1]])
def test_processes_draw_the_rows_of_one(draw, parts):
    pieces = torch.arange(8).split(parts)
    drawn = [draw(rows(range(int(part[0]), int(part[-1]) + 1))) for part in pieces]
    assert torch.equal(torch.cat(drawn), draw(rows(range(8))))


@DRAWS
def test_rows_come_in_the_order_asked_for(draw):
    assert torch.equal(draw(rows([6, 2, 3])), draw(rows(range(8)))[[6, 2, 3]])


@DRAWS
def test_every_part_of_the_key_changes_the_numbers(draw):
    reference = draw(rows(range(2)))
    others = [
        draw(rows(range(2), seed=2)),
        draw(rows(range(2), step=6)),
        draw(rows(range(2, 4))),
        draw(rows(range(2)), "other"),
    ]
    for other in others:
        # of 24 bits alone some coincide: 512 pairs of 16 million
        assert torch.isin(other, reference).sum() <= 1


@DRAWS
def test_numpy_and_torch_give_the_same_numbers(monkeypatch, draw):
    by_numpy = draw(rows(range(3)))
    monkeypatch.setattr(philox, "_on_host", lambda device: False)
    assert torch.equal(draw(rows(range(3))), by_numpy)


def test_the_noise_is_standard_normal():
    noise = normal(rows(range(2000))).double().flatten()  # 512,000 numbers
    # within four standard deviations of each estimate
    assert abs(noise.mean().item()) < 4 * 512_000**-0.5
    assert abs(noise.square().mean().item() - 1) < 4 * (2 / 512_000) ** 0.5
    assert abs(noise.pow(3).mean().item()) < 4 * (15 / 512_000) ** 0.5
    assert abs(noise.pow(4).mean().item() - 3) < 4 * (96 / 512_000) ** 0.5
    assert stats.kstest(noise.numpy(), "norm").pvalue > 1e-3


def test_the_two_numbers_of_a_word_are_uncorrelated():
    noise = normal(rows(range(2000))).flatten(1)
    cosines, sines = noise.double().chunk(2, dim=1)
    assert abs((cosines * sines).mean().item()) < 4 * 256_000**-0.5
    assert abs((cosines.square() * sines.square()).mean().item() - 1) < 4 * (8 / 256_000) ** 0.5


def test_no_word_gives_infinite_noise():
    halves = torch.tensor([[-(2**31), 2**31 - 1, 0, -1]], dtype=torch.int32)
    words = torch.cat([halves, halves.flip(1)], dim=1).view(torch.int64)
    assert box_muller(words).abs().max() < 5.8


def test_the_uniform_numbers_fill_the_unit_interval_evenly():
    numbers = uniform(rows(range(20_000)))
    assert numbers.dtype == torch.float64
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert stats.kstest(numbers.numpy(), "uniform").pvalue > 1e-3
    assert torch.equal(numbers * 2**53, (numbers * 2**53).round())


def test_double_precision_sees_the_same_values():
    double = normal(rows(range(2)), like=SINGLE.double())
    assert double.dtype == torch.float64
    assert torch.equal(double.float(), normal(rows(range(2))))


def test_seeds_do_not_depend_on_where_parts_are_joined():
    assert derive_seed("a", "bc") != derive_seed("ab", "c")
