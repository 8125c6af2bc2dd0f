"""Base of the LightningDataModules of all data sets."""

import os
import tempfile
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from lightning.pytorch import LightningDataModule
from torch.utils.data import BatchSampler

from ldm_lightning.data.evaluation_loader import EvaluationLoader
from ldm_lightning.data.loading import LoadingSettings
from ldm_lightning.data.order.sampling import (
    EpochCounts,
    EvaluationSampler,
    TrainBatchSampler,
    evaluated_indices,
)
from ldm_lightning.data.order.shard_order import ShardBatchSampler, ShardShuffle
from ldm_lightning.data.samples import MapDataset
from ldm_lightning.data.train_loader import TrainLoader
from ldm_lightning.data.workers import check_shared_memory
from ldm_lightning.utils.collectives import num_processes, process_rank

DatasetT = TypeVar("DatasetT", bound=MapDataset)


class MapDataModule(LightningDataModule, Generic[DatasetT]):
    """Training and evaluation batches of two map-style data sets.

    Order and augmentation are functions of (seed, epoch, sample). Lightning sees one epoch of
    ``num_train_batches`` batches, which the entry point sets before ``fit``; passes over the data
    are counted here. The Trainer must be made with ``use_distributed_sampler=False``.

    Args:
        train_dataset: Training split.
        val_dataset: Evaluation split.
        loading: Batches, workers and order.
        shuffle: Shards to go through group by group; None shuffles all images together.

    Attributes:
        collate_fn: Joins samples to a batch; None where none of them could be read.
    """

    collate_fn: Callable[[list[Any]], dict[str, Any] | None]

    def __init__(
        self,
        train_dataset: DatasetT,
        val_dataset: DatasetT,
        loading: LoadingSettings,
        *,
        shuffle: ShardShuffle | None = None,
    ) -> None:
        super().__init__()
        self.train_dataset = train_dataset
        self.val_dataset = val_dataset
        self.loading = loading
        self.shuffle = shuffle
        self.num_classes = train_dataset.num_classes
        self.class_names = train_dataset.class_names
        self.num_train_batches: int | None = None
        self.val_indices = evaluated_indices(
            len(val_dataset),
            val_dataset.key,
            windows_per_image=val_dataset.windows_per_image,
            max_images=loading.max_val_images,
        )
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
        self._prepare_workers(training=True)
        if self.shuffle is not None:
            self.shuffle.check_processes(self.trainer.num_devices if self.trainer else 1)
        return TrainLoader(
            self.train_dataset,
            self._train_sampler(
                self.num_train_batches, rank=process_rank(), num_processes=num_processes()
            ),
            collate=self.collate_fn,
            num_workers=self.loading.num_workers,
            timeout_seconds=self.loading.worker_timeout_seconds,
            batches_consumed=self.batches_consumed,
        )

    def val_dataloader(self) -> EvaluationLoader:
        """Each evaluated image once over all processes; the last batch may be short."""
        self._prepare_workers()
        own = EvaluationSampler(
            self.val_indices, rank=process_rank(), num_processes=num_processes()
        )
        return EvaluationLoader(
            self.val_dataset,  # type: ignore[arg-type]
            batch_sampler=BatchSampler(own, self.loading.val_batch_size, drop_last=False),  # type: ignore[arg-type]
            collate=self.collate_fn,
            num_workers=self.loading.num_workers,
            timeout_seconds=self.loading.worker_timeout_seconds,
            persistent=True,
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
            num_val_images=len(self.val_dataset) // self.val_dataset.windows_per_image,
            num_evaluated_images=len(self.val_indices) // self.val_dataset.windows_per_image,
            windows_per_image=self.val_dataset.windows_per_image,
            global_batch_size=sampler.global_batch_size,
            batches_per_epoch=sampler.batches_per_epoch,
            dropped_per_epoch=len(self.train_dataset) - num_seen,
        )

    def classes_without_images(self) -> list[int]:
        """Ids of the classes of which no image is trained on."""
        counts = self.train_dataset.class_counts()
        return [label for label, count in enumerate(counts or ()) if count == 0]

    def indices(self, split: str) -> list[int]:
        """Samples of a split: all to train on, those that are evaluated."""
        if split not in ("train", "val"):
            raise ValueError(f"split must be train or val, got {split!r}.")
        return list(range(len(self.train_dataset))) if split == "train" else self.val_indices

    def _train_sampler(
        self,
        num_batches: int,
        *,
        rank: int,
        num_processes: int,
        batch_size: int | None = None,
    ) -> TrainBatchSampler:
        """Sampler of the batches of a process; ``batch_size`` None takes the data's own."""
        batch_size = self.loading.batch_size if batch_size is None else batch_size
        if self.shuffle is not None:
            return ShardBatchSampler(
                self.shuffle,
                batch_size=batch_size,
                num_batches=num_batches,
                seed=self.loading.seed,
                rank=rank,
                num_processes=num_processes,
            )
        return TrainBatchSampler(
            len(self.train_dataset),
            batch_size=batch_size,
            num_batches=num_batches,
            seed=self.loading.seed,
            rank=rank,
            num_processes=num_processes,
        )

    @property
    @abstractmethod
    def sample_bytes(self) -> int:
        """Size of one sample's tensors in a batch."""

    def check_workers(self, *, training: bool, num_devices: int) -> None:
        """Require room in shared memory for what workers hand over.

        Args:
            training: Whether there will be training batches besides those of validation.
            num_devices: Processes of this machine.

        Raises:
            WorkerError: Naming what is needed and what is free.
        """
        size = min(self.loading.val_batch_size, len(self.val_indices))
        size += self.loading.batch_size if training else 0
        check_shared_memory(
            size * self.sample_bytes, num_workers=self.loading.num_workers, num_groups=num_devices
        )

    def _prepare_workers(self, *, training: bool = False) -> None:
        num_devices = self.trainer.num_devices if self.trainer else 1
        self.check_workers(training=training, num_devices=num_devices)
        if self.loading.num_workers > 0:
            _ = self.bad_files_path  # workers report through it, so it is chosen before they start
