"""k-means clustering of encoder outputs, to place the first codes where the data is."""

import torch
from torch import Tensor

# Bounds the distance table to about 64 MB of float32 a chunk.
MAX_TABLE_ELEMENTS = 2**24


def nearest(vectors: Tensor, centers: Tensor) -> Tensor:
    """Index of the nearest center, [N] int64, by squared Euclidean distance.

    Args:
        vectors: [N, D].
        centers: [K, D].
    """
    chunk = max(1, MAX_TABLE_ELEMENTS // centers.shape[0])
    offsets = centers.square().sum(dim=1)  # |v|^2 is the same for every center and left out
    parts = [
        torch.addmm(offsets, part, centers.t(), alpha=-2.0).argmin(dim=1)
        for part in vectors.split(chunk)
    ]
    return torch.cat(parts)


def kmeans(
    vectors: Tensor, num_centers: int, *, generator: torch.Generator, num_iterations: int = 10
) -> Tensor:
    """Lloyd's algorithm from random vectors; a center without vectors restarts at a random one.

    Args:
        vectors: [N, D], N >= 1. With fewer vectors than centers some centers repeat.
        num_centers: K.
        generator: CPU generator, so that every process finds the same centers.
        num_iterations: Rounds of assignment and averaging.

    Returns:
        Centers, [K, D].
    """

    def draw(count: int) -> Tensor:
        order = torch.randperm(len(vectors), generator=generator)
        order = order.repeat(-(-count // len(order)))[:count]
        return vectors[order.to(vectors.device)]

    centers = draw(num_centers)
    for _ in range(num_iterations):
        assigned = nearest(vectors, centers)
        counts = torch.bincount(assigned, minlength=num_centers)
        sums = torch.zeros_like(centers).index_add_(0, assigned, vectors)
        centers = sums / counts.clamp(min=1).unsqueeze(1)
        empty = counts == 0
        if empty.any():
            centers[empty] = draw(int(empty.sum()))
    return centers
