"""Checkpoints in several files: whole or not at all, checked, and never code. One process here."""

import os
import pickle
import resource
import shutil

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from ldm_lightning.checkpoints import sharded as sharded_checkpoint
from ldm_lightning.checkpoints.checkpoint import (
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
    stored_content,
)
from ldm_lightning.checkpoints.sharded import link_checkpoint, load_sharded, save_sharded


@pytest.fixture(scope="module")
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture
def content(mesh):
    def of(step):
        weight = distribute_tensor(torch.arange(30_000.0).view(3, -1) + step, mesh, [Shard(0)])
        moment = distribute_tensor(torch.full((1,), step, dtype=torch.float64), mesh, [Shard(0)])
        return {
            "step": step,
            "state_dict": {"weight": weight, "count": torch.tensor(step)},
            "optimizer_states": [{"state": {0: {"step": torch.tensor(2.0), "moment": moment}}}],
        }

    return of


@pytest.fixture
def path(tmp_path, content):
    path = tmp_path / "last.ckpt"
    save_sharded(content(1), path)
    return path


def shard_of(path):
    (file,) = path.with_suffix(".shards").glob("*/*")
    return file


def assert_holds(path, step):
    checkpoint = load_checkpoint(path)
    assert checkpoint["step"] == step
    assert list(checkpoint) == ["step", "state_dict", "optimizer_states"]
    weights = checkpoint["state_dict"]
    assert torch.equal(weights["weight"], torch.arange(30_000.0).view(3, -1) + step)
    assert torch.equal(weights["count"], torch.tensor(step))
    moment = checkpoint["optimizer_states"][0]["state"][0]["moment"]
    assert torch.equal(moment, torch.full((1,), step, dtype=torch.float64))


def test_reads_as_if_it_were_one_file(path):
    assert_holds(path, 1)
    assert {name: tuple(t.shape) for name, t in stored_content(path)["state_dict"].items()} == {
        "weight": (3, 10_000),
        "count": (),
    }
    assert all(tensor.is_meta for tensor in stored_content(path)["state_dict"].values())


def test_a_process_reads_its_part_alone(path, mesh):
    weights = load_sharded(path, mesh)["state_dict"]
    assert isinstance(weights["weight"], DTensor)
    assert torch.equal(weights["weight"].to_local(), load_checkpoint(path)["state_dict"]["weight"])
    assert not isinstance(weights["count"], DTensor)


def test_each_write_replaces_the_one_before_and_leaves_nothing(path, content):
    for step in (2, 3, 4):
        save_sharded(content(step), path)
        assert_holds(path, step)
        assert sorted(file.name for file in path.parent.iterdir()) == ["last.ckpt", "last.shards"]
        shard_of(path)  # the only one


def test_a_write_that_ends_before_it_is_complete_leaves_the_previous_one(
    path, content, monkeypatch
):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sharded_checkpoint, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            save_sharded(content(2), path)
    assert_holds(path, 1)
    save_sharded(content(3), path)  # where the killed one has left its shards
    assert_holds(path, 3)
    shard_of(path)


def test_a_full_disk_is_explained_and_keeps_the_previous_one(path, content):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"last\.ckpt"):
            save_sharded(content(2), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_holds(path, 1)
    shard_of(path)  # what was written of the new one is gone


def test_a_linked_checkpoint_takes_no_space_and_outlives_its_source(path, content):
    other = path.with_name("best.ckpt")
    save_sharded(content(0), other)
    for _ in range(2):
        link_checkpoint(path, other)
        assert shard_of(path).samefile(shard_of(other))
        assert_holds(other, 1)
    save_sharded(content(2), path)
    assert_holds(other, 1)
    shutil.rmtree(path.with_suffix(".shards"))
    assert_holds(other, 1)


def test_whole_and_sharded_checkpoints_take_each_others_place(path, content):
    whole = path.with_name("best.ckpt")
    save_checkpoint({"step": 5}, whole)
    link_checkpoint(whole, path)
    assert load_checkpoint(path) == {"step": 5}
    assert not path.with_suffix(".shards").exists()
    save_sharded(content(2), path)
    assert_holds(path, 2)
    link_checkpoint(path, whole)
    assert_holds(whole, 2)


def flip(file):
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)


def cut_off(file):
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [flip, cut_off])
def test_a_damaged_shard_is_noticed(path, damage):
    damage(shard_of(path))
    with pytest.raises(CheckpointError, match=r"last\.ckpt.*shard"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        stored_content(path)


def test_a_missing_shard_is_named(path):
    shard_of(path).unlink()
    with pytest.raises(CheckpointError, match=r"last\.ckpt.*\.safetensors"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "shards",
    [
        {"folder": "../../elsewhere", "files": {}, "places": {}},
        {"folder": "a", "files": {}, "places": {"state_dict/gone": ["state_dict", "gone"]}},
        {"folder": "a", "files": [], "places": {}},
        "nonsense",
    ],
)
def test_a_file_that_says_something_else_is_refused(path, shards):
    save_checkpoint({"state_dict": {}, "shards": shards}, path)
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        load_checkpoint(path)


class Evil:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "was_run"),)


def test_the_pickle_of_another_format_is_not_looked_at(path, mesh, tmp_path):
    metadata = shard_of(path).parent / ".metadata"
    metadata.write_bytes(pickle.dumps(Evil(tmp_path)))
    assert_holds(path, 1)
    load_sharded(path, mesh)
    stored_content(path)
    assert not (tmp_path / "was_run").exists()
    pickle.loads(metadata.read_bytes())
    assert (tmp_path / "was_run").exists()  # so the file was dangerous


@pytest.mark.parametrize("read", [load_checkpoint, stored_content])
def test_pickled_code_in_the_file_is_refused_and_not_run(path, tmp_path, read):
    torch.save({"state_dict": {}, "shards": Evil(tmp_path)}, path)
    with pytest.raises(CheckpointError, match="refused"):
        read(path)
    assert not (tmp_path / "was_run").exists()
