"""Everything that is measured on a first stage, for validation and for `evaluate` alike."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torchmetrics import Metric

from ldm_lightning.bottleneck.base import BottleneckOutput
from ldm_lightning.metrics.accumulators import MeanOverImages
from ldm_lightning.metrics.codebook import CodebookUsage
from ldm_lightning.metrics.color_and_blocks import (
    BLOCKS_NAME,
    COLOR_NAME,
    BlockEdgeRatio,
    ColorExplained,
)
from ldm_lightning.metrics.features import FeatureSet
from ldm_lightning.metrics.latents import LatentStatistics
from ldm_lightning.metrics.linear_floor import FloorFigures
from ldm_lightning.metrics.reconstruction import Protocol, ReconstructionMetrics
from ldm_lightning.utils.image import from_uint8, to_uint8
from ldm_lightning.utils.metadata import count_fact


@dataclass(frozen=True)
class FirstStageReport:
    """Report of one pass over a set of images.

    Attributes:
        scalars: Value by metric name, without the ``val/`` or ``test/`` that belongs in front:
            ``psnr``, ``ssim``, ``high_frequency_deficit``, ``power_ratio_octave_1`` to ``_3``,
            ``color_explained``, ``block_edge_ratio``, the
            perceptual and Fréchet distances of the feature set, ``kl``, ``codebook_usage``,
            ``codebook_perplexity``. What a bottleneck does not have is absent.
        latent_scalars: ``latent/mean`` and ``latent/std``, whose names are complete.
        per_channel: The same two names, one value a latent channel.
        protocol: How each scalar was made, by the names of ``scalars``.
        num_images: Number of images seen, over all processes.
        linear_floor: Figures of linear maps on the same images, which stand among ``scalars`` too;
            ``None`` where they were not measured.
        codebook_histogram: How often each code was used, int64 [K] on the CPU; ``None`` without
            codes.
    """

    scalars: dict[str, float]
    latent_scalars: dict[str, float]
    per_channel: dict[str, list[float]]
    protocol: dict[str, Protocol]
    num_images: int
    codebook_histogram: Tensor | None
    linear_floor: FloorFigures | None = None

    def with_floor(self, floor: FloorFigures | None) -> Self:
        """The same report with a linear floor beside the first stage's figures."""
        if floor is None:
            return self
        return replace(
            self,
            scalars={**self.scalars, **floor.named()},
            protocol={**self.protocol, **floor.protocols()},
            linear_floor=floor,
        )


