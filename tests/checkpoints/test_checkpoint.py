import os
import resource

import pytest
import torch
from torch import nn

from ldm_lightning.checkpoints.checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_strict,
    save_checkpoint,
    trained_weights,
)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "last.ckpt"
    save_checkpoint({"state_dict": {"weight": torch.arange(50_000.0)}, "step": 3}, path)
    return path


def test_returns_what_was_saved(saved):
    checkpoint = load_checkpoint(saved)
    assert torch.equal(checkpoint["state_dict"]["weight"], torch.arange(50_000.0))
    assert checkpoint["step"] == 3


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"checkpoint=\S*gone\.ckpt"):
        load_checkpoint(tmp_path / "gone.ckpt")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=f"checkpoint={saved}"):
        load_checkpoint(saved)


def test_a_flipped_bit_inside_a_tensor_is_noticed(saved):
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 1
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum"):
        load_checkpoint(saved)


@pytest.mark.parametrize("content", [b"hello", b"\x80\x02}q\x00.", b"PK\x03\x04" + bytes(100)])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "other.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_a_file_without_a_dictionary_is_refused(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.ckpt")
    with pytest.raises(CheckpointError, match=r"tensor\.ckpt.*\bTensor\b"):
        load_checkpoint(tmp_path / "tensor.ckpt")


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_by_name_and_not_run(tmp_path, zipped):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was_run"),)

    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": Evil()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=str(path)):
        load_checkpoint(path)
    assert not (tmp_path / "was_run").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "was_run").exists()  # so the file was dangerous


def test_a_full_disk_is_explained_and_keeps_the_previous_checkpoint(saved):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"last\.ckpt"):
            save_checkpoint({"state_dict": {"weight": torch.zeros(50_000)}}, saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_checkpoint(saved)["step"] == 3
    assert os.listdir(saved.parent) == ["last.ckpt"]


def test_weights_of_another_architecture_are_refused_with_the_differences():
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    other = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 4)).state_dict()
    expected = (
        r"checkpoint=x\.ckpt.*Sequential.*2 missing \(1\.weight, 1\.bias\).*"
        r"2 unexpected \(2\.weight, 2\.bias\).*"
        r"\b2\b.*shape \(0\.weight \(5, 2\).*\(3, 2\), 0\.bias"
    )
    with pytest.raises(CheckpointError, match=expected):
        load_strict(module, other, "x.ckpt")
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


def test_only_the_first_few_differences_are_listed():
    with pytest.raises(CheckpointError, match=r"\b8\b.*\(0\.weight, 0\.bias, 1\.weight, \.\.\.\)"):
        load_strict(nn.Sequential(*[nn.Linear(1, 1) for _ in range(4)]), {}, "x.ckpt")


def test_fitting_weights_are_loaded():
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    load_strict(target, source.state_dict(), "x.ckpt")
    assert torch.equal(source.weight, target.weight)


def test_averaged_weights_are_preferred_and_raw_ones_can_be_forced():
    checkpoint = {
        "state_dict": {"autoencoder.weight": torch.zeros(1), "discriminator.weight": torch.ones(1)},
        "ema": {"weight": torch.full((1,), 5.0)},
    }
    averaged = trained_weights(checkpoint, path="a.ckpt")
    assert (averaged.kind, averaged.tensors) == ("ema", {"weight": torch.full((1,), 5.0)})
    raw = trained_weights(checkpoint, "raw", path="a.ckpt")
    assert (raw.kind, raw.tensors) == ("raw", {"weight": torch.zeros(1)})
    del checkpoint["ema"]
    assert trained_weights(checkpoint, path="a.ckpt").kind == "raw"
    with pytest.raises(ValueError, match="'ema'.*'raw'.*'best'"):
        trained_weights(checkpoint, "best", path="a.ckpt")
    with pytest.raises(CheckpointError, match="autoencoder"):
        trained_weights({"state_dict": {}}, path="a.ckpt")
