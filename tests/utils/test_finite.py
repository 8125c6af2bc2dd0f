"""Which tensors hold what is not finite."""

import math

import pytest
import torch

from ldm_lightning.utils.finite import not_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_every_type_and_value_is_found_wherever_it_is(dtype, value):
    content = {
        "weights": {"a": torch.ones(3, dtype=dtype), "b": torch.zeros((), dtype=dtype)},
        "states": [{"m": torch.zeros(2, 2, dtype=dtype)}, (torch.zeros(0), torch.arange(3))],
        "text": "nan",
        "number": math.nan,
    }
    assert not_finite(content) == []
    content["states"][0]["m"][1, 0] = value
    content["weights"]["b"].fill_(value)
    assert not_finite(content) == ["weights.b", "states.0.m"]


def test_large_finite_values_are_finite():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        largest = torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)
        assert not_finite([largest, -largest]) == []


def test_nothing_is_finite():
    assert not_finite({}) == not_finite({"a": [torch.tensor([1, 2])]}) == []
