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
    difference = reconstructions.to(torch.int64) - images.to(torch.int64)
    squared_error = difference.square().flatten(1).sum(dim=1).double()
    mean_squared_error = squared_error / (math.prod(images.shape[1:]) * 255**2)
    return (-10 * torch.log10(mean_squared_error)).clamp(max=MAX_PSNR)


def structural_similarity(reconstructions: Tensor, images: Tensor) -> Tensor:
    """SSIM of each image: Gaussian window of 11 pixels with sigma 1.5, data range 1.

    Source: Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural
    Similarity", Eq. 13, with K1 = 0.01 and K2 = 0.03. The mean runs over channels and the positions
    where the window lies inside the image; nothing is padded. Computed in float64, because a
    variance is a small difference of large numbers where an image is flat.

    Args:
        reconstructions: uint8, [B, C, H, W], H and W at least 11.
        images: uint8, [B, C, H, W].

    Returns:
        float64, [B], at most 1.

    Raises:
        ValueError: If the window does not fit into the images.
    """
    height, width = images.shape[2:]
    if min(height, width) < WINDOW_SIZE:
        raise ValueError(
            f"SSIM needs images of at least {WINDOW_SIZE} pixels a side, got {height}x{width}."
        )
    x, y = images.double() / 255, reconstructions.double() / 255
    rows = _window_matrix(height).to(images.device)  # [H - 10, H]
    columns = _window_matrix(width).to(images.device).T  # [W, W - 10]

    def local_mean(values: Tensor) -> Tensor:
        return rows @ values @ columns

    mean_x, mean_y = local_mean(x), local_mean(y)
    variance_x = local_mean(x * x) - mean_x**2
    variance_y = local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).flatten(1).mean(dim=1)


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
