"""Losses in full precision under fp16, and the gradient at one layer in half types."""

import pytest
import torch
from torch import nn

from ldm_lightning.module.precision import at_least_float32, gradient_at_layer, loss_precision


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_half_types_alone_are_widened(given, expected):
    assert at_least_float32(torch.ones(2, dtype=given)).dtype == expected


@pytest.mark.parametrize(
    ("autocast", "inside"),
    [(None, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)],
)
def test_losses_leave_fp16_and_stay_in_bf16(autocast, inside):
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        with loss_precision(x):
            assert (x @ x).dtype == inside
        assert (x @ x).dtype == (autocast or torch.float32)


@pytest.mark.parametrize("length", [1.0, 1e6, 1e-9])
def test_the_gradient_at_a_layer_is_that_of_backward_at_any_length(length):
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 2), torch.randn(5, 3)
    gradient = torch.randn(5, 2) * length
    outputs = layer(x)
    expected = gradient.T @ x
    found = gradient_at_layer(outputs, layer.weight, gradient)
    torch.testing.assert_close(found, expected)
    assert layer.weight.grad is None
    half = gradient_at_layer(outputs.to(torch.float16), layer.weight, gradient)
    assert (half - expected).norm() <= 2e-3 * expected.norm()
