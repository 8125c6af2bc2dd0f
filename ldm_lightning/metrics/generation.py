"""Distances between a set of generated images and a set of real ones.

Fréchet distance (Heusel et al. 2017), kernel distance (Bińkowski et al. 2018), precision and recall
(Kynkäänniemi et al. 2019) in one pass, with the features that reconstructions are measured by. All
see what saved files would hold: images that were clamped and rounded to 8 bits.

torchmetrics has the Fréchet distance, which wants the statistics streamed where features must be
kept anyway, and KernelInceptionDistance, which draws its subsets from the global generator (another
figure every time, and other noise for whatever trains on); the tests compare with both.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from ldm_lightning.metrics.accumulators import FeatureRows, fit_gaussian
from ldm_lightning.metrics.features import FeatureSet
from ldm_lightning.metrics.frechet import Protocol, frechet_distance, reference_statistics
from ldm_lightning.metrics.kernel_distance import SEED, kernel_distance
from ldm_lightning.metrics.precision_recall import NEAREST, precision_and_recall
from ldm_lightning.metrics.reconstruction import MetricReport
from ldm_lightning.metrics.reference_cache import ReferenceStatistics, TensorCache
from ldm_lightning.utils.collectives import all_reduce_sum, num_processes, process_rank
from ldm_lightning.utils.image import to_uint8
from ldm_lightning.utils.metadata import count_fact

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _References:
    """The real images as features [M, D], with the Gaussian fitted to them."""

    features: Tensor
    statistics: ReferenceStatistics

    @classmethod
    def of(cls, features: Tensor) -> Self:
        return cls(features, reference_statistics(fit_gaussian(features)))

    def to(self, device: torch.device | str) -> Self:
        mean, root, count = self.statistics
        moved = ReferenceStatistics(mean.to(device), root.to(device), count)
        return type(self)(self.features.to(device), moved)


class GenerationMetrics:
    """Fréchet and kernel distance, precision and recall of generated images against real ones.

    A plain class: none of its networks and features appears in any state_dict. Results depend
    neither on the batch size nor on the number of processes.

    Args:
        features: Feature networks, which also decide the metrics' names.
        protocol: Which images the references are (`data.protocol(split)`), as plain JSON values
            with ``num_images``. Then their features are kept as soon as a pass has seen exactly
            that many, and later passes need no references. ``None``: every pass does.
        cache_dir: Folder where kept features also outlive the process; needs ``protocol``.

    Raises:
        ValueError: If the protocol lacks ``num_images``, or there is a folder and no protocol.
    """

    def __init__(
        self,
        features: FeatureSet,
        *,
        protocol: Mapping[str, str | int | float] | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        if cache_dir is not None and protocol is None:
            raise ValueError("cache_dir needs protocol, which says what is cached.")
        if protocol is not None and "num_images" not in protocol:
            raise ValueError(f"protocol must hold num_images, got {sorted(protocol)}.")
        self.features = features
        extractor = features.extractor
        self._protocol: Protocol = dict(protocol or {})
        self._samples = FeatureRows(extractor.feature_dim)
        self._references = FeatureRows(extractor.feature_dim)
        self._kept: _References | None = None
        self._cache: TensorCache | None = None
        if cache_dir is not None:
            key = {
                "feature_network": extractor.feature_network,
                "weights_hash": extractor.weights_hash,
                "feature_dim": extractor.feature_dim,
                "data": dict(self._protocol),
            }
            self._cache = TensorCache(Path(cache_dir).expanduser(), "features", key)
        self._cache_was_read = False
        self._dtype = torch.float32

    @property
    def needs_references(self) -> bool:
        """True if this pass must be shown the real images; ask after ``reset``."""
        return self._kept is None

    def names(self, *, num_samples: int) -> set[str]:
        """Names of what a pass over so many samples measures, where no image is unreadable."""
        names = self.features.set_names
        least = min(num_samples, int(self._protocol.get("num_images", num_samples)))
        found = {names.frechet, names.kernel} if least >= 2 else set()
        return found | ({names.precision, names.recall} if least > NEAREST else set())

    def reset(self) -> None:
        """Begin a pass. Call it on every process: they agree here on whether a cache is used."""
        self._samples.reset()
        self._references.reset()
        if self._cache is None or self._kept is not None or self._cache_was_read:
            return
        self._cache_was_read = True
        found = self._cache.load()
        present = torch.tensor(int(found is not None), device=self._samples.device)
        everywhere = int(all_reduce_sum(present)) == num_processes()
        if found is not None and everywhere:
            self._kept = _References.of(found["features"].to(self._samples.device))

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Self:
        """Move networks and features; ``dtype`` is what the network computes in."""
        self.features.to(device, dtype)
        self._samples.to(device)
        self._references.to(device)
        self._dtype = dtype
        if self._kept is not None:
            self._kept = self._kept.to(device)
        return self

    @torch.no_grad()
    def update(self, samples: Tensor) -> None:
        """Add generated images [B, C, H, W] in [-1, 1], of any size; clamped here.

        Raises:
            ValueError: If values are not finite.
        """
        if not bool(samples.isfinite().all()):
            raise ValueError(
                "Samples hold NaN or infinite values; rounding to 8 bits would hide them. Lower "
                "the learning rate or train in a wider precision."
            )
        self._samples.update(self._embed(samples))

    @torch.no_grad()
    def update_references(self, images: Tensor) -> None:
        """Add real images [B, C, H, W] in [-1, 1]; free where their features are kept."""
        if self._kept is None:
            self._references.update(self._embed(images))

    def compute(self) -> dict[str, float]:
        """Values by metric name, over all processes; call it on every process."""
        return self.report().scalars

    def report(self) -> MetricReport:
        """Values and how they were made, over all processes; call it on every process.

        Distances need two images on either side, precision and recall four; what is undefined is
        absent.
        """
        samples = self._gather(self._samples)
        references = self._all_references()
        if references is None or len(samples) < 2:
            logger.warning("There are no figures: they need at least 2 images on either side.")
            return MetricReport({}, {}, len(samples))
        names, extractor = self.features.set_names, self.features.extractor
        common: Protocol = {
            **_of_references(self._protocol),
            "num_images": len(samples),
            "num_references": len(references.features),
            "feature_network": extractor.feature_network,
            "weights_hash": extractor.weights_hash,
        }
        distance = frechet_distance(fit_gaussian(samples), references.statistics)
        scalars = {names.frechet: float(distance)}
        small = min(len(samples), len(references.features)) < extractor.feature_dim
        protocol = {names.frechet: {**common, "small_sample": small}}
        kernel = kernel_distance(samples, references.features)
        assert kernel is not None  # both sides have two images
        scalars[names.kernel] = kernel.distance
        protocol[names.kernel] = {
            **common,
            "subset_size": kernel.subset_size,
            "num_subsets": kernel.num_subsets,
            "subset_seed": SEED,
        }
        shares = precision_and_recall(samples, references.features)
        if shares is not None:
            scalars |= {names.precision: shares.precision, names.recall: shares.recall}
            protocol |= {
                name: {**common, "nearest": NEAREST} for name in (names.precision, names.recall)
            }
        return MetricReport(scalars, protocol, len(samples))

    def _all_references(self) -> _References | None:
        """The kept references, or those of this pass; None where they are fewer than two."""
        if self._kept is not None:
            return self._kept
        features = self._gather(self._references)
        if len(features) < 2:
            return None
        references = _References.of(features)
        if len(features) == self._protocol.get(count_fact(self._protocol)):
            self._kept = references
            if self._cache is not None and process_rank() == 0:
                self._cache.save({"features": features})
        return references

    def _gather(self, rows: FeatureRows) -> Tensor:
        # an update without images: torchmetrics warns where a process had none, and all take part
        rows.update(torch.empty(0, rows.feature_dim, dtype=self._dtype, device=rows.device))
        features: Tensor = rows.compute()
        return features

    def _embed(self, images: Tensor) -> Tensor:
        return self.features.extractor(to_uint8(images)).to(self._dtype)


def _of_references(protocol: Protocol) -> Protocol:
    """Protocol of the references, under names that do not count samples."""
    if "num_windows" not in protocol:
        return protocol
    facts = {name: value for name, value in protocol.items() if name != "num_windows"}
    return {**facts, "num_reference_images": protocol["num_images"]}
