"""Bringing latents to unit variance before the diffusion model, and back before the decoder.

Source: Rombach et al. 2022, arXiv:2112.10752, sec. 4.3.2 and appendix G: latents are divided by
their standard deviation. Differs from it: the standard deviation is that of the whole training set,
posterior variance included (law of total variance), not of the first batch.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ldm_lightning.checkpoints.contents import COUNT, MAPPING, NUMBER, TEXT, ListOf, OrNone, check
from ldm_lightning.storage.files import atomic_writer
from ldm_lightning.storage.hashing import hash_json
from ldm_lightning.storage.small_files import read_json
from ldm_lightning.utils.metadata import Fact, check_facts

MODES = ("identity", "scalar", "channel")


@dataclass(frozen=True)
class StoredStatistics:
    """Moments of a first stage's latents over a set of images, and what they are moments of.

    Attributes:
        mean: Over all values.
        std: Over all values, about the one mean.
        channel_means: Per channel, c values.
        channel_stds: Per channel, about its own mean, c values.
        num_images: Images they were measured on.
        first_stage_hash: SHA-256 of the weights.
        protocol: Data and transform, by name.

    Raises:
        ValueError: If a moment is not finite, or the numbers of channels differ.
    """

    mean: float
    std: float
    channel_means: tuple[float, ...]
    channel_stds: tuple[float, ...]
    num_images: int
    first_stage_hash: str
    protocol: Mapping[str, Fact]

    def __post_init__(self) -> None:
        values = [self.mean, self.std, *self.channel_means, *self.channel_stds]
        if len(self.channel_means) != len(self.channel_stds) or not self.channel_means:
            raise ValueError(
                "Statistics need a mean and a standard deviation of each channel, got "
                f"{len(self.channel_means)} and {len(self.channel_stds)}."
            )
        if not all(map(math.isfinite, values)):
            raise ValueError(
                f"The statistics of the latents are not finite: mean {self.mean}, std {self.std}, "
                f"channels {list(self.channel_means)} and {list(self.channel_stds)} over "
                f"{self.num_images} image(s). Use more images, or a first stage that has not "
                "diverged."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = asdict(self)
        return plain | {name: list(plain[name]) for name in ("channel_means", "channel_stds")}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Read what ``to_dict`` gave.

        Raises:
            ValueError: If something is missing or is no number.
        """
        try:
            return cls(
                mean=float(stored["mean"]),
                std=float(stored["std"]),
                channel_means=tuple(map(float, stored["channel_means"])),
                channel_stds=tuple(map(float, stored["channel_stds"])),
                num_images=int(stored["num_images"]),
                first_stage_hash=str(stored["first_stage_hash"]),
                protocol=dict(stored["protocol"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"No statistics of latents: {error!r}.") from error

    def save(self, path: Path) -> None:
        """Write them as JSON, atomically; the same statistics give the same bytes."""
        with atomic_writer(path) as file:
            file.write(json.dumps(self.to_dict(), indent=2, allow_nan=False).encode() + b"\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file of ``save``.

        Raises:
            ValueError: If it is missing or damaged.
        """
        try:
            return cls.from_dict(read_json(path, dict))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"The statistics of latents in {path} cannot be read ({error}). Delete the file "
                "and run the command again that made it."
            ) from error


def statistics_path(
    checkpoint: Path, *, first_stage_hash: str, protocol: Mapping[str, Fact]
) -> Path:
    """Path of the statistics beside a first stage: one file for each weights, data and transform.

    Args:
        checkpoint: The first stage's file.
        first_stage_hash: SHA-256 of the weights in use.
        protocol: Data and transform, by name.
    """
    key = hash_json({**protocol, "first_stage_hash": first_stage_hash})
    return checkpoint.with_name(f"{checkpoint.stem}.latents_{key[:16]}.json")


STORED = {
    "shift": ListOf(NUMBER),
    "scale": ListOf(NUMBER),
    "origin": OrNone(
        {"mode": TEXT, "first_stage_hash": TEXT, "num_images": COUNT, "protocol": MAPPING}
    ),
}
"""What a checkpoint holds of a normalizer."""


@dataclass(frozen=True)
class NormalizerOrigin:
    """Statistics that a normalizer was made from.

    Attributes:
        mode: ``identity``, ``scalar`` or ``channel``.
        first_stage_hash: SHA-256 of the weights whose latents it normalizes.
        num_images: Images its statistics were measured on.
        protocol: Data and transform of these images, by name.
    """

    mode: str
    first_stage_hash: str
    num_images: int
    protocol: Mapping[str, Fact]


class LatentNormalizer(nn.Module):
    """Maps latents to (latents - shift) * scale, channel by channel, and back.

    Args:
        shift: [c].
        scale: Not zero, [c].
        origin: What it was made from; None for one that is right for any weights because somebody
            says so (identity, a published factor).

    Raises:
        ValueError: If shapes differ, or a value cannot be used.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self, shift: Tensor, scale: Tensor, *, origin: NormalizerOrigin | None = None
    ) -> None:
        super().__init__()
        if shift.ndim != 1 or shift.shape != scale.shape:
            raise ValueError(
                f"shift and scale must be [c], got {list(shift.shape)} and {list(scale.shape)}."
            )
        values = torch.stack([shift, scale])
        if not values.isfinite().all() or not scale.all():
            raise ValueError(
                "A normalizer needs finite shifts and finite scales other than zero, got "
                f"{shift.tolist()} and {scale.tolist()}."
            )
        self.origin = origin
        self.register_buffer("shift", shift.detach().to(torch.float32, copy=True))
        self.register_buffer("scale", scale.detach().to(torch.float32, copy=True))

    @classmethod
    def identity(cls, num_channels: int) -> Self:
        """Leave latents as they are; published VQ models do."""
        return cls(torch.zeros(num_channels), torch.ones(num_channels))

    @classmethod
    def from_statistics(cls, statistics: StoredStatistics, *, mode: str) -> Self:
        """Make the normalizer of a set of images.

        Args:
            statistics: Of the latents.
            mode: ``identity`` leaves latents as they are. ``scalar`` divides by the standard
                deviation of all values about their one mean and shifts nothing: the published kind
                (Stable Diffusion's 0.18215), under which channels keep their offsets and their
                ratio. ``channel`` gives every channel mean 0 and standard deviation 1.

        Raises:
            ValueError: If the mode is unknown, or a standard deviation is zero.
        """
        if mode not in MODES:
            raise ValueError(f"The normalizer must be one of {', '.join(MODES)}, got {mode!r}.")
        num_channels = len(statistics.channel_means)
        shifts, stds = [0.0] * num_channels, [1.0] * num_channels
        if mode == "scalar":
            stds = [statistics.std] * num_channels
        elif mode == "channel":
            shifts, stds = list(statistics.channel_means), list(statistics.channel_stds)
        if dead := [channel for channel, std in enumerate(stds) if std <= 0]:
            raise ValueError(
                "The latents do not vary: the standard deviation of channel(s) "
                f"{', '.join(map(str, dead))} is 0 over {statistics.num_images} image(s), so they "
                "cannot be scaled to 1. The first stage has collapsed; train another."
            )
        origin = NormalizerOrigin(
            mode, statistics.first_stage_hash, statistics.num_images, dict(statistics.protocol)
        )
        scales = 1 / torch.tensor(stds, dtype=torch.float64)
        return cls(torch.tensor(shifts, dtype=torch.float64), scales, origin=origin)

    def normalize(self, latents: Tensor) -> Tensor:
        """Map latents [B, c, h, w] of the first stage to those of the diffusion model."""
        return (latents - self._spread(self.shift, latents)) * self._spread(self.scale, latents)

    def denormalize(self, normalized: Tensor) -> Tensor:
        """Map latents [B, c, h, w] of the diffusion model to those of the first stage."""
        scale, shift = self._spread(self.scale, normalized), self._spread(self.shift, normalized)
        return normalized / scale + shift

    def check(self, first_stage_hash: str, *, protocol: Mapping[str, Fact] | None = None) -> None:
        """Refuse to be used for other weights, or for other data where they are given.

        Args:
            first_stage_hash: SHA-256 of the weights in use.
            protocol: Facts about data and transform that must agree; None compares none.

        Raises:
            ValueError: Naming what differs, with both values.
        """
        if self.origin is None:
            return
        check_facts(
            {**self.origin.protocol, "first_stage_hash": self.origin.first_stage_hash},
            {**(protocol or {}), "first_stage_hash": first_stage_hash},
            what="The latent normalizer",
            remedy="Use the first stage and the data it was made for, or compute it anew.",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and checkpoints."""
        return {
            "shift": self.shift.tolist(),
            "scale": self.scale.tolist(),
            "origin": None if self.origin is None else asdict(self.origin),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Make the normalizer that gave these values, to the bit.

        Raises:
            ValueError: If something is missing or of another type.
        """
        check(stored, STORED, "normalizer")
        origin = stored["origin"]
        try:
            return cls(
                _vector(stored["shift"]),
                _vector(stored["scale"]),
                origin=None if origin is None else NormalizerOrigin(**origin),
            )
        except TypeError as error:
            raise ValueError(f"No latent normalizer: {error!r}.") from error

    def _spread(self, values: Tensor, latents: Tensor) -> Tensor:
        """[c] as [c, 1, 1]."""
        if latents.ndim != 4 or latents.shape[1] != len(values):
            raise ValueError(
                f"latents must be [B, {len(values)}, h, w], got {list(latents.shape)}."
            )
        return values[:, None, None]


def _vector(values: Sequence[float]) -> Tensor:
    return torch.tensor([float(value) for value in values], dtype=torch.float64)
