"""A device without memory ends a command in one line that names keys and bytes."""

import re

import pytest
import torch

from ldm_lightning import evaluate
from ldm_lightning.module.autoencoder import AutoencoderModule
from ldm_lightning.module.diffusion import DiffusionModule
from ldm_lightning.utils.errors import is_out_of_memory
from tests.cli.run import command, tiny
from tests.cli.second_stage import tiny_second, trained_first_stage

SAID = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 1 GiB."
SAID_OF_CPU = "[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"
NUMBER = r"([\d.]+) ([KMG])i?B"


def fails(*args, **kwargs):
    raise torch.OutOfMemoryError(SAID)


def bytes_in(text):
    number, unit = re.fullmatch(NUMBER, text).groups()
    return float(number) * 1024 ** ("KMG".index(unit) + 1)


def told(ended):
    """The only error, and the bytes by the key they stand behind."""
    assert ended.code == 1, ended.output
    lines = [line for line in ended.output.splitlines() if "ut of memory" in line]
    assert len(lines) == 1
    assert "Traceback" not in ended.output
    found = {key: bytes_in(size) for key, size in re.findall(r"(\S+) \(([^)]*B)\)", lines[0])}
    found["update"] = bytes_in(re.search(rf"needs ({NUMBER})", lines[0]).group(1))
    return lines[0], found


def test_a_first_stage_names_its_keys_with_the_numbers_of_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(AutoencoderModule, "training_step", fails)
    line, found = told(command("train", tiny("kl_f4", data__batch_size=6), tmp_path))
    assert "data.batch_size=3 accumulate_batches=2" in line
    assert "trainer.precision=bf16" in line
    assert found["accumulate_batches=2"] < found["update"]
    assert found["autoencoder.gradient_checkpointing=true"] < found["update"]
    assert "20.00 MiB" in line


@pytest.mark.slow
def test_a_second_stage_names_its_own(tmp_path, monkeypatch):
    first = trained_first_stage(tmp_path, max_steps=2)
    monkeypatch.setattr(DiffusionModule, "training_step", fails)
    line, found = told(command("train", tiny_second(first, max_steps=2), tmp_path))
    assert {"denoiser.gradient_checkpointing=true", "accumulate_batches=2"} < found.keys()


def test_commands_that_do_not_train_name_theirs(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "_choose", fails)
    ended = command("evaluate", ["checkpoint=nowhere"], tmp_path)
    assert ended.code == 1
    assert "data.val_batch_size" in ended.said
    assert "Traceback" not in ended.output


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError(SAID), True),
        (RuntimeError(SAID_OF_CPU), True),
        (RuntimeError("shapes differ"), False),
        (MemoryError(), False),
    ],
)
def test_errors_about_memory_are_told_from_others(error, expected):
    assert is_out_of_memory(error) is expected
