import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.ndimage import fourier_gaussian

from ldm_lightning.metrics.power_spectrum import (
    DEFICIT_NAME,
    HIGH_FREQUENCY,
    NUM_RINGS,
    OCTAVE_NAMES,
    PowerSpectrum,
    ring_power,
)

OCTAVES = ((0.25, 0.5), (0.125, 0.25), (0.0625, 0.125))


def scene(size=512, *, channels=3, std=45.0, seed=0):
    """A periodic random field with a photograph's spectrum, 1/f^2: float64 [C, H, W] about 128."""
    frequency = np.fft.fftfreq(size)
    radius = np.hypot(frequency[:, None], frequency[None])
    radius[0, 0] = np.inf
    white = np.random.default_rng(seed).standard_normal((channels, size, size))
    field = np.fft.ifft2(np.fft.fft2(white) / radius).real
    return 128 + std * field / field.std()


def windows(field, size=64):
    """Cut a field into uint8 images [B, C, size, size]; opposite edges have nothing in common."""
    rounded = torch.from_numpy(np.clip(field, 0, 255).round().astype(np.uint8))
    cut = rounded.unfold(1, size, size).unfold(2, size, size)  # [C, rows, columns, size, size]
    return cut.permute(1, 2, 0, 3, 4).flatten(0, 1)


def blurred(field, sigma):
    """Blur a periodic field by a Gaussian of ``sigma`` pixels, in scipy's Fourier space."""
    return np.fft.ifft2(fourier_gaussian(np.fft.fft2(field), (0, sigma, sigma))).real


def measured(reconstructions, images, *, batch_size=64):
    metric = PowerSpectrum()
    for rows in torch.arange(len(images)).split(batch_size):
        metric.update(reconstructions[rows], images[rows])
    return metric.compute()


def left_of_photograph(sigma, low, high):
    """Share of a 1/f^2 spectrum's power that a blur leaves between two frequencies."""
    left = quad(lambda f: math.exp(-4 * math.pi**2 * sigma**2 * f**2) / f, low, high)[0]
    return left / math.log(high / low)


@pytest.fixture(scope="module")
def photograph():
    return scene()


@pytest.mark.parametrize("sigma", [0.3, 0.5, 0.8])
def test_a_blur_of_known_sigma_leaves_its_closed_form(photograph, sigma):
    result = measured(windows(blurred(photograph, sigma)), windows(photograph))
    expected = [left_of_photograph(sigma, low, high) for low, high in OCTAVES]
    assert result.octave_ratios == pytest.approx(expected, rel=0.03, abs=0.004)
    missing = 1 - left_of_photograph(sigma, HIGH_FREQUENCY, 0.5)
    assert result.high_frequency_deficit == pytest.approx(missing, abs=0.01)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 1.5])
def test_each_ring_keeps_what_the_transfer_function_says(sigma):
    noise = np.random.default_rng(1).normal(128, 30, (3, 512, 512))
    result = measured(windows(blurred(noise, sigma), 128), windows(noise, 128))
    for ring in range(2, NUM_RINGS):
        low, high = ring / 64, (ring + 1) / 64
        left = quad(lambda f: f * math.exp(-4 * math.pi**2 * sigma**2 * f**2), low, high)[0]
        ratio = float(result.reconstruction_power[ring] / result.image_power[ring])
        assert ratio == pytest.approx(2 * left / (high**2 - low**2), abs=0.015)


def test_a_stronger_blur_has_a_larger_deficit_and_less_power_in_every_octave(photograph):
    images = windows(photograph)
    results = [
        measured(windows(blurred(photograph, sigma)), images) for sigma in (0.2, 0.4, 0.8, 1.6, 3.2)
    ]
    for weaker, stronger in itertools.pairwise(results):
        assert stronger.high_frequency_deficit > weaker.high_frequency_deficit
        assert np.all(np.less(stronger.octave_ratios, weaker.octave_ratios))
    assert results[-1].high_frequency_deficit > 0.97


def test_the_jump_between_opposite_edges_does_not_hide_blur(photograph):
    blur = blurred(photograph, 1.0)
    ratio = measured(windows(blur), windows(photograph)).octave_ratios[0]
    power, frequency = (
        [
            np.square(np.abs(np.fft.fft2(windows(field).numpy().astype(float))))
            for field in (blur, photograph)
        ],
        np.fft.fftfreq(64),
    )
    radius = np.hypot(frequency[:, None], frequency[None])
    finest = (radius > 0.25) & (radius <= 0.5)
    without_window = power[0][..., finest].sum() / power[1][..., finest].sum()
    expected = left_of_photograph(1.0, 0.25, 0.5)
    assert ratio == pytest.approx(expected, abs=0.005)
    assert without_window > 3 * expected


def test_power_by_ring_equals_a_full_transform_in_numpy():
    images = torch.randint(0, 256, (2, 3, 17, 30), generator=torch.Generator().manual_seed(0))
    expected = np.zeros(NUM_RINGS)
    window = np.outer(
        np.sin(np.pi * (np.arange(17) + 0.5) / 17) ** 2,
        np.sin(np.pi * (np.arange(30) + 0.5) / 30) ** 2,
    )
    for channel in images.flatten(0, 1).numpy().astype(float):
        values = window * (channel - (window * channel).sum() / window.sum())
        power = np.abs(np.fft.fft2(values)) ** 2 / (17 * 30 * np.square(window).sum())
        for (row, column), value in np.ndenumerate(power):
            radius = math.hypot(np.fft.fftfreq(17)[row], np.fft.fftfreq(30)[column])
            ring = max(math.ceil(round(radius * 64, 6)), 1) - 1
            if ring < NUM_RINGS:
                expected[ring] += value / 3
    np.testing.assert_allclose(
        ring_power(images.to(torch.uint8)).numpy(), expected, rtol=1e-10, atol=1e-20
    )


