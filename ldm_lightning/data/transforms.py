"""Crops and flips, on uint8 images [C, H, W].

Whatever is random here is drawn from a generator that the caller derives from (seed, epoch, index),
or from the file's name, so that it does not depend on workers, processes or order.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm_lightning.data.order.sampling import SampleKey
from ldm_lightning.utils.random import generator_for

TRAIN_CROPS = ("random_resized", "random", "center")
EVAL_CROPS = ("center", "crops")

MAX_EXCESS = 16
"""A resized image of more pixels than so many windows is not made to cut one window from it."""


def as_size(resolution: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """Return a resolution, one side or (height, width), as (height, width)."""
    size = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(
            f"resolution must be a side or (height, width) in pixels, got {resolution!r}."
        )
    return int(size[0]), int(size[1])


def resize(
    image: Tensor,
    size: tuple[int, int],
    *,
    filter_: Image.Resampling = Image.Resampling.BICUBIC,
    box: tuple[float, float, float, float] | None = None,
) -> Tensor:
    """Resize with Pillow, whose filters widen when they shrink (no aliasing).

    Args:
        image: uint8, [C, H, W].
        size: Height and width of the result.
        filter_: Pillow's filter.
        box: Left, top, right and bottom of the part that is resized; None resizes all of it.

    Returns:
        uint8, [C, height, width].
    """
    if box is None and image.shape[1:] == size:
        return image
    channels = len(image)
    if channels == 3:
        layers = [np.ascontiguousarray(image.permute(1, 2, 0).numpy())]
    else:
        layers = [channel.contiguous().numpy() for channel in image]
    resized = [
        np.array(Image.fromarray(layer).resize((size[1], size[0]), filter_, box))
        for layer in layers
    ]
    if channels == 3:
        return torch.from_numpy(resized[0]).permute(2, 0, 1)
    return torch.from_numpy(np.stack(resized))


def resize_quickly(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize as ``resize`` does, to one gray level (two where it enlarges), five times as fast.

    torch's filter for bytes is Pillow's in vector instructions. Evaluation keeps to Pillow itself,
    so that figures do not depend on the processor.

    Args:
        image: uint8, [C, H, W].
        size: Height and width of the result.

    Returns:
        uint8, [C, height, width].
    """
    if image.shape[1:] == size:
        return image
    return F.interpolate(image[None], size, mode="bicubic", antialias=True)[0]


