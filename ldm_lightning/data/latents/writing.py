"""Encoding one split of a data set into a latent cache, shard by shard; may be interrupted.

Shards are cut by position in the data set and encoded in batches that begin with the shard, so an
interrupted and continued cache has the bytes of an uninterrupted one.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ldm_lightning.autoencoder.frozen import Moments
from ldm_lightning.data.latents.cache import (
    LatentCacheError,
    LatentIndex,
    ShardEntry,
    ShardReader,
    pack_keys,
    shard_name,
    write_shard,
)
from ldm_lightning.data.order.sampling import SampleKey
from ldm_lightning.data.samples import ImageDataset, collate
from ldm_lightning.data.workers import WorkerLoader
from ldm_lightning.storage.content import FileHashes

logger = logging.getLogger(__name__)

Encode = Callable[[Tensor], Moments]
"""Images float32 [B, C, H, W] in [-1, 1] to moments, on any device."""


@dataclass(frozen=True)
class SplitWriter:
    """Writes the shards of one split; each process its own, every ``num_processes``-th.

    Args:
        folder: Of the split; exists.
        index: Of the split, without shards.
        dataset: Images that are always the same.
        indices: Samples to encode, in this order.
        images_per_shard: Samples of a shard; fewer where images could not be read.
        dtype: Of the latents on disk.
        batch_size: Images encoded at once.
        num_workers: Processes that read images; 0 reads in this one.
        worker_timeout_seconds: Longest wait for a batch from one of them.
        rank: This process's number.
        num_processes: Number of processes.
    """

    folder: Path
    index: LatentIndex
    dataset: ImageDataset
    indices: Sequence[int]
    images_per_shard: int
    dtype: torch.dtype
    batch_size: int
    num_workers: int
    worker_timeout_seconds: float
    rank: int
    num_processes: int

    @property
    def split(self) -> str:
        """``train`` or ``val``."""
        return str(self.index.provenance["split"])

    @property
    def num_shards(self) -> int:
        """Shards of all processes."""
        return -(-len(self.indices) // self.images_per_shard)

    @property
    def own_shards(self) -> list[int]:
        """Numbers of the shards of this process."""
        return list(range(self.rank, self.num_shards, self.num_processes))

    def pending(self) -> list[int]:
        """Shards of this process that are not there, or not intact."""
        return [number for number in self.own_shards if not self._is_intact(number)]

    def num_images(self, numbers: Sequence[int]) -> int:
        """Samples of some shards."""
        return sum(len(self._samples(number)) for number in numbers)

    def write(self, numbers: Sequence[int], encode: Encode) -> Iterator[int]:
        """Encode and write shards, in this order.

        Yields:
            The number of images of each batch, once they are encoded.

        Raises:
            ValueError: If a latent is not finite, or not in ``dtype``.
        """
        batches = {number: self._batches(number) for number in numbers}
        loader = iter(
            WorkerLoader(
                self.dataset,  # type: ignore[arg-type]
                batch_sampler=[batch for number in numbers for batch in batches[number]],
                collate=collate,
                num_workers=self.num_workers,
                timeout_seconds=self.worker_timeout_seconds,
                persistent=False,
            )
        )
        for number in numbers:
            parts: list[dict[str, Tensor]] = []
            keys: list[str] = []
            for _ in batches[number]:
                batch = next(loader)
                if batch is None:  # none of its images could be read
                    continue
                parts.append(self._latents(batch["image"], batch["key"], encode))
                if self.index.num_classes is not None:
                    parts[-1]["label"] = batch["label"]
                keys += batch["key"]
                yield len(batch["key"])
            if not keys:
                raise ValueError(
                    f"No image of the {self.split} split from position "
                    f"{number * self.images_per_shard} on can be read: nothing to write into "
                    f"{self.folder / shard_name(number)}. Repair or remove these files."
                )
            joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            write_shard(
                self.folder,
                number,
                joined | pack_keys(keys),
                provenance_hash=self.index.provenance_hash,
            )

    def moments(self) -> Iterator[Moments]:
        """Content of this process's shards; a mirrored copy lies beside its image in one row."""
        names = ("mean", "variance") if self.index.has_variance else ("mean",)
        for number in self.own_shards:
            tensors = self._reader(number).read()
            if self.index.has_flips:
                for name in names:
                    tensors[name] = torch.cat([tensors[name], tensors[f"{name}_flipped"]], dim=-1)
            yield Moments(tensors["mean"], tensors.get("variance"))

    def finished_index(self, hashes: FileHashes) -> LatentIndex:
        """The index with the shards of all processes, once they are written.

        Args:
            hashes: Knows what files hold; shards that it does not know yet are read.
        """
        names = [shard_name(number) for number in range(self.num_shards)]
        contents = hashes.of(self.folder, names)
        shards = tuple(
            ShardEntry(
                file=name,
                num_samples=len(self._reader(number)),
                num_bytes=(self.folder / name).stat().st_size,
                content=contents[number].tobytes().hex(),
            )
            for number, name in enumerate(names)
        )
        return replace(self.index, shards=shards)

    def _samples(self, number: int) -> Sequence[int]:
        first = number * self.images_per_shard
        return self.indices[first : first + self.images_per_shard]

    def _batches(self, number: int) -> list[list[SampleKey]]:
        keys = [SampleKey(0, index) for index in self._samples(number)]
        return [
            keys[first : first + self.batch_size] for first in range(0, len(keys), self.batch_size)
        ]

    def _reader(self, number: int) -> ShardReader:
        return ShardReader(self.folder, number, provenance_hash=self.index.provenance_hash)

    def _is_intact(self, number: int) -> bool:
        path = self.folder / shard_name(number)
        if not path.is_file():
            return False
        try:
            self._reader(number).read()
        except LatentCacheError as error:
            logger.warning("%s is made anew: %s", path, error)
            return False
        return True

    def _latents(self, images: Tensor, keys: Sequence[str], encode: Encode) -> dict[str, Tensor]:
        """Tensors of a batch as they are stored."""
        copies = {"": images} | ({"_flipped": images.flip(-1)} if self.index.has_flips else {})
        stored: dict[str, Tensor] = {}
        for suffix, copy in copies.items():
            mean, variance = encode(copy)
            named = {"mean": mean} | ({} if variance is None else {"variance": variance})
            for name, value in named.items():
                stored[f"{name}{suffix}"] = self._stored(value.cpu(), name, keys)
        return stored

    def _stored(self, value: Tensor, name: str, keys: Sequence[str]) -> Tensor:
        """A tensor in the type of the cache.

        Raises:
            ValueError: If that loses a value to infinity, or it was not finite.
        """
        stored = value.to(self.dtype)
        finite = stored.flatten(1).isfinite().all(dim=1)
        if bool(finite.all()):
            return stored
        bad = int((~finite).nonzero()[0])
        if bool(value[bad].isfinite().all()):
            raise ValueError(
                f"The posterior {name} of {keys[bad]} reaches {value[bad].abs().max():.3g}, which "
                f"{self.dtype} cannot hold. Use dtype=float32."
            )
        raise ValueError(
            f"The first stage gives a posterior {name} that is not finite for {keys[bad]}. It was "
            "damaged or has diverged; or use precision=32 instead of fp16."
        )
