"""Fréchet distance between two sets of images in the features of a frozen network.

Source: Heusel et al. 2017, arXiv:1706.08500, Eq. 6: |m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)).
The trace of the root is computed as Tr (R S2 R)^(1/2) with R = S1^(1/2), which is symmetric: its
eigenvalues are real, and R, the costly half, can be kept with the reference set.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ldm_lightning.metrics.accumulators import FeatureMoments, FeatureStatistics
from ldm_lightning.metrics.features import FeatureExtractor
from ldm_lightning.metrics.reference_cache import ReferenceCache, ReferenceStatistics
from ldm_lightning.utils.collectives import all_reduce_sum, num_processes, process_rank
from ldm_lightning.utils.metadata import count_fact

logger = logging.getLogger(__name__)

RELATIVE_TOLERANCE = 100 * torch.finfo(torch.float64).eps
"""Eigenvalues below this share of the largest count as zero.
 They are rounding errors, and a root would turn 1e-16 into 1e-8, another one with every order of
summation.
"""


Protocol = dict[str, str | int | float | bool]
"""How a figure was made, as plain JSON values."""


class FrechetResult(NamedTuple):
    """A Fréchet distance and how many images stand behind it.

    Attributes:
        distance: Non-negative up to rounding; not comparable between different numbers of images.
        num_images: Number of images that were measured.
        num_references: Number of images they were measured against.
        small_sample: Whether either number is below the feature dimension, so that nothing may be
            ranked by the distance.
    """

    distance: float
    num_images: int
    num_references: int
    small_sample: bool


def reference_statistics(statistics: FeatureStatistics) -> ReferenceStatistics:
    """Take the root of the covariance, so that distances to this set become cheap."""
    values, vectors = torch.linalg.eigh(statistics.covariance)
    root = (vectors * _positive_part(values).sqrt()) @ vectors.T
    return ReferenceStatistics(statistics.mean, root, statistics.num_images)


def frechet_distance(statistics: FeatureStatistics, reference: ReferenceStatistics) -> Tensor:
    """Fréchet distance of two Gaussians (Heusel et al. 2017, Eq. 6): float64 scalar.

    Args:
        statistics: Of the measured images, feature dimension D.
        reference: Of the images they are measured against, the same D.
    """
    root = reference.covariance_root
    product = root @ statistics.covariance @ root
    values = torch.linalg.eigvalsh((product + product.T) / 2)
    means = (statistics.mean - reference.mean).square().sum()
    traces = statistics.covariance.trace() + root.square().sum()
    return means + traces - 2 * _positive_part(values).sqrt().sum()


class FrechetDistance:
    """Streams two sets of images and measures how far apart they are.

    A plain class: neither the network nor the sums appear in any state_dict.

    Args:
        extractor: Feature network.
        reference_protocol: Says which images the reference set consists of, as plain JSON values
            with ``num_images``. Then its statistics are kept as soon as a pass has seen exactly
            that many, and later passes skip the features of these images. ``None``: every pass
            computes them.
        cache_dir: Folder where kept statistics also outlive the process; needs
            ``reference_protocol``.

    Raises:
        ValueError: If the protocol lacks ``num_images``, or there is a folder and no protocol.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        *,
        reference_protocol: Mapping[str, str | int | float] | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        if cache_dir is not None and reference_protocol is None:
            raise ValueError("cache_dir needs reference_protocol, which says what is cached.")
        if reference_protocol is not None and "num_images" not in reference_protocol:
            raise ValueError(
                f"reference_protocol must hold num_images, got {sorted(reference_protocol)}."
            )
        self.extractor = extractor
        self._images = FeatureMoments(extractor.feature_dim)
        self._references = FeatureMoments(extractor.feature_dim)
        self._count = count_fact(reference_protocol or {})
        self._fixed_count = None if reference_protocol is None else reference_protocol[self._count]
        self._kept: ReferenceStatistics | None = None
        self._cache: ReferenceCache | None = None
        if reference_protocol is not None and cache_dir is not None:
            key = {
                "feature_network": extractor.feature_network,
                "weights_hash": extractor.weights_hash,
                "feature_dim": extractor.feature_dim,
                "data": dict(reference_protocol),
            }
            self._cache = ReferenceCache(Path(cache_dir).expanduser(), key)
        self._cache_was_read = False
        self._shared: FrechetDistance | None = None

    def share_references(self, other: "FrechetDistance") -> None:
        """Measure against the references of another distance, which must see the same images.

        Their features are then computed once. The other one is updated and reset by its owner.
        """
        self._shared = other

    def reset(self) -> None:
        """Begin a pass. Call it on every process: they agree here on whether a cache is used."""
        self._images.reset()
        self._references.reset()
        if self._shared or self._cache is None or self._kept is not None or self._cache_was_read:
            return
        self._cache_was_read = True
        found = self._cache.load()
        present = torch.tensor(int(found is not None), device=self._images.device)
        everywhere = int(all_reduce_sum(present)) == num_processes()
        if found is not None and everywhere:
            self._keep(found)

    def to(self, device: torch.device | str) -> Self:
        """Move the sums. The network is moved by whoever owns the feature set."""
        self._images.to(device)
        self._references.to(device)
        if self._kept is not None:
            self._keep(self._kept)
        return self

    def update(self, images: Tensor) -> None:
        """Add measured images: uint8, [B, C, H, W]."""
        self._images.update(self.extractor(images))

    def update_references(self, images: Tensor) -> None:
        """Add reference images, uint8, [B, C, H, W]; free where their statistics are kept."""
        if self._kept is None and self._shared is None:
            self._references.update(self.extractor(images))

    def compute(self) -> FrechetResult | None:
        """Measure over all processes; ``None`` where a side has fewer than two images."""
        statistics = _compute(self._images)
        reference = self._reference()
        if reference is None or statistics.num_images < 2:
            return None
        if statistics.num_images != reference.num_images:
            logger.warning(
                "The Fréchet distance compares %d images with all %d references that are kept.",
                statistics.num_images,
                reference.num_images,
            )
        return FrechetResult(
            distance=float(frechet_distance(statistics, reference)),
            num_images=statistics.num_images,
            num_references=reference.num_images,
            small_sample=min(statistics.num_images, reference.num_images)
            < self.extractor.feature_dim,
        )

    def _reference(self) -> ReferenceStatistics | None:
        """Statistics of all references; None of fewer than two."""
        if self._shared is not None:
            return self._shared._reference()
        if self._kept is not None:
            return self._kept
        seen = _compute(self._references)
        if seen.num_images < 2:
            return None
        reference = reference_statistics(seen)
        if seen.num_images == self._fixed_count:
            self._keep(reference)
            if self._cache is not None and process_rank() == 0:
                self._cache.save(reference)
        return reference

    def describe(self, result: FrechetResult) -> Protocol:
        """Say how a result was made."""
        return {
            self._count: result.num_images,
            "num_references": result.num_references,
            "small_sample": result.small_sample,
            "feature_network": self.extractor.feature_network,
            "weights_hash": self.extractor.weights_hash,
        }

    def _keep(self, statistics: ReferenceStatistics) -> None:
        device = self._images.device
        self._kept = ReferenceStatistics(
            statistics.mean.to(device), statistics.covariance_root.to(device), statistics.num_images
        )


def _compute(moments: FeatureMoments) -> FeatureStatistics:
    # an update without images: torchmetrics warns where a process had none, and all must take part
    moments.update(torch.empty(0, moments.feature_dim, device=moments.device))
    statistics: FeatureStatistics = moments.compute()
    return statistics


def _positive_part(values: Tensor) -> Tensor:
    """Set eigenvalues [D] that are rounding errors of the largest to zero."""
    return torch.where(values > RELATIVE_TOLERANCE * values.abs().max(), values, 0.0)
