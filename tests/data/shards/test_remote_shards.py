"""Shards behind a URL: the samples of local ones, each once, in bounded room, past failures."""

import contextlib
import functools
import http.server
import os
import re
import threading
import time
from collections import Counter
from itertools import chain

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

from ldm_lightning.data.module import MapDataModule
from ldm_lightning.data.order.position import Position, Stretch
from ldm_lightning.data.shards import remote_shards, shard_cache
from ldm_lightning.data.shards.remote_shards import RemoteShards
from ldm_lightning.data.shards.shard_cache import (
    OWN_FOLDER,
    RemoteShard,
    ShardCache,
    ShardUnavailableError,
)
from tests.data.shards.test_webdataset import SETTINGS, data_module, write_shards

NUM_SHARDS, SIZE = 6, 8
GIB = 1 << 30
SETTINGS_HERE = {"val_root": None, "batch_size": 4, "shuffle_shards": 2}


class FailingFileSystem(MemoryFileSystem):
    """Memory that counts what is fetched, and fails or breaks off where told to."""

    protocol = "failing"
    store = {}
    fetched = Counter()
    failures = {}  # by file name: what the next fetches do

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("failing://", "memory://"))

    def get_file(self, rpath, lpath, **options):
        name = rpath.rpartition("/")[2]
        self.fetched[name] += 1
        for failure in self.failures.get(name, []):
            self.failures[name] = self.failures[name][1:]
            if failure == "break off":
                with open(lpath, "wb") as file:
                    file.write(self.cat_file(rpath)[:1000])
                return
            raise failure
        super().get_file(rpath, lpath, **options)


