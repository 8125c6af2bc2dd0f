"""One update of either stage equals the CPU's in float32, bf16 and fp16, and compiled."""

import pytest
import torch

from tests.gpu.updates import STAGES, first_stage, update
from tests.module.small import quantizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings(
        "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
    ),
]

CPU = torch.device("cpu")
TOLERANCES = {"32": 1e-3, "fp16": 2e-2, "bf16": 1e-1}
"""Largest relative difference of the change of all weights as one vector, and of what is logged."""


def assert_close(actual, expected, *, tolerance):
    difference = (actual.change - expected.change).norm() / expected.change.norm()
    assert difference < tolerance
    assert actual.logged == pytest.approx(expected.logged, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", TOLERANCES)
def test_an_update_equals_that_of_the_cpu_in_float32(tmp_path, device, stage, precision):
    build = STAGES[stage]
    expected = update(build(tmp_path), tmp_path, CPU, "32")
    actual = update(build(tmp_path), tmp_path, device, precision)
    assert expected.change.norm() > 1e-3
    assert_close(actual, expected, tolerance=TOLERANCES[precision])


def test_a_quantized_update_equals_that_of_the_cpu(tmp_path, device):
    def build():
        return first_stage(tmp_path, bottleneck=quantizer(restart_every_steps=1))

    expected = update(build(), tmp_path, CPU, "32")
    actual = update(build(), tmp_path, device, "32")
    assert_close(actual, expected, tolerance=TOLERANCES["32"])


@pytest.mark.parametrize("stage", STAGES)
def test_a_compiled_update_equals_a_plain_one(tmp_path, device, stage):
    module = STAGES[stage](tmp_path)
    for network in module.networks:
        network.compile(backend="inductor" if device.type == "cuda" else "aot_eager")
    try:
        compiled = update(module, tmp_path, device, "32")
    finally:
        torch.compiler.reset()
    plain = update(STAGES[stage](tmp_path), tmp_path, device, "32")
    assert_close(compiled, plain, tolerance=TOLERANCES["32"])


@pytest.mark.parametrize("stage", STAGES)
def test_channels_last_keeps_the_update(tmp_path, device, stage):
    module = STAGES[stage](tmp_path)
    for network in module.networks:
        network.to(memory_format=torch.channels_last)
    actual = update(module, tmp_path, device, "32")
    expected = update(STAGES[stage](tmp_path), tmp_path, device, "32")
    assert_close(actual, expected, tolerance=TOLERANCES["32"])
