"""Noise as a function of (seed, purpose, step, row)."""

import torch

from ldm_lightning.utils.random import derive_seed, normal_rows


def draw(num_rows, **changes):
    options = {"seed": 1, "purpose": "posterior", "step": 5, "first_row": 0}
    return normal_rows((num_rows, 4, 8, 8), **(options | changes))


def test_two_processes_draw_the_rows_of_one():
    both = torch.cat([draw(4), draw(4, first_row=4)])
    assert torch.equal(both, draw(8))


def test_every_part_of_the_key_changes_the_noise():
    reference = draw(2)
    for change in ({"seed": 2}, {"purpose": "other"}, {"step": 6}, {"first_row": 1}):
        assert not torch.equal(draw(2, **change), reference)


def test_the_noise_is_standard_normal():
    noise = draw(200)
    assert abs(noise.mean().item()) < 0.01
    assert abs(noise.std().item() - 1) < 0.01


def test_double_precision_sees_the_same_values():
    assert torch.equal(draw(2, dtype=torch.float64).float(), draw(2))


def test_seeds_do_not_depend_on_where_parts_are_joined():
    assert derive_seed("a", "bc") != derive_seed("ab", "c")
