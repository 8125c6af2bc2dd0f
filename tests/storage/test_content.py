"""Files are known by what they hold; each is read once, whoever asks."""

import hashlib
import os
import threading

import numpy as np
import pytest

from ldm_lightning.storage import content, content_store
from ldm_lightning.storage.content import FileHashes, combined_hash

NAMES = [f"{number:02}.bin" for number in range(9)]


def change_unseen(path, new: bytes) -> None:
    """Give a file another content, with the size and the times that tools can restore."""
    old = path.stat()
    assert len(new) == old.st_size
    while path.stat().st_ctime_ns == old.st_ctime_ns:  # a coarse clock may not have moved yet
        path.write_bytes(new)
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(bytes([number]) * 1000)
    return folder


@pytest.fixture
def read(monkeypatch):
    """Names of the files that are read; files are remembered however young they are."""
    names = []
    hash_stream = content.hash_stream

    def counted(file, **options):
        names.append(os.path.basename(file.name))
        return hash_stream(file, **options)

    monkeypatch.setattr(content, "hash_stream", counted)
    monkeypatch.setattr(content, "SETTLED_NS", 0)
    return names


def expected(folder, names=NAMES):
    rows = [hashlib.sha256((folder / name).read_bytes()).digest()[:16] for name in names]
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, 16)


def test_each_file_is_read_once(files, tmp_path, read):
    for _ in range(3):
        np.testing.assert_array_equal(FileHashes(tmp_path / "c").of(files, NAMES), expected(files))
    assert sorted(read) == NAMES
    assert list(FileHashes(tmp_path / "c").of(files, NAMES[3:1:-1])[:, 0]) == list(
        expected(files, NAMES[3:1:-1])[:, 0]
    )
    assert len(read) == 9


def test_without_a_folder_nothing_is_remembered(files, read):
    hashes = FileHashes()
    for _ in range(2):
        np.testing.assert_array_equal(hashes.of(files, NAMES), expected(files))
    assert len(read) == 18


def test_a_change_that_keeps_size_and_time_is_seen_and_a_touched_file_is_the_same(
    files, tmp_path, read
):
    before = FileHashes(tmp_path / "c").of(files, NAMES)
    read.clear()
    change_unseen(files / NAMES[4], b"x" * 1000)
    os.utime(files / NAMES[5], ns=(5, 5))
    after = FileHashes(tmp_path / "c").of(files, NAMES)
    assert sorted(read) == [NAMES[4], NAMES[5]]
    np.testing.assert_array_equal(after, expected(files))
    assert [i for i in range(9) if (before[i] != after[i]).any()] == [4]


def test_a_file_that_takes_the_place_of_another_is_seen(files, tmp_path, read):
    FileHashes(tmp_path / "c").of(files, NAMES)
    state = (files / NAMES[0]).stat()
    other = tmp_path / "other"
    other.write_bytes(b"y" * 1000)
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    os.replace(other, files / NAMES[0])
    np.testing.assert_array_equal(FileHashes(tmp_path / "c").of(files, NAMES), expected(files))


def test_a_file_that_has_just_been_written_is_not_remembered(files, tmp_path, read, monkeypatch):
    monkeypatch.setattr(content, "SETTLED_NS", 10**12)
    for _ in range(2):
        FileHashes(tmp_path / "c").of(files, NAMES)
    assert len(read) == 18


def test_what_cannot_be_read_has_a_hash_of_its_own_and_does_not_block(files, tmp_path, read):
    os.mkfifo(files / "pipe")
    (files / "folder").mkdir()
    names = [NAMES[0], "pipe", "folder", "missing"]
    found = FileHashes(tmp_path / "c").of(files, names)
    assert [row.tobytes() == content.UNREADABLE for row in found] == [False, True, True, True]
    assert read == [NAMES[0]]


