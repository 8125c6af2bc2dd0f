"""Training on a latent cache: the batches of the images it was made of, already encoded.

Order and mirroring are those of the images: sample i of epoch e is mirrored where data=image_folder
with the same seed would mirror it.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ldm_lightning.autoencoder.normalizer import StoredStatistics
from ldm_lightning.data.bad_files import BadFileLog
from ldm_lightning.data.latents.cache import (
    STATISTICS,
    LatentCacheError,
    LatentIndex,
    ShardReader,
)
from ldm_lightning.data.latents.checks import check_contents, check_index
from ldm_lightning.data.loading import LoadingSettings
from ldm_lightning.data.module import MapDataModule
from ldm_lightning.data.order.sampling import SampleKey
from ldm_lightning.data.samples import counted, digest_of
from ldm_lightning.data.transforms import augmentation_generator, draws_flip
from ldm_lightning.data.workers import TIMEOUT_SECONDS
from ldm_lightning.storage.content import FileHashes
from ldm_lightning.utils.metadata import Fact

IMAGE_FACTS = (
    *("data", "split", "num_windows", "num_images", "resolution", "channels", "value_range"),
    *("crop", "images", "identified_by"),
)
"""Those of what a cache was made of that describe its images."""

ENCODE_ANEW = "Give the first stage and data it was made with, or make another with encode."


class LatentSample(TypedDict):
    """Posterior of one image, [c, h, w], the name of its file, and its class where known."""

    mean: Tensor
    key: str
    variance: NotRequired[Tensor]
    label: NotRequired[int]


class LatentDataset(Dataset[LatentSample]):
    """One split of a latent cache, memory-mapped.

    Args:
        folder: Of the split.
        seed: The run's seed, on which mirroring depends.
        augmented: Take the mirrored copy of half the samples, where the cache has one; for
            training.
        hashes: Knows what files hold; None remembers nothing.

    Raises:
        LatentCacheError: If the cache is missing, unfinished, or differs from its index.
    """

    bad_file_log: BadFileLog | None = None

    def __init__(
        self, folder: Path, *, seed: int, augmented: bool, hashes: FileHashes | None = None
    ) -> None:
        self.folder = folder
        self.index = LatentIndex.load(folder)
        if self.index.shards is None:
            raise LatentCacheError(
                f"The latent cache {folder} is not finished. Run ldm_lightning.encode again with "
                "the words that began it: it goes on where it stopped."
            )
        check_index(self.index, folder)
        self.seed = seed
        self.flips = augmented and self.index.has_flips
        self.split = str(self.index.provenance["split"])
        self.num_classes = self.index.num_classes
        self.class_names = self.index.class_names
        self.label_gap = ""
        self._provenance_hash = self.index.provenance_hash
        self._ends = np.cumsum([shard.num_samples for shard in self.index.shards])
        self._readers: dict[int, ShardReader] = {}
        self._hashes = hashes or FileHashes()
        self._digest: str | None = None

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, key: SampleKey) -> LatentSample:
        """Read one sample; mirrored or not, by (seed, epoch, index)."""
        reader, row = self._find(key.index)
        flipped = self.flips and draws_flip(augmentation_generator(self.seed, key))
        suffix = "_flipped" if flipped else ""
        sample = LatentSample(mean=reader.row(f"mean{suffix}", row), key=reader.key(row))
        if self.index.has_variance:
            sample["variance"] = reader.row(f"variance{suffix}", row)
        if self.num_classes is not None:
            sample["label"] = reader.label(row)
        return sample

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind: a worker process opens its own."""
        return {**self.__dict__, "_readers": {}}

    def key(self, index: int) -> str:
        """Name of a sample: that of its image."""
        reader, row = self._find(index)
        return reader.key(row)

    def digest(self) -> str:
        """Short hash of the latents and of what they were made of, after verifying the shards.

        Raises:
            LatentCacheError: If a shard was changed since it was written.
        """
        if self._digest is None:
            contents = check_contents(self.index, self.folder, self._hashes)
            self._digest = digest_of([self._provenance_hash, *contents])
        return self._digest

    @property
    def windows_per_image(self) -> int:
        """Windows that were cut from each image."""
        num_images = self.index.provenance["num_images"]
        return int(self.index.provenance.get("num_windows", num_images)) // int(num_images)

    def class_counts(self) -> list[int] | None:
        """Samples of each class, where there are classes."""
        if self.num_classes is None or self.index.shards is None:
            return None
        counts = np.zeros(self.num_classes, dtype=np.int64)
        for number in range(len(self.index.shards)):
            labels = ShardReader(
                self.folder, number, provenance_hash=self._provenance_hash
            ).labels()
            counts += np.bincount(labels, minlength=self.num_classes)
        return counts.tolist()

    def image_facts(self) -> dict[str, str | int | float]:
        """Describe the images, as their own data set does."""
        provenance = self.index.provenance
        facts = {name: provenance[name] for name in IMAGE_FACTS if name in provenance}
        facts["root"] = self.index.made_at["root"]
        return facts | ({"crop": f"{provenance['crop']} + flip"} if self.flips else {})

    def _find(self, index: int) -> tuple[ShardReader, int]:
        """The shard of a sample, opened when it is first needed, and the row in it."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        if number not in self._readers:
            self._readers[number] = ShardReader(
                self.folder, number, provenance_hash=self._provenance_hash
            )
        return self._readers[number], index - (int(self._ends[number - 1]) if number else 0)


def collate_latents(samples: list[LatentSample]) -> dict[str, Any]:
    """Join samples to a batch.

    Returns:
        ``mean`` and, where there is a posterior, ``variance``, float32 [B, c, h, w]; ``key`` list
        of str; where there are classes ``label`` int64 [B].
    """
    batch: dict[str, Any] = {
        "mean": torch.stack([sample["mean"] for sample in samples]).float(),
        "key": [sample["key"] for sample in samples],
    }
    if "variance" in samples[0]:
        batch["variance"] = torch.stack([sample["variance"] for sample in samples]).float()
    if "label" in samples[0]:
        batch["label"] = torch.tensor([sample["label"] for sample in samples])
    return batch


class LatentDataModule(MapDataModule[LatentDataset]):
    """Batches of a latent cache, as ``collate_latents`` joins them.

    Args:
        root: Folder of the cache, as ``encode`` wrote it.
        batch_size: Training samples per process and batch.
        val_batch_size: Evaluation samples per process and batch.
        num_workers: Processes that read, for each loader; 0 reads in the main process.
        worker_timeout_seconds: Longest wait for a batch from one of them.
        seed: The run's seed.
        max_val_images: Evaluate a fixed subset of at most this many, the one that the images'
            own data module would choose; None evaluates all.
        cache_dir: Where it is remembered which shards were verified; None remembers nothing.

    Raises:
        ValueError: If a number is out of range, or the cache is missing, unfinished or damaged.
    """

    collate_fn = staticmethod(collate_latents)

    def __init__(
        self,
        root: str,
        *,
        batch_size: int,
        val_batch_size: int,
        num_workers: int,
        max_val_images: int | None,
        seed: int,
        cache_dir: str | None = None,
        worker_timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        folder = Path(root).expanduser()
        train, val = (
            LatentDataset(
                folder / split, seed=seed, augmented=split == "train", hashes=FileHashes(cache_dir)
            )
            for split in ("train", "val")
        )
        for dataset, split in ((train, "train"), (val, "val")):
            dataset.index.check(
                {"split": split},
                folder=dataset.folder,
                remedy="Training and validation latents must be of different images; encode both.",
            )
        train_of = train.index.provenance
        val.index.check(
            {name: train_of[name] for name in ("first_stage_hash", "resolution", "channels")},
            folder=val.folder,
            remedy=f"Make both splits of {folder} with one first stage.",
        )
        loading = LoadingSettings(
            batch_size=batch_size,
            val_batch_size=val_batch_size,
            num_workers=num_workers,
            seed=seed,
            max_val_images=max_val_images,
            worker_timeout_seconds=worker_timeout_seconds,
        )
        super().__init__(train, val, loading)
        self.root = folder

    @property
    def sample_bytes(self) -> int:
        """Size of a posterior in float32."""
        index = self.train_dataset.index
        return 4 * math.prod(index.latent_shape) * (2 if index.has_variance else 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (c, h, w) of a sample."""
        return self.train_dataset.index.latent_shape

    @property
    def first_stage_hash(self) -> str:
        """SHA-256 of the weights that made the latents."""
        return str(self.train_dataset.index.provenance["first_stage_hash"])

    @property
    def statistics(self) -> StoredStatistics:
        """Moments of the training split.

        Raises:
            ValueError: If they are missing, damaged, or of other latents.
        """
        statistics = StoredStatistics.load(self.root / STATISTICS)
        self.train_dataset.index.check(
            {**statistics.protocol, "first_stage_hash": statistics.first_stage_hash},
            folder=self.root,
            remedy=f"Delete {self.root / STATISTICS} and run ldm_lightning.encode again.",
        )
        return statistics

    def check(self, first_stage_hash: str, *, protocol: Mapping[str, Fact] | None = None) -> None:
        """Refuse to be used with other weights, or instead of other training images.

        Args:
            first_stage_hash: SHA-256 of the weights in use.
            protocol: Facts about data and transform that must agree, of those in ``protocol``;
                None compares none.

        Raises:
            ValueError: Naming what differs, with both values.
        """
        expected = {**(protocol or {}), "first_stage_hash": first_stage_hash}
        self.train_dataset.index.check(expected, folder=self.root, remedy=ENCODE_ANEW)

    def protocol(self, split: str) -> dict[str, str | int | float]:
        """Describe what a figure on this split was measured on; see ``MapDataModule``.

        Where all is evaluated, that of the images' own data module.
        """
        indices = self.indices(split)
        dataset = self.train_dataset if split == "train" else self.val_dataset
        facts = dataset.image_facts()
        if len(indices) < len(dataset):
            digest = digest_of([str(facts["images"]), *map(dataset.key, indices)])
            facts |= counted(len(indices), windows_per_image=dataset.windows_per_image)
            facts["images"] = digest
        return facts
