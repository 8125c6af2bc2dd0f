"""The only conversions between image number formats."""

import torch
from PIL import Image

from ldm_lightning.utils.image import from_uint8, save_grid, to_rgb, to_uint8


def test_every_8_bit_value_survives_the_round_trip():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(from_uint8(values)), values)


def test_values_outside_the_range_are_clamped_not_wrapped():
    images = torch.tensor([-3.0, -1.0, 1.0, 3.0]).view(1, 1, 2, 2)
    assert to_uint8(images).flatten().tolist() == [0, 0, 255, 255]


def test_any_number_of_channels_can_be_shown():
    for channels in (1, 2, 3, 5):
        assert to_rgb(torch.zeros(2, channels, 4, 4)).shape == (2, 3, 4, 4)


def test_a_grid_enlarges_small_tiles_by_a_whole_factor(tmp_path):
    save_grid(torch.zeros(4, 1, 32, 32), tmp_path / "a" / "grid.png", num_columns=2)
    with Image.open(tmp_path / "a" / "grid.png") as grid:
        assert grid.size == (2 * 96 + 12, 2 * 96 + 12)
