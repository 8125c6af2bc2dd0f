"""``trainer=fsdp``: two processes that hold one half each equal one process that holds the whole.

In float64 and to 1e-10, through the command line: losses, metrics, weights, moving average and the
optimizer's state, with accumulation, clipping, dropped labels, recomputed activations, and a
validation of which the processes have different shares. Two processes run all commands in turn.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from ldm_lightning.checkpoints.checkpoint import CheckpointError, load_checkpoint
from ldm_lightning.checkpoints.sharded import load_sharded
from ldm_lightning.reporting.metrics_file import read_metrics
from ldm_lightning.restore.second_stage import open_second_stage
from ldm_lightning.utils.collectives import local_shard
from tests.cli.run import command, summary_of, tensors_of
from tests.cli.second_stage import tiny_second, trained_first_stage
from tests.distributed.test_ddp import finish, free_port, start
from tests.module.composed import compose_tiny

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)

UNET = {
    "conditioner": "class_label",
    "conditioner__dropout": 0.5,
    "denoiser__gradient_checkpointing": "true",
    "accumulate_batches": 2,
    "optim__clip_norm": 0.1,
    "data__num_val_images": 9,  # three batches for one of two processes, two for the other
    "data__val_batch_size": 2,
    "validation__num_samples": 3,
    "validation__sample_batch_size": 1,
    "first_stage__normalizer": "identity",
}
WITHOUT_SAMPLES = {"validation__num_samples": 0, "monitor": "val/loss", "max_steps": 1}
DIT = {
    **WITHOUT_SAMPLES,
    "experiment": "ldm_dit_s",
    "downsampling_factor": 4,
    "data__num_val_images": 1,  # none for one of two processes
    "first_stage__normalizer": "identity",
}
ONE = {"trainer": "cpu", "data__batch_size": 4}
TWO = {
    "trainer": "fsdp",
    "trainer__accelerator": "cpu",
    "trainer__devices": 2,
    "data__batch_size": 2,
}
TO_ONE = ["trainer.strategy=auto", "trainer.devices=1", "data.batch_size=4"]
TO_TWO = ["trainer.strategy=fsdp", "trainer.devices=2", "data.batch_size=2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder of runs, named for what they are and how many processes they had."""
    folder = tmp_path_factory.mktemp("fsdp")
    first_stage = trained_first_stage(folder / "first_stage", max_steps=1)

    def words(name, settings, **more):
        values = {"experiment": "ldm_kl_f4", **settings, **more, "output_dir": folder / name}
        return tiny_second(first_stage, values.pop("experiment"), **values)

    def alone(words):
        ended = command("train", words, folder)
        assert ended.code == 0, ended.output

    alone(words("dit_from_one", {**DIT, **ONE}))
    commands = [
        words("unet_two", {**UNET, **TWO}),
        words("unet_parts", {**UNET, **TWO}, max_steps=3),
        [f"resume={folder / 'dit_from_one'}", "max_steps=2", *TO_TWO],
        words("unet_two_bf16", {**UNET, **TWO, **WITHOUT_SAMPLES}, trainer__precision="bf16"),
        [f"resume={folder / 'unet_parts'}", "max_steps=4"],
    ]
    (folder / "commands.json").write_text(json.dumps(commands, default=str))
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    logs = [folder / f"rank{rank}.log" for rank in range(2)]
    processes = [
        start(
            ["-m", "tests.distributed.fsdp_processes", str(folder)],
            log,
            cwd=folder,
            LOCAL_RANK=str(rank),
            **shared,
        )
        for rank, log in enumerate(logs)
    ]
    alone(words("unet_one", {**UNET, **ONE}))
    alone(words("dit_one", {**DIT, **ONE}, max_steps=2))
    finish(processes, logs)
    return folder


def metrics_of(run: Path) -> dict[tuple[int, str], float]:
    rows = read_metrics(run / "metrics.csv")
    values = {(step, name): value for step, name, value in rows}
    assert len(values) == len(rows)  # one process writes
    return {key: value for key, value in values.items() if not key[1].startswith("perf/")}


def state_of(run: Path) -> dict[str, torch.Tensor]:
    """Weights, moving average and optimizer's state of the last checkpoint, whole."""
    checkpoint = load_checkpoint(run / "checkpoints/last.ckpt")
    parts = {name: checkpoint[name] for name in ("state_dict", "ema", "optimizer_states")}
    return tensors_of(parts)


