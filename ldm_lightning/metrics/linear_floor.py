"""The linear floor of a first stage: what linear maps reach with latents of the same shape.

It is fitted to a sample of the training images and measured on the same images as the first stage,
in the same pass, once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ldm_lightning.autoencoder.linear_autoencoder import LinearAutoencoder
from ldm_lightning.metrics.features import FeatureSet
from ldm_lightning.metrics.frechet import Protocol
from ldm_lightning.metrics.names import FLOOR_PREFIX
from ldm_lightning.metrics.reconstruction import ReconstructionMetrics
from ldm_lightning.storage.hashing import hash_tensors
from ldm_lightning.utils.collectives import broadcast_from_first


@dataclass(frozen=True)
class FloorFigures:
    """Figures of a linear floor.

    Attributes:
        scalars: Value by metric name: ``psnr``, ``ssim``, perceptual and Fréchet distances.
        protocol: Latent shape, sample and seed of the fit, and the protocol of the images.
    """

    scalars: dict[str, float]
    protocol: Protocol

    def named(self) -> dict[str, float]:
        """Values under the names that stand beside those of the first stage."""
        return {f"{FLOOR_PREFIX}{name}": value for name, value in self.scalars.items()}

    def protocols(self) -> dict[str, Protocol]:
        """Protocol of each of ``named``."""
        return {f"{FLOOR_PREFIX}{name}": self.protocol for name in self.scalars}


@dataclass(frozen=True)
class LatentDescription:
    """Latents that a linear floor has in common with its first stage.

    Attributes:
        latent_channels: c.
        downsampling_factor: f.
        num_codes: K; None for latents without codes.
    """

    latent_channels: int
    downsampling_factor: int
    num_codes: int | None


class LinearFloor:
    """Measures the floor in a pass over the images, unless its figures are known.

    A plain class: nothing of it appears in any state_dict.

    Args:
        latents: Shape of the latents.
        features: Feature networks, those of the first stage's metrics.
        beside: The first stage's metrics, which see the same images; features of these are shared.
        protocol: Describes the measured images.
        seed: Of the codes.
    """

    def __init__(
        self,
        latents: LatentDescription,
        features: FeatureSet,
        *,
        beside: ReconstructionMetrics,
        protocol: Mapping[str, str | int | float],
        seed: int,
    ) -> None:
        self.latents = latents
        self.figures: FloorFigures | None = None
        self._metrics = ReconstructionMetrics(features)
        self._metrics.share_references(beside)
        self._kept_names = {"psnr", "ssim", *features.perceptual, features.frechet_name}
        self._protocol: Protocol = dict(protocol)
        self._seed = seed
        self._fit: Protocol = {}
        self._autoencoder: LinearAutoencoder | None = None

    def begin(
        self, sample: Callable[[], Tensor], *, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        """Begin a pass; where figures are missing, fit. Call it on every process.

        Args:
            sample: Gives training images, uint8 [N, C, H, W], the same on every process.
            device: Of the images that will come.
            dtype: What the maps compute in.
        """
        if self.figures is not None:
            return
        images = sample()
        autoencoder = LinearAutoencoder.fit(
            images,
            latent_channels=self.latents.latent_channels,
            downsampling_factor=self.latents.downsampling_factor,
            num_codes=self.latents.num_codes,
            seed=self._seed,
        )
        self._autoencoder = autoencoder.to(device, dtype)
        for value in autoencoder.state_dict().values():
            value.copy_(broadcast_from_first(value))  # machines may round differently
        self._fit = {"num_fitted": len(images), "fitted_to": hash_tensors({"images": images})[:16]}
        self._metrics.to(device, dtype).reset()

    def update(self, images: Tensor) -> None:
        """Add images [B, C, H, W] in [-1, 1]."""
        if self._autoencoder is not None:
            dtype = self._autoencoder.maps.to_latents.weight.dtype
            with torch.autocast(images.device.type, enabled=False):
                reconstructions = self._autoencoder(images.to(dtype)).reconstructions
            self._metrics.update(images, reconstructions)

    def end(self) -> FloorFigures | None:
        """Return the figures over all processes, measured now or before; call it on every process.

        None where ``begin`` was never called.
        """
        if self._autoencoder is not None:
            self._autoencoder = None
            scalars = self._metrics.compute()
            kept = {name: value for name, value in scalars.items() if name in self._kept_names}
            self.figures = FloorFigures(kept, {**self._protocol, **self._described(), **self._fit})
        return self.figures

    def _described(self) -> Protocol:
        codes = {} if self.latents.num_codes is None else {"num_codes": self.latents.num_codes}
        return {
            "latent_channels": self.latents.latent_channels,
            "downsampling_factor": self.latents.downsampling_factor,
            "seed": self._seed,
            **codes,
        }

    def state_dict(self) -> dict[str, Any]:
        """The figures as plain values; empty before they are measured."""
        if self.figures is None:
            return {}
        return {"scalars": dict(self.figures.scalars), "protocol": dict(self.figures.protocol)}

    def load_state_dict(self, state: Mapping[str, Any]) -> Self:
        """Take figures that were measured before, unless on other images or another shape."""
        expected = {**self._protocol, **self._described()}
        scalars, stored = state.get("scalars", {}), state.get("protocol", {})
        is_same = all(stored.get(key) == value for key, value in expected.items())
        if is_same and self._kept_names - {"ssim"} <= scalars.keys():
            self.figures = FloorFigures(dict(scalars), dict(stored))
        return self