def test_two_processes_at_once_read_each_file_once(files, tmp_path, read, monkeypatch):
    results = []
    hash_stream, begun = content.hash_stream, threading.Event()

    def slow(file, **options):
        if not begun.is_set():
            begun.set()
            second.start()
        return hash_stream(file, **options)

    def ask():
        results.append(FileHashes(tmp_path / "c").of(files, NAMES))

    second = threading.Thread(target=ask)  # a lock of its own, as another process has
    monkeypatch.setattr(content, "hash_stream", slow)
    ask()
    second.join()
    assert len(read) == 9
    for result in results:
        np.testing.assert_array_equal(result, expected(files))


def test_a_folder_that_cannot_be_written_is_told_once(files, tmp_path, read, caplog):
    (tmp_path / "file").touch()
    for _ in range(2):
        found = FileHashes(tmp_path / "file" / "cache").of(files, NAMES)
        np.testing.assert_array_equal(found, expected(files))
    assert len(read) == 18
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cache_dir" in caplog.text


@pytest.mark.parametrize("harm", ["cut", "other", "empty", "foreign"])
def test_a_damaged_memory_counts_as_none(files, tmp_path, read, harm):
    FileHashes(tmp_path / "c").of(files, NAMES)
    (path,) = (tmp_path / "c").rglob("*.npz")
    whole = path.read_bytes()
    harmed = {"cut": whole[:-30], "other": whole.replace(b"\x01" * 2, b"\x02" * 2), "empty": b""}
    if harm == "foreign":
        np.savez(path, names=np.zeros(3, np.uint8), states=np.zeros(2), hashes=np.zeros(5))
    else:
        path.write_bytes(harmed[harm])
    for _ in range(2):
        np.testing.assert_array_equal(FileHashes(tmp_path / "c").of(files, NAMES), expected(files))
    if harm != "other":
        assert len(read) == 18


def test_an_interruption_keeps_what_was_read(files, tmp_path, read, monkeypatch):
    counted = content.hash_stream

    def interrupted(file, **options):
        if len(read) == 5:
            raise KeyboardInterrupt
        return counted(file, **options)

    monkeypatch.setattr(content, "hash_stream", interrupted)
    monkeypatch.setattr(content, "NUM_THREADS", 1)
    monkeypatch.setattr(content, "FILES_A_TASK", 1)
    with pytest.raises(KeyboardInterrupt):
        FileHashes(tmp_path / "c").of(files, NAMES)
    monkeypatch.setattr(content, "hash_stream", counted)
    FileHashes(tmp_path / "c").of(files, NAMES)
    assert sorted(read) == NAMES


def test_files_of_other_splits_are_kept_and_those_that_have_gone_are_not(files, tmp_path, read):
    hashes = FileHashes(tmp_path / "c")
    hashes.of(files, NAMES[:5])
    hashes.of(files, NAMES[5:])
    hashes.of(files, NAMES)
    assert len(read) == 9
    (files / NAMES[0]).unlink()
    (files / "new").write_bytes(b"1")
    hashes.of(files, ["new"])
    known = content_store.ContentStore(tmp_path / "c" / "contents").load(os.path.realpath(files))
    assert sorted(known.names) == [*NAMES[1:], "new"]


def test_the_memory_is_bounded_and_deletes_nothing_else(files, tmp_path, read, monkeypatch):
    monkeypatch.setattr(content_store, "MAX_BYTES", 2500)
    store = tmp_path / "c" / "contents"
    store.mkdir(parents=True)
    (store / "mine.npz").write_bytes(b"m" * 5000)
    for number in range(4):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "a").write_bytes(b"a")
        FileHashes(tmp_path / "c").of(folder, ["a"])
    kept = list(store.glob("files_*.npz"))
    assert 1 <= len(kept) < 4
    assert sum(path.stat().st_size for path in kept) <= 2500
    assert (store / "mine.npz").stat().st_size == 5000


def test_a_combined_hash_tells_where_a_part_ends():
    assert combined_hash(b"ab", b"c") != combined_hash(b"a", b"bc")
