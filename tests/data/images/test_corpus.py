"""Every file of the corpus is read, or counted with its reason, by folders and shards alike."""

from collections import Counter
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_lightning.data.images.decoding import UnreadableImageError, decode_image
from ldm_lightning.data.images.folder_listing import list_images
from ldm_lightning.data.shards.tar_index import index_shard
from tests.data.images.corpus import IGNORED, READ, UNREADABLE, corpus, write_folder, write_tar

ENTRIES = corpus()
LISTED = {entry.name: entry for entry in ENTRIES if entry.fate in (READ, UNREADABLE)}
LEFT_OUT = Counter(e.fate for e in ENTRIES if e.fate not in (READ, UNREADABLE, IGNORED))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(ENTRIES, tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    return write_tar(ENTRIES, tmp_path_factory.mktemp("shards") / "train-0.tar")


def test_the_corpus_is_large():
    assert len(ENTRIES) >= 75


def test_a_folder_reads_or_counts_every_file(folder):
    listing = list_images(folder, key="data.root")
    assert listing.names == sorted(LISTED)
    assert {name: r.count for name, r in listing.left_out.reasons.items()} == LEFT_OUT
    assert all(
        reason.example in str(listing.left_out) for reason in listing.left_out.reasons.values()
    )


def test_a_shard_reads_or_counts_every_file(shard):
    with shard.open("rb") as file:
        content = index_shard(file, str(shard))
    stems = [str(PurePosixPath(name).with_suffix("")) for name in LISTED]
    assert [sample.key for sample in content.samples] == stems
    assert {name: r.count for name, r in content.left_out.reasons.items()} == LEFT_OUT


def outcome(data: bytes) -> torch.Tensor | None:
    try:
        return decode_image(data, channels=3)
    except UnreadableImageError:
        return None


def test_every_listed_file_is_decoded_alike_or_named_as_unreadable(folder, shard):
    with shard.open("rb") as file:
        for sample, (name, entry) in zip(
            index_shard(file, str(shard)).samples, LISTED.items(), strict=True
        ):
            file.seek(sample.image.offset)
            in_shard = outcome(file.read(sample.image.size))
            in_folder = outcome((folder / name).read_bytes())
            assert (in_folder is None) == (in_shard is None) == (entry.fate == UNREADABLE), name
            if in_folder is not None:
                assert torch.equal(in_folder, in_shard), name


@pytest.mark.parametrize("suffix", ["gif", "tiff", "webp", "png"])
def test_of_several_frames_the_first_is_read(folder, suffix):
    decoded = decode_image(folder / f"b/frames_{suffix}.{suffix}", channels=3)
    assert np.abs(decoded.float().mean((1, 2)).numpy() - [0, 10, 10]).max() < 3


def test_a_folder_reached_by_two_paths_is_read_once_under_the_real_one(tmp_path):
    (tmp_path / "z").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "z" / "1.png")
    (tmp_path / "a").symlink_to("z")
    (tmp_path / "z" / "back").symlink_to("..")
    listing = list_images(tmp_path, key="data.root")
    assert listing.names == ["z/1.png"]
    (folders,) = listing.left_out.reasons.values()
    assert folders.count == 2


def test_a_folder_that_cannot_be_opened_is_counted(tmp_path, monkeypatch):
    import os

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "1.png")
    scandir = os.scandir

    def forbidden(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    listing = list_images(tmp_path, key="data.root")
    assert listing.names == ["a/1.png"]
    (reason,) = listing.left_out.reasons.items()
    assert "Permission denied" in reason[0]
    assert reason[1].example == "b"
