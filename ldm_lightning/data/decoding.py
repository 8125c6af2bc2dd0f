"""The one place where an image file becomes a tensor."""

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from ldm_lightning.data.formats import PILLOW_FORMATS
from ldm_lightning.data.value_range import ValueRange, WideType, is_wide_color

# Pillow's own limit, about 89 million pixels: a file of a few kilobytes can claim any size.
MAX_PIXELS = 89_478_485


class UnreadableImageError(ValueError):
    """A file that cannot be decoded; the message names the file and the reason."""


def decode_image(
    file: Path | bytes,
    *,
    channels: int,
    name: str | None = None,
    value_range: ValueRange | None = None,
) -> Tensor:
    """Decode an image file.

    The EXIF orientation is applied. Transparency, in an alpha channel or a palette, is composited
    over white. Greys of more than 8 bits are scaled from ``value_range`` or the full range of their
    type to 8 bits. CMYK, palette and other colour spaces become RGB; for one channel, colours
    become luma (ITU-R 601). Of an animation the first frame is taken.

    Args:
        file: Path of the file, or its bytes.
        channels: Channels of the result. 1 and 3 can be had from every file; any other number only
            from 8-bit files that hold exactly so many, which are then returned as stored.
        name: What errors call the file; by default its path.
        value_range: Of the values of grey files of more than 8 bits; what lies outside is clipped.
            None takes the full range of their type, which floating-point numbers do not have.

    Returns:
        uint8 in [0, 255], [C, H, W], in memory with the channels of a pixel side by side.

    Raises:
        UnreadableImageError: If the file is missing, truncated, not an image or absurdly large.
        ValueError: If the file does not have the number of channels asked for.
    """
    name = name or (str(file) if isinstance(file, Path) else "image")
    try:
        data = file.read_bytes() if isinstance(file, Path) else file
        with Image.open(BytesIO(data), formats=PILLOW_FORMATS) as image:
            _check_size(image)
            wide = WideType.of(image)
            if value_range is not None and is_wide_color(image):
                raise ValueError(
                    "data.value_range does not apply to colors of 16 bits a channel, of which 8 "
                    "are read; convert the file to 8 bits."
                )
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            narrow = (
                image
                if wide is None
                else Image.fromarray(wide.to_bytes(wide.values(image), value_range))
            )
            pixels = _to_pixels(narrow, channels)
    except Exception as err:  # decoders raise nearly anything on damaged bytes
        reason = str(err) or type(err).__name__
        raise UnreadableImageError(f"Cannot read {name}: {reason}") from err
    if pixels is None:
        raise ValueError(
            f"{name} holds {len(image.getbands())} channel(s) ({image.mode}), but "
            f"image_channels={channels} were asked for. Every file can be read with 1 or 3."
        )
    # A view: laying out the channels one by one would take as long as resizing.
    return torch.from_numpy(pixels).permute(2, 0, 1)


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


def _to_pixels(image: Image.Image, channels: int) -> np.ndarray | None:
    """Return uint8 [H, W, C], or None where the file does not have ``channels`` channels."""
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
        # Palette and CMYK reach grey through RGB: Pillow has no direct road for all of them.
        image = image.convert("RGB").convert(mode)
    pixels = np.array(image)
    return pixels[..., None] if channels == 1 else pixels