def center_crop(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Shrink an image until it just covers the target, and take its center.

    Source: Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis" (ADM): the image
        is halved
    with a box filter while its shorter side is at least twice the target, brought to the target
    with a bicubic filter, and cropped at the center. For a target that is not square, "shorter
    side" is the side that covers its target with less room. Smaller images are enlarged.

    Args:
        image: uint8, [C, H, W].
        size: Height and width of the result.

    Returns:
        uint8, [C, height, width].
    """
    while image.shape[1] >= 2 * size[0] and image.shape[2] >= 2 * size[1]:
        half = (image.shape[1] // 2, image.shape[2] // 2)
        image = resize(image, half, filter_=Image.Resampling.BOX)
    full = _covering_size(image, size)
    top, left = (full[0] - size[0]) // 2, (full[1] - size[1]) // 2
    return _resized_window(image, full, top, left, size)


def native_crop(image: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Cut a window at a uniformly drawn position, at native scale; small images are enlarged.

    Args:
        image: uint8, [C, H, W].
        size: Height and width of the result.
        generator: Where the position is drawn from.

    Returns:
        uint8, [C, height, width].
    """
    full = (image.shape[1], image.shape[2])
    if full[0] < size[0] or full[1] < size[1]:
        full = _covering_size(image, size)
    top = _draw(full[0] - size[0] + 1, generator)
    left = _draw(full[1] - size[1] + 1, generator)
    return _resized_window(image, full, top, left, size)


def _resized_window(
    image: Tensor, full: tuple[int, int], top: int, left: int, size: tuple[int, int]
) -> Tensor:
    """Cut a window from an image brought to the size ``full``.

    The whole is resized and then cut, unless it would be far larger than the window: 1 x 10,000
    pixels enlarged to a height of 256 are 655 million. Then the part that the window shows is
    resized alone; its edges lie between pixels, so that single values may differ by one level.
    """
    if full[0] * full[1] <= MAX_EXCESS * size[0] * size[1] or full == image.shape[1:]:
        return resize(image, full)[:, top : top + size[0], left : left + size[1]]
    down, across = image.shape[1] / full[0], image.shape[2] / full[1]
    box = (
        left * across,
        top * down,
        min((left + size[1]) * across, image.shape[2]),
        min((top + size[0]) * down, image.shape[1]),
    )
    return resize(image, size, box=box)


def _covering_size(image: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    """Smallest size with the image's aspect ratio that covers ``size``."""
    scale = max(size[0] / image.shape[1], size[1] / image.shape[2])
    return (
        max(size[0], round(image.shape[1] * scale)),
        max(size[1], round(image.shape[2] * scale)),
    )


def augmentation_generator(seed: int, key: SampleKey) -> torch.Generator:
    """Random numbers of a sample's augmentation: a function of (seed, epoch, index)."""
    return generator_for(seed, "augment", key.epoch, key.index)


def draws_flip(generator: torch.Generator) -> bool:
    """Draw whether to mirror: with probability one half."""
    return bool(_draw(2, generator))


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


@dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """Crop and flip of training.

    ``random_resized`` takes a window of the target's aspect ratio whose area is a uniformly drawn
    fraction, within ``scale``, of the largest such window, and resizes it. Differs from the
    transform of that name in torchvision: the aspect ratio is kept. ``random`` cuts a window at
    native scale. ``center`` is ADM's center crop.

    Args:
        size: Height and width of the result.
        crop: ``random_resized``, ``random`` or ``center``.
        scale: Smallest and largest fraction of the area, for ``random_resized``.
        flip: Mirror left and right with probability one half.
    """

    size: tuple[int, int]
    crop: str
    scale: tuple[float, float]
    flip: bool

    def __post_init__(self) -> None:
        if self.crop not in TRAIN_CROPS:
            raise ValueError(
                f"data.train_crop must be one of {', '.join(TRAIN_CROPS)}, got {self.crop!r}."
            )
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"data.crop_scale must be two shares, 0 < least <= most <= 1, got {self.scale}."
            )

    @property
    def description(self) -> str:
        """Description for the protocol."""
        scale = f" {self.scale[0]:g}-{self.scale[1]:g}" if self.crop == "random_resized" else ""
        return f"{self.crop}{scale}{' + flip' if self.flip else ''}"

    @property
    def least_side(self) -> int | None:
        """Pixels that both sides of a larger version of an image must keep; None: all of them."""
        if self.crop == "random":
            return None
        smallest = self.scale[0] if self.crop == "random_resized" else 1.0
        return math.ceil(2 * max(self.size) / math.sqrt(smallest))

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Transform a uint8 image, [C, H, W], with what ``generator`` draws; [C, height, width]."""
        if self.crop == "center":
            image = center_crop(image, self.size)
        elif self.crop == "random":
            image = native_crop(image, self.size, generator)
        else:
            image = self._random_resized(image, generator)
        return image.flip(-1) if self.flip and draws_flip(generator) else image

    def _random_resized(self, image: Tensor, generator: torch.Generator) -> Tensor:
        height, width = image.shape[1:]
        fit = min(height / self.size[0], width / self.size[1])
        low, high = self.scale
        fraction = low + (high - low) * float(torch.rand((), generator=generator))
        side = fit * math.sqrt(fraction)
        box_height = min(height, max(1, round(side * self.size[0])))
        box_width = min(width, max(1, round(side * self.size[1])))
        top = _draw(height - box_height + 1, generator)
        left = _draw(width - box_width + 1, generator)
        window = image[:, top : top + box_height, left : left + box_width]
        return resize_quickly(window, self.size)


@dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """Crop of evaluation, a function of the image and its name alone.

    Args:
        size: Height and width of the result.
        crop: ``center`` (ADM's) or ``crops``: fixed windows at native scale, whose positions are a
            function of the file's name and the window's number.
        crops_per_image: Windows cut from each image; 1 for ``center``.
    """

    size: tuple[int, int]
    crop: str
    crops_per_image: int

    def __post_init__(self) -> None:
        if self.crop not in EVAL_CROPS:
            raise ValueError(
                f"data.eval_crop must be one of {', '.join(EVAL_CROPS)}, got {self.crop!r}."
            )
        if self.crops_per_image < 1:
            raise ValueError(
                f"data.val_crops_per_image must be at least 1, got {self.crops_per_image}."
            )

    @property
    def description(self) -> str:
        """Description for the protocol."""
        if self.crop == "center":
            return "adm_center"
        return f"{self.crops_per_image} fixed native windows an image"

    @property
    def least_side(self) -> int | None:
        """Pixels that both sides of a larger version of an image must keep; None: all of them."""
        return 2 * max(self.size) if self.crop == "center" else None

    def __call__(self, image: Tensor, *, name: str, number: int) -> Tensor:
        """Cut window ``number`` from the uint8 image [C, H, W] of that name; [C, height, width]."""
        if self.crop == "center":
            return center_crop(image, self.size)
        return native_crop(image, self.size, generator_for("crop", name, number))
