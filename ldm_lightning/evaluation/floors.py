"""The linear floor of several latent shapes on a set of images, before anything is trained."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ldm_lightning.autoencoder.linear_autoencoder import LinearAutoencoder
from ldm_lightning.autoencoder.linear_fit import fit_channel_counts, fit_components
from ldm_lightning.bottleneck.identity import IdentityBottleneck
from ldm_lightning.data.image_module import ImageDataModule
from ldm_lightning.metrics.accumulators import MeanOverImages
from ldm_lightning.metrics.features import FeatureSet
from ldm_lightning.metrics.first_stage import FirstStageMetrics
from ldm_lightning.metrics.frechet import Protocol
from ldm_lightning.metrics.pixels import (
    WINDOW_SIZE,
    StructuralSimilarity,
    peak_signal_to_noise_ratio,
)
from ldm_lightning.utils.image import to_uint8
from ldm_lightning.utils.progress import long_task

VALUES_A_CHUNK = 2**18
"""Numbers of images that are measured at once; SSIM takes a hundred bytes for each."""


@dataclass(frozen=True)
class LatentShape:
    """Shape of the latents of an image, whatever its size.

    Attributes:
        downsampling_factor: f.
        latent_channels: c.
        num_codes: K; None for latents without codes.
    """

    downsampling_factor: int
    latent_channels: int
    num_codes: int | None = None


@dataclass(frozen=True)
class MeasuredFloor:
    """Quality that linear maps reach with latents of one shape.

    Attributes:
        shape: Of the latents.
        scalars: Value by metric name.
        num_images: Images, or windows of them, that were measured.
    """

    shape: LatentShape
    scalars: dict[str, float]
    num_images: int


@dataclass(frozen=True)
class _Batch:
    """Images [B, C, H, W] in [-1, 1], rounded, and what SSIM needs of them where they are large."""

    images: Tensor
    originals: Tensor
    similarity: StructuralSimilarity | None

    @classmethod
    def of(cls, images: Tensor) -> Self:
        originals = to_uint8(images)
        fits = min(images.shape[2:]) >= WINDOW_SIZE
        return cls(images, originals, StructuralSimilarity(originals) if fits else None)


def fit_floors(
    sample: Tensor,
    *,
    downsampling_factors: Sequence[int],
    latent_channels: Sequence[int],
    num_codes: Sequence[int],
    seed: int,
) -> dict[LatentShape, LinearAutoencoder]:
    """Fit a linear autoencoder of each shape; the components of each factor are found once.

    Args:
        sample: Training images, uint8 [N, C, H, W]; height and width are divisible by each factor.
        downsampling_factors: All f.
        latent_channels: All c.
        num_codes: K besides latents without codes; empty for none.
        seed: Of the codes.
    """
    total = len(downsampling_factors) * (1 + len(latent_channels) * len(num_codes))
    floors: dict[LatentShape, LinearAutoencoder] = {}
    with long_task("fitting", total=total, unit="fits") as advance:
        for factor in downsampling_factors:
            components = fit_components(sample, size=factor, num_components=max(latent_channels))
            maps = fit_channel_counts(
                sample, components, size=factor, channel_counts=latent_channels
            )
            advance(1)
            for channels, one in zip(latent_channels, maps, strict=True):
                floors[LatentShape(factor, channels)] = LinearAutoencoder(one, IdentityBottleneck())
                for codes in num_codes:
                    floors[LatentShape(factor, channels, codes)] = LinearAutoencoder.fit_components(
                        sample,
                        components,
                        latent_channels=channels,
                        downsampling_factor=factor,
                        num_codes=codes,
                        seed=seed,
                    )
                    advance(1)
    return floors


def measure_floors(
    floors: dict[LatentShape, LinearAutoencoder],
    data: ImageDataModule,
    features: FeatureSet | None,
    *,
    protocol: Protocol,
) -> list[MeasuredFloor]:
    """Reconstruct the held-out split with each floor, and measure; processes share the images.

    Args:
        floors: By shape.
        data: Its evaluated images are measured.
        features: Networks of perceptual and Fréchet distances; None measures pixels alone.
        protocol: Describes the evaluated images.

    Raises:
        ValueError: If no image could be read.
    """
    meters = _meters(floors, features, protocol=protocol)
    loader = data.val_dataloader()
    with (
        torch.inference_mode(),
        long_task("measuring", total=len(loader), unit="batches") as advance,
    ):
        for batch in loader:
            for images in _chunks(batch["image"]):
                part = _Batch.of(images)
                for shape, floor in floors.items():
                    meters[shape].update(part, floor)
            advance(1)
    measured = [meter.compute(shape) for shape, meter in meters.items()]
    if not measured[0].num_images:
        raise ValueError("No image could be read: there is nothing to measure.")
    return measured


class _PixelMeter:
    """PSNR and SSIM."""

    def __init__(self) -> None:
        self._means = {"psnr": MeanOverImages(), "ssim": MeanOverImages()}

    def update(self, batch: _Batch, floor: LinearAutoencoder) -> None:
        """Add a batch."""
        rounded = to_uint8(floor(batch.images).reconstructions)
        self._means["psnr"].update(peak_signal_to_noise_ratio(rounded, batch.originals))
        if batch.similarity is not None:
            self._means["ssim"].update(batch.similarity(rounded))

    def compute(self, shape: LatentShape) -> MeasuredFloor:
        """Means over all processes."""
        for mean in self._means.values():
            mean.update(torch.empty(0))  # a process may have had no images
        found = {name: mean.compute() for name, mean in self._means.items()}
        scalars = {name: one.mean for name, one in found.items() if one.num_images}
        return MeasuredFloor(shape, scalars, found["psnr"].num_images)


class _FullMeter:
    """All that is measured of a first stage."""

    def __init__(self, metrics: FirstStageMetrics) -> None:
        self.metrics = metrics
        metrics.reset()

    def update(self, batch: _Batch, floor: LinearAutoencoder) -> None:
        """Add a batch."""
        output = floor(batch.images)
        self.metrics.update(batch.images, output.reconstructions, output.bottleneck)

    def compute(self, shape: LatentShape) -> MeasuredFloor:
        """Figures over all processes."""
        report = self.metrics.compute()
        return MeasuredFloor(shape, report.scalars, report.num_images)


def _meters(
    floors: dict[LatentShape, LinearAutoencoder],
    features: FeatureSet | None,
    *,
    protocol: Protocol,
) -> dict[LatentShape, _PixelMeter | _FullMeter]:
    if features is None:
        return {shape: _PixelMeter() for shape in floors}
    metrics = {
        shape: FirstStageMetrics(
            features,
            latent_channels=shape.latent_channels,
            num_codes=shape.num_codes,
            protocol=protocol,
        )
        for shape in floors
    }
    first, *others = metrics.values()
    for other in others:  # the images' features are computed once
        other.reconstruction.share_references(first.reconstruction)
    return {shape: _FullMeter(one) for shape, one in metrics.items()}


def _chunks(images: Tensor) -> Iterator[Tensor]:
    yield from images.split(max(1, VALUES_A_CHUNK // images[0].numel()))
