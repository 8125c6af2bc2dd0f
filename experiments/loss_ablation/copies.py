"""Blurred copies of images, and noisy copies that are exactly as far away in PSNR.

What a decoder that only blurs would score: PSNR calls both copies equally good (requirement B10).
"""

import torch
from torch import Tensor

from experiments.study import Row, as_text
from experiments.tiny_features.photographs import blur
from ldm_lightning.data.image_module import ImageDataModule
from ldm_lightning.metrics.features import tiny_features
from ldm_lightning.metrics.pixels import peak_signal_to_noise_ratio
from ldm_lightning.metrics.reconstruction import ReconstructionMetrics
from ldm_lightning.utils.image import to_uint8

SIGMAS = (0.5, 0.6, 0.8, 1.0, 1.4, 2.0)
"""Standard deviations of the blur in pixels."""

STRONGEST_NOISE = 2.0
"""Of images in [-1, 1]; far beyond the error of any blur."""

NUM_HALVINGS = 20


@torch.no_grad()
def measure_copies(data: ImageDataModule) -> list[Row]:
    """Measure blurred and noisy copies of a held-out split as reconstructions are measured.

    Returns:
        Two rows a sigma, ``kind`` ``blurred`` and ``noisy``.
    """
    features, rows = tiny_features(), []
    for sigma in SIGMAS:
        measured = {kind: ReconstructionMetrics(features) for kind in ("blurred", "noisy")}
        generator = torch.Generator().manual_seed(0)
        for batch in data.val_dataloader():
            images = batch["image"]
            blurred = blur(images, sigma)
            noise = torch.randn(images.shape, generator=generator)
            measured["blurred"].update(images, blurred)
            measured["noisy"].update(images, noisy_copies(images, noise, _psnr(blurred, images)))
        for kind, metrics in measured.items():
            report = metrics.report()
            figures = {name: as_text(value) for name, value in report.scalars.items()}
            count = {"num_images": as_text(report.num_images)}
            rows.append({"kind": kind, "sigma": as_text(sigma), **figures, **count})
    return rows


def noisy_copies(images: Tensor, noise: Tensor, psnr: Tensor) -> Tensor:
    """Add as much noise to each image as brings it to a PSNR, after clamping and rounding.

    Args:
        images: [B, C, H, W] in [-1, 1].
        noise: White, of variance 1, [B, C, H, W].
        psnr: In dB, [B].

    Returns:
        [B, C, H, W], not clamped.
    """
    low = torch.zeros(len(images), 1, 1, 1)
    high = torch.full_like(low, STRONGEST_NOISE)
    for _ in range(NUM_HALVINGS):
        middle = (low + high) / 2
        is_too_weak = (_psnr(images + middle * noise, images) > psnr)[:, None, None, None]
        low, high = torch.where(is_too_weak, middle, low), torch.where(is_too_weak, high, middle)
    return images + high * noise


def _psnr(copies: Tensor, images: Tensor) -> Tensor:
    return peak_signal_to_noise_ratio(to_uint8(copies), to_uint8(images))
