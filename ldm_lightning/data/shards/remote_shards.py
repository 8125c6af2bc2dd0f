"""Shards behind a URL that fsspec knows: ``s3://``, ``gs://``, ``https://``, ``file://``.

The first run on a machine fetches every shard once to index it and keeps the index; from then on
shards are fetched when an epoch comes to them. Credentials and options are those of the file
system, from its own configuration or fsspec's (such as FSSPEC_S3_ANON=true).
"""

import json
import logging
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from ldm_lightning.data.left_out import LeftOut, Reason
from ldm_lightning.data.shards.shard_cache import RemoteShard, ShardCache, ShardUnavailableError
from ldm_lightning.data.shards.shard_set import MAX_BESIDE_BYTES, choose_shards, expand_braces
from ldm_lightning.data.shards.tar_index import ShardContent, Span, TarSample, index_shard
from ldm_lightning.storage.content import hash_stream
from ldm_lightning.storage.files import atomic_writer
from ldm_lightning.storage.small_files import read_json

logger = logging.getLogger(__name__)

NUM_REQUESTS = 16  # at a time, for facts about shards
NUM_FETCHES = 4  # shards at a time and process
GIB = 1 << 30
MAX_INDEX_BYTES = 1 << 30
# What stores call a version of a file, another one for another content.
VERSION_FACTS = (
    *("ETag", "etag", "md5Hash", "crc32c", "Content-MD5", "content_md5", "Digest"),
    *("generation", "VersionId", "version_id"),
)
# Without such a version: when it was changed, as far as the store says.
TIME_FACTS = (
    "mtime",
    "Last-Modified",
    "LastModified",
    "last_modified",
    "updated",
    "created",
    "ino",
)


def is_remote(root: str) -> bool:
    """Return whether ``root`` is a URL."""
    return "://" in root


class _Index(NamedTuple):
    """Content of a shard when it was fetched to be indexed."""

    content: bytes
    listed: ShardContent


class RemoteShards:
    """Shards of one split, read through a cache on a local disk.

    Args:
        cache: Where they are fetched to.
    """

    def __init__(self, cache: ShardCache) -> None:
        self.cache = cache
        self._shards: dict[str, RemoteShard] = {}
        self._indexes: dict[str, _Index] = {}

    def find(self, root: str, *, split: str) -> list[str]:
        """Return the shards of a split; those of a folder by the names ``find_shards`` expects.

        Args:
            root: URL of a folder or a shard, or a pattern with ``*`` or braces.
            split: ``train`` or ``val``.

        Raises:
            ValueError: If there are none, one does not tell its size or is larger than the cache,
                or the file system is not installed.
        """
        if self._is_folder(root):
            shards = choose_shards(self.list_folder(root), split)
        else:
            shards = sorted({url for pattern in expand_braces(root) for url in _matches(pattern)})
        if not shards:
            raise ValueError(
                f"For the {split} split no tar is found under {root}. Expected a URL of a folder "
                "with *.tar, or a pattern such as s3://BUCKET/train-{0000..0009}.tar."
            )
        with ThreadPoolExecutor(NUM_REQUESTS) as pool:
            found = list(pool.map(_describe, shards))
        for shard in found:
            if shard.num_bytes > self.cache.max_bytes:
                raise ValueError(
                    f"The shard {shard.url} has {shard.num_bytes / GIB:.3g} GiB and does not fit "
                    f"into data.shard_cache_gib={self.cache.max_bytes / GIB:.3g}; raise it."
                )
        self._shards = {shard.url: shard for shard in found}
        return shards

    def list_folder(self, root: str) -> list[str]:
        """Return all shards of a folder, sorted; none where ``root`` is no folder."""
        return _matches(f"{root.rstrip('/')}/*.tar") if self._is_folder(root) else []

    def index(self, shards: Sequence[str]) -> ShardContent:
        """List the images of shards from the kept indexes; what has none is fetched now."""
        new = [url for url in shards if not self._index_path(self._shards[url]).exists()]
        if new:
            logger.info(
                "Fetching %d shard(s), %.3g GiB, to index them in %s; done once.",
                len(new),
                sum(self._shards[url].num_bytes for url in new) / GIB,
                self.cache.folder,
            )
        with ThreadPoolExecutor(NUM_FETCHES) as pool:
            self._indexes |= zip(shards, pool.map(self._index_one, shards), strict=True)
        return ShardContent.joined(self._indexes[url].listed for url in shards)

    def contents(self, shards: Sequence[str]) -> list[bytes]:
        """Hash what shards hold, as it was when they were fetched to be indexed."""
        return [self._indexes[url].content for url in shards]

    def identified_by(self, shards: Sequence[str]) -> str:
        """Mark by which the store tells changed content at one URL; the weakest of its shards."""
        validators = {self._shards[url].validator for url in shards}
        if "size" in validators:
            return "content, as long as size stays"
        return "content, as long as time and size stay" if validators != {"version"} else "content"

    def open(self, shard: str) -> BinaryIO:
        """Open a shard, fetched now where it is not here."""
        return self.cache.open(self._shards[shard])

    def read_beside(self, shard: str, name: str) -> bytes | None:
        """Content of a file in the folder of a shard; None where there is no such file."""
        filesystem, path = _filesystem(f"{shard.rpartition('/')[0]}/{name}")
        if not filesystem.exists(path):
            return None
        if (filesystem.info(path).get("size") or 0) > MAX_BESIDE_BYTES:
            raise ValueError(f"{name} beside {shard} is larger than {MAX_BESIDE_BYTES:,} bytes.")
        return filesystem.cat_file(path)

    def fetch_ahead(self, shards: Sequence[str]) -> None:
        """Begin to fetch shards behind what is read now."""
        queue = [self._shards[url] for url in shards]
        for first in range(min(NUM_FETCHES, len(queue))):
            # Daemons, so that a run that has ended does not wait for what it will not read.
            threading.Thread(
                target=self._fetch_in_turn, args=(queue[first::NUM_FETCHES],), daemon=True
            ).start()

    def check_room(self, num_shards: int, reason: str) -> None:
        """Require room for so many of the largest shards, or for all there are.

        Raises:
            ValueError: Naming both sizes.
        """
        sizes = [shard.num_bytes for shard in self._shards.values()]
        needed = min(num_shards * max(sizes), sum(sizes))
        if needed > self.cache.max_bytes:
            raise ValueError(
                f"{reason} needs room for {needed / GIB:.3g} GiB of shards on this machine, but "
                f"data.shard_cache_gib={self.cache.max_bytes / GIB:.3g}. Raise it, or choose "
                "another data.shuffle_shards: the more shards are shuffled together, the more room "
                "they take, and null takes room for all."
            )

    def _fetch_in_turn(self, shards: Sequence[RemoteShard]) -> None:
        try:
            for shard in shards:
                self.cache.fetch(shard)
        except ShardUnavailableError as err:
            logger.warning("%s Whoever reads it will try again.", err)

    def _index_one(self, url: str) -> _Index:
        shard = self._shards[url]
        path = self._index_path(shard)
        with self.cache.locked(path.name):
            if path.exists():
                try:
                    return _from_json(url, read_json(path, dict, max_bytes=MAX_INDEX_BYTES))
                except (ValueError, LookupError, TypeError, AttributeError) as err:
                    logger.warning("The kept index %s is made anew: %s", path, err)
            with self.cache.open(shard) as file:
                try:
                    listed = index_shard(file, url)
                except ValueError:
                    self.cache.discard(shard)
                    raise
                file.seek(0)
                content = hash_stream(file)
            index = _Index(content, listed)
            with atomic_writer(path) as writer:
                writer.write(_to_json(index))
            return index

    def _index_path(self, shard: RemoteShard) -> Path:
        return self.cache.folder / f"{shard.stem}.index.json"

    @staticmethod
    def _is_folder(root: str) -> bool:
        return re.search(r"[*{\[]", root) is None and not root.partition("?")[0].endswith(".tar")


