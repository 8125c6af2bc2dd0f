"""Sums that metrics are made of: exact over any batch size and any number of processes.

Every state is a float64 sum or a count over images, joined over processes; nothing is an average of
averages. Updates replace a state rather than change it in place, so that they work in and out of
inference mode.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class MeanAndCount(NamedTuple):
    """Mean of a value over images, and how many images stand behind it."""

    mean: float
    num_images: int


class MeanOverImages(Metric):
    """Mean of one value an image over a whole set.

    Zero values are a valid update: a process that holds no images still takes part.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Add values [B]."""
        self.total = self.total + values.detach().double().sum()
        self.count = self.count + values.numel()

    def compute(self) -> MeanAndCount:
        """Return mean (NaN where no image was seen) and number of images, over processes."""
        count = int(self.count)
        return MeanAndCount(float(self.total) / count if count else math.nan, count)


class FeatureStatistics(NamedTuple):
    """Gaussian fitted to the features of a set of images.

    Attributes:
        mean: float64, [D].
        covariance: Unbiased, float64, [D, D].
        num_images: Number of images.
    """

    mean: Tensor
    covariance: Tensor
    num_images: int


class FeatureMoments(Metric):
    """Mean and covariance of feature vectors, streamed: memory does not grow with the set.

    Sums run over differences to a process's first batch. Raw second moments of features that hardly
    vary would lose their digits against the square of the mean, and a Fréchet distance takes roots
    of what is left.

    Args:
        feature_dim: D.
    """

    full_state_update = False
    shift: Tensor
    total: Tensor
    outer: Tensor
    count: Tensor

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        zeros = torch.zeros(feature_dim, dtype=torch.float64)
        # Gathered, not added up: every process has a shift of its own.
        self.add_state("shift", zeros, dist_reduce_fx=None)
        self.add_state("total", zeros.clone(), dist_reduce_fx=None)
        self.add_state("outer", torch.diag(zeros), dist_reduce_fx=None)
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx=None)

    def update(self, features: Tensor) -> None:
        """Add features [B, D]."""
        if not len(features):
            return
        features = features.detach().double()
        self.shift = torch.where(self.count == 0, features.mean(dim=0), self.shift)
        features = features - self.shift
        self.total = self.total + features.sum(dim=0)
        self.outer = self.outer + features.T @ features
        self.count = self.count + len(features)

    def compute(self) -> FeatureStatistics:
        """Fit the Gaussian; with fewer than two images the covariance is NaN."""
        counts = self.count.reshape(-1, 1)  # [processes, 1]
        shifts, totals = (sums.reshape(-1, self.feature_dim) for sums in (self.shift, self.total))
        count = int(counts.sum())
        mean = (counts * shifts + totals).sum(dim=0) / count
        offsets = shifts - mean
        mixed = totals.T @ offsets
        scatter = self.outer.reshape(-1, self.feature_dim, self.feature_dim).sum(dim=0)
        scatter = scatter + mixed + mixed.T + (counts * offsets).T @ offsets
        covariance = scatter / (count - 1 if count > 1 else math.nan)
        return FeatureStatistics(mean, covariance, count)


class FeatureRows(Metric):
    """All feature vectors of a set, for metrics of pairs; memory grows with the set.

    Fifty thousand vectors of Inception take 400 MB.

    Args:
        feature_dim: D.
    """

    full_state_update = False
    rows: list[Tensor] | Tensor

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, features: Tensor) -> None:
        """Add features [B, D]."""
        assert isinstance(self.rows, list)
        self.rows.append(features.detach())

    def compute(self) -> Tensor:
        """All features over processes, [N, D], in an order that does not depend on who saw them.

        They are sorted by a fixed projection, so that random subsets are the same subsets however
        the images were split into batches and processes.
        """
        rows: Tensor = dim_zero_cat(self.rows)
        weights = torch.arange(self.feature_dim, dtype=torch.float64, device=rows.device).cos()
        return rows[(rows.double() @ weights).argsort(stable=True)]


def fit_gaussian(features: Tensor) -> FeatureStatistics:
    """Fit the Gaussian of features [N, D] that are all at hand; N at least 2."""
    rows = features.double()
    return FeatureStatistics(rows.mean(dim=0), torch.cov(rows.T), len(rows))
