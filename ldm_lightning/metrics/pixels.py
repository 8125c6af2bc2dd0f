"""Pixel metrics on 8-bit images: PSNR and SSIM, one value an image."""

import functools
import math

import torch
from torch import Tensor

MAX_PSNR = 100.0
"""In dB. An image that is reproduced exactly counts as this, so that means stay finite."""

WINDOW_SIZE = 11
WINDOW_SIGMA = 1.5


def peak_signal_to_noise_ratio(reconstructions: Tensor, images: Tensor) -> Tensor:
    """PSNR of each image in dB, with 255 as the peak: the same as data range 1 on images in [0, 1].

    Args:
        reconstructions: uint8, [B, C, H, W].
        images: uint8, [B, C, H, W].

    Returns:
        float64, [B], at most ``MAX_PSNR``. The squared error is summed in integers, so a value
        depends on its own image alone, bit for bit.
    """
    difference = reconstructions.to(torch.int32) - images.to(torch.int32)
    squared_error = difference.square().flatten(1).sum(dim=1).double()
    mean_squared_error = squared_error / (math.prod(images.shape[1:]) * 255**2)
    return (-10 * torch.log10(mean_squared_error)).clamp(max=MAX_PSNR)


class StructuralSimilarity:
    """SSIM of reconstructions with images: Gaussian window of 11 pixels, sigma 1.5, data range 1.

    Source: Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural
    Similarity", Eq. 13, with K1 = 0.01 and K2 = 0.03. The mean runs over channels and the positions
    where the window lies inside the image; nothing is padded. Computed in float64, because a
    variance is a small difference of large numbers where an image is flat.

    What depends on the images alone is computed once.

    Args:
        images: uint8, [B, C, H, W], H and W at least 11.

    Raises:
        ValueError: If the window does not fit into the images.
    """

    def __init__(self, images: Tensor) -> None:
        height, width = images.shape[2:]
        if min(height, width) < WINDOW_SIZE:
            raise ValueError(
                f"SSIM needs images of at least {WINDOW_SIZE} pixels a side, got {height}x{width}."
            )
        self._rows = _window_matrix(height).to(images.device)  # [H - 10, H]
        self._columns = _window_matrix(width).to(images.device).T  # [W, W - 10]
        self._images = images.double() / 255
        self._mean = self._local_mean(self._images)
        self._variance = self._local_mean(self._images * self._images) - self._mean**2

    def _local_mean(self, values: Tensor) -> Tensor:
        return self._rows @ values @ self._columns

    def __call__(self, reconstructions: Tensor) -> Tensor:
        """Compare reconstructions, uint8 [B, C, H, W]: float64, [B], at most 1."""
        x, y = self._images, reconstructions.double() / 255
        mean_x, variance_x = self._mean, self._variance
        mean_y = self._local_mean(y)
        variance_y = self._local_mean(y * y) - mean_y**2
        covariance = self._local_mean(x * y) - mean_x * mean_y
        c1, c2 = 0.01**2, 0.03**2
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
        return (luminance * structure).flatten(1).mean(dim=1)


def structural_similarity(reconstructions: Tensor, images: Tensor) -> Tensor:
    """SSIM of each image, float64 [B], of uint8 [B, C, H, W]; see ``StructuralSimilarity``."""
    return StructuralSimilarity(images)(reconstructions)


@functools.lru_cache(maxsize=16)
def _window_matrix(size: int) -> Tensor:
    """Band matrix [size - 10, size] that applies the 1-D window at every inner position.

    Two products with it are the separable convolution, and fast in float64, where convolutions are
    slow.
    """
    offsets = torch.arange(WINDOW_SIZE, dtype=torch.float64) - WINDOW_SIZE // 2
    window = torch.exp(-(offsets**2) / (2 * WINDOW_SIGMA**2))
    window = window / window.sum()
    matrix = torch.zeros(size - WINDOW_SIZE + 1, size, dtype=torch.float64)
    for row in range(matrix.shape[0]):
        matrix[row, row : row + WINDOW_SIZE] = window
    return matrix
