import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from skimage.metrics import structural_similarity as skimage_ssim

from ldm_lightning.metrics.pixels import (
    MAX_PSNR,
    peak_signal_to_noise_ratio,
    structural_similarity,
)


def pair(channels=3, size=(40, 27), batch=4):
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(batch, channels, 5, 5, generator=generator)
    images = torch.nn.functional.interpolate(smooth, size=size, mode="bicubic").clamp(0, 1)
    images[0] = 1.0  # a flat image, where variances are differences of large numbers
    strength = torch.linspace(0.01, 0.2, batch)[:, None, None, None]
    noisy = (images + strength * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    return (noisy * 255).round().to(torch.uint8), (images * 255).round().to(torch.uint8)


def as_numpy(image):
    return image.permute(1, 2, 0).numpy().astype(np.float64) / 255


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_psnr_and_ssim_equal_scikit_image(channels):
    noisy, images = pair(channels)
    psnr = peak_signal_to_noise_ratio(noisy, images)
    ssim = structural_similarity(noisy, images)
    for row in range(len(images)):
        x, y = as_numpy(images[row]), as_numpy(noisy[row])
        assert psnr[row].item() == pytest.approx(
            peak_signal_noise_ratio(x, y, data_range=1), abs=1e-9
        )
        expected = skimage_ssim(
            x,
            y,
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=-1,
        )
        assert ssim[row].item() == pytest.approx(expected, abs=1e-9)


def test_equal_images_reach_the_ends_of_both_scales():
    _, images = pair()
    assert peak_signal_to_noise_ratio(images, images).tolist() == [MAX_PSNR] * 4
    torch.testing.assert_close(
        structural_similarity(images, images), torch.ones(4, dtype=torch.float64)
    )


def test_psnr_of_one_gray_level_is_its_closed_form():
    images = torch.full((1, 1, 4, 4), 100, dtype=torch.uint8)
    expected = 20 * np.log10(255)
    assert peak_signal_to_noise_ratio(images + 1, images).item() == pytest.approx(expected)
    assert peak_signal_to_noise_ratio(images - 1, images).item() == pytest.approx(expected)


def test_ssim_takes_images_of_the_window_size_and_refuses_smaller_ones():
    noisy, images = pair(size=(11, 11))
    assert structural_similarity(noisy, images).isfinite().all()
    with pytest.raises(ValueError, match=r"\b11 pixels\b.*\b10x11\b"):
        structural_similarity(noisy[:, :, :10], images[:, :, :10])