class FirstStageMetrics:
    """Image metrics, latent statistics, KL and codebook use in one pass.

    A plain class: none of its networks and sums appears in any state_dict.

    Args:
        features: Feature networks, which also decide the metrics' names.
        latent_channels: c.
        downsampling_factor: f, the distance of lines of the latent grid; None leaves the ratio of
            block edges out.
        num_codes: K; ``None`` for a bottleneck without codes.
        protocol: Which images these are (`data.protocol(split)`), as plain JSON values with
            ``num_images``.
        cache_dir: Folder for the Fréchet statistics of the images; needs ``protocol``.
        own: Further metrics by name; see ``ImageMetric``.
    """

    def __init__(
        self,
        features: FeatureSet,
        *,
        latent_channels: int,
        downsampling_factor: int | None = None,
        num_codes: int | None = None,
        protocol: Mapping[str, str | int | float] | None = None,
        cache_dir: str | Path | None = None,
        own: Mapping[str, Metric] | None = None,
    ) -> None:
        self.own = dict(own or {})
        self.reconstruction = ReconstructionMetrics(
            features, protocol=protocol, cache_dir=cache_dir
        )
        self._protocol: Protocol = dict(protocol or {})
        self._latents = LatentStatistics(latent_channels)
        self._kl = MeanOverImages()
        self._color = ColorExplained()
        self._blocks = (
            None if downsampling_factor in (None, 1) else BlockEdgeRatio(downsampling_factor)
        )
        self._codebook = None if num_codes is None else CodebookUsage(num_codes)

    def names(self, *, num_images: int, size: tuple[int, int]) -> set[str]:
        """Names of all scalars that a pass over so many images of height and width measures.

        Whether there is a KL divergence, the bottleneck decides.
        """
        names = self.reconstruction.names(num_images=num_images, size=size)
        if self._codebook is not None:
            names |= {"codebook_usage", "codebook_perplexity"}
        if self._protocol.get("channels", 3) == 3:
            names.add(COLOR_NAME)
        if self._blocks is not None and min(size) > self._blocks.downsampling_factor:
            names.add(BLOCKS_NAME)
        return names | self.own.keys()

    def reset(self) -> None:
        """Begin a pass over the set; call it on every process."""
        self.reconstruction.reset()
        self._latents.reset()
        self._kl.reset()
        self._color.reset()
        if self._blocks is not None:
            self._blocks.reset()
        if self._codebook is not None:
            self._codebook.reset()
        for metric in self.own.values():
            metric.reset()

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Self:
        """Move networks and sums; ``dtype`` is what the feature networks compute in."""
        self.reconstruction.to(device, dtype)
        self._latents.to(device)
        self._kl.to(device)
        self._color.to(device)
        if self._blocks is not None:
            self._blocks.to(device)
        if self._codebook is not None:
            self._codebook.to(device)
        for metric in self.own.values():
            metric.to(device)
        return self

    @torch.no_grad()
    def update(
        self,
        images: Tensor,
        reconstructions: Tensor,
        output: BottleneckOutput,
    ) -> None:
        """Add a batch.

        Args:
            images: [B, C, H, W] in [-1, 1].
            reconstructions: The same shape; clamped here.
            output: What the bottleneck returned for these images, unsampled: its latents are taken
                as the posterior's means, and its variance enters the latents' standard deviation.

        Raises:
            ValueError: If shapes do not fit, or the bottleneck has codes and ``num_codes`` was not
                given.
        """
        self.reconstruction.update(images, reconstructions)
        self._latents.update(output.latents, output.variance)
        if "kl" in output.terms:
            self._kl.update(output.terms["kl"].expand(images.shape[0]))
        saved = [from_uint8(to_uint8(batch)) for batch in (images, reconstructions)]
        if images.shape[1] == 3:
            self._color.update(saved[1], saved[0])
        if self._blocks is not None:
            self._blocks.update(saved[1])
        for metric in self.own.values():
            metric.update(*saved)
        if output.indices is None:
            return
        if self._codebook is None:
            raise ValueError("The bottleneck returned code indices: give num_codes to the metrics.")
        self._codebook.update(output.indices)

    def compute(self) -> FirstStageReport:
        """Report over all processes; call it on every process."""
        report = self.reconstruction.report()
        scalars, protocol = dict(report.scalars), dict(report.protocol)
        device = self._kl.device
        # updates without images: all processes take part, and torchmetrics warns without one
        self._kl.update(torch.empty(0, device=device))
        kl = self._kl.compute()
        if kl.num_images > 0:
            scalars["kl"] = kl.mean
            protocol["kl"] = {**self._protocol, count_fact(self._protocol): kl.num_images}
        histogram = None
        if self._codebook is not None:
            self._codebook.update(torch.empty(0, dtype=torch.int64, device=device))
            codes = self._codebook.compute()
            histogram = codes.histogram.cpu()
            scalars["codebook_usage"] = codes.usage
            scalars["codebook_perplexity"] = codes.perplexity
            for name in ("codebook_usage", "codebook_perplexity"):
                protocol[name] = {**self._protocol, count_fact(self._protocol): report.num_images}
        for name, value in (self._defects() | self._own_values()).items():
            scalars[name] = value
            protocol[name] = {**self._protocol, count_fact(self._protocol): report.num_images}
        self._latents.update(torch.empty(0, self._latents.total.shape[0], 1, 1, device=device))
        latents = self._latents.compute()
        return FirstStageReport(
            scalars=scalars,
            latent_scalars={"latent/mean": latents.mean, "latent/std": latents.std},
            per_channel={"latent/mean": latents.channel_means, "latent/std": latents.channel_stds},
            protocol=protocol,
            num_images=report.num_images,
            codebook_histogram=histogram,
        )

    def _defects(self) -> dict[str, float]:
        """Missing color and blocks, where they are defined; all processes take part."""
        nothing = torch.empty(0, 3, 2, 2, device=self._kl.device)
        self._color.update(nothing, nothing)
        values = {COLOR_NAME: self._color.compute()}
        if self._blocks is not None:
            self._blocks.update(nothing)
            values[BLOCKS_NAME] = self._blocks.compute()
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def _own_values(self) -> dict[str, float]:
        with warnings.catch_warnings():  # a process may have had no images
            warnings.filterwarnings("ignore", ".*before the ``update`` method", UserWarning)
            return {name: float(metric.compute()) for name, metric in self.own.items()}
