"""Comparison of two sets of images, for `evaluate images=DIR reference=DIR`.

Files are read elsewhere; these functions take batches.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_lightning.metrics.features import FeatureSet
from ldm_lightning.metrics.frechet import FrechetDistance
from ldm_lightning.metrics.reconstruction import MetricReport, Protocol, ReconstructionMetrics
from ldm_lightning.utils.image import to_uint8


class ImagePair(NamedTuple):
    """Images and, row by row, the references of the same names: both [B, C, H, W] in [-1, 1]."""

    images: Tensor
    references: Tensor


def compare_pairs(
    pairs: Iterable[ImagePair],
    features: FeatureSet,
    *,
    device: torch.device | str = "cpu",
    protocol: Mapping[str, str | int | float] | None = None,
) -> MetricReport:
    """Measure images against references of the same names: pixels, perception and Fréchet distance.

    Use it where every image has its reference; the Fréchet distance then carries the name of
    reconstructions, ``rfid`` or ``rfd_tiny``.

    Args:
        pairs: Batches; within a batch all images have one size.
        features: Feature networks.
        device: Where to compute.
        protocol: What the two folders are, as plain JSON values; copied into the report.

    Returns:
        The report, over all processes.
    """
    metrics = ReconstructionMetrics(features).to(device)
    metrics.reset()
    for images, references in pairs:
        metrics.update(references.to(device), images.to(device))
    return _with_protocol(metrics.report(), protocol)


def compare_sets(
    images: Iterable[Tensor],
    references: Iterable[Tensor],
    features: FeatureSet,
    *,
    device: torch.device | str = "cpu",
    protocol: Mapping[str, str | int | float] | None = None,
) -> MetricReport:
    """Measure the Fréchet distance of two sets that need not correspond: ``fid`` or ``fd_tiny``.

    Args:
        images: Batches [B, C, H, W] in [-1, 1]; within a batch all images have one size.
        references: Batches of the other set, likewise.
        features: Feature networks.
        device: Where to compute.
        protocol: What the two folders are, as plain JSON values; copied into the report.

    Returns:
        The report, over all processes.

    Raises:
        ValueError: If either set has fewer than two images.
    """
    features.to(device)
    frechet = FrechetDistance(features.extractor).to(device)
    frechet.reset()
    for batch in images:
        frechet.update(to_uint8(batch.to(device)))
    for batch in references:
        frechet.update_references(to_uint8(batch.to(device)))
    result = frechet.compute()
    if result is None:
        raise ValueError("A Fréchet distance needs at least 2 images in either folder.")
    name = features.frechet_name.removeprefix("r")
    report = MetricReport(
        {name: result.distance}, {name: frechet.describe(result)}, result.num_images
    )
    return _with_protocol(report, protocol)


def _with_protocol(
    report: MetricReport, protocol: Mapping[str, str | int | float] | None
) -> MetricReport:
    """Put what is known of the folders in front of what was counted."""
    merged: dict[str, Protocol] = {
        name: {**(protocol or {}), **entry} for name, entry in report.protocol.items()
    }
    return MetricReport(report.scalars, merged, report.num_images)
