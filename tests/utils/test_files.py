import os

import pytest

from ldm_lightning.utils.files import atomic_writer, link_or_copy


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
