"""Feature networks of the metrics: the embedded tiny one, or the standard ones.

A set chooses the metrics' names with the networks, so that a number which was not made with the
standard network cannot carry the standard name.
"""

import io
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn

from ldm_lightning.loss.perceptual import Lpips, PerceptualLoss, TinyPerceptual, gray_triplets
from ldm_lightning.nn.tiny_features import TinyFeatures
from ldm_lightning.storage.hashing import hash_tensors
from ldm_lightning.utils.pretrained import parse_weights, read_weights, require_weights

STANDARD_WEIGHTS = ("alexnet", "vgg16", "inception")
"""What `standard_features` loads."""


class FeatureExtractor:
    """One vector per image from a frozen network. Not an nn.Module, so nobody stores or trains it.

    Attributes:
        network: The frozen network.
        feature_network: Its name, for the protocol of a figure.
        weights_hash: SHA-256 of its weights.
        feature_dim: D.
    """

    network: nn.Module
    feature_network: str
    weights_hash: str
    feature_dim: int

    def __call__(self, images: Tensor) -> Tensor:
        """Embed uint8 images [B, C, H, W]: [B, D].

        Images that are not RGB are shown channel by channel as gray images and their vectors
        averaged.
        """
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            features = self.embed(gray_triplets(images))
        return features.unflatten(0, (images.shape[0], -1)).mean(dim=1)

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Embed uint8 RGB images [B, 3, H, W]: [B, D]."""

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Self:
        """Move the network."""
        self.network.to(device=device, dtype=dtype)
        return self


class TinyExtractor(FeatureExtractor):
    """Mean of the last feature map of the embedded tiny network; images keep their size."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):  # layers are initialized before they are loaded
            self.network = TinyFeatures.pretrained()
        self.feature_network = "tiny"
        self.weights_hash = self.network.weights_hash
        self.feature_dim = self.network.feature_dim

    def embed(self, images: Tensor) -> Tensor:
        """Embed uint8 RGB images [B, 3, H, W], H and W at least 8: [B, D]."""
        dtype = next(self.network.parameters()).dtype
        embed: Callable[[Tensor], Tensor] = self.network.embedding  # type: ignore[assignment]
        return embed(images.to(dtype) / 127.5 - 1)


class InceptionExtractor(FeatureExtractor):
    """Inception-v3 as every published FID uses it, through torch-fidelity.

    The resize to 299 pixels is that of TensorFlow 1 without antialiasing: torchmetrics' FID with
    ``antialias=False``.

    Args:
        weights_dir: Directory of the weight file; ``None`` means torch's hub cache.
        feature_dim: 2048 for FID; 64, 192 and 768 are earlier layers.

    Raises:
        MissingWeightsError: If the file is missing and cannot be downloaded.
        ValueError: If the file holds another network.
    """

    def __init__(
        self,
        *,
        weights_dir: str | Path | None = None,
        feature_dim: Literal[64, 192, 768, 2048] = 2048,
    ) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        content = read_weights("inception", weights_dir=weights_dir)
        # torch-fidelity unpickles whatever it is given: prove first that these bytes are tensors
        weights = parse_weights(content, "inception")
        with torch.random.fork_rng(
            devices=[]
        ):  # its constructor draws weights before it loads them
            try:
                self.network = FeatureExtractorInceptionV3(
                    "inception-v3-compat",
                    [str(feature_dim)],
                    feature_extractor_weights_path=io.BytesIO(content),
                )
            except RuntimeError as error:
                raise ValueError(
                    "The weight file of inception does not hold that network; delete it and fetch "
                    "it again."
                ) from error
        self.feature_network = "inception"
        if feature_dim != 2048:
            self.feature_network += f"_{feature_dim}"
        self.weights_hash = hash_tensors(weights)
        self.feature_dim = feature_dim

    def embed(self, images: Tensor) -> Tensor:
        """Embed uint8 RGB images [B, 3, H, W]: [B, D]."""
        features: Tensor = self.network(images)[0]
        return features

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Self:
        """Move the network; torch-fidelity reads the type it computes in from an attribute."""
        self.network.feature_extractor_internal_dtype = dtype  # type: ignore[assignment]
        return super().to(device, dtype)


@dataclass(frozen=True)
class SetMetricNames:
    """Names of set metrics under one feature network."""

    frechet: str
    kernel: str
    precision: str
    recall: str


@dataclass(frozen=True)
class FeatureSet:
    """The feature networks of a run's metrics, with the names of what they measure.

    Attributes:
        name: "tiny" or "standard".
        perceptual: Perceptual distance by metric name.
        frechet_name: Name of the Fréchet distance of reconstructions to images: ``rfid``, or
            ``rfd_`` and the network's name; without its leading "r" it names that of two unrelated
            sets.
        extractor: Network of the Fréchet distance.
    """

    name: str
    perceptual: Mapping[str, PerceptualLoss]
    frechet_name: str
    extractor: FeatureExtractor

    @property
    def set_names(self) -> SetMetricNames:
        """Names of what compares two sets of images that need not correspond."""
        if self.frechet_name == "rfid":
            return SetMetricNames("fid", "kid", "precision", "recall")
        frechet = self.frechet_name.removeprefix("r")
        suffix = frechet.removeprefix("fd_")
        return SetMetricNames(frechet, f"kd_{suffix}", f"precision_{suffix}", f"recall_{suffix}")

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Self:
        """Move all networks. float64 is for proofs of equality; it is slow."""
        for distance in self.perceptual.values():
            distance.to(device=device, dtype=dtype)
        self.extractor.to(device, dtype)
        return self


def tiny_features() -> FeatureSet:
    """Build the networks that ship with this package: ``perceptual_tiny`` and ``rfd_tiny``."""
    return FeatureSet(
        name="tiny",
        perceptual={"perceptual_tiny": TinyPerceptual()},
        frechet_name="rfd_tiny",
        extractor=TinyExtractor(),
    )


def standard_features(*, weights_dir: str | Path | None = None) -> FeatureSet:
    """Build the networks of the literature: ``lpips`` (AlexNet), ``lpips_vgg`` and ``rfid``.

    Args:
        weights_dir: Directory of the weight files; ``None`` means torch's hub cache.

    Raises:
        MissingWeightsError: If a file is missing and cannot be downloaded.
    """
    require_weights(STANDARD_WEIGHTS, weights_dir=weights_dir)  # names all that is missing at once
    return FeatureSet(
        name="standard",
        perceptual={
            "lpips": Lpips("alex", weights_dir=weights_dir),
            "lpips_vgg": Lpips("vgg", weights_dir=weights_dir),
        },
        frechet_name="rfid",
        extractor=InceptionExtractor(weights_dir=weights_dir),
    )
