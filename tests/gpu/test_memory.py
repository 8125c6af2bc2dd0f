"""``plan`` counts the memory that an update takes on the device."""

import json

import pytest

from tests.cli.run import command

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings(
        "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
    ),
]

GPU_SIZE = ("scale=gpu", "resolution=128", "data.batch_size=16")
CPU_SIZE = ("scale=cpu", "resolution=32", "data.batch_size=4")


@pytest.mark.parametrize("experiment", ["kl_f8", "ldm_kl_f8"])
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_planned_memory_is_what_was_allocated(tmp_path, device, experiment, precision):
    on_gpu = device.type == "cuda"
    words = [
        f"experiment={experiment}",
        "data=shapes",
        "features=tiny",
        f"trainer.precision={precision}",
        f"trainer={'gpu' if on_gpu else 'cpu'}",
        *(GPU_SIZE if on_gpu else CPU_SIZE),
        f"output={tmp_path / 'plan.json'}",
    ]
    ended = command("plan", words, tmp_path)
    assert ended.code == 0, ended.output
    facts = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    allocated, planned = facts["time"]["measured_peak_bytes"], facts["memory"]["sum"]
    assert allocated > 0
    if on_gpu:  # on a CPU the whole process is measured, libraries included
        assert allocated == pytest.approx(planned, rel=0.15)