def assert_equal_runs(run: Path, expected: Path) -> None:
    """A run in parts has also validated at the end of each; nothing else differs."""
    measured, wanted = metrics_of(run), metrics_of(expected)
    ends = {step for step, _ in measured.keys() - wanted.keys()}
    assert not ends & {step for step, name in wanted if name == "val/loss"}
    assert {key: measured[key] for key in wanted} == pytest.approx(wanted, rel=1e-10, abs=1e-10)
    tensors, expected_tensors = state_of(run), state_of(expected)
    assert tensors.keys() == expected_tensors.keys()
    for name, tensor in expected_tensors.items():
        torch.testing.assert_close(
            tensors[name], tensor, rtol=1e-10, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.slow
def test_two_processes_equal_one(runs):
    assert_equal_runs(runs / "unet_two", runs / "unet_one")
    names = {name for _, name in metrics_of(runs / "unet_one")}
    assert {"train/loss_total", "train/grad_norm_denoiser", "val/loss", "gen/fd_tiny"} <= names
    norms = [v for (_, name), v in metrics_of(runs / "unet_one").items() if "grad_norm" in name]
    assert min(norms) > UNET["optim__clip_norm"]  # so every update was clipped
    assert summary_of(runs / "unet_two")["num_processes"] == 2


@pytest.mark.slow
def test_a_run_of_one_process_is_continued_by_two_of_which_one_validates_nothing(runs):
    assert summary_of(runs / "dit_from_one")["num_processes"] == 2
    assert_equal_runs(runs / "dit_from_one", runs / "dit_one")


@pytest.mark.slow
def test_a_continued_run_equals_the_uninterrupted_one_bit_for_bit(runs):
    tensors, wanted = state_of(runs / "unet_parts"), state_of(runs / "unet_two")
    assert tensors.keys() == wanted.keys()
    assert not [name for name in wanted if not torch.equal(tensors[name], wanted[name])]
    # one validation more, at the end of the first part
    expected = metrics_of(runs / "unet_two")
    actual = metrics_of(runs / "unet_parts")
    assert expected.items() <= actual.items()
    assert {step for step, _ in actual.keys() - expected.keys()} == {3}


@pytest.mark.slow
def test_a_run_of_two_processes_is_continued_by_one(runs, tmp_path):
    for name in ("unet_two", "unet_one"):
        shutil.copytree(runs / name, tmp_path / name)
        ended = command("train", [f"resume={tmp_path / name}", "max_steps=5", *TO_ONE], tmp_path)
        assert ended.code == 0, ended.output
    assert_equal_runs(tmp_path / "unet_two", tmp_path / "unet_one")
    assert not (tmp_path / "unet_two/checkpoints/last.shards").exists()  # a file now, and whole


@pytest.mark.slow
def test_its_checkpoint_is_cut_for_another_number_of_processes(runs):
    """Here for one, whose part is the whole."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        path = runs / "unet_two/checkpoints/last.ckpt"
        parts = tensors_of(load_sharded(path, init_device_mesh("cpu", (1,))))
        assert any(isinstance(part, DTensor) for part in parts.values())
        whole = tensors_of(load_checkpoint(path))
        assert all(torch.equal(local_shard(parts[name]), whole[name]) for name in whole)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_bf16_is_near_float64_and_keeps_its_weights_in_float32(runs):
    exact, rounded = (metrics_of(runs / name) for name in ("unet_one", "unet_two_bf16"))
    for name in ("train/loss_total", "train/grad_norm_denoiser"):
        assert rounded[1, name] == pytest.approx(exact[1, name], rel=1e-2)
    assert {t.dtype for t in state_of(runs / "unet_two_bf16").values()} == {torch.float32}


@pytest.mark.slow
def test_each_process_keeps_one_half_of_weights_average_and_optimizer(runs):
    whole = sum(t.nbytes for t in state_of(runs / "unet_two").values() if t.ndim)
    files = list((runs / "unet_two/checkpoints/last.shards").glob("*/*.safetensors"))
    assert len(files) == 2
    for file in files:
        assert file.stat().st_size == pytest.approx(whole / 2, rel=0.1)


@pytest.mark.slow
def test_the_best_checkpoint_is_sharded_too_and_read_like_any_other(runs, tmp_path):
    run = runs / "unet_two"
    assert (run / "checkpoints/best.shards").is_dir()
    opened = open_second_stage(run, weights="ema", first_stage_checkpoint=None)
    assert opened.path == run / "checkpoints/best.ckpt"
    expected = load_checkpoint(opened.path)["ema"]
    weights = opened.networks.model.state_dict()
    assert all(torch.equal(weights[name], value.float()) for name, value in expected.items())
    words = [f"checkpoint={run}", f"output={tmp_path / 'samples'}", "num_samples=2"]
    assert command("sample", words, tmp_path).code == 0


@pytest.mark.slow
def test_a_checkpoint_without_its_shards_says_what_to_copy(runs, tmp_path):
    shutil.copy(runs / "unet_two/checkpoints/last.ckpt", tmp_path)
    with pytest.raises(CheckpointError, match=r"last\.ckpt.*last\.shards"):
        load_checkpoint(tmp_path / "last.ckpt")


def test_a_first_stage_is_refused_before_anything_is_built(tmp_path):
    with pytest.raises(ValueError, match="trainer=fsdp shards.*second stage.*use trainer=ddp"):
        compose_tiny("kl_f8", "trainer=fsdp", folder=tmp_path)


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("trainer.precision=fp16", "trainer.precision=32, bf16 or 64, got fp16"),
        ("optim=muon", "optim=adam"),
    ],
)
def test_what_cannot_be_sharded_is_refused_before_anything_is_built(word, named, tmp_path):
    words = ("first_stage.checkpoint=x", "trainer=fsdp", word)
    ended = command("train", ["experiment=ldm_kl_f4", *words], tmp_path)
    assert ended.code == 1
    assert named in ended.said
