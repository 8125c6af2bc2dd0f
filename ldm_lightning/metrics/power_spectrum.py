"""Blur as a number: which share of the images' power reconstructions keep, by spatial frequency.

The power spectrum of an image is summed over rings of equal spatial frequency, as Durall et al.
2020 ("Watch your Up-Convolution") do to show what generators lose. Photographs have about the same
power in every octave (Field 1987, "Relations between the statistics of natural images and the
response properties of cortical cells": 1/f^2), so octaves are the bands to compare; the finest is
the first to go. A Gaussian blur of sigma pixels leaves exp(-4 pi^2 sigma^2 f^2) of the power at f
cycles per pixel; the tests calibrate by it.

Power knows no position: noise and invented texture have it too. Only beside a distance to the image
does it tell sharp from blurred.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

NUM_RINGS = 32
"""Rings of equal width from 0 to 0.5 cycles per pixel, each without its lower edge."""

NUM_OCTAVES = 3
"""Octave k holds (2^-(k+1), 2^-k] cycles per pixel: octave 1 holds (0.25, 0.5]."""

HIGH_FREQUENCY = 0.125
"""Cycles per pixel above which power counts as high: structures of less than eight pixels."""

SMALLEST_SIZE = 16
"""Pixels a side. Here the lowest octave ends at two periods an image; the window sees no fewer."""

ROUNDING_VARIANCE = 1 / 12
"""Of rounding to 8 bits, in gray levels^2, spread evenly over frequencies. It is added on either
side: no 8-bit image is known better, and flat images have nothing else."""

OCTAVE_NAMES = tuple(f"power_ratio_octave_{octave}" for octave in range(1, NUM_OCTAVES + 1))
DEFICIT_NAME = "high_frequency_deficit"


class PowerSpectrumResult(NamedTuple):
    """Power of reconstructions against that of their images.

    Attributes:
        octave_ratios: Power of all reconstructions over that of all images, finest octave first; 1
            where nothing was lost or added, NaN where no image was seen.
        high_frequency_deficit: Share of the images' power above ``HIGH_FREQUENCY`` that is missing,
            in [0, 1]: the sum over rings of max(0, P_image - P_reconstruction), over the sum of
            P_image. It is 1 - (power ratio) where no ring gained; a ring that did, as by noise or
            a checkerboard, makes up for none that lost.
        reconstruction_power: Mean over images and channels by ring, in gray levels^2, [NUM_RINGS];
            the rings of an image add up to its windowed variance less the corners.
        image_power: Likewise, of the images.
        num_images: Number of images.
    """

    octave_ratios: tuple[float, ...]
    high_frequency_deficit: float
    reconstruction_power: Tensor
    image_power: Tensor
    num_images: int

    def scalars(self) -> dict[str, float]:
        """The figures that are logged, by metric name."""
        ratios = dict(zip(OCTAVE_NAMES, self.octave_ratios, strict=True))
        return {DEFICIT_NAME: self.high_frequency_deficit, **ratios}


class PowerSpectrum(Metric):
    """Radial power spectra of reconstructions and images, summed over a set.

    Ratios are of sums, so each image counts by its contrast, and a flat one does no harm. Images of
    several sizes may be mixed, as frequencies are in cycles per pixel.
    """

    full_state_update = False
    reconstruction_power: Tensor
    image_power: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        zeros = torch.zeros(NUM_RINGS, dtype=torch.float64)
        self.add_state("reconstruction_power", zeros, dist_reduce_fx="sum")
        self.add_state("image_power", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, reconstructions: Tensor, images: Tensor) -> None:
        """Add a batch; one without images is valid.

        Args:
            reconstructions: uint8, [B, C, H, W], H and W at least ``SMALLEST_SIZE``.
            images: uint8, [B, C, H, W].

        Raises:
            ValueError: If the shapes differ or the images are too small.
        """
        if reconstructions.shape != images.shape:
            raise ValueError(
                "Reconstructions and images must have one shape, got "
                f"{tuple(reconstructions.shape)} and {tuple(images.shape)}."
            )
        if not len(images):
            return
        self.reconstruction_power = self.reconstruction_power + ring_power(reconstructions)
        self.image_power = self.image_power + ring_power(images)
        self.count = self.count + len(images)

    def compute(self) -> PowerSpectrumResult:
        """Compare over all processes."""
        count = int(self.count)
        reconstructed = self.reconstruction_power / (count or math.nan)
        original = self.image_power / (count or math.nan)
        edges = torch.arange(NUM_RINGS + 1, dtype=torch.float64, device=original.device)
        floor = ROUNDING_VARIANCE * math.pi * (edges / (2 * NUM_RINGS)).square().diff()
        kept, there = reconstructed + floor, original + floor
        octaves = [
            slice(NUM_RINGS >> octave, NUM_RINGS >> (octave - 1))
            for octave in range(1, NUM_OCTAVES + 1)
        ]
        high = slice(round(2 * NUM_RINGS * HIGH_FREQUENCY), None)
        missing = (there - kept).clamp(min=0)
        return PowerSpectrumResult(
            octave_ratios=tuple(float(kept[rings].sum() / there[rings].sum()) for rings in octaves),
            high_frequency_deficit=float(missing[high].sum() / there[high].sum()),
            reconstruction_power=reconstructed,
            image_power=original,
            num_images=count,
        )


def ring_power(images: Tensor) -> Tensor:
    """Power by ring of spatial frequency, summed over images, mean over channels.

    The mean is removed and a Hann window applied. Without it the jump between an image's opposite
    edges, which blur does not touch, would lie over all frequencies of the two axes and hide the
    blur of whatever is smooth inside (Harris 1978, "On the Use of Windows for Harmonic Analysis
    with the Discrete Fourier Transform"). Its price is resolution: two periods an image.

    The corners of the spectrum beyond 0.5 cycles per pixel are left out, as only diagonal structure
    reaches there. Colors count as channels do in PSNR: one by one, in the numbers of the file.

    Args:
        images: uint8, [B, C, H, W], H and W at least ``SMALLEST_SIZE``.

    Returns:
        Gray levels^2, float64, [NUM_RINGS]: a white noise of variance v has v times the ring's area
        in (cycles per pixel)^2.

    Raises:
        ValueError: If the images are too small.
    """
    channels, height, width = images.shape[1:]
    if min(height, width) < SMALLEST_SIZE:
        raise ValueError(
            f"Power spectra need images of at least {SMALLEST_SIZE} pixels a side, got "
            f"{height}x{width}."
        )
    values = images.double()
    window = _hann(height, images.device)[:, None] * _hann(width, images.device)
    mean = (window * values).sum(dim=(2, 3), keepdim=True) / window.sum()
    spectrum = torch.fft.rfft2(window * (values - mean))
    power = (spectrum.real.square() + spectrum.imag.square()).sum(dim=(0, 1))  # [H, W // 2 + 1]
    # what rfft2 leaves out mirrors what it keeps, but for the first and an even width's last column
    power[:, 1 : (width + 1) // 2] *= 2
    power = power / (channels * height * width * window.square().sum())
    order, counts = _rings(height, width)
    ordered = power.flatten()[order.to(images.device)]
    # slices, not scatter_add: the same sum on every GPU, every time
    return torch.stack([ring.sum() for ring in ordered.split(counts)[:NUM_RINGS]])


def _hann(size: int, device: torch.device) -> Tensor:
    """Hann window of pixels' centers, float64, [size]."""
    centers = torch.arange(size, dtype=torch.float64, device=device) + 0.5
    return torch.sin(math.pi * centers / size).square()


@functools.lru_cache(maxsize=16)
def _rings(height: int, width: int) -> tuple[Tensor, list[int]]:
    """Sort the frequencies of an rfft2 by ring.

    Returns:
        Flat indices, [H * (W // 2 + 1)], and how many belong to each of ``NUM_RINGS`` rings and to
        the corners behind. The mean at 0 cycles per pixel is among the first ring's, and is 0.
    """
    rows = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    columns = torch.fft.rfftfreq(width, dtype=torch.float64)
    radius = (rows.square() + columns.square()).sqrt().flatten()
    # a frequency on an edge belongs to the ring below, whatever its last digit
    ring = (radius * 2 * NUM_RINGS - 1e-9).ceil().clamp(1, NUM_RINGS + 1).long() - 1
    counts = torch.bincount(ring, minlength=NUM_RINGS + 1)
    return ring.argsort(stable=True), counts.tolist()
