"""Layout of encoded images on disk: safetensors shards and one index a split.

    DIR/statistics.json       moments over the training split, from which a normalizer is made
    DIR/train/index.json      what the latents were made of, and the shards
    DIR/train/00000.safetensors ...
    DIR/val/...

A shard holds ``mean`` [n, c, h, w], where there is a posterior ``variance``, with mirrored copies
``mean_flipped`` and ``variance_flipped``, where there are classes ``label`` int64 [n], and the
names of the samples as ``key_bytes`` (UTF-8, one after the other) and ``key_ends`` int64 [n].
Everything can be read row by row without reading the rest.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ldm_lightning.storage.files import atomic_writer
from ldm_lightning.storage.hashing import canonical_json, hash_json, hash_tensors
from ldm_lightning.storage.small_files import read_json
from ldm_lightning.utils.metadata import Fact, check_facts

FORMAT = 2
"""Raised whenever an older reader would misunderstand a newer file."""

INDEX, STATISTICS = "index.json", "statistics.json"


class LatentCacheError(ValueError):
    """A latent cache cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class ShardEntry:
    """The index's entry of a shard; ``content`` is its hash, see ``utils.content``."""

    file: str
    num_samples: int
    num_bytes: int
    content: str


@dataclass(frozen=True)
class LatentIndex:
    """The index of one split: its latents and their shards.

    Attributes:
        provenance: Everything their values depend on: hash of the first stage, data, transform,
            precision, by name.
        made_at: Where that lay: paths, which may change.
        latent_shape: (c, h, w).
        has_variance: Whether there is a posterior variance.
        num_classes: Of the labels; None where there are no labels.
        class_names: One a class, where they are known.
        shards: None until all of them are written.
    """

    provenance: dict[str, Fact]
    made_at: dict[str, str]
    latent_shape: tuple[int, int, int]
    has_variance: bool
    num_classes: int | None
    class_names: list[str] | None
    shards: tuple[ShardEntry, ...] | None = None

    def __post_init__(self) -> None:
        for name, value, kinds in (
            ("has_variance", self.has_variance, bool),
            ("num_classes", self.num_classes, int | None),
            ("class_names", self.class_names, list | None),
        ):
            if not isinstance(value, kinds):
                raise TypeError(f"{name} is {value!r}")

    @property
    def num_samples(self) -> int:
        """Samples in the shards; images that could not be read are not among them."""
        return sum(shard.num_samples for shard in self.shards or ())

    @property
    def has_flips(self) -> bool:
        """True if there are latents of the mirrored images too."""
        return bool(self.provenance["flip"])

    @property
    def provenance_hash(self) -> str:
        """Stands in every shard, so that shards of two caches cannot be mixed."""
        return hash_json({"format": FORMAT, **self.provenance})

    def save(self, folder: Path) -> None:
        """Write ``index.json``, atomically; the same content gives the same bytes."""
        with atomic_writer(folder / INDEX) as file:
            file.write(json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode() + b"\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the index of a split.

        Raises:
            LatentCacheError: If it is missing, damaged or of another version.
        """
        path = folder / INDEX
        if not path.is_file():
            raise LatentCacheError(
                f"{folder} is no latent cache: {path} does not exist. Make one with python -m "
                f"ldm_lightning.encode checkpoint=... output={folder.parent}"
            )
        try:
            stored = read_json(path, dict)
            version = stored.pop("format")
            if version != FORMAT:
                raise LatentCacheError(
                    f"{path} has format {version!r}, this version reads {FORMAT}. Make it anew "
                    "with ldm_lightning.encode."
                )
            shards = stored.pop("shards")
            shape = stored.pop("latent_shape")
            index = cls(
                **stored,
                latent_shape=(int(shape[0]), int(shape[1]), int(shape[2])),
                shards=None if shards is None else tuple(ShardEntry(**shard) for shard in shards),
            )
            _ = index.provenance_hash, index.has_flips
        except LatentCacheError:
            raise
        except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise LatentCacheError(
                f"{path} is damaged ({type(error).__name__}: {error}). Delete it and run "
                "ldm_lightning.encode again with the words that made it: intact shards are kept."
            ) from error
        return index

    def check(self, expected: Mapping[str, Fact], *, folder: Path, remedy: str) -> None:
        """Refuse a cache that was made of other things.

        Raises:
            ValueError: Naming each fact that differs, with both values.
        """
        check_facts(self.provenance, expected, what=f"The latent cache {folder}", remedy=remedy)


def shard_name(number: int) -> str:
    """File of a shard."""
    return f"{number:05d}.safetensors"


def files_of_others(folder: Path) -> list[Path]:
    """Files that are called as shards are and hold something else; damaged ones may be shards."""
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                if "latents" not in (file.metadata() or {}):
                    found.append(path)
        except (OSError, SafetensorError):
            continue
    return found


def pack_keys(keys: Sequence[str]) -> dict[str, Tensor]:
    """Names as two tensors, of which a row can be read without the rest."""
    encoded = [key.encode("utf-8", errors="surrogateescape") for key in keys]
    lengths = torch.tensor([len(key) for key in encoded], dtype=torch.int64)
    content = torch.tensor(list(b"".join(encoded)), dtype=torch.uint8)
    return {"key_bytes": content, "key_ends": lengths.cumsum(0)}


def write_shard(
    folder: Path, number: int, tensors: Mapping[str, Tensor], *, provenance_hash: str
) -> None:
    """Write a shard atomically; the same tensors give the same bytes."""
    facts = {"format": FORMAT, "provenance": provenance_hash, "shard": number}
    content = {name: value.contiguous() for name, value in tensors.items()}
    # One entry: safetensors keeps the order of several to itself.
    metadata = {"latents": canonical_json({**facts, "tensors": hash_tensors(content)})}
    with atomic_writer(folder / shard_name(number)) as file:
        file.write(save(content, metadata=metadata))


class ShardReader:
    """A memory-mapped shard: opening it reads its header, asking for latents reads their row.

    Names and labels are small and read as a whole when the first one is asked for.

    Raises:
        LatentCacheError: If it is missing, cut off, or belongs to another cache.
    """

    def __init__(self, folder: Path, number: int, *, provenance_hash: str) -> None:
        self.path = folder / shard_name(number)
        try:
            self._file = safe_open(self.path, framework="pt")
            self._facts = json.loads((self._file.metadata() or {})["latents"])
            self.names: list[str] = list(self._file.keys())
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise LatentCacheError(
                f"The shard {self.path} is missing or damaged ({type(error).__name__}: {error}). "
                "Run ldm_lightning.encode again with the words that made the cache: it makes this "
                "shard anew and keeps the others."
            ) from error
        expected = {"format": FORMAT, "provenance": provenance_hash, "shard": number}
        if any(self._facts.get(name) != value for name, value in expected.items()):
            raise LatentCacheError(
                f"The shard {self.path} belongs to another cache than the index beside it "
                f"({self._facts.get('provenance')}, expected {provenance_hash}). Delete it and run "
                "ldm_lightning.encode again with the words that made the index."
            )
        self._slices = {name: self._file.get_slice(name) for name in self.names}
        self._small: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._slices["key_ends"].get_shape()[0])

    def row(self, name: str, row: int) -> Tensor:
        """One row of a tensor, without its first axis."""
        return self._slices[name][row]

    def label(self, row: int) -> int:
        """Class of a sample."""
        return int(self._column("label")[row])

    def labels(self) -> np.ndarray:
        """Classes of all samples, int64 [n]."""
        return self._column("label")

    def key(self, row: int) -> str:
        """Name of a sample."""
        ends = self._column("key_ends")
        content = self._column("key_bytes")[ends[row - 1] if row else 0 : ends[row]]
        return content.tobytes().decode("utf-8", errors="surrogateescape")

    def layout(self, name: str) -> tuple[str, list[int]]:
        """Type, as safetensors calls it, and shape of a tensor."""
        return str(self._slices[name].get_dtype()), list(self._slices[name].get_shape())

    def key_ends(self) -> np.ndarray:
        """End of each sample's name, in bytes, int64 [n]."""
        return self._column("key_ends")

    def _column(self, name: str) -> np.ndarray:
        if name not in self._small:
            self._small[name] = self._file.get_tensor(name).numpy()
        return self._small[name]

    def read(self) -> dict[str, Tensor]:
        """Read everything and compare it with the checksum that was written with it.

        Raises:
            LatentCacheError: If the two differ.
        """
        tensors = {name: self._file.get_tensor(name) for name in self.names}
        if hash_tensors(tensors) != self._facts.get("tensors"):
            raise LatentCacheError(
                f"The shard {self.path} is damaged: its checksum is wrong. Run "
                "ldm_lightning.encode again with the words that made the cache."
            )
        return tensors
