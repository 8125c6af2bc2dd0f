"""An image as condition: averaged down, dropped to zero, concatenated by the denoiser."""

import pytest
import torch

from ldm_lightning.conditioner.image import ImageConditioner


def conditioner(**changes):
    return ImageConditioner(**({"key": "map", "channels": 2, "latent_size": 4} | changes))


def test_is_the_mean_of_the_pixels_under_each_latent():
    image = torch.randn(3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    concat = conditioner()({"map": image}, drop=None).concat
    expected = image.unflatten(3, (4, 4)).unflatten(2, (4, 4)).mean(dim=(3, 5))
    torch.testing.assert_close(concat, expected)


def test_dropped_rows_equal_the_null_condition():
    made = conditioner(latent_size=[2, 4])
    concat = made({"map": torch.ones(2, 2, 8, 16)}, drop=torch.tensor([True, False])).concat
    null = made.null(1, torch.device("cpu")).concat
    assert null.shape == (1, 2, 2, 4)
    torch.testing.assert_close(concat, torch.cat([null, torch.ones_like(null)]))


def test_a_missing_or_other_image_is_told():
    with pytest.raises(ValueError, match=r"conditioner\.key=map\b.*image"):
        conditioner()({"image": torch.zeros(1, 2, 8, 8)}, drop=None)
    with pytest.raises(ValueError, match=r"map.*\[B, 2, H, W\].*\[1, 3, 8, 8\]"):
        conditioner()({"map": torch.zeros(1, 3, 8, 8)}, drop=None)
    with pytest.raises(ValueError, match=r"channels.*\b0\b"):
        conditioner(channels=0)
