"""The LightningDataModules of all data sets; their loaders resume at any image."""

import logging
import os
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from ldm_lightning.data.position import Position
from ldm_lightning.data.samples import ImageDataset, MapDataset, collate, image_facts
from ldm_lightning.data.sampling import EpochCounts, EvaluationSampler, TrainBatchSampler
from ldm_lightning.data.shard_order import ShardBatchSampler, ShardShuffle
from ldm_lightning.utils.distributed import num_processes, process_rank
from ldm_lightning.utils.random import derive_seed

logger = logging.getLogger(__name__)

DatasetT = TypeVar("DatasetT", bound=MapDataset)


def use_one_thread(_worker: int) -> None:
    """Keep a worker process from starting as many threads as there are cores."""
    torch.set_num_threads(1)


class EvaluationLoader(DataLoader):
    """Passes over batches of which no image could be read."""

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        return (batch for batch in super().__iter__() if batch is not None)

    def __len__(self) -> int:
        """Batches, those that are passed over included; 1 where a process has none.

        Lightning leaves a validation without batches out, and with it what processes do together.
        """
        return max(1, super().__len__())


class TrainLoader(DataLoader):
    """Loader whose position Lightning stores in checkpoints.

    Lightning calls ``state_dict`` when it saves, and ``load_state_dict`` before it makes the first
    iterator. What counts is what the trainer has consumed; workers have fetched more by then.

    Args:
        data_module: Knows the data set and how many batches the trainer has consumed.
        batch_sampler: Chooses the samples.

    The position counts images (``data/position.py``), so that a run may be continued with another
    batch size, other ``accumulate_batches`` and another number of processes.
    """

    def __init__(self, data_module: "MapDataModule", batch_sampler: TrainBatchSampler) -> None:
        super().__init__(
            data_module.train_dataset,
            batch_sampler=batch_sampler,
            num_workers=data_module.num_workers,
            collate_fn=data_module.collate_fn,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=use_one_thread,
            persistent_workers=data_module.num_workers > 0,
        )
        self._data_module = data_module
        self._train_sampler = batch_sampler

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the images, and what their order depends on."""
        num_batches = self._data_module.batches_consumed() - self._train_sampler.num_done
        return {**self._train_sampler.position_after(num_batches).to_dict(), "order": self._order()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the images that were seen when the state was stored.

        Where they come in another order by now, no place in it corresponds to the one stored: the
        run continues with the next epoch, so that none shows an image twice.
        """
        position, stored, now = Position.from_dict(state), state["order"], self._order()
        changed = [name for name in sorted({*stored, *now}) if stored.get(name) != now.get(name)]
        for name in changed:
            logger.warning(
                "The checkpoint was made with %s=%s of the training data, now it is %s: the run "
                "continues, but not with the images of an uninterrupted run; it begins epoch %d.",
                name,
                stored.get(name),
                now.get(name),
                position.epoch + 1,
            )
        self._train_sampler.continue_from(
            Position(position.epoch + 1) if changed else position,
            num_done=self._data_module.batches_consumed(),
        )

    def _order(self) -> dict[str, int | str]:
        """What the order of an epoch depends on."""
        images = self._data_module.train_dataset.digest()
        return {"images": images, **self._train_sampler.order_facts}


