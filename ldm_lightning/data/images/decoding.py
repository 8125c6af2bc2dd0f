"""The one place where an image file becomes a tensor."""

import re
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from ldm_lightning.data.images.formats import PILLOW_FORMATS
from ldm_lightning.data.value_range import ValueRange, WideType, is_wide_color
from ldm_lightning.storage.files import read_regular

# Pillow's own limit, about 89 million pixels: a file of a few kilobytes can claim any size.
MAX_PIXELS = 89_478_485

MAX_FILE_BYTES = 2**29
"""Largest encoded image; 81 million pixels of 3 x 16 bits without compression are 486 MB."""

MAX_ORDINARY_PIXELS = 2**25
"""Of files with more pixels a smaller version is returned where that suffices."""

MAX_SCANS = 100
"""A JPEG file with more passes over its pixels was made to take hours; ordinary ones have ten."""

ROWS_AT_ONCE = 256
FRACTIONS = (8, 4, 2, 1)  # of a large image's sides; all divide ROWS_AT_ONCE

# EXIF's orientations other than 1: whether to transpose, then to mirror vertically, horizontally.
ORIENTATION = 0x0112
TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


class UnreadableImageError(ValueError):
    """A file that cannot be decoded; the message names the file and the reason."""


def decode_image(
    file: Path | bytes,
    *,
    channels: int,
    name: str | None = None,
    value_range: ValueRange | None = None,
    least_side: int | None = None,
) -> Tensor:
    """Decode an image file.

    The EXIF orientation is applied. Transparency, in an alpha channel or a palette, is composited
    over white. Grays of more than 8 bits are scaled from ``value_range`` or the full range of their
    type to 8 bits. CMYK, palette and other color spaces become RGB; for one channel, colors
    become luma (ITU-R 601). Of an animation the first frame is taken.

    Args:
        file: Path of the file, or its bytes.
        channels: Channels of the result. 1 and 3 can be had from every file; any other number only
            from 8-bit files that hold exactly so many, which are then returned as stored.
        name: What errors call the file; by default its path.
        value_range: Of the values of gray files of more than 8 bits; what lies outside is clipped.
            None takes the full range of their type, which floating-point numbers do not have.
        least_side: A file of more than ``MAX_ORDINARY_PIXELS`` is returned at a half, a quarter or
            an eighth of its size as long as both sides keep so many pixels, which takes as much
            less memory: of JPEG by its own scaled decoding, else by means over blocks of pixels.
            None returns it at its own size.

    Returns:
        uint8 in [0, 255], [C, H, W], in memory with the channels of a pixel side by side.

    Raises:
        UnreadableImageError: If the file is missing, truncated, not an image or absurdly large.
        ValueError: If the file does not have the number of channels asked for.
    """
    name = name or (str(file) if isinstance(file, Path) else "image")
    try:
        data = read_regular(file, max_bytes=MAX_FILE_BYTES) if isinstance(file, Path) else file
        with (
            warnings.catch_warnings(action="ignore"),  # of what it repairs, once a file
            Image.open(BytesIO(data), formats=PILLOW_FORMATS) as image,
        ):
            _check_size(image)
            wide = WideType.of(image)
            if value_range is not None and is_wide_color(image):
                raise ValueError(
                    "data.value_range does not apply to colors of 16 bits a channel, of which 8 "
                    "are read; convert the file to 8 bits."
                )
            if image.format in ("JPEG", "MPO"):
                _check_scans(data)
            fraction = 1 if least_side is None else _made_smaller(image, least_side)
            image.load()
            orientation = image.getexif().get(ORIENTATION)
            pixels = _to_pixels(image, channels, wide, value_range, fraction)
            kind = f"{len(image.getbands())} channel(s) ({image.mode})"
    except Exception as err:  # decoders raise nearly anything on damaged bytes
        reason = str(err) or type(err).__name__
        raise UnreadableImageError(f"Cannot read {name}: {reason}") from err
    if pixels is None:
        raise ValueError(
            f"{name} holds {kind}, but image_channels={channels} were asked for. Every file can be "
            "read with 1 or 3."
        )
    del image  # a large one and a turned copy of its pixels would take twice the memory
    # A view: laying out the channels one by one would take as long as resizing.
    return torch.from_numpy(_turned(pixels, orientation)).permute(2, 0, 1)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image file as it is shown, from its header.

    Raises:
        UnreadableImageError: If there is none.
    """
    try:
        with Image.open(path, formats=PILLOW_FORMATS) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            width, height = image.size
    except Exception as err:  # as above
        raise UnreadableImageError(f"Cannot read {path}: {str(err) or type(err).__name__}") from err
    return (width, height) if turned else (height, width)


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS}.")


def _made_smaller(image: Image.Image, least_side: int) -> int:
    """Let a large JPEG file be decoded smaller; of others return what to divide their sides by."""
    if image.width * image.height <= MAX_ORDINARY_PIXELS:
        return 1
    if image.draft(image.mode, (least_side, least_side)) is not None:
        return 1
    side = min(image.size) // least_side
    return next((number for number in FRACTIONS if number <= side), 1)


def _check_scans(data: bytes) -> None:
    """Refuse a JPEG file of a few kilobytes that is decoded for hours."""
    if data.count(b"\xff\xda") <= MAX_SCANS:
        return  # the usual case; what follows the image, as in moving pictures, may hold more
    place = 2
    scans = 0
    while found := re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])").search(data, place):
        marker, place = found[1][0], found.end()
        if marker == 0xD9:  # end of image
            return
        scans += marker == 0xDA
        if scans > MAX_SCANS:
            raise ValueError(f"more than {MAX_SCANS} passes over the pixels (JPEG scans).")
        place += int.from_bytes(data[place : place + 2], "big")


def _to_pixels(
    image: Image.Image,
    channels: int,
    wide: WideType | None,
    value_range: ValueRange | None,
    fraction: int,
) -> np.ndarray | None:
    """Return uint8 [H, W, C] at a fraction of the size; None where there are other channels.

    Some rows at a time: converting a large image as a whole takes three times its memory.
    """
    pixels: np.ndarray | None = None
    for top in range(0, image.height, ROWS_AT_ONCE):
        bottom = min(top + ROWS_AT_ONCE, image.height)
        strip = image.crop((0, top, image.width, bottom))
        if wide is not None:
            strip = Image.fromarray(wide.to_bytes(wide.values(strip), value_range))
        rows = _strip_to_pixels(strip, channels)
        if rows is None:
            return None
        if fraction > 1:
            plane = rows[..., 0] if rows.shape[2] == 1 else rows
            rows = np.atleast_3d(np.asarray(Image.fromarray(plane).reduce(fraction)))
        if pixels is None:
            height = -(-image.height // fraction)
            pixels = np.empty((height, *rows.shape[1:]), dtype=np.uint8)
        first = top // fraction
        pixels[first : first + len(rows)] = rows
    return pixels


def _turned(pixels: np.ndarray, orientation: object) -> np.ndarray:
    """Apply an EXIF orientation to [H, W, C]; one that EXIF does not know changes nothing."""
    if orientation not in TURNS:
        return pixels
    transposes, flips_rows, flips_columns = TURNS[orientation]
    turned = pixels.transpose(1, 0, 2) if transposes else pixels
    turned = turned[::-1] if flips_rows else turned
    return np.ascontiguousarray(turned[:, ::-1] if flips_columns else turned)


def _strip_to_pixels(image: Image.Image, channels: int) -> np.ndarray | None:
    """Return uint8 [H, W, C] of some rows, or None where they do not have ``channels`` channels."""
    if channels not in (1, 3):
        bands = np.array(image)
        if bands.dtype != np.uint8 or bands.ndim != 3 or bands.shape[2] != channels:
            return None
        return bands
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        # Palette and CMYK reach gray through RGB: Pillow has no direct road for all of them.
        image = image.convert("RGB").convert(mode)
    pixels = np.array(image)
    return pixels[..., None] if channels == 1 else pixels
