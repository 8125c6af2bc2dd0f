"""Comparison of two sets of images, for `evaluate images=DIR reference=DIR`.

Files are read elsewhere; these functions take batches.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_lightning.metrics.features import FeatureSet
from ldm_lightning.metrics.generation import GenerationMetrics
from ldm_lightning.metrics.reconstruction import MetricReport, Protocol, ReconstructionMetrics
from ldm_lightning.storage.content import FileHashes, combined_hash


class ImagePair(NamedTuple):
    """Images and, row by row, the references of the same names: both [B, C, H, W] in [-1, 1]."""

    images: Tensor
    references: Tensor


def measured_facts(folder: Path, names: Sequence[str], hashes: FileHashes) -> dict[str, str]:
    """Protocol entries of the measured folder: its path, and a hash of names and contents."""
    return {"measured": str(folder), "measured_images": _identity(folder, names, hashes)}


def reference_facts(folder: Path, names: Sequence[str], hashes: FileHashes) -> dict[str, str]:
    """Protocol entries of the reference folder, named as data sets name theirs."""
    identity = _identity(folder, names, hashes)
    return {"root": str(folder), "images": identity, "identified_by": "content"}


def _identity(folder: Path, names: Sequence[str], hashes: FileHashes) -> str:
    return combined_hash(json.dumps(list(names)).encode(), hashes.of(folder, names).tobytes())


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
    """Measure two sets that need not correspond, by the metrics of generated images.

    These are Fréchet distance, kernel distance, precision and recall: ``fid``, ``kid``,
    ``precision`` and ``recall`` with Inception, ``fd_tiny``, ``kd_tiny``, ``precision_tiny`` and
    ``recall_tiny`` with the embedded features.

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
    metrics = GenerationMetrics(features).to(device)
    metrics.reset()
    for batch in images:
        metrics.update(batch.to(device))
    for batch in references:
        metrics.update_references(batch.to(device))
    report = metrics.report()
    if not report.scalars:
        raise ValueError("A Fréchet distance needs at least 2 images in either folder.")
    return _with_protocol(report, protocol)


def _with_protocol(
    report: MetricReport, protocol: Mapping[str, str | int | float] | None
) -> MetricReport:
    """Put what is known of the folders in front of what was counted."""
    merged: dict[str, Protocol] = {
        name: {**(protocol or {}), **entry} for name, entry in report.protocol.items()
    }
    return MetricReport(report.scalars, merged, report.num_images)
