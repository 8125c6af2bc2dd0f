"""The LightningDataModule of all data sets of images."""

import math

import torch
from torch import Tensor
from torch.utils.data import BatchSampler

from ldm_lightning.data.evaluation_loader import EvaluationLoader
from ldm_lightning.data.module import MapDataModule
from ldm_lightning.data.order.sampling import EvaluationSampler, SampleKey
from ldm_lightning.data.samples import ImageDataset, collate, image_facts
from ldm_lightning.utils.image import to_uint8


class ImageDataModule(MapDataModule[ImageDataset]):
    """Batches of images, as ``collate`` joins them."""

    collate_fn = staticmethod(collate)

    @property
    def sample_bytes(self) -> int:
        """Size of an image in float32."""
        return 4 * self.image_channels * math.prod(self.resolution)

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.train_dataset.resolution

    @property
    def image_channels(self) -> int:
        """Channels of the images."""
        return self.train_dataset.image_channels

    def unaugmented_dataloader(self) -> EvaluationLoader:
        """All windows of each training image once, cut as for evaluation, in this process."""
        self._prepare_workers()
        dataset = self.train_dataset.without_augmentation()
        return EvaluationLoader(
            dataset,  # type: ignore[arg-type]
            batch_sampler=BatchSampler(
                EvaluationSampler(list(range(len(dataset)))),  # type: ignore[arg-type]
                self.loading.val_batch_size,
                drop_last=False,
            ),
            collate=self.collate_fn,
            num_workers=self.loading.num_workers,
            timeout_seconds=self.loading.worker_timeout_seconds,
            persistent=False,
        )

    def training_sample(self, num_images: int) -> Tensor:
        """Images as the first updates see them, the same in every process.

        Small data sets are gone through several times, each time cut anew.

        Args:
            num_images: How many.

        Returns:
            uint8 [num_images, C, H, W].
        """
        self._prepare_workers()
        sampler = self._train_sampler(0, rank=0, num_processes=1, batch_size=1)
        keys: list[SampleKey] = []
        while len(keys) < num_images:
            epoch = len(keys) // len(self.train_dataset)
            keys += [SampleKey(epoch, index) for index in sampler.order(epoch)]
        loader = EvaluationLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=BatchSampler(
                keys[:num_images],  # type: ignore[arg-type]
                min(self.loading.val_batch_size, num_images),
                drop_last=False,
            ),
            collate=self.collate_fn,
            num_workers=self.loading.num_workers,
            timeout_seconds=self.loading.worker_timeout_seconds,
            persistent=False,
        )
        return torch.cat([to_uint8(batch["image"]) for batch in loader])

    def protocol(self, split: str) -> dict[str, str | int | float]:
        """Describe what a figure on this split was measured on; see ``MapDataModule``."""
        indices = self.indices(split)
        return image_facts(self.train_dataset if split == "train" else self.val_dataset, indices)
