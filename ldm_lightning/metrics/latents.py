"""Mean and standard deviation of latents over a whole set: what a normalizer has to undo."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from ldm_lightning.autoencoder.frozen import FrozenFirstStage, Moments
from ldm_lightning.autoencoder.normalizer import StoredStatistics
from ldm_lightning.utils.collectives import all_reduce_sum
from ldm_lightning.utils.metadata import Fact


class LatentResult(NamedTuple):
    """Moments of latents over images and positions.

    Attributes:
        mean: Over all values.
        std: Over all values, about the one mean, unbiased.
        channel_means: Per channel, c values.
        channel_stds: Per channel, about its own mean, unbiased, c values.
    """

    mean: float
    std: float
    channel_means: list[float]
    channel_stds: list[float]


class LatentStatistics(Metric):
    """Streams latents of any spatial size and keeps four sums.

    Where the latents are means of a posterior, its variance is added by the law of total variance,
    Var = Var(mean) + E[variance], which is what sampling would give in the limit.

    Sums and squares are float64: with a mean a million times the standard deviation, four digits of
    the latter survive.

    Args:
        num_channels: c.
    """

    full_state_update = False
    total: Tensor
    squares: Tensor
    variances: Tensor
    count: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        zeros = torch.zeros(num_channels, dtype=torch.float64)
        self.add_state("total", zeros, dist_reduce_fx="sum")
        self.add_state("squares", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("variances", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, latents: Tensor, variance: Tensor | None = None) -> None:
        """Add latents.

        Args:
            latents: [B, c, h, w], unbounded.
            variance: Variance of the posterior whose means the latents are, the same shape;
                ``None`` for samples and for latents without a posterior.

        Raises:
            ValueError: If the number of channels is another.
        """
        if latents.ndim != 4 or latents.shape[1] != self.total.shape[0]:
            raise ValueError(
                f"latents must be [B, {self.total.shape[0]}, h, w], got {list(latents.shape)}."
            )
        values = latents.detach().double()
        self.total = self.total + values.sum(dim=(0, 2, 3))
        self.squares = self.squares + values.square().sum(dim=(0, 2, 3))
        if variance is not None:
            self.variances = self.variances + variance.detach().double().sum(dim=(0, 2, 3))
        self.count = self.count + values.shape[0] * values.shape[2] * values.shape[3]

    def compute(self) -> LatentResult:
        """Moments over all processes; NaN where nothing was seen."""
        count = int(self.count)
        num_values = count * self.total.numel()
        return LatentResult(
            mean=float(self.total.sum()) / num_values if num_values else math.nan,
            std=float(_std(self.total.sum(), self.squares.sum(), self.variances.sum(), num_values)),
            channel_means=(self.total / count).tolist(),
            channel_stds=_std(self.total, self.squares, self.variances, count).tolist(),
        )


def _std(total: Tensor, squares: Tensor, variances: Tensor, count: int) -> Tensor:
    """Unbiased standard deviation from sums; NaN for fewer than two values."""
    if count < 2:
        return torch.full_like(total, math.nan)
    variance_of_values = ((squares - total**2 / count) / (count - 1)).clamp(min=0)
    return (variance_of_values + variances / count).sqrt()


def measure_statistics(
    moments: Iterable[Moments],
    *,
    num_channels: int,
    first_stage_hash: str,
    protocol: Mapping[str, Fact],
) -> StoredStatistics:
    """Statistics of a first stage's latents over images, from which a normalizer is made.

    Call it on every process, each with its own share of the images.

    Args:
        moments: Of batch after batch, from ``FrozenFirstStage.moments`` or from a latent cache.
        num_channels: c.
        first_stage_hash: SHA-256 of the first stage's weights.
        protocol: Data and transform of the images, by name.

    Raises:
        ValueError: If there are fewer than two values, or one is not finite.
    """
    metric, num_images = LatentStatistics(num_channels), 0
    metric.update(torch.empty(0, num_channels, 1, 1))  # a process may have no images
    for mean, variance in moments:
        metric.to(mean.device).update(mean, variance)
        num_images += len(mean)
    result = metric.compute()
    return StoredStatistics(
        mean=result.mean,
        std=result.std,
        channel_means=tuple(result.channel_means),
        channel_stds=tuple(result.channel_stds),
        num_images=int(all_reduce_sum(torch.tensor(num_images, device=metric.device))),
        first_stage_hash=first_stage_hash,
        protocol=dict(protocol),
    )


def frozen_moments(first_stage: FrozenFirstStage, images: Iterable[Tensor]) -> Iterator[Moments]:
    """Moments of batches of images [B, C, H, W] in [-1, 1], moved to the first stage's device."""
    parameter = next(first_stage.parameters())
    for batch in images:
        yield first_stage.moments(batch.to(parameter.device, parameter.dtype))
