"""Files that were made to harm their reader cost little time and memory, and end no run."""

import ast
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import ldm_lightning
from ldm_lightning.data.images.decoding import UnreadableImageError, decode_image
from ldm_lightning.data.shards.shard_set import LocalShards
from ldm_lightning.storage.files import open_regular, read_regular
from tests.data.images.hostile_corpus import images, shards
from tests.data.images.test_image_folder import data_module, keys_of, write_images

ROOM = 600_000_000
"""Bytes of memory beside what Python and torch take."""

SECONDS = 8
"""For three decodings and seven crops of 80 million pixels; all but two files take a hundredth."""

CORPUS = [*images(), *shards()]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    done = subprocess.run(
        [sys.executable, "-m", "tests.data.images.read_hostile_files", str(ROOM)],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONWARNINGS": "error", "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=200,
    )
    assert list(folder.iterdir()) == []
    return json.loads(done.stdout.splitlines()[-1])


def test_the_corpus_is_large():
    assert len({hostile.name for hostile in CORPUS}) == len(CORPUS) >= 150
    assert max(len(hostile.content) for hostile in CORPUS) < 5_000_000


@pytest.mark.parametrize("hostile", CORPUS, ids=lambda hostile: hostile.name)
def test_a_hostile_file_is_read_or_refused_in_little_time_and_memory(found, hostile):
    fate, seconds = found[hostile.name]
    assert fate == hostile.fate
    assert seconds < SECONDS


def put(kind: str, path: Path) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(os.path.relpath(path))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.symlink_to(path.parent / "none")


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", "loop", "dangling link"])
def test_what_is_no_regular_file_is_never_opened(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_images(tmp_path / "images", 30) / "b.png"
    put(kind, path)
    for read in (open_regular, lambda path: read_regular(path, max_bytes=9)):
        with pytest.raises(OSError, match=r"b\.png"):
            read(path)
    with pytest.raises(UnreadableImageError, match=r"b\.png"):
        decode_image(path, channels=3)
    with pytest.raises(OSError, match=r"b\.png"):
        LocalShards().open(str(path))
    assert "b.png" not in keys_of(data_module(path.parent).val_dataloader())
    put(kind, tmp_path / "train.tar")
    with pytest.raises(ValueError, match=r"train\.tar"):
        LocalShards().find(str(tmp_path / "train.tar"), split="train")


def test_an_image_that_became_a_pipe_after_it_was_listed_is_unreadable(tmp_path):
    module = data_module(write_images(tmp_path / "images", 30), max_bad_fraction=1.0)
    key = keys_of(module.val_dataloader())[0]
    path = tmp_path / "images" / key
    path.unlink()
    os.mkfifo(path)
    assert key not in keys_of(module.val_dataloader())
    assert key in module.bad_files()[0]


def test_a_file_larger_than_any_image_is_not_read(tmp_path):
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no room
    with pytest.raises(UnreadableImageError, match=r"a\.png"):
        decode_image(path, channels=3)


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
def test_what_a_decoder_has_no_memory_for_is_unreadable(tmp_path, monkeypatch, error):
    module = data_module(write_images(tmp_path / "images", 30), max_bad_fraction=1.0)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    assert keys_of(module.val_dataloader()) == []
    assert error.__name__ in module.bad_files()[0]


def test_pillow_is_told_everywhere_what_it_may_open():
    calls = [
        (path.name, call)
        for path in Path(ldm_lightning.__file__).parent.rglob("*.py")
        if "Image.open" in (text := path.read_text(encoding="utf-8"))
        for call in ast.walk(ast.parse(text))
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("Image.open", "PIL.Image.open")
    ]
    assert len(calls) >= 4
    for name, call in calls:
        assert "formats" in {keyword.arg for keyword in call.keywords}, name
