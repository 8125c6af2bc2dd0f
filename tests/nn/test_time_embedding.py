"""The time embedding against its formula, one number at a time."""

import math

import pytest
import torch

from ldm_lightning.nn.time_embedding import TimeEmbedding, sinusoidal_embedding


def test_cosines_come_before_sines_at_frequencies_from_one_down():
    times = torch.tensor([0.0, 3.5, 999.0], dtype=torch.float64)
    found = sinusoidal_embedding(times, 8)
    for row, time in enumerate(times.tolist()):
        angles = [time * 10_000 ** (-i / 4) for i in range(4)]
        expected = [*map(math.cos, angles), *map(math.sin, angles)]
        assert found[row].tolist() == pytest.approx(expected, abs=1e-12)


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match=r"\b7\b"):
        sinusoidal_embedding(torch.zeros(1), 7)


def test_half_precise_times_are_embedded_as_exactly_as_float32_has_them():
    embedding = TimeEmbedding(width=16, out_width=4)
    times = torch.tensor([1.0, 500.0, 998.0])
    assert torch.equal(embedding(times.to(torch.float16)), embedding(times))


def test_the_two_linear_layers_have_their_published_names():
    names = TimeEmbedding(width=16, out_width=4).state_dict().keys()
    assert set(names) == {"0.weight", "0.bias", "2.weight", "2.bias"}
