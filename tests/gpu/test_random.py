"""Philox gives the CPU's bits on the device, normal numbers up to rounding."""

import pytest
import torch

from ldm_lightning.utils import philox
from ldm_lightning.utils.philox import random_words
from ldm_lightning.utils.random import RowDraws

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _rounds_of_torch(device, monkeypatch):
    """On the CPU under test draw by torch, as on a GPU, and compare with numpy."""
    if device.type == "cpu":
        monkeypatch.setattr(philox, "_on_host", lambda where: where is CPU)


@pytest.mark.parametrize("rows", [range(64), [9, 2, 2**40]])
def test_words_have_the_bits_of_the_cpu(device, rows):
    key = (0xD1B54A32D192ED03, 0x2545F4914F6CDD1D)
    words = random_words(key, 2**63 + 1, rows, blocks_a_row=100, device=device)
    expected = random_words(key, 2**63 + 1, rows, blocks_a_row=100, device=CPU)
    assert torch.equal(words.cpu(), expected)


def test_numbers_are_those_of_the_cpu(device):
    draws = RowDraws(seed=1, step=5, rows=range(64))
    uniform = draws.uniform("time", device=device)
    assert torch.equal(uniform.cpu(), draws.uniform("time", device=CPU))
    noise = draws.normal("noise", (4, 16, 16), like=torch.empty(0, device=device))
    expected = draws.normal("noise", (4, 16, 16), like=torch.empty(0, device=CPU))
    torch.testing.assert_close(noise.cpu(), expected, rtol=1e-5, atol=1e-5)
