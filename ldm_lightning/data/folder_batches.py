"""Batches of all images of a folder at their own size, for comparing two folders."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ldm_lightning.data.decoding import decode_image
from ldm_lightning.utils.image import from_uint8


def folder_batches(
    root: Path, names: Sequence[str], *, channels: int, batch_size: int
) -> Iterator[Tensor]:
    """Yield images [B, C, H, W] in [-1, 1] in the order of ``names``.

    A batch ends after ``batch_size`` images or where the size changes.

    Raises:
        UnreadableImageError: If a file cannot be read: a comparison must not leave images out.
    """
    batch: list[Tensor] = []
    for name in names:
        image = from_uint8(decode_image(root / name, channels=channels))
        if batch and (len(batch) == batch_size or batch[0].shape != image.shape):
            yield torch.stack(batch)
            batch = []
        batch.append(image)
    if batch:
        yield torch.stack(batch)
