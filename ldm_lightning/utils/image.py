"""The only place where images change their number format.

Inside the package an image is float32, [B, C, H, W], in [-1, 1]. On disk, on screen and inside
metrics it is uint8 in [0, 255], or that divided by 255.
"""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid


def to_uint8(images: Tensor) -> Tensor:
    """Clamp and round images in [-1, 1] to what a saved file would hold: uint8 in [0, 255]."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """Map uint8 images in [0, 255] to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_rgb(images: Tensor) -> Tensor:
    """Show any number of channels as three: one is repeated, others keep the first three.

    Two channels are padded with the mean of both, so that nothing is hidden.

    Args:
        images: [B, C, H, W] with any C >= 1.

    Returns:
        [B, 3, H, W].
    """
    channels = images.shape[1]
    if channels == 1:
        return images.expand(-1, 3, -1, -1)
    if channels == 2:
        return torch.cat([images, images.mean(dim=1, keepdim=True)], dim=1)
    return images[:, :3]


def spread_rows(images: Tensor, count: int) -> Tensor:
    """At most ``count`` images of a batch, evenly spaced: [min(B, count), C, H, W]."""
    step = max(1, len(images) // count)
    return images[::step][:count]


def png_bytes(image: Tensor) -> bytes:
    """One image in [-1, 1], [C, H, W] with 1 or 3 channels, as the content of a PNG file."""
    pixels = to_uint8(image[None])[0].permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    array = np.ascontiguousarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def save_grid(images: Tensor, path: Path, *, num_columns: int, min_tile: int = 96) -> None:
    """Write images in [-1, 1], [B, C, H, W], as one PNG.

    Small images are enlarged by a whole factor (nearest pixel) until a tile is at least
    ``min_tile`` pixels wide, because a 32-pixel tile cannot be judged by eye.
    """
    tiles = to_uint8(to_rgb(images.detach().float().cpu()))
    factor = max(1, -(-min_tile // tiles.shape[-1]))
    tiles = tiles.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)
    grid = make_grid(tiles, nrow=num_columns, padding=4, pad_value=255)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(grid.permute(1, 2, 0).numpy())).save(path)
