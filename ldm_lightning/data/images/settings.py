"""Decoding and crops that folders and tar shards share."""

from dataclasses import dataclass

from ldm_lightning.data.transforms import EvalTransform, TrainTransform, as_size
from ldm_lightning.data.value_range import ValueRange


@dataclass(frozen=True)
class ImageSettings:
    """Decoding and crops of encoded images; the keys of ``data`` have the same names.

    Attributes:
        resolution: Height and width of the samples, or one number for both.
        image_channels: Channels of the samples.
        value_range: Of gray files of more than 8 bits; None: the full range of their type.
        train_crop: ``random``, ``random_resized`` or ``center``.
        crop_scale: Least and largest fraction of an image's area that ``random_resized`` cuts.
        flip: Mirror half of the training samples.
        eval_crop: ``center``, or ``crops`` for fixed windows at native scale.
        val_crops_per_image: Windows of each image with ``eval_crop=crops``.
        max_bad_fraction: Fraction of a source that may be unreadable before the run is stopped.
    """

    resolution: int | tuple[int, int]
    image_channels: int
    value_range: ValueRange | None
    train_crop: str
    crop_scale: tuple[float, float]
    flip: bool
    eval_crop: str
    val_crops_per_image: int
    max_bad_fraction: float

    @property
    def train_transform(self) -> TrainTransform:
        """Crop and flip of training samples."""
        return TrainTransform(
            size=as_size(self.resolution),
            crop=self.train_crop,
            scale=(self.crop_scale[0], self.crop_scale[-1]),
            flip=self.flip,
        )

    @property
    def eval_transform(self) -> EvalTransform:
        """Crop of evaluation samples."""
        return EvalTransform(
            size=as_size(self.resolution),
            crop=self.eval_crop,
            crops_per_image=self.val_crops_per_image if self.eval_crop == "crops" else 1,
        )
