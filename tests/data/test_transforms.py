"""Crops: ADM's against Pillow called directly, randomness as a function of its seed alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_lightning.data.transforms import (
    EvalTransform,
    TrainTransform,
    as_size,
    center_crop,
    native_crop,
    resize,
    resize_quickly,
)


def photo(height: int, width: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    coarse = torch.rand(1, channels, 9, 9, generator=generator)
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    noise = torch.rand(channels, height, width, generator=generator)
    return ((image * 0.7 + noise * 0.3) * 255).to(torch.uint8)


def position_image(height: int, width: int) -> torch.Tensor:
    """Every pixel holds its own row and column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, rows]).to(torch.uint8)


def adm_reference(image: Image.Image, side: int) -> np.ndarray:
    """The published procedure for square targets, on a Pillow image."""
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    factor = side / min(image.size)
    wide, high = round(image.width * factor), round(image.height * factor)
    pixels = np.array(image.resize((wide, high), Image.Resampling.BICUBIC))
    top, left = (high - side) // 2, (wide - side) // 2
    return pixels[top : top + side, left : left + side]


@pytest.mark.parametrize(
    "size", [(64, 64), (100, 130), (257, 190), (500, 333), (31, 47), (128, 64)]
)
def test_center_crop_equals_the_published_procedure(size):
    image = photo(*size)
    expected = adm_reference(Image.fromarray(image.permute(1, 2, 0).numpy()), 64)
    assert np.array_equal(center_crop(image, (64, 64)).permute(1, 2, 0).numpy(), expected)


def test_center_crop_of_an_image_of_the_right_size_is_the_image():
    image = photo(48, 80)
    assert torch.equal(center_crop(image, (48, 80)), image)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_channels_are_cropped_alike(channels):
    image = photo(150, 90).repeat(2, 1, 1)[:1].expand(channels, -1, -1)
    cropped = center_crop(image, (32, 32))
    assert cropped.shape == (channels, 32, 32)
    assert all(torch.equal(channel, cropped[0]) for channel in cropped)


def test_center_crop_keeps_the_middle_of_a_wide_image():
    image = position_image(32, 200)
    cropped = center_crop(image, (32, 32))
    assert cropped[1, 0].tolist() == list(range(84, 116))


def test_center_crop_to_a_target_that_is_not_square_keeps_proportions():
    # A disc must stay a disc: its extent in both directions is scaled alike.
    rows, columns = torch.meshgrid(torch.arange(200), torch.arange(300), indexing="ij")
    disc = (((rows - 100) ** 2 + (columns - 150) ** 2) < 60**2).to(torch.uint8) * 255
    inside = center_crop(disc.expand(3, -1, -1), (40, 80))[0] > 127
    height, width = inside.any(1).sum().item(), inside.any(0).sum().item()
    assert abs(height - width) <= 1 or height == 40
    assert width == pytest.approx(120 * 80 / 300, abs=1)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(200, 300), (65, 130), (64, 48), (20, 31)])
def test_quick_resizing_is_pillows_to_a_gray_level_or_two(size, channels):
    image = photo(*size, channels)
    for layout in (image, image.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        quick, exact = resize_quickly(layout, (64, 48)), resize(image, (64, 48))
        assert quick.dtype == torch.uint8
        difference = (quick.int() - exact.int()).abs()
        assert difference.max() <= (1 if min(size) > 48 else 2)
        assert difference.float().mean() < 0.1


def train_transform(crop: str, size: tuple[int, int] = (24, 32), flip: bool = True):
    return TrainTransform(size=size, crop=crop, scale=(0.3, 1.0), flip=flip)


@pytest.mark.parametrize("crop", ["random_resized", "random", "center"])
@pytest.mark.parametrize("size", [(100, 60), (24, 32), (10, 13)])
def test_training_crops_have_the_target_size_also_from_small_images(crop, size):
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        assert train_transform(crop)(photo(*size), generator).shape == (3, 24, 32)


@pytest.mark.parametrize("crop", ["random_resized", "random"])
def test_training_crops_are_a_function_of_the_generator(crop):
    image = photo(90, 120)
    results = [
        train_transform(crop)(image, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2, 3)
    ]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert not torch.equal(results[2], results[3])


def test_random_crops_are_windows_at_native_scale_and_reach_every_corner():
    image = position_image(20, 30)
    corners = set()
    for seed in range(300):
        crop = native_crop(image, (16, 24), torch.Generator().manual_seed(seed))
        top, left = int(crop[0, 0, 0]), int(crop[1, 0, 0])
        assert torch.equal(crop, image[:, top : top + 16, left : left + 24])
        corners.add((top, left))
    assert corners == {(top, left) for top in range(5) for left in range(7)}


def test_random_resized_takes_shares_of_the_area_within_the_range():
    # On a horizontal ramp, the spread of a crop's values tells how wide a window it was.
    ramp = torch.arange(200, dtype=torch.uint8).expand(3, 200, 200)
    transform = train_transform("random_resized", size=(20, 20), flip=False)
    shares = []
    for seed in range(200):
        crop = transform(ramp, torch.Generator().manual_seed(seed)).float()
        shares.append(((crop[0, 0, -1] - crop[0, 0, 0]).item() / 19 * 20 / 200) ** 2)
    assert min(shares) == pytest.approx(0.3, abs=0.05)
    assert max(shares) == pytest.approx(1.0, abs=0.05)
    assert np.mean(shares) == pytest.approx(0.65, abs=0.06)


def test_half_of_the_images_are_flipped():
    image = position_image(24, 32)
    flips = [
        int(train_transform("center")(image, torch.Generator().manual_seed(seed))[1, 0, 0]) == 31
        for seed in range(400)
    ]
    assert 0.42 < np.mean(flips) < 0.58
    unflipped = train_transform("center", flip=False)(image, torch.Generator().manual_seed(0))
    assert torch.equal(unflipped, image)


def test_evaluation_windows_depend_on_name_and_number_alone():
    transform = EvalTransform(size=(16, 16), crop="crops", crops_per_image=8)
    image = position_image(100, 120)

    def corner(name, number):
        window = transform(image, name=name, number=number)
        return int(window[0, 0, 0]), int(window[1, 0, 0])

    forward = [corner("a.jpg", number) for number in range(8)]
    assert [corner("a.jpg", number) for number in reversed(range(8))] == forward[::-1]
    assert [corner("b.jpg", number) for number in range(8)] != forward
    assert len(set(forward)) == 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: train_transform("middle"), r"data\.train_crop.*'middle'"),
        (
            lambda: TrainTransform(size=(8, 8), crop="random", scale=(0.0, 1.0), flip=True),
            "data.crop_scale",
        ),
        (lambda: EvalTransform(size=(8, 8), crop="random", crops_per_image=1), "data.eval_crop"),
        (
            lambda: EvalTransform(size=(8, 8), crop="crops", crops_per_image=0),
            r"val_crops_per_image.*\b0\b",
        ),
        (lambda: as_size((1, 2, 3)), r"resolution.*1, 2, 3"),
        (lambda: as_size(0), r"resolution.*\b0\b"),
    ],
)
def test_settings_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def whole_then_cut(image: torch.Tensor, full: tuple[int, int], top: int, left: int, side: int):
    """The plain way: resize all of the image, then cut."""
    return resize(image, full)[:, top : top + side, left : left + side]


