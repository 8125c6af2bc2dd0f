"""Reads a handful of images at the start, to say what would otherwise stay unnoticed."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Protocol

import numpy as np
from PIL import Image

from ldm_lightning.data.images.decoding import MAX_PIXELS
from ldm_lightning.data.images.formats import IMAGE_SUFFIXES, PILLOW_FORMATS, suffix_of
from ldm_lightning.data.value_range import ValueRange, WideType, is_wide_color

NUM_EACH = 8  # files of each suffix
NUM_NAMES = 10_000  # looked at to choose them
SMALL_FRACTION = 0.25


class Readable(Protocol):
    """Encoded images by index."""

    def name(self, index: int) -> str:
        """Name of an image."""
        ...

    def read(self, index: int) -> bytes:
        """Return the encoded image."""
        ...

    def near(self, index: int) -> range:
        """Images that are as quick to read as this one."""
        ...


@dataclass(frozen=True)
class _Found:
    """Content of one file.

    Attributes:
        name: Of the file.
        num_frames: 1 for a still image.
        wide_color: Whether it has colors of more than 8 bits a channel.
        wide: The type of its values, where it is a gray file of more than 8 bits ...
        values: ... and those that occur, sorted; None for others.
    """

    name: str
    num_frames: int
    wide_color: bool
    wide: WideType | None
    values: np.ndarray | None


def found_in_some(source: Readable, value_range: ValueRange | None) -> list[str]:
    """Warnings about several frames and about values of more than 8 bits, for the user.

    Args:
        source: The training images.
        value_range: As given by data.value_range.
    """
    found = [one for index in _chosen(source) if (one := _read(source, index)) is not None]
    messages = []
    if animated := [one for one in found if one.num_frames > 1]:
        messages.append(
            f"{len(animated)} of {len(found)} sampled files hold several frames, of which the "
            f"first is read, e.g. {animated[0].name} ({animated[0].num_frames} frames)."
        )
    if wide_color := [one for one in found if one.wide_color]:
        messages.append(
            f"{len(wide_color)} of {len(found)} sampled files hold colors of 16 bits a channel, of "
            f"which the upper 8 are read, e.g. {wide_color[0].name}."
        )
    return messages + list(_about_values(found, value_range))


def _about_values(found: Sequence[_Found], value_range: ValueRange | None) -> Iterator[str]:
    """Warnings about gray files of more than 8 bits."""
    wide = [one for one in found if one.wide is not None and one.values is not None]
    if not wide:
        if value_range is not None and found:
            yield (
                f"data.value_range=[{value_range.low:g},{value_range.high:g}] changes nothing: "
                f"none of {len(found)} sampled files is a gray file of more than 8 bits."
            )
        return
    values = np.unique(np.concatenate([one.values for one in wide]))
    low, high = values[0], values[-1]
    what = f"{len(wide)} of {len(found)} sampled files are grays of more than 8 bits"
    if value_range is not None:
        outside = np.mean((values < value_range.low) | (values > value_range.high))
        if outside:
            yield (
                f"{what} with values from {low:g} to {high:g}; {outside:.0%} of these lie outside "
                f"data.value_range=[{value_range.low:g},{value_range.high:g}] and are clipped."
            )
        return
    full = next((one.wide.full_range for one in wide if one.wide is not None), None)
    if full is None or high - low > SMALL_FRACTION * (full.high - full.low):
        return
    num_left = len(np.unique(full.to_bytes(values)))
    top = max(high, 1)
    proposed = (0, 2 ** int(top).bit_length() - 1) if low >= 0 else (int(low), int(high))
    yield (
        f"{what} and use the values {low:g} to {high:g} of {full}: their {len(values)} gray levels "
        f"become {num_left}. Give data.value_range=[{proposed[0]},{proposed[1]}] to keep more."
    )


def _chosen(source: Readable) -> list[int]:
    """Indices of a few files of each suffix, spread evenly; none that is slow to read."""
    near = source.near(0)
    by_suffix: dict[str, list[int]] = {}
    for index in _spread(near, NUM_NAMES):
        suffix = suffix_of(source.name(index))
        by_suffix.setdefault(suffix if suffix in IMAGE_SUFFIXES else "", []).append(index)
    return sorted(index for group in by_suffix.values() for index in _spread(group, NUM_EACH))


def _spread(indices: Sequence[int], count: int) -> Sequence[int]:
    return indices[:: -(-len(indices) // count)]


def _read(source: Readable, index: int) -> _Found | None:
    """Content of a file; None where it cannot be read, which training will say."""
    name = source.name(index)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(BytesIO(source.read(index)), formats=PILLOW_FORMATS) as image,
        ):
            num_frames = int(getattr(image, "n_frames", 1))
            wide, wide_color, values = WideType.of(image), is_wide_color(image), None
            if wide is not None and image.width * image.height <= MAX_PIXELS:
                image.load()
                values = np.unique(wide.values(image))
    except Exception:  # decoders raise nearly anything on damaged bytes
        return None
    return _Found(name, num_frames, wide_color, wide, values)
