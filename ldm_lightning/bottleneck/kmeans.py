"""k-means clustering of encoder outputs, to place the first codes where the data is."""

import torch
from torch import Tensor

# Bounds the distance table to about 64 MB of float32 a chunk.
MAX_TABLE_ELEMENTS = 2**24


def nearest(vectors: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest centre, [N] int64, by squared Euclidean distance.

    Args:
        vectors: [N, D].
        centres: [K, D].
    """
    chunk = max(1, MAX_TABLE_ELEMENTS // centres.shape[0])
    offsets = centres.square().sum(dim=1)  # |v|^2 is the same for every centre and left out
    parts = [
        torch.addmm(offsets, part, centres.t(), alpha=-2.0).argmin(dim=1)
        for part in vectors.split(chunk)
    ]
    return torch.cat(parts)


def kmeans(
    vectors: Tensor, num_centres: int, *, generator: torch.Generator, num_iterations: int = 10
) -> Tensor:
    """Lloyd's algorithm from random vectors; a centre without vectors restarts at a random one.

    Args:
        vectors: [N, D], N >= 1. With fewer vectors than centres some centres repeat.
        num_centres: K.
        generator: CPU generator, so that every process finds the same centres.
        num_iterations: Rounds of assignment and averaging.

    Returns:
        Centres, [K, D].
    """

    def draw(count: int) -> Tensor:
        order = torch.randperm(len(vectors), generator=generator)
        order = order.repeat(-(-count // len(order)))[:count]
        return vectors[order.to(vectors.device)]

    centres = draw(num_centres)
    for _ in range(num_iterations):
        assigned = nearest(vectors, centres)
        counts = torch.bincount(assigned, minlength=num_centres)
        sums = torch.zeros_like(centres).index_add_(0, assigned, vectors)
        centres = sums / counts.clamp(min=1).unsqueeze(1)
        empty = counts == 0
        if empty.any():
            centres[empty] = draw(int(empty.sum()))
    return centres
