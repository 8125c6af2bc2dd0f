"""Every way in which a small text file may be damaged, for tests of all that reads one."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

NESTED = 300
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{key}: &{key} [{','.join(['*' + before] * 9)}]\n"
    for before, key in zip("abcdefgh", "bcdefghi", strict=True)
)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's whole path may have 107 letters only
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(path.name)
    finally:
        os.chdir(here)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no room


def _write(content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda path: path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": _write(""),
    "blank": _write(" \n\n"),
    "half": _write('{"state": "finished", "metrics": {"val/psnr"'),
    "binary": _write(b"\x89PNG\r\n\x1a\n" + bytes(range(256))),
    "utf_16": _write('{"state": "finished"}'.encode("utf-16")),
    "null_bytes": _write(bytes(4096)),  # as a power cut leaves
    "mark_alone": _write(b"\xef\xbb\xbf"),
    "a_list": _write("[1, 2]"),
    "a_text": _write('"finished"'),
    "a_number": _write("1"),
    "nothing": _write("null"),
    "not_a_number": _write('{"state": "finished", "metrics": {"val/psnr": NaN}}'),
    "long_number": _write('{"state": "finished", "step": ' + "9" * 5000 + "}"),
    "deep_lists": _write("[" * 100_000),
    "deep_objects": _write('{"a":' * NESTED + "1" + "}" * NESTED),
    "aliases": _write(BOMB),
    "a_tag": _write("!!python/object/apply:os.system ['touch was_run']"),
    "huge": _sparse,
    "fifo": os.mkfifo,
    "socket": _socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
    "loop": lambda path: path.symlink_to(path),
    "not_permitted": lambda path: path.symlink_to("/proc/1/mem"),
}
"""What to put at a path where nothing is yet."""


def damage(path: Path, kind: str) -> None:
    """Put a damaged file in the place of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    DAMAGE[kind](path)