class MapDataModule(LightningDataModule, Generic[DatasetT]):
    """Training and evaluation batches of two map-style data sets.

    Order and augmentation are functions of (seed, epoch, sample). Lightning sees one epoch of
    ``num_train_batches`` batches, which the entry point sets before ``fit``; passes over the data
    are counted here. The Trainer must be made with ``use_distributed_sampler=False``.

    Args:
        train_dataset: Training split.
        val_dataset: Evaluation split.
        batch_size: Training images per process and batch.
        val_batch_size: Evaluation images per process and batch.
        num_workers: Processes that read images, for each loader; 0 reads in the main process.
        seed: The run's seed.
        max_val_images: Evaluate a fixed subset of at most this many, chosen by a hash of the names;
            None evaluates all.
        shuffle: Shards to go through group by group; None shuffles all images together.

    Attributes:
        collate_fn: Joins samples to a batch; None where none of them could be read.

    Raises:
        ValueError: If a number is out of range.
    """

    collate_fn: Callable[[list[Any]], dict[str, Any] | None]

    def __init__(
        self,
        train_dataset: DatasetT,
        val_dataset: DatasetT,
        *,
        batch_size: int,
        val_batch_size: int,
        num_workers: int,
        seed: int,
        max_val_images: int | None,
        shuffle: ShardShuffle | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("val_batch_size", val_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("max_val_images", 1 if max_val_images is None else max_val_images, 1),
        ):
            if value < least:
                raise ValueError(f"data.{name} must be at least {least}, got {value}.")
        self.train_dataset = train_dataset
        self.val_dataset = val_dataset
        self.batch_size = batch_size
        self.val_batch_size = val_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.shuffle = shuffle
        self.num_classes = train_dataset.num_classes
        self.class_names = train_dataset.class_names
        self.num_train_batches: int | None = None
        self.val_indices = _evaluated_indices(val_dataset, max_val_images)
        self._bad_files_path: Path | None = None

    @property
    def bad_files_path(self) -> Path:
        """File that all processes append unreadable files to; set it before using a loader."""
        if self._bad_files_path is None:
            # The file appears only once something is unreadable.
            handle, name = tempfile.mkstemp(prefix="ldm_bad_files_", suffix=".tsv")
            os.close(handle)
            os.unlink(name)
            self.bad_files_path = Path(name)
        assert self._bad_files_path is not None
        return self._bad_files_path

    @bad_files_path.setter
    def bad_files_path(self, path: Path) -> None:
        self._bad_files_path = path
        for dataset in (self.train_dataset, self.val_dataset):
            if dataset.bad_file_log is not None:
                dataset.bad_file_log.write_to(path)

    def bad_files(self) -> list[str]:
        """Every unreadable file met so far by any process, with the reason."""
        lines: list[str] = []
        for dataset in (self.train_dataset, self.val_dataset):
            if dataset.bad_file_log is not None:
                lines += [
                    f"{dataset.split}: {reason}"
                    for reason in dataset.bad_file_log.entries().values()
                ]
        return lines

    def train_dataloader(self) -> TrainLoader:
        """Batches of the whole run, from the position of the checkpoint on where there is one.

        Raises:
            ValueError: If ``num_train_batches`` was not set or the split cannot fill a batch.
        """
        if self.num_train_batches is None:
            raise ValueError("Set num_train_batches of the data module before fitting.")
        self._prepare_workers()
        if self.shuffle is not None:
            self.shuffle.check_processes(self.trainer.num_devices if self.trainer else 1)
        return TrainLoader(
            self,
            self._train_sampler(
                self.num_train_batches, rank=process_rank(), num_processes=num_processes()
            ),
        )

    def val_dataloader(self) -> EvaluationLoader:
        """Each evaluated image once over all processes; the last batch may be short."""
        self._prepare_workers()
        return EvaluationLoader(
            self.val_dataset,  # type: ignore[arg-type]
            batch_size=self.val_batch_size,
            sampler=EvaluationSampler(
                self.val_indices, rank=process_rank(), num_processes=num_processes()
            ),
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=use_one_thread,
            persistent_workers=self.num_workers > 0,
        )

    def test_dataloader(self) -> EvaluationLoader:
        """Same as ``val_dataloader``: the held-out split is what is evaluated."""
        return self.val_dataloader()

    def batches_consumed(self) -> int:
        """Batches whose training step is over, before and after resuming."""
        if self.trainer is None:
            return 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return progress.processed  # type: ignore[attr-defined]

    def identify(self) -> None:
        """Read what has not been read before, so that nothing waits for it later.

        Of images what their files hold; the shards of a latent cache are verified.

        Raises:
            ValueError: If a shard of a latent cache was changed since it was written.
        """
        for dataset in (self.train_dataset, self.val_dataset):
            dataset.digest()

    @abstractmethod
    def protocol(self, split: str) -> dict[str, str | int | float]:
        """Describe what a figure on this split was measured on; differs for other images.

        ``num_images`` counts what was listed. Files that turn out unreadable are left out: see
        ``bad_files``, and the number a metric has counted.

        Args:
            split: ``train`` or ``val``.

        Raises:
            ValueError: For another split.
        """

    def counts(self, num_processes: int) -> EpochCounts:
        """Count images of both splits, and what an epoch of so many processes makes of them.

        Raises:
            ValueError: If the training split cannot fill a batch.
        """
        sampler = self._train_sampler(0, rank=0, num_processes=num_processes)
        num_seen = sampler.batches_per_epoch * sampler.global_batch_size
        return EpochCounts(
            num_train_images=len(self.train_dataset),
            num_val_images=len(self.val_dataset),
            num_evaluated_images=len(self.val_indices),
            global_batch_size=sampler.global_batch_size,
            batches_per_epoch=sampler.batches_per_epoch,
            dropped_per_epoch=len(self.train_dataset) - num_seen,
        )

    def indices(self, split: str) -> list[int]:
        """Samples of a split: all to train on, those that are evaluated."""
        if split not in ("train", "val"):
            raise ValueError(f"split must be train or val, got {split!r}.")
        return list(range(len(self.train_dataset))) if split == "train" else self.val_indices

    def _train_sampler(
        self, num_batches: int, *, rank: int, num_processes: int
    ) -> TrainBatchSampler:
        """Which samples make up the batches of a process."""
        if self.shuffle is not None:
            return ShardBatchSampler(
                self.shuffle,
                batch_size=self.batch_size,
                num_batches=num_batches,
                seed=self.seed,
                rank=rank,
                num_processes=num_processes,
            )
        return TrainBatchSampler(
            len(self.train_dataset),
            batch_size=self.batch_size,
            num_batches=num_batches,
            seed=self.seed,
            rank=rank,
            num_processes=num_processes,
        )

    def _prepare_workers(self) -> None:
        if self.num_workers > 0:
            _ = (
                self.bad_files_path
            )  # workers report through this file, so it must be chosen before they start


class ImageDataModule(MapDataModule[ImageDataset]):
    """Batches of images, as ``collate`` joins them."""

    collate_fn = staticmethod(collate)

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.train_dataset.resolution

    @property
    def image_channels(self) -> int:
        """Channels of the images."""
        return self.train_dataset.image_channels

    def unaugmented_dataloader(self) -> EvaluationLoader:
        """Each training image once, cut as for evaluation, in this process."""
        self._prepare_workers()
        return EvaluationLoader(
            self.train_dataset.without_augmentation(),  # type: ignore[arg-type]
            batch_size=self.val_batch_size,
            sampler=EvaluationSampler(self.indices("train"), rank=0, num_processes=1),
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
            worker_init_fn=use_one_thread,
        )

    def protocol(self, split: str) -> dict[str, str | int | float]:
        """Describe what a figure on this split was measured on; see ``MapDataModule``."""
        indices = self.indices(split)
        return image_facts(self.train_dataset if split == "train" else self.val_dataset, indices)


def _evaluated_indices(dataset: MapDataset, max_images: int | None) -> list[int]:
    """All indices, or the ``max_images`` whose names have the smallest hash, in order."""
    indices = list(range(len(dataset)))
    if max_images is None or max_images >= len(indices):
        return indices
    indices.sort(key=lambda index: derive_seed("subset", dataset.key(index)))
    return sorted(indices[:max_images])
