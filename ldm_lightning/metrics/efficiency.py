"""Efficiency of a first stage: throughput, compression, bits (requirement B12)."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_lightning.autoencoder.autoencoder import Autoencoder


@dataclass(frozen=True)
class Throughput:
    """Images a second, medians over repeated batches."""

    encode_images_per_s: float
    decode_images_per_s: float


def compression_ratio(autoencoder: Autoencoder, image_shape: tuple[int, ...]) -> float:
    """Elements of an image over elements of its latents, for ``image_shape`` [B, C, H, W]."""
    latents = autoencoder.latent_shape(image_shape)
    return math.prod(image_shape[1:]) / math.prod(latents[1:])


def bits_per_pixel(autoencoder: Autoencoder) -> float | None:
    """log2(K) / f^2 where latents are codes; None for real numbers, which have no such figure."""
    if autoencoder.bottleneck.num_codes is None:
        return None
    return math.log2(autoencoder.bottleneck.num_codes) / autoencoder.downsampling_factor**2


@torch.no_grad()
def measure_throughput(
    autoencoder: Autoencoder, images: Tensor, *, num_repeats: int = 5
) -> Throughput:
    """Time encoding and decoding of one batch, after one pass that does not count.

    Args:
        autoencoder: In eval mode, on the device of ``images``.
        images: [B, C, H, W] in [-1, 1].
        num_repeats: Timed passes.
    """

    def images_per_s(work: Callable[[], object]) -> float:
        seconds = []
        for _ in range(num_repeats + 1):
            start = time.perf_counter()
            work()
            if images.is_cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        return len(images) / statistics.median(seconds[1:])

    latents = autoencoder.encode(images).latents
    return Throughput(
        encode_images_per_s=images_per_s(lambda: autoencoder.encode(images)),
        decode_images_per_s=images_per_s(lambda: autoencoder.decode(latents)),
    )
