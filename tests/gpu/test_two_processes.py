"""Two processes, one a GPU and talking by NCCL, log what one process does."""

import pytest
import torch

from ldm_lightning.reporting.metrics_file import read_metrics
from ldm_lightning.runs.run_folder import RunFolder
from tests.cli.run import process, run_folder, tiny

pytestmark = pytest.mark.gpu

NUM_UPDATES = 2


def losses(folder, experiment, *, num_processes, on_gpu):
    """Every training value of a run of both updates, by update and name."""
    folder.mkdir()
    trainer = ("ddp" if on_gpu else "ddp_cpu") if num_processes > 1 else "gpu" if on_gpu else "cpu"
    words = tiny(
        experiment,
        trainer=trainer,
        trainer__devices=num_processes,
        max_steps=NUM_UPDATES,
        features="tiny",
        data__batch_size=8 // num_processes,
        discriminator__normalization="group",
        loss__discriminator_start_steps=0,
    )
    environment = {"NVIDIA_TF32_OVERRIDE": "0"}
    ended = process(["-m", "ldm_lightning.train", *words], folder, env=environment)
    assert ended.code == 0, ended.output
    rows = read_metrics(RunFolder(run_folder(folder, experiment)).metrics)
    return {(step, name): value for step, name, value in rows if name.startswith("train/")}


@pytest.mark.parametrize("experiment", ["kl_f8", "vq_f8"])
def test_two_processes_train_as_one_does(tmp_path, device, experiment):
    on_gpu = device.type == "cuda"
    if on_gpu and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    one, two = (
        losses(tmp_path / str(number), experiment, num_processes=number, on_gpu=on_gpu)
        for number in (1, 2)
    )
    assert {step for step, _ in one} == {1, 2}
    assert two.keys() == one.keys()
    assert two == pytest.approx(one, rel=2e-3, abs=1e-4)