@pytest.mark.parametrize("size", [(40, 41), (31, 200), (60, 900), (900, 60), (1, 16), (5, 70)])
def test_crops_of_ordinary_shapes_are_cut_from_the_whole_resized_image(size):
    image, side = photo(*size), 32
    scale = side / min(size)
    full = (max(side, round(size[0] * scale)), max(side, round(size[1] * scale)))
    if min(size) < 2 * side:  # else the image is halved first
        expected = whole_then_cut(image, full, (full[0] - side) // 2, (full[1] - side) // 2, side)
        assert torch.equal(center_crop(image, (side, side)), expected)
    if min(size) < side:
        draws = torch.Generator().manual_seed(3)
        top, left = (int(torch.randint(n - side + 1, (), generator=draws)) for n in full)
        window = native_crop(image, (side, side), torch.Generator().manual_seed(3))
        assert torch.equal(window, whole_then_cut(image, full, top, left, side))


@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("size", [(1, 1000), (1000, 1), (3, 777), (50, 3000), (31, 900)])
def test_a_window_of_a_long_image_is_what_resizing_all_of_it_shows(crop, size):
    image, side = photo(*size), 32
    scale = side / min(size)
    full = (max(side, round(size[0] * scale)), max(side, round(size[1] * scale)))
    draws = torch.Generator().manual_seed(5)
    if crop == "center":
        window = center_crop(image, (side, side))
        top, left = (full[0] - side) // 2, (full[1] - side) // 2
    else:
        window = native_crop(image, (side, side), torch.Generator().manual_seed(5))
        full = full if min(size) < side else size
        top, left = (int(torch.randint(n - side + 1, (), generator=draws)) for n in full)
    expected = whole_then_cut(image, full, top, left, side)
    assert window.shape == expected.shape
    assert (window.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("crop", ["center", "random", "random_resized"])
@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (2, 30_000)])
def test_the_work_for_a_crop_is_bounded_by_the_crop(crop, size, monkeypatch):
    made = []
    plain = Image.Image.resize

    def noting(image, size, *args, **options):
        made.append(size[0] * size[1])
        return plain(image, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", noting)
    image = torch.zeros(3, *size, dtype=torch.uint8)
    cropped = train_transform(crop, size=(64, 64))(image, torch.Generator().manual_seed(0))
    assert cropped.shape == (3, 64, 64)
    assert sum(made) <= 16 * 64 * 64


@pytest.mark.parametrize(
    ("transform", "least"),
    [
        (train_transform("center", size=(24, 32)), 64),
        (train_transform("random_resized", size=(24, 32)), 117),  # 64 / sqrt(0.3)
        (train_transform("random", size=(24, 32)), None),
        (EvalTransform(size=(24, 32), crop="center", crops_per_image=1), 64),
        (EvalTransform(size=(24, 32), crop="crops", crops_per_image=4), None),
    ],
)
def test_only_crops_that_shrink_let_large_photographs_be_decoded_smaller(transform, least):
    assert transform.least_side == least
