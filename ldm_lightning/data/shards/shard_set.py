"""Finds tar shards, on a local disk or by their names."""

import os
import re
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from ldm_lightning.data.images.separation import split_words
from ldm_lightning.data.shards.tar_index import ShardContent, index_shard
from ldm_lightning.storage.content import FileHashes
from ldm_lightning.storage.files import open_regular, read_regular

# In a folder of shards, which ones are meant: the first prefix that any shard's name begins with.
SPLIT_PREFIXES = {"train": ("train",), "val": ("val", "test")}

MAX_BESIDE_BYTES = 2**24
"""Largest file beside shards that is read, of class names."""


class ShardStore(Protocol):
    """Location of shards. A shard is named by its path or its URL."""

    def find(self, root: str, *, split: str) -> list[str]:
        """Return the shards of a split that ``root`` stands for, sorted; at least one."""
        ...

    def list_folder(self, root: str) -> list[str]:
        """Return all shards of the folder ``root``, sorted; none where it is no folder."""
        ...

    def index(self, shards: Sequence[str]) -> ShardContent:
        """List the images of shards, in the order of the shards."""
        ...

    def contents(self, shards: Sequence[str]) -> list[bytes]:
        """Hash what shards hold, as ``utils.content`` does; after ``index``."""
        ...

    def identified_by(self, shards: Sequence[str]) -> str:
        """Mark that tells changed content at one path: ``content``, or in words what is weaker."""
        ...

    def open(self, shard: str) -> BinaryIO:
        """Open a shard for reading at any offset."""
        ...

    def read_beside(self, shard: str, name: str) -> bytes | None:
        """Content of a file in the folder of a shard; None where there is no such file."""
        ...

    def fetch_ahead(self, shards: Sequence[str]) -> None:
        """Say which shards will be read soon."""
        ...

    def check_room(self, num_shards: int, reason: str) -> None:
        """Require room for so many shards that are in use at once.

        Args:
            num_shards: How many.
            reason: Why, as the subject of a sentence.

        Raises:
            ValueError: If there is none.
        """
        ...


class LocalShards:
    """Shards on a local disk, read where they lie.

    Args:
        hashes: Knows what files hold; None remembers nothing.
    """

    def __init__(self, hashes: FileHashes | None = None) -> None:
        self._hashes = hashes or FileHashes()
        self._contents: dict[str, bytes] = {}

    def find(self, root: str, *, split: str) -> list[str]:
        """Return the shards of a split; see ``find_shards``."""
        return [str(path) for path in find_shards(root, split=split)]

    def list_folder(self, root: str) -> list[str]:
        """Return all shards of a folder, sorted; none where ``root`` is no folder."""
        return sorted(str(path) for path in Path(root).expanduser().glob("*.tar"))

    def index(self, shards: Sequence[str]) -> ShardContent:
        """List the images of shards by reading their headers."""
        return ShardContent.joined(self._index_one(shard) for shard in shards)

    def _index_one(self, shard: str) -> ShardContent:
        with self.open(shard) as file:
            return index_shard(file, shard)

    def contents(self, shards: Sequence[str]) -> list[bytes]:
        """Hash what shards held at the first call; one that is new or changed is read."""
        new = [shard for shard in shards if shard not in self._contents]
        for folder in sorted({os.path.dirname(shard) for shard in new}):
            here = [shard for shard in new if os.path.dirname(shard) == folder]
            rows = self._hashes.of(folder, [os.path.basename(shard) for shard in here])
            self._contents |= {shard: row.tobytes() for shard, row in zip(here, rows, strict=True)}
        return [self._contents[shard] for shard in shards]

    def identified_by(self, shards: Sequence[str]) -> str:
        """``content``: a file's state tells when it has to be read again."""
        return "content"

    def open(self, shard: str) -> BinaryIO:
        """Open a shard."""
        return open_regular(Path(shard))

    def read_beside(self, shard: str, name: str) -> bytes | None:
        """Content of a file in the folder of a shard; None where there is no such file."""
        path = Path(shard).with_name(name)
        return read_regular(path, max_bytes=MAX_BESIDE_BYTES) if path.is_file() else None

    def fetch_ahead(self, shards: Sequence[str]) -> None:
        """Nothing to do: they are here."""

    def check_room(self, num_shards: int, reason: str) -> None:
        """Nothing to check: they are here."""


def file_name(shard: str) -> str:
    """File name of a shard, without the query of a URL."""
    return PurePosixPath(shard.partition("?")[0]).name


def sample_name(shard: str, key: str) -> str:
    """Name of a sample: its shard's file name and its key."""
    return f"{file_name(shard)}/{key}"


def find_shards(root: str, *, split: str) -> list[Path]:
    """Return the shards that ``root`` stands for, sorted.

    Args:
        root: A folder, a file, or a pattern with ``*`` or braces: ``train-{0000..0009}.tar``. A
            folder stands for its shards called ``train*.tar``, else all that are not for
            validation; or, for validation, ``val*.tar``, else ``test*.tar``, else all.
        split: ``train`` or ``val``.

    Raises:
        ValueError: If there are none.
    """
    folder = Path(root).expanduser()
    if folder.is_dir():
        names = [str(path) for path in folder.glob("*.tar") if not path.name.startswith(".")]
        shards = [Path(name) for name in choose_shards(sorted(names), split)]
    else:
        patterns = expand_braces(str(folder))
        shards = sorted({Path(path) for pattern in patterns for path in _matches(pattern)})
    missing = [path for path in shards if not path.is_file()]
    if not shards and folder.is_dir():
        folders = [path.name for path in folder.iterdir() if any(path.glob("*.tar"))]
        if (words := split_words(folder, folders)) is not None:
            raise ValueError(
                f"data.root={root} holds no tar itself, but folders of splits do. Give {words}"
            )
    if missing or not shards:
        what = f"{missing[0]} does not exist" if missing else f"no tar is found under {root}"
        raise ValueError(
            f"For the {split} split {what}. Expected a folder with *.tar, or a pattern such as "
            "DIR/train-*.tar or DIR/train-{0000..0009}.tar."
        )
    return shards


def choose_shards(shards: list[str], split: str) -> list[str]:
    """Return those of a folder's shards that stand for a split; see ``find_shards``."""
    chosen = shards_of_split(shards, split)
    if split == "train" and not chosen:
        chosen = [shard for shard in shards if shard not in shards_of_split(shards, "val")]
    return chosen or shards


def shards_of_split(shards: list[str], split: str) -> list[str]:
    """Return the shards whose names say that they belong to a split; none where none does."""
    for prefix in SPLIT_PREFIXES[split]:
        if chosen := [shard for shard in shards if file_name(shard).startswith(prefix)]:
            return chosen
    return []


def _matches(pattern: str) -> list[str]:
    return glob(pattern) if has_magic(pattern) else [pattern]


def expand_braces(pattern: str) -> list[str]:
    """Write out ``{0000..0009}`` and ``{a,b}``, the first pair of braces at a time."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", found[1]):
        low, high = numbers[1], numbers[2]
        options = [str(n).zfill(len(low)) for n in range(int(low), int(high) + 1)]
    else:
        options = found[1].split(",")
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [text for option in options for text in expand_braces(before + option + after)]
