"""Data module of two sources of encoded images."""

import logging

from ldm_lightning.data.image_module import ImageDataModule
from ldm_lightning.data.images.encoded import EvalImages, TrainImages
from ldm_lightning.data.images.settings import ImageSettings
from ldm_lightning.data.images.source import ImageSource
from ldm_lightning.data.images.trial_reading import found_in_some
from ldm_lightning.data.loading import LoadingSettings
from ldm_lightning.data.order.shard_order import ShardShuffle
from ldm_lightning.utils.launch import launched

log = logging.getLogger(__name__)


def encoded_data_module(
    train_source: ImageSource,
    val_source: ImageSource,
    images: ImageSettings,
    loading: LoadingSettings,
    *,
    shuffle: ShardShuffle | None = None,
) -> ImageDataModule:
    """Join two sources of encoded images.

    Args:
        train_source: Of the training split.
        val_source: Of the evaluation split.
        images: Decoding and crops of both.
        loading: Batches, workers and order.
        shuffle: Shards to go through group by group; None shuffles all images together.
    """
    if launched().is_first:
        for warning in found_in_some(train_source, images.value_range):
            log.warning(warning)
    return ImageDataModule(
        TrainImages(train_source, images, seed=loading.seed),
        EvalImages(val_source, images),
        loading,
        shuffle=shuffle,
    )
