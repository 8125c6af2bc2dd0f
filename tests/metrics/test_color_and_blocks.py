"""Missing color and visible blocks: closed forms, and any split into batches."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_lightning.metrics.color_and_blocks import BlockEdgeRatio, ColorExplained


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Random colors, [6, 3, 8, 8] in [0, 255]."""
    return torch.randint(0, 256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0)).float()


def explained(reconstructions, images, *, batch: int = 6) -> float:
    metric = ColorExplained()
    for made, seen in zip(reconstructions.split(batch), images.split(batch), strict=True):
        metric.update(made, seen)
    return metric.compute()


def test_color_follows_its_definition_on_pillows_chroma(images):
    made = images + 40 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    made = made.clamp(0, 255).round()
    seen_c, made_c = (
        np.stack(
            [
                np.asarray(
                    Image.fromarray(image.permute(1, 2, 0).byte().numpy()).convert("YCbCr"), float
                )[..., 1:]
                for image in batch
            ]
        )
        for batch in (images, made)
    )
    expected = 1 - ((made_c - seen_c) ** 2).sum() / ((seen_c - seen_c.mean((0, 1, 2))) ** 2).sum()
    assert explained(made, images) == pytest.approx(expected, abs=0.005)
    assert explained(made, images, batch=1) == pytest.approx(explained(made, images), rel=1e-6)


def test_the_images_have_all_their_color_and_their_mean_color_explains_none(images):
    assert explained(images, images) == 1.0
    flat = images.mean((0, 2, 3), keepdim=True).expand_as(images)
    assert explained(flat, images) == pytest.approx(0.0, abs=1e-6)
    gray = images.mean(1, keepdim=True).expand_as(images)
    assert explained(gray, images) < 0.01
    assert np.isnan(explained(flat, flat))


@pytest.mark.parametrize("factor", [2, 4])
def test_blocks_of_flat_tiles_and_a_ramp(images, factor):
    ramp = torch.arange(8.0).view(1, 1, 1, 8) + torch.arange(8.0).view(1, 1, 8, 1)
    smooth = BlockEdgeRatio(factor)
    smooth.update(ramp)
    assert smooth.compute() == pytest.approx(1.0)
    # Steps of 3 on the grid's lines, of 1 elsewhere.
    stairs = torch.arange(8.0) + 2 * (torch.arange(8) // factor)
    blocks = BlockEdgeRatio(factor)
    for part in (stairs.view(1, 1, 1, 8).expand(1, 1, 8, 8) + stairs.view(1, 1, 8, 1)).split(1):
        blocks.update(part)
    blocks.update(torch.empty(0, 1, 8, 8))
    assert blocks.compute() == pytest.approx(3.0)
    flat = BlockEdgeRatio(factor)
    flat.update(torch.ones(1, 1, 8, 8))
    assert np.isnan(flat.compute())
