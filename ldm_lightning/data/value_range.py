"""Pixel values of more than 8 bits: what range they are in, and how they become bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from PIL import Image, ImageFile

MAX_16_BIT = 65535


@dataclass(frozen=True)
class ValueRange:
    """The values of gray files of more than 8 bits that become black and white.

    Attributes:
        low: Becomes 0, as does everything below.
        high: Becomes 255, as does everything above.
    """

    low: float
    high: float

    @classmethod
    def of(cls, given: Sequence[float] | None) -> Self | None:
        """The range of ``data.value_range``; None stands for the full range of the type.

        Raises:
            ValueError: If it is not two numbers, the lower one first.
        """
        if given is None:
            return None
        if (
            isinstance(given, str)
            or len(given) != 2
            or not all(isinstance(value, (int, float)) for value in given)
            or not np.isfinite(list(given)).all()
            or not given[0] < given[1]
        ):
            raise ValueError(
                f"data.value_range must be [LOW,HIGH] with LOW < HIGH, or null; got {given}."
            )
        return cls(float(given[0]), float(given[1]))

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"

    def to_bytes(self, values: np.ndarray) -> np.ndarray:
        """Scale values of any type to uint8, rounded; what lies outside the range is clipped."""
        lowest = values.min()
        if values.dtype.kind in "iu" and (span := int(values.max()) - int(lowest)) <= MAX_16_BIT:
            # A table: scaling every pixel would take eight times the memory of the image.
            table = self._scaled(np.arange(span + 1, dtype=np.float64) + int(lowest))
            return table[values - lowest]
        return self._scaled(values)

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        share = (np.clip(values, self.low, self.high) - self.low) / (self.high - self.low)
        return np.rint(share * 255).astype(np.uint8)


@dataclass(frozen=True)
class WideType:
    """Storage of pixels of more than 8 bits.

    Attributes:
        full_range: What the file can hold; None for floating-point numbers.
        scaled_by: What Pillow multiplies stored values with.
    """

    full_range: ValueRange | None
    scaled_by: float = 1.0

    @classmethod
    def of(cls, image: Image.Image) -> Self | None:
        """The type of an image that was opened, but not loaded yet; None for any other image."""
        # Others are 1, L, P, RGB, ...: bytes. I;16, I;16B, I are integers, F numbers with a point.
        if image.mode.startswith("F"):
            return cls(None)
        if not image.mode.startswith("I"):
            return None
        if _raw_mode(image) == "I;12":
            return cls(ValueRange(0, 4095))
        if image.format == "PPM" and isinstance(args := _stored_as(image), tuple):
            highest = int(args[1])
            return cls(ValueRange(0, highest), scaled_by=MAX_16_BIT / highest)
        return cls(ValueRange(0, MAX_16_BIT))

    def values(self, image: Image.Image) -> np.ndarray:
        """The stored values of a loaded image of this type, integers or float32 [H, W]."""
        pixels = np.asarray(image)
        return pixels if self.scaled_by == 1 else np.rint(pixels / self.scaled_by).astype(np.int32)

    def to_bytes(self, values: np.ndarray, value_range: ValueRange | None) -> np.ndarray:
        """Scale stored values to uint8, [H, W].

        Args:
            values: As ``values`` returns them.
            value_range: What to scale from; None takes the full range of the type.

        Raises:
            ValueError: If a value is not finite, or where ``value_range`` is None and there is no
                full range or values are outside of it.
        """
        low, high = values.min(), values.max()
        if not np.isfinite([low, high]).all():
            raise ValueError("pixels are not all finite numbers.")
        if value_range is not None:
            return value_range.to_bytes(values)
        hint = "give data.value_range=[LOW,HIGH], or convert the file to 8 or 16 bits"
        if self.full_range is None:
            raise ValueError(
                f"pixels are floating-point numbers from {low:g} to {high:g}, of unknown range; "
                f"{hint}."
            )
        if low < self.full_range.low or high > self.full_range.high:
            raise ValueError(f"pixels span [{low}, {high}], which is no 16-bit range; {hint}.")
        return self.full_range.to_bytes(values)


def is_wide_color(image: Image.Image) -> bool:
    """Return whether an unloaded image has over 8 bits a channel of which Pillow reads 8."""
    return not image.mode.startswith(("I", "F")) and ";16" in _raw_mode(image)


def _raw_mode(image: Image.Image) -> str:
    """Pillow's name of how the first piece of an image is stored."""
    args = _stored_as(image)
    return str(args[0] if isinstance(args, tuple) and args else args)


def _stored_as(image: Image.Image) -> object:
    """Decoder arguments of Pillow for the first piece of an image that is not loaded yet."""
    return image.tile[0].args if isinstance(image, ImageFile.ImageFile) and image.tile else None