def _to_json(index: _Index) -> bytes:
    left_out = index.listed.left_out.reasons
    return json.dumps(
        {
            "content": index.content.hex(),
            "samples": [sample[1:] for sample in index.listed.samples],
            "left_out": {reason: asdict(entry) for reason, entry in left_out.items()},
        }
    ).encode()


def _from_json(url: str, stored: dict[str, Any]) -> _Index:
    listed = ShardContent(
        [_sample(url, row) for row in stored["samples"]],
        LeftOut({reason: Reason(**entry) for reason, entry in stored["left_out"].items()}),
    )
    return _Index(bytes.fromhex(stored["content"]), listed)


def _sample(url: str, row: list[Any]) -> TarSample:
    key, image, label, *others = row
    text, record = (None if span is None else Span(*span) for span in others)
    return TarSample(url, key, Span(*image), label, text, record)


def _matches(pattern: str) -> list[str]:
    """URLs that a pattern without braces stands for, sorted."""
    if re.search(r"[*\[]", pattern) is None:
        return [pattern]
    filesystem, path = _filesystem(pattern)
    return sorted(filesystem.unstrip_protocol(name) for name in filesystem.glob(path))


def _describe(url: str) -> RemoteShard:
    filesystem, path = _filesystem(url)
    try:
        facts = filesystem.info(path)
    except Exception as err:  # file systems raise what their libraries raise
        raise ValueError(f"The shard {url} cannot be found: {type(err).__name__}: {err}.") from err
    if not facts.get("size"):
        raise ValueError(
            f"{url} tells no size, without which a copy cannot be checked. Choose a server that "
            "sends Content-Length, or copy the shards to a local disk."
        )
    versions = [f"{name}={facts[name]}" for name in VERSION_FACTS if facts.get(name)]
    times = [f"{name}={facts[name]}" for name in TIME_FACTS if facts.get(name)]
    validator = "version" if versions else "time and size" if times else "size"
    return RemoteShard(url, int(facts["size"]), " ".join(versions[:1] or times), validator)


def _filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL and the path in it.

    Raises:
        ValueError: If the URL is of an unknown kind, or needs a package that is missing.
    """
    try:
        return url_to_fs(url)
    except ImportError as err:  # its message names the package
        raise ValueError(f"{url} cannot be read yet: {err} (pip install PACKAGE).") from err
    except ValueError as err:
        raise ValueError(f"{url} cannot be read: {err}. Expected s3://, gs://, https://.") from err
