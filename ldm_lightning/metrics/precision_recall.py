"""Precision and recall of a set of generated images against real ones.

Source: Kynkäänniemi et al. 2019, arXiv:1904.06991, Eq. 1 and 2. A set's manifold is the union of
balls around its feature vectors, each as wide as the distance to the k-th nearest other one.
Precision is the share of generated images inside the real manifold, recall the share of real images
inside the generated one.

Differs from Kynkäänniemi et al.: they take VGG-16 features; here it is the network of the feature
set, Inception or the embedded one, as ADM's evaluator does.
"""

from typing import NamedTuple

import torch
from torch import Tensor

NEAREST = 3
"""k of the paper."""

BLOCK_ROWS = 2048
"""Rows of the matrix of distances that are held at once."""

ROUNDING = 1e-12
"""Squared distances below this share of the largest squared norm are rounding errors: a squared
distance is a difference of squared norms. Without it, of images that appear several times some
would lie outside their own balls."""


class PrecisionRecall(NamedTuple):
    """Precision and recall, both in [0, 1]."""

    precision: float
    recall: float


def precision_and_recall(features: Tensor, references: Tensor) -> PrecisionRecall | None:
    """Precision and recall with k = 3 (Kynkäänniemi et al. 2019, Eq. 2).

    Args:
        features: Of generated images, [N, D].
        references: Of real images, [M, D].

    Returns:
        None where either set has no k-th neighbor: fewer than four images.
    """
    if min(len(features), len(references)) <= NEAREST:
        return None
    features, references = features.double(), references.double()
    return PrecisionRecall(
        precision=_share_inside(features, references),
        recall=_share_inside(references, features),
    )


def _share_inside(points: Tensor, centers: Tensor) -> float:
    """Share of points [N, D] inside the manifold of ``centers`` [M, D] (Eq. 1)."""
    radii = torch.cat(
        [
            # the nearest one is the vector itself
            _squared_distances(block, centers).kthvalue(NEAREST + 1, dim=1).values
            for block in centers.split(BLOCK_ROWS)
        ]
    )
    inside = [
        (_squared_distances(block, centers) <= radii).any(dim=1)
        for block in points.split(BLOCK_ROWS)
    ]
    return float(torch.cat(inside).double().mean())


def _squared_distances(rows: Tensor, columns: Tensor) -> Tensor:
    """Squared Euclidean distances of [N, D] and [M, D], float64: [N, M]."""
    norms, other_norms = rows.square().sum(dim=1), columns.square().sum(dim=1)
    squared = norms[:, None] + other_norms[None, :] - 2 * rows @ columns.T
    return torch.where(squared > ROUNDING * other_norms.max(), squared, 0.0)
