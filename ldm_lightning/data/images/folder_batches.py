"""Batches of all images of a folder at their own size, for comparing two folders."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ldm_lightning.data.images.decoding import decode_image, image_size
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


class FolderSizes:
    """Sizes of the images of a folder, from their headers, 0.1 ms an image.

    Args:
        root: The folder.
        names: Paths of the images, relative to it.

    Raises:
        UnreadableImageError: If a header cannot be read.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.each = [image_size(root / name) for name in names]

    @property
    def distinct(self) -> frozenset[tuple[int, int]]:
        """All sizes (height, width) that occur."""
        return frozenset(self.each)

    def __str__(self) -> str:
        """The size as ``HxW``; of several, the most common one and how many others there are."""
        counts = Counter(self.each)
        height, width = max(sorted(counts), key=lambda size: counts[size])
        others = f" and {len(counts) - 1} other size(s)" if len(counts) > 1 else ""
        return f"{height}x{width}{others}"
