import errno
import os
import subprocess
import sys

import pytest

from ldm_lightning.storage.files import atomic_writer, link_or_copy


def test_a_finished_block_replaces_the_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_writer(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failing_block_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_half():
        with atomic_writer(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("can_link", [True, False])
def test_a_linked_file_keeps_its_content_when_the_source_is_replaced(
    tmp_path, monkeypatch, can_link
):
    if not can_link:

        def refuse(source, target):
            raise OSError("no links on this file system")

        monkeypatch.setattr(os, "link", refuse)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"first")
    target.write_bytes(b"older")
    for _ in range(2):  # the second time both names already mean the same content
        link_or_copy(source, target)
    with atomic_writer(source) as file:
        file.write(b"second")
    assert target.read_bytes() == b"first"
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


# Several writers of one file

KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from ldm_lightning.storage.files import atomic_writer

with atomic_writer(Path(sys.argv[1])) as file:
    file.write(b"half" * 1000)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_two_writers_at_once_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with atomic_writer(path) as first, atomic_writer(path) as second:
        first.write(b"first" * 100)
        second.write(b"second")
        assert first.name != second.name
    assert path.read_bytes() == b"first" * 100  # it ended last
    assert os.listdir(tmp_path) == ["file"]


def test_writers_that_take_turns_never_touch_what_the_other_has_finished(tmp_path):
    path = tmp_path / "file"
    with atomic_writer(path) as slow:
        slow.write(b"slow")
        with atomic_writer(path) as fast:
            fast.write(b"fast")
        assert path.read_bytes() == b"fast"
        with atomic_writer(path) as faster:
            faster.write(b"faster")
        assert path.read_bytes() == b"faster"
    assert path.read_bytes() == b"slow"
    assert os.listdir(tmp_path) == ["file"]


def test_what_killed_writers_leave_is_used_again(tmp_path):
    path = tmp_path / "file"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, path], check=False)
        assert os.listdir(tmp_path) == [".file.0.tmp"]
    with atomic_writer(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_a_place_that_its_writer_has_moved_meanwhile_is_left_alone(tmp_path, monkeypatch):
    path = tmp_path / "file"
    real_open, opened = os.open, []

    def open_late(name, flags, *mode):
        descriptor = real_open(name, flags, *mode)
        if not opened and os.fspath(name).endswith(".tmp"):
            opened.append(name)
            os.write(descriptor, b"finished")
            os.replace(name, path)  # by another process, between opening and locking
        return descriptor

    monkeypatch.setattr(os, "open", open_late)
    with atomic_writer(path) as file:
        assert path.read_bytes() == b"finished"
        file.write(b"next")
    assert path.read_bytes() == b"next"


def test_a_file_system_without_locks_keeps_writers_apart_by_name(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    path = tmp_path / "file"
    with atomic_writer(path) as file:
        assert str(os.getpid()) in file.name
        file.write(b"new")
    assert path.read_bytes() == b"new"
    link_or_copy(path, tmp_path / "link")
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]
