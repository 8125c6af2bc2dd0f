"""Reconstruction metrics of a set of images: pixels, perception and distribution.

Every metric sees what a saved file would hold: images that were clamped and rounded to 8 bits.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from ldm_lightning.loss.perceptual import check_pair
from ldm_lightning.metrics.accumulators import MeanOverImages
from ldm_lightning.metrics.features import FeatureSet
from ldm_lightning.metrics.frechet import FrechetDistance, Protocol
from ldm_lightning.metrics.pixels import (
    WINDOW_SIZE,
    peak_signal_to_noise_ratio,
    structural_similarity,
)
from ldm_lightning.metrics.power_spectrum import (
    DEFICIT_NAME,
    OCTAVE_NAMES,
    SMALLEST_SIZE,
    PowerSpectrum,
)
from ldm_lightning.utils.image import to_uint8
from ldm_lightning.utils.metadata import count_fact

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MetricReport:
    """Figures, and how each was made.

    Attributes:
        scalars: Value by metric name. A metric that is undefined for the set (SSIM below 11 pixels,
            power ratios below 16, a Fréchet distance of fewer than two images) is absent.
        protocol: By metric name: the data's own protocol, ``num_images``, or ``num_windows`` where
            images were cut into several, and where a network was used ``feature_network`` and
            ``weights_hash``; for Fréchet distances ``num_references`` and ``small_sample``.
        num_images: Number of images seen, over all processes.
    """

    scalars: dict[str, float]
    protocol: dict[str, Protocol]
    num_images: int


class ReconstructionMetrics:
    """Distances of reconstructions from their images: pixels, power, perception, distribution.

    PSNR, SSIM, power ratios by octave with the high-frequency deficit, perceptual distances and the
    Fréchet distance.

    A plain class: none of its networks and sums appears in any state_dict. Results depend neither
    on the batch size nor on the number of processes.

    Args:
        features: Feature networks, which also decide the metrics' names.
        protocol: Which images these are (`data.protocol(split)`), as plain JSON values with
            ``num_images``. Given, the Fréchet statistics of the images are computed in the first
            full pass alone.
        cache_dir: Folder where these statistics outlive the process; needs ``protocol``.
    """

    def __init__(
        self,
        features: FeatureSet,
        *,
        protocol: Mapping[str, str | int | float] | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        self.features = features
        self.frechet = FrechetDistance(
            features.extractor, reference_protocol=protocol, cache_dir=cache_dir
        )
        self._protocol: Protocol = dict(protocol or {})
        self._count = count_fact(self._protocol)
        self._means = {name: MeanOverImages() for name in ("psnr", "ssim", *features.perceptual)}
        self._spectrum = PowerSpectrum()
        self._network_dtype = torch.float32

    def share_references(self, other: "ReconstructionMetrics") -> None:
        """Take the features of the images from other metrics, which must see the same ones."""
        self.frechet.share_references(other.frechet)

    def names(self, *, num_images: int, size: tuple[int, int]) -> set[str]:
        """Names of what a pass over so many images of height and width measures."""
        names = {"psnr", *self.features.perceptual}
        if min(size) >= WINDOW_SIZE:
            names.add("ssim")
        if min(size) >= SMALLEST_SIZE:
            names |= {DEFICIT_NAME, *OCTAVE_NAMES}
        if num_images >= 2:
            names.add(self.features.frechet_name)
        return names

    def reset(self) -> None:
        """Begin a pass over the set; call it on every process."""
        self.frechet.reset()
        self._spectrum.reset()
        for mean in self._means.values():
            mean.reset()

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Self:
        """Move networks and sums.

        Args:
            device: Where images will come from.
            dtype: What the feature networks compute in. float64 makes values independent of the
                batch size to 1e-10, for proofs; float32 to 1e-6.
        """
        self.features.to(device, dtype)
        self.frechet.to(device)
        self._spectrum.to(device)
        for mean in self._means.values():
            mean.to(device)
        self._network_dtype = dtype
        return self

    @torch.no_grad()
    def update(self, images: Tensor, reconstructions: Tensor) -> None:
        """Add a batch.

        Args:
            images: [B, C, H, W] in [-1, 1], any float type.
            reconstructions: The same shape; clamped here.

        Raises:
            ValueError: If the shapes differ, or values are not finite.
        """
        check_pair(reconstructions, images)
        if not bool(reconstructions.isfinite().all()):
            raise ValueError(
                "Reconstructions hold NaN or infinite values; rounding to 8 bits would hide them. "
                "Lower the learning rate or train in a wider precision."
            )
        originals, rounded = to_uint8(images), to_uint8(reconstructions)
        self._means["psnr"].update(peak_signal_to_noise_ratio(rounded, originals))
        if min(images.shape[2:]) >= WINDOW_SIZE:
            self._means["ssim"].update(structural_similarity(rounded, originals))
        if min(images.shape[2:]) >= SMALLEST_SIZE:
            self._spectrum.update(rounded, originals)
        with torch.autocast(images.device.type, enabled=False):
            targets, values = self._scale(originals), self._scale(rounded)
            for name, distance in self.features.perceptual.items():
                self._means[name].update(distance(values, targets))
            self.frechet.update_references(originals)
            self.frechet.update(rounded)

    def compute(self) -> dict[str, float]:
        """Values by metric name, over all processes; call it on every process."""
        return self.report().scalars

    def report(self) -> MetricReport:
        """Values and how they were made, over all processes; call it on every process."""
        scalars: dict[str, float] = {}
        protocol: dict[str, Protocol] = {}
        num_images = 0
        for name, mean in self._means.items():
            mean.update(torch.empty(0, device=mean.device))  # a process without images takes part
            value, count = mean.compute()
            if count == 0:
                continue
            scalars[name] = value
            protocol[name] = {
                **self._protocol,
                self._count: count,
                **self._network_protocol(name),
            }
            num_images = max(num_images, count)
        nothing = torch.empty(0, 1, SMALLEST_SIZE, SMALLEST_SIZE, dtype=torch.uint8)
        self._spectrum.update(nothing, nothing)
        spectrum = self._spectrum.compute()
        if spectrum.num_images > 0:
            measured = spectrum.scalars()
            scalars |= measured
            entry = {**self._protocol, self._count: spectrum.num_images}
            protocol |= {name: dict(entry) for name in measured}
        result = self.frechet.compute()
        if result is None:
            logger.warning(
                "%s is left out: it needs at least 2 images on either side.",
                self.features.frechet_name,
            )
            return MetricReport(scalars, protocol, num_images)
        scalars[self.features.frechet_name] = result.distance
        protocol[self.features.frechet_name] = {**self._protocol, **self.frechet.describe(result)}
        return MetricReport(scalars, protocol, num_images)

    def _scale(self, images: Tensor) -> Tensor:
        """Map uint8 images to [-1, 1] in the networks' type."""
        return images.to(self._network_dtype) / 127.5 - 1

    def _network_protocol(self, name: str) -> Protocol:
        if name not in self.features.perceptual:
            return {}
        distance = self.features.perceptual[name]
        return {
            "feature_network": distance.feature_network,
            "weights_hash": distance.weights_hash,
        }
