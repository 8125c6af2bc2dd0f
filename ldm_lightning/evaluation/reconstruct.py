"""The figures of a first stage on a set of images.

What `evaluate` prints and what the gate decides by are measured here, so both see one number.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.progress import track
from torch import Tensor

from ldm_lightning.autoencoder.linear_fit import sample_size
from ldm_lightning.builders.hardware import Computing
from ldm_lightning.config import plain
from ldm_lightning.data.image_module import ImageDataModule
from ldm_lightning.evaluation.cache import EvaluationCache, FirstStageRecord
from ldm_lightning.metrics.accumulators import MeanOverImages
from ldm_lightning.metrics.features import FeatureSet
from ldm_lightning.metrics.first_stage import FirstStageMetrics, FirstStageReport
from ldm_lightning.metrics.linear_floor import LinearFloor
from ldm_lightning.metrics.pixels import peak_signal_to_noise_ratio
from ldm_lightning.restore.first_stage import OpenedFirstStage
from ldm_lightning.utils.collectives import all_reduce_sum, num_processes, process_rank
from ldm_lightning.utils.errors import error_line
from ldm_lightning.utils.image import spread_rows, to_uint8

log = logging.getLogger(__name__)

NUM_SHOWN = 8
"""Columns of the grid."""


@dataclass(frozen=True)
class Reconstruction:
    """A split, reconstructed and measured.

    Attributes:
        report: Its figures, over all processes.
        gray_psnr: PSNR of plain mid-gray images, in dB: what knowing nothing gives.
        first: The first batch of this process, [B, C, H, W] in [-1, 1]; one image of zeros where
            it had none.
        grid: A row of images and a row of their reconstructions, [2 * num_columns, C, H, W].
        num_columns: Images in a row.
    """

    report: FirstStageReport
    gray_psnr: float
    first: Tensor
    grid: Tensor
    num_columns: int

    def record(self) -> FirstStageRecord:
        """The part that is cached."""
        return FirstStageRecord(
            scalars={**self.report.scalars, **self.report.latent_scalars},
            protocol=self.report.protocol,
            gray_psnr=self.gray_psnr,
            num_images=self.report.num_images,
            image_shape=tuple(self.first.shape[1:]),
        )


def own_metrics_key(cfg: DictConfig) -> dict[str, Any]:
    """Configuration of the user's own metrics, as plain values."""
    return plain(cfg).get("metrics") or {}


def evaluation_cache(
    first_stage: OpenedFirstStage,
    features: FeatureSet,
    *,
    protocol: Mapping[str, str | int | float],
    precision: str,
    cache_dir: str | Path,
    own_metrics: Mapping[str, Any],
    with_floor: bool,
) -> EvaluationCache:
    """Return the cache of this first stage's figures on these images."""
    networks = {
        name: f"{distance.feature_network} {distance.weights_hash}"
        for name, distance in features.perceptual.items()
    }
    extractor = features.extractor
    networks[features.frechet_name] = f"{extractor.feature_network} {extractor.weights_hash}"
    key = {
        "weights_hash": first_stage.weights_hash,
        "first_stage": first_stage.description,
        "networks": networks,
        "precision": precision,
        "data": dict(protocol),
        "linear_floor": with_floor,
    }
    if own_metrics:
        key["own_metrics"] = dict(own_metrics)
    return EvaluationCache(Path(cache_dir).expanduser() / "evaluations", key)


def reconstruct(
    first_stage: OpenedFirstStage,
    data: ImageDataModule,
    metrics: FirstStageMetrics,
    *,
    computing: Computing,
    floor: LinearFloor | None,
) -> Reconstruction:
    """Reconstruct the held-out split and measure it; moves autoencoder and metrics to the device.

    Several processes share the images; each must call it.

    Args:
        first_stage: Is measured.
        data: Its evaluated images are reconstructed; the floor is fitted to its training images.
        metrics: What is measured.
        computing: Device and precision.
        floor: Its linear floor; None leaves it out, as do training images that cannot be read.

    Raises:
        ValueError: If no image could be read, or reconstructions are not finite.
    """
    device, dtype = computing.device, computing.dtype
    autoencoder = first_stage.autoencoder.to(device, dtype)
    metrics.to(device, dtype).reset()
    gray = MeanOverImages().to(device)
    sample = None if floor is None else _training_sample(data)
    if floor is not None and sample is not None:
        floor.begin(lambda: sample, device=device, dtype=dtype)
    log.info(
        "Weights: %s of %s. Precision: %s.",
        first_stage.weights,
        first_stage.path,
        computing.precision,
    )
    first = None
    with torch.inference_mode(), computing.autocast():
        for batch in track(
            data.val_dataloader(), description="reconstructing", disable=process_rank() > 0
        ):
            images = batch["image"].to(device, dtype)
            output = autoencoder(images)
            metrics.update(images, output.reconstructions, output.bottleneck)
            if floor is not None:
                floor.update(images)
            originals = to_uint8(images)
            gray.update(peak_signal_to_noise_ratio(torch.full_like(originals, 128), originals))
            first = images if first is None else first
        gray.update(torch.empty(0, device=device))  # a process may have had no images
        gray_psnr = gray.compute()
        if not gray_psnr.num_images:
            raise ValueError("No image could be read: there is nothing to measure.")
        if first is None:
            height, width = data.resolution
            first = torch.zeros(1, data.image_channels, height, width, device=device, dtype=dtype)
        shown = spread_rows(first, NUM_SHOWN)
        grid = torch.cat([shown, autoencoder(shown).reconstructions])
    report = metrics.compute()
    if floor is not None:
        report = report.with_floor(floor.end())
    return Reconstruction(report, gray_psnr.mean, first, grid, len(shown))


def _training_sample(data: ImageDataModule) -> Tensor | None:
    """Training images for a fit; None, on every process, where one cannot read them."""
    sample, reason = None, "another process cannot read them"
    try:
        sample = data.training_sample(sample_size(data.resolution))
    except (ValueError, OSError) as error:
        reason = error_line(error)
    if int(all_reduce_sum(torch.tensor(int(sample is not None)))) == num_processes():
        return sample
    if process_rank() == 0:
        log.warning("The linear floor is left out; no training images: %s", reason)
    return None
