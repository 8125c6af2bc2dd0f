"""Kernel distance of two sets of images: KID with Inception features.

Source: Bińkowski et al. 2018, arXiv:1801.01401, section 4: the squared maximum mean discrepancy
with the kernel (x y / D + 1)^3, by its unbiased estimator (Gretton et al. 2012, Eq. 3), averaged
over random subsets. Unlike a Fréchet distance its expectation does not depend on the number of
images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_lightning.utils.random import generator_for

SUBSET_SIZE = 1000
NUM_SUBSETS = 100
SEED = 0
"""Of the subsets, so that a figure is the same every time."""


@dataclass(frozen=True)
class KernelDistance:
    """A kernel distance and how it was estimated.

    Attributes:
        distance: Unbiased, hence below zero about half the time where the sets do not differ.
        subset_size: Images of either set in a subset.
        num_subsets: Subsets averaged over; one where a subset is the whole of both sets.
    """

    distance: float
    subset_size: int
    num_subsets: int


def kernel_distance(features: Tensor, references: Tensor) -> KernelDistance | None:
    """Mean over random subsets of at most 1,000 images of either set.

    Args:
        features: [N, D]. Which subsets are drawn depends on the order of the rows.
        references: [M, D].

    Returns:
        None where either set has fewer than two images.
    """
    size = min(SUBSET_SIZE, len(features), len(references))
    if size < 2:
        return None
    count = 1 if len(features) == len(references) == size else NUM_SUBSETS
    total = 0.0
    for number in range(count):
        total += float(
            squared_discrepancy(
                _subset(features, size, "samples", number),
                _subset(references, size, "references", number),
            )
        )
    return KernelDistance(total / count, size, count)


def squared_discrepancy(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased estimate of the squared maximum mean discrepancy (Gretton et al. 2012, Eq. 3).

    Args:
        x: [m, D], at least two rows.
        y: [n, D], at least two rows.

    Returns:
        float64 scalar.
    """
    x, y = x.double(), y.double()
    within = [_kernel(z, z) for z in (x, y)]
    pairs = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in within]
    return pairs[0] + pairs[1] - 2 * _kernel(x, y).mean()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x y / D + 1)^3 of all pairs: [m, n]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _subset(rows: Tensor, size: int, name: str, number: int) -> Tensor:
    generator = generator_for(SEED, "kernel distance", name, number)
    chosen = torch.randperm(len(rows), generator=generator)[:size]
    return rows[chosen.to(rows.device)]
