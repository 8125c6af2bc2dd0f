import os

import pytest
from omegaconf import OmegaConf

from ldm_lightning.storage.small_files import (
    MAX_DEPTH,
    SmallFileError,
    read_csv,
    read_json,
    read_text,
    read_yaml,
)

HEADER = ("step", "metric", "value")
READERS = {
    "json": lambda path: read_json(path, dict),
    "yaml": read_yaml,
    "csv": lambda path: read_csv(path, HEADER),
}
BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
DAMAGED = {
    "empty": ("json yaml csv", b""),
    "binary": ("json yaml csv", b"\x89PNG\r\n\x1a\n\xff\xfe\x00"),
    "half": ("json", b'{"state": "fin'),
    "half_yaml": ("yaml", b"a: [1, 2"),
    "other_kind": ("json yaml", b"[1, 2]"),
    "not_a_number": ("json", b'{"loss": NaN}'),
    "deep": ("json yaml", b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1)),
    "very_deep": ("json yaml", b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "aliases": ("yaml", BOMB.encode()),
    "tag": ("yaml", b"a: !!python/object/apply:os.system [true]\n"),
    "repeated_key": ("yaml", b"a: 1\na: 2\n"),
    "unhashable_key": ("yaml", b"? [1, 2]\n: 3\n"),
    "long_number": ("json", b'{"a": ' + b"9" * 5000 + b"}"),
    "other_header": ("csv", b"a,b,c\n1,x,2\n"),
    "few_columns": ("csv", b"step,metric,value\n1,x\n"),
    "null_byte": ("yaml", b"a: \x00\n"),
}


@pytest.mark.parametrize(
    ("reader", "damage"),
    [(reader, name) for name, (readers, _) in DAMAGED.items() for reader in readers.split()],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, reader, damage):
    path = tmp_path / "file.txt"
    path.write_bytes(DAMAGED[damage][1])
    with pytest.raises(SmallFileError) as caught:
        READERS[reader](path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["fifo", "folder", "loop", "large"])
def test_a_file_that_cannot_be_read_whole_is_refused_at_once(tmp_path, reader, kind, monkeypatch):
    path = tmp_path / "file.txt"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    else:
        with path.open("wb") as file:
            file.truncate(2**30)  # sparse: takes no space
    with pytest.raises(SmallFileError, match=str(path)):
        READERS[reader](path)


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_file_is_told_from_a_damaged_one(tmp_path, reader):
    with pytest.raises(FileNotFoundError):
        READERS[reader](tmp_path / "none")


def test_whole_files_are_read(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text('\ufeff{"a": [1, {"b": null}]}', encoding="utf-8")
    assert read_json(path, dict) == {"a": [1, {"b": None}]}
    path.write_text("[1]")
    assert read_json(path, list) == [1]
    path.write_text("step,metric,value\n1,loss,0.5\n\n,,\n2,loss,0.25\n3,lo")
    assert read_csv(path, HEADER) == [["1", "loss", "0.5"], ["2", "loss", "0.25"]]
    assert read_text(path).endswith("3,lo")


def test_yaml_values_equal_those_of_omegaconf(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text(
        "a: 1e-6\nb: 1.5e-06\nc: 2026-12-01\nd: off\ne: null\nf: [1, .5, x]\ng: 1_000\nh: '1e3'\n"
        "i: 12:30\nj: .inf\nk: -3e+2\nl: {}\n"
    )
    assert read_yaml(path) == OmegaConf.to_container(OmegaConf.load(path))