fsspec.register_implementation("failing", FailingFileSystem, clobber=True)


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """A folder of local shards and the same behind failing://, where waits are short."""
    folder = write_shards(tmp_path / "set", "train", count=NUM_SHARDS, size=SIZE)
    write_shards(folder, "val", count=2, size=5)
    (folder / "classes.json").write_text('["a", "b", "c"]')
    FailingFileSystem.store.clear()
    FailingFileSystem.pseudo_dirs[:] = [""]
    FailingFileSystem.fetched.clear()
    FailingFileSystem.failures.clear()
    monkeypatch.setattr(shard_cache, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(shard_cache, "ROOM_POLL_S", 0.01)
    for path in folder.iterdir():
        FailingFileSystem().pipe(f"/set/{path.name}", path.read_bytes())
    return folder


def remote(tmp_path, root="failing://set", **changes) -> MapDataModule:
    options = SETTINGS_HERE | {"shard_cache_dir": str(tmp_path / "cache")} | changes
    return data_module(root, **options)


def shard_bytes(folder) -> int:
    return max(path.stat().st_size for path in folder.glob("*.tar"))


def held_bytes(folder) -> int:
    held = 0
    for path in (folder / OWN_FOLDER).glob("*.tar"):
        with contextlib.suppress(FileNotFoundError):  # it has just made room
            held += path.stat().st_size
    return held


def keys(module, num_batches=None, *, rank=0, num_processes=1, start=0) -> list[list[str]]:
    counts = module.counts(num_processes)
    sampler = module._train_sampler(
        num_batches or counts.batches_per_epoch, rank=rank, num_processes=num_processes
    )
    sampler.continue_from(sampler.position_after(start), num_done=start)
    return [[module.train_dataset[key]["key"] for key in batch] for batch in sampler]


def contents(loader) -> dict:
    return {
        key: (image, int(label))
        for batch in loader
        for key, image, label in zip(batch["key"], batch["image"], batch["label"], strict=True)
    }


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(shards):
    """A server without ranges or listings worth the name."""
    handler = functools.partial(Quiet, directory=str(shards))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", ["failing", "file", "http"])
def test_samples_are_those_of_the_local_shards(tmp_path, shards, server, kind, num_workers):
    roots = {
        "failing": ("failing://set", None),
        "file": (f"file://{shards}/train-*.tar", f"file://{shards}/val-0000.tar"),
        "http": (f"{server}/train-{{0000..0005}}.tar", f"{server}/val-0000.tar"),
    }
    root, val_root = roots[kind]
    local = data_module(shards, batch_size=4)
    module = remote(tmp_path, root, val_root=val_root, num_workers=num_workers)
    trained, expected = contents(module.train_dataloader()), contents(local.train_dataloader())
    assert trained.keys() == expected.keys()
    assert len(trained) == NUM_SHARDS * SIZE
    for key, (image, label) in expected.items():
        assert torch.equal(trained[key][0], image)
        assert trained[key][1] == label
    assert module.class_names == ["a", "b", "c"]
    evaluated, expected = contents(module.val_dataloader()), contents(local.val_dataloader())
    assert list(evaluated) == [key for key in expected if key in evaluated]
    assert len(evaluated) == (10 if val_root is None else 5)
    if val_root is None:
        assert module.protocol("train")["images"] == local.protocol("train")["images"]


@pytest.mark.parametrize("num_processes", [1, 2, 3, 4])
def test_each_sample_is_seen_once_an_epoch_but_for_those_counted_as_dropped(
    tmp_path, shards, num_processes
):
    module = remote(tmp_path, batch_size=5)
    counts = module.counts(num_processes)
    assert counts.num_train_images == 48
    assert counts.dropped_per_epoch == 48 % (5 * num_processes) < counts.global_batch_size
    left_out = []
    for epoch in range(2):
        seen = [
            key
            for rank in range(num_processes)
            for batch in keys(
                module,
                (epoch + 1) * counts.batches_per_epoch,
                rank=rank,
                num_processes=num_processes,
                start=epoch * counts.batches_per_epoch,
            )
            for key in batch
        ]
        assert len(seen) == len(set(seen)) == 48 - counts.dropped_per_epoch
        left_out.append(set(map(module.train_dataset.key, range(48))) - set(seen))
    assert left_out[0] != left_out[1]
    assert f"drops {counts.dropped_per_epoch}." in str(counts)


@pytest.mark.parametrize("start", [1, 5, 11, 12, 13, 30])
def test_a_run_goes_on_at_any_batch(tmp_path, shards, start):
    module = remote(tmp_path)
    for rank in range(2):
        whole = keys(module, 36, rank=rank, num_processes=2)
        assert keys(module, 36, rank=rank, num_processes=2, start=start) == whole[start:]
    assert whole[:6] != whole[6:12]


def test_a_process_reads_only_its_shards_a_group_at_a_time(tmp_path, shards):
    module = remote(tmp_path, shard_cache_gib=5 * shard_bytes(shards) / GIB)
    read = [
        [{key.split("/")[0] for key in batch} for batch in keys(module, rank=rank, num_processes=2)]
        for rank in range(2)
    ]
    assert all(len(shards) <= 2 for batches in read for shards in batches)
    one, other = (set.union(*batches) for batches in read)
    assert len(one) == len(other) == 3
    assert not one & other  # 24 images each: no border within a shard


def test_the_next_group_is_fetched_while_one_is_read(tmp_path, shards):
    module = remote(tmp_path, shard_cache_gib=5 * shard_bytes(shards) / GIB)
    sampler = module._train_sampler(24, rank=0, num_processes=1)
    told = []
    object.__setattr__(sampler.shuffle, "fetch_ahead", told.append)
    groups = [*sampler.groups(Position(0)), *sampler.groups(Position(1))]
    batches = iter(sampler)
    for number in range(6):
        for _ in range(4):  # a group is 16 images, four batches
            next(batches)
        assert told == [group.shards for group in groups[1 : number + 2]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_cache_keeps_to_its_bound(tmp_path, shards, num_workers):
    room = 4 * shard_bytes(shards)
    module = remote(tmp_path, shard_cache_gib=room / GIB, num_workers=num_workers)
    module.num_train_batches = 36
    largest = 0
    for _ in module.train_dataloader():
        largest = max(largest, held_bytes(tmp_path / "cache"))
    assert 2 * shard_bytes(shards) <= largest <= room


def test_with_room_for_all_shards_each_is_fetched_once(tmp_path, shards):
    module = remote(tmp_path)
    keys(module, 36)
    assert set(FailingFileSystem.fetched.values()) == {1}
    assert len(FailingFileSystem.fetched) == NUM_SHARDS + 2


def test_an_index_is_made_once(tmp_path, shards):
    remote(tmp_path)
    assert sum(FailingFileSystem.fetched.values()) == NUM_SHARDS + 2
    remote(tmp_path)
    assert sum(FailingFileSystem.fetched.values()) == NUM_SHARDS + 2


def test_a_shard_that_was_replaced_is_indexed_and_fetched_anew(tmp_path, shards):
    before = remote(tmp_path).protocol("train")["images"]
    write_shards(shards, "train", count=1, size=9)
    FailingFileSystem().pipe("/set/train-0000.tar", (shards / "train-0000.tar").read_bytes())
    module = remote(tmp_path)
    assert len(module.train_dataset) == NUM_SHARDS * SIZE + 1
    assert module.protocol("train")["images"] != before


def test_failing_reads_and_broken_transfers_are_repeated(tmp_path, shards, caplog):
    FailingFileSystem.failures["train-0001.tar"] = [ConnectionError("reset"), "break off"]
    module = remote(tmp_path)
    assert FailingFileSystem.fetched["train-0001.tar"] == 3
    assert "train-0001.tar failed (ConnectionError: reset)" in caplog.text
    assert "(1000 of" in caplog.text
    assert len(module.train_dataset) == NUM_SHARDS * SIZE


@pytest.mark.parametrize("failure", [ConnectionError("reset"), "break off", PermissionError("no")])
def test_a_shard_that_cannot_be_fetched_stops_the_run_by_name(tmp_path, shards, failure):
    FailingFileSystem.failures["train-0001.tar"] = [failure] * shard_cache.NUM_ATTEMPTS
    with pytest.raises(ShardUnavailableError, match=r"failing://\S*/train-0001\.tar c.*fetched"):
        remote(tmp_path)


def test_a_lost_shard_in_training_is_no_bad_image(tmp_path, shards):
    module = remote(tmp_path, shard_cache_gib=4 * shard_bytes(shards) / GIB)
    for path in (tmp_path / "cache" / OWN_FOLDER).glob("*.tar"):
        path.unlink()
    FailingFileSystem().rm("/set/train-0002.tar")
    with pytest.raises(ShardUnavailableError, match=r"train-0002\.tar"):
        keys(module)
    assert module.bad_files() == []


def test_a_shard_that_arrives_while_room_is_made_is_counted_once(tmp_path, shards, monkeypatch):
    filesystem = FailingFileSystem()
    names = sorted(filesystem.glob("/set/train-*.tar"))[:4]
    kept, other, arriving, last = (
        RemoteShard(f"failing:/{name}", filesystem.size(name), "", "size") for name in names
    )
    cache = ShardCache(tmp_path / "cache", max_bytes=3 * kept.num_bytes)
    for shard in (other, kept):  # the other one was read first, and goes first
        cache.open(shard).close()
        time.sleep(0.01)
    copied, may_end = threading.Event(), threading.Event()
    copy, list_kept = shard_cache._copy, cache._kept

    def copy_slowly(shard, path):
        copy(shard, path)
        if shard is arriving:
            copied.set()
            may_end.wait(10)

    def list_late():
        may_end.set()  # parts were listed; let the shard arrive now
        time.sleep(0.3)
        return list_kept()

    monkeypatch.setattr(shard_cache, "_copy", copy_slowly)
    thread = threading.Thread(target=cache.fetch, args=(arriving,))
    thread.start()
    assert copied.wait(10)
    monkeypatch.setattr(cache, "_kept", list_late)
    cache.fetch(last)
    thread.join()
    assert [(cache.folder / shard.stem).exists() for shard in (other, kept)] == [False, True]


def test_many_threads_share_one_copy_and_one_bound(tmp_path, shards):
    filesystem = FailingFileSystem()
    names = sorted(filesystem.glob("/set/train-*.tar"))
    remotes = [RemoteShard(f"failing:/{name}", filesystem.size(name), "", "size") for name in names]
    cache = ShardCache(tmp_path / "cache", max_bytes=3 * remotes[0].num_bytes)
    name = f"0123456789abcdef_killed.tar.{2 * remotes[0].num_bytes}.part"
    abandoned = tmp_path / "cache" / OWN_FOLDER / name
    abandoned.parent.mkdir(parents=True)
    abandoned.touch()

    def read(shard):
        with cache.open(shard) as file:
            assert file.read() == filesystem.cat_file(shard.url)

    threads = [threading.Thread(target=read, args=(remotes[n % 3],)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert FailingFileSystem.fetched == {name.rpartition("/")[2]: 1 for name in names[:3]}
    assert not abandoned.exists()
    time.sleep(0.01)  # file systems keep time in ticks
    cache.open(remotes[0]).close()
    cache.open(remotes[3]).close()
    held = {path.name for path in (tmp_path / "cache" / OWN_FOLDER).glob("*.tar")}
    assert {remotes[0].stem, remotes[3].stem} < held  # the one read last stays
    assert len(held) == 3
    os.truncate(tmp_path / "cache" / OWN_FOLDER / remotes[0].stem, 100)  # as a power cut may
    read(remotes[0])


def test_a_damaged_image_is_replaced_by_one_of_its_shard(tmp_path, shards):
    module = remote(tmp_path, max_bad_fraction=0.5)
    dataset = module.train_dataset
    read, damaged = dataset.source.read, {3, 11, 20}
    dataset.source.read = lambda index: b"" if index in damaged else read(index)
    sampler = module._train_sampler(12, rank=0, num_processes=1)
    for key in chain.from_iterable(sampler):
        sample = dataset[key]
        assert sample["key"].split("/")[0] == dataset.key(key.index).split("/")[0]
        if key.index in damaged:
            assert sample["key"] != dataset.key(key.index)


def test_what_cannot_work_is_refused_before_anything_is_fetched(tmp_path, shards):
    size = shard_bytes(shards)
    with pytest.raises(ValueError, match="shuffle_shards=null.*shard_cache_gib"):
        remote(tmp_path, shuffle_shards=None, shard_cache_gib=4 * size / GIB)
    with pytest.raises(ValueError, match="val_fraction.*shard_cache_gib"):
        remote(tmp_path, "failing://set/train-*.tar", shard_cache_gib=4 * size / GIB)
    module = remote(tmp_path, shuffle_shards=3, shard_cache_gib=5 * size / GIB)
    with pytest.raises(ValueError, match=r"shuffle_shards=3\b.*\b1 process.*shard_cache_gib"):
        module.train_dataloader()
    with pytest.raises(ValueError, match=r"data\.shard_cache_gib"):
        remote(tmp_path, shard_cache_gib=0.5 * size / GIB)
    with pytest.raises(ValueError, match="failing://other"):
        remote(tmp_path, "failing://other")
    with pytest.raises(ValueError, match=r"set/none\.tar"):
        remote(tmp_path, "failing://set/none.tar")
    with pytest.raises(ValueError, match=r"shuffle_shards.*\b0\b"):
        remote(tmp_path, shuffle_shards=0)
    with pytest.raises(ValueError, match="nothing://set"):
        remote(tmp_path, "nothing://set")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(
        known_implementations,
        "absent",
        {"class": "package_that_is_absent.FileSystem", "err": "Install absentfs"},
    )
    with pytest.raises(ValueError, match="Install absentfs"):
        remote(tmp_path, "absent://set/{0..3}.tar")


def test_local_shards_can_be_gone_through_group_by_group_too(tmp_path, shards):
    module = data_module(shards, **SETTINGS_HERE)
    expected = keys(remote(tmp_path))
    assert keys(module) == expected
    assert SETTINGS["shuffle_shards"] is None
    assert keys(data_module(shards, batch_size=4)) != expected


def test_another_order_is_told_on_resuming_and_begins_the_next_epoch(tmp_path, shards, caplog):
    loader = remote(tmp_path).train_dataloader()
    state = Position(4, (Stretch(1, 8),)).to_dict() | {"order": loader.state_dict()["order"]}
    loader.load_state_dict(state)
    assert loader.state_dict() == state
    loader.load_state_dict(state | {"order": state["order"] | {"shuffle_shards": 5}})
    assert "shuffle_shards=5" in caplog.text
    assert Position.from_dict(loader.state_dict()) == Position(5)


@pytest.mark.parametrize("inside", [".", OWN_FOLDER])
def test_only_what_the_cache_made_makes_room(tmp_path, shards, inside):
    mine = tmp_path / "cache" / inside
    mine.mkdir(parents=True)
    names = ("train-0000.tar", "a.tar.9.part", "0123_a.tar", "cd.tar")
    for name in names:
        (mine / name).write_bytes(bytes(shard_bytes(shards)))
    module = remote(tmp_path, shard_cache_gib=4 * shard_bytes(shards) / GIB)
    keys(module)
    assert sum(FailingFileSystem.fetched.values()) > NUM_SHARDS + 2  # room was made
    assert all((mine / name).stat().st_size == shard_bytes(shards) for name in names)


@pytest.mark.parametrize("waits_for", ["a lock", "room"])
def test_a_wait_for_another_process_has_a_bound(tmp_path, shards, monkeypatch, waits_for):
    monkeypatch.setattr(shard_cache, "MAX_WAIT_S", 0.05)
    num_bytes = shard_bytes(shards)
    cache = ShardCache(tmp_path / "cache", max_bytes=num_bytes)
    shard = RemoteShard("failing://set/train-0000.tar", num_bytes, "", "size")
    name = shard.stem if waits_for == "a lock" else f"{'0' * 16}_b.tar"
    with cache.locked(name):
        (cache.folder / f"{name}.{num_bytes}.part").touch()
        with pytest.raises(ShardUnavailableError, match=str(cache.folder)):
            cache.fetch(shard)


class Told:
    """A file system that says certain things of a file."""

    def __init__(self, **facts):
        self.info = lambda path: {"size": 9, **facts}


@pytest.mark.parametrize(
    ("facts", "other", "validator"),
    [
        ({"ETag": "a", "mtime": 1}, {"ETag": "b", "mtime": 1}, "version"),
        ({"md5Hash": "a"}, {"md5Hash": "b"}, "version"),
        ({"generation": 1}, {"generation": 2}, "version"),
        ({"Last-Modified": "a"}, {"Last-Modified": "b"}, "time"),
        ({"mtime": 1.5, "created": 1}, {"mtime": 1.5, "created": 2}, "time"),
        ({"mtime": 1.5, "ino": 1}, {"mtime": 1.5, "ino": 2}, "time"),
        ({}, {"size": 10}, "size"),
    ],
)
def test_another_version_is_another_shard_and_what_tells_it_is_named(
    monkeypatch, facts, other, validator
):
    shards = []
    for told in (facts, facts, other):
        monkeypatch.setattr(remote_shards, "_filesystem", lambda url, t=told: (Told(**t), url))
        shards.append(remote_shards._describe("x://a.tar"))
    assert [shard.validator.split()[0] for shard in shards] == [validator] * 3
    assert shards[0].stem == shards[1].stem != shards[2].stem


def test_a_figure_names_the_weakest_of_what_its_shards_are_told_by(tmp_path):
    store = RemoteShards(ShardCache(tmp_path, max_bytes=1))
    kinds = ("version", "time and size", "size")
    store._shards = {kind: RemoteShard(kind, 1, "", kind) for kind in kinds}
    version, timed, sized = (store.identified_by(kinds[:number]) for number in (1, 2, 3))
    assert version == "content"
    assert re.search(r"content, .*\btime\b.*\bsize\b", timed)
    assert re.search(r"content, .*\bsize\b", sized)
    assert "time" not in sized
