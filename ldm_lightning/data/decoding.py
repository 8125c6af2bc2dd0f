"""The one place where an image file becomes a tensor."""

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

# Pillow's own limit, about 89 million pixels: a file of a few kilobytes can claim any size.
MAX_PIXELS = 89_478_485


class UnreadableImageError(ValueError):
    """A file that cannot be decoded; the message names the file and the reason."""


def decode_image(file: Path | bytes, *, channels: int, name: str | None = None) -> Tensor:
    """Decode an image file.

    The EXIF orientation is applied. Transparency, in an alpha channel or a palette, is composited
    over white. 16-bit greys are scaled to 8 bits (divided by 257), not clipped. CMYK, palette and
    other colour spaces become RGB; for one channel, colours become luma (ITU-R 601). Of an
    animation the first frame is taken.

    Args:
        file: Path of the file, or its bytes.
        channels: Channels of the result. 1 and 3 can be had from every file; any other number only
            from 8-bit files that hold exactly so many, which are then returned as stored.
        name: What errors call the file; by default its path.

    Returns:
        uint8 in [0, 255], [C, H, W], in memory with the channels of a pixel side by side.

    Raises:
        UnreadableImageError: If the file is missing, truncated, not an image or absurdly large.
        ValueError: If the file does not have the number of channels asked for.
    """
    name = name or (str(file) if isinstance(file, Path) else "image")
    try:
        data = file.read_bytes() if isinstance(file, Path) else file
        with Image.open(BytesIO(data)) as image:
            _check_size(image)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            pixels = _to_pixels(image, channels)
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
    if image.mode == "F":
        raise ValueError(
            "pixels are floating-point numbers of unknown range; convert the file to 8 or 16 bits."
        )
    if image.mode.startswith("I"):
        image = Image.fromarray(_scale_16_bit(np.asarray(image)))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        # Palette and CMYK reach grey through RGB: Pillow has no direct road for all of them.
        image = image.convert("RGB").convert(mode)
    pixels = np.array(image)
    return pixels[..., None] if channels == 1 else pixels


def _scale_16_bit(values: np.ndarray) -> np.ndarray:
    """Scale integers in [0, 65535] to uint8, [H, W]."""
    wide = values.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise ValueError(
            f"pixels span [{wide.min()}, {wide.max()}], which is no 16-bit range; convert the file "
            "to 8 or 16 bits."
        )
    return ((wide + 128) // 257).astype(np.uint8)