def test_white_noise_is_spread_evenly_over_frequencies():
    noise = windows(np.random.default_rng(2).normal(128, 20, (3, 512, 512)), 128)
    power = ring_power(noise) / len(noise)
    edges = torch.arange(NUM_RINGS + 1, dtype=torch.float64) / 64
    density = power / (math.pi * edges.square().diff())
    assert density[8:].numpy() == pytest.approx(400, rel=0.1)  # rings hold 5 % more or fewer points
    assert float(power.sum()) == pytest.approx(400 * math.pi / 4, rel=0.02)


def test_added_noise_raises_every_ratio_as_its_variance_says(photograph):
    images = windows(photograph)
    noise = np.random.default_rng(3).normal(0, 10, photograph.shape)
    result = measured(windows(photograph + noise), images)
    for (low, high), ratio in zip(OCTAVES, result.octave_ratios, strict=True):
        rings = slice(round(low * 64), round(high * 64))
        added = 100 * math.pi * (high**2 - low**2) / float(result.image_power[rings].sum())
        assert ratio > 1
        assert ratio - 1 == pytest.approx(added, rel=0.1)
    assert result.high_frequency_deficit < 0.01


def test_a_gain_at_one_frequency_does_not_make_up_for_blur_at_others(photograph):
    images = windows(photograph)
    blur = blurred(photograph, 0.8)
    stripes = 25 * (-1.0) ** np.arange(512)
    both = measured(windows(blur + stripes), images)
    alone = measured(windows(blur), images)
    assert both.octave_ratios[0] > 1 > 3 * alone.octave_ratios[0]
    assert both.high_frequency_deficit == pytest.approx(alone.high_frequency_deficit, abs=0.05)


@pytest.mark.parametrize("value", [None, 0, 128, 255])
def test_images_reproduced_exactly_have_ratios_of_one_and_no_deficit(photograph, value):
    images = windows(photograph)
    if value is not None:
        images = torch.full_like(images, value)
    result = measured(images.clone(), images)
    assert result.octave_ratios == (1.0, 1.0, 1.0)
    assert result.high_frequency_deficit == 0.0


def test_flat_images_keep_figures_finite(photograph):
    images = windows(photograph)
    flat = torch.full_like(images, 90)
    lost, invented = measured(flat, images), measured(images, flat)
    assert max(lost.octave_ratios) < 0.02
    assert 0.98 < lost.high_frequency_deficit <= 1
    assert all(math.isfinite(ratio) and ratio > 100 for ratio in invented.octave_ratios)
    assert invented.high_frequency_deficit == 0.0


def test_batches_and_processes_add_up_to_one_pass(photograph):
    images, blur = windows(photograph)[:12], windows(blurred(photograph, 0.7))[:12]
    small, small_blur = images[..., :24, :40], blur[..., :24, :40]
    first, second, whole = PowerSpectrum(), PowerSpectrum(), PowerSpectrum()
    first.update(blur[:5], images[:5])
    first.update(small_blur[:1], small[:1])
    second.update(small_blur[1:], small[1:])
    second.update(blur[5:], images[5:])
    second.update(blur[:0], images[:0])
    whole.update(blur, images)
    whole.update(small_blur, small)
    second.merge_state(first)
    merged, expected = second.compute(), whole.compute()
    assert merged.num_images == expected.num_images == 24
    assert merged.scalars() == pytest.approx(expected.scalars(), rel=1e-12)
    assert set(merged.scalars()) == {DEFICIT_NAME, *OCTAVE_NAMES}


def test_a_gray_image_counts_as_its_copy_in_three_channels(photograph):
    images, blur = windows(photograph)[:, :1], windows(blurred(photograph, 0.7))[:, :1]
    gray, copied = (
        measured(blur, images),
        measured(*(x.expand(-1, 3, -1, -1) for x in (blur, images))),
    )
    assert gray.scalars() == pytest.approx(copied.scalars(), rel=1e-12)
    torch.testing.assert_close(gray.image_power, copied.image_power)


@pytest.mark.parametrize("size", [(16, 16), (16, 33), (61, 47)])
def test_takes_any_size_from_its_smallest_on(size):
    images = windows(scene(128))[..., : size[0], : size[1]]
    result = measured(images.roll(1, dims=-1), images)  # a shift moves power to no other frequency
    assert result.octave_ratios == pytest.approx((1, 1, 1), abs=0.25)


def test_nothing_measured_is_not_a_number():
    result = measured(*(torch.empty(0, 3, 32, 32, dtype=torch.uint8),) * 2, batch_size=1)
    assert result.num_images == 0
    assert all(map(math.isnan, result.scalars().values()))


def test_refuses_images_that_are_too_small_or_differ_in_shape():
    images = torch.zeros(1, 3, 32, 15, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"\b16 pixels\b.*\b32x15\b"):
        PowerSpectrum().update(images, images)
    with pytest.raises(ValueError, match=r"shape.*\(1, 3, 32, 14\).*\(1, 3, 32, 15\)"):
        PowerSpectrum().update(images[..., :14], images)
