"""Textured grounds of the shapes data set: what first stages lose first.

Every function returns how much of the second of two colors is seen where, float32 in [0, 1], [H,
W]. Lengths are in pixels and fine at any resolution, so that a larger image holds more detail, not
larger detail.
"""

from collections.abc import Callable

import numpy as np

# 5 x 5 letters and digits, one row of pixels a number, most significant bit left.
_GLYPHS = {
    "A": (14, 17, 31, 17, 17),
    "E": (31, 16, 30, 16, 31),
    "H": (17, 17, 31, 17, 17),
    "K": (17, 18, 28, 18, 17),
    "N": (17, 25, 21, 19, 17),
    "S": (15, 16, 14, 1, 30),
    "T": (31, 4, 4, 4, 4),
    "X": (17, 10, 4, 10, 17),
    "Z": (31, 2, 4, 8, 31),
    "2": (30, 1, 14, 16, 31),
    "4": (18, 18, 31, 2, 2),
    "7": (31, 2, 4, 4, 4),
}
# [glyphs, 6, 6]: one empty row and column between glyphs.
_BITMAPS = np.zeros((len(_GLYPHS), 6, 6), dtype=np.float32)
for _number, _rows in enumerate(_GLYPHS.values()):
    for _row, _bits in enumerate(_rows):
        _BITMAPS[_number, _row, :5] = [(_bits >> shift) & 1 for shift in range(4, -1, -1)]


def grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centers relative to the image's center: x [1, W] and y [H, 1], in pixels."""
    x = np.arange(width, dtype=np.float32)[None] - (width - 1) / 2
    y = np.arange(height, dtype=np.float32)[:, None] - (height - 1) / 2
    return x, y


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(max(low, high)))))


def gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A smooth change of color across the image."""
    x, y = grid(height, width)
    angle = rng.uniform(0, 2 * np.pi)
    along = np.float32(np.cos(angle) / width) * x + np.float32(np.sin(angle) / height) * y
    return np.clip(0.5 + along, 0, 1)


def stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A grating whose frequency rises across the image, up to 4 pixels a period or less."""
    x, y = grid(height, width)
    angle = rng.uniform(0, 2 * np.pi)
    along = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y
    span = float(np.hypot(height, width))
    coarse = 1 / _log_uniform(rng, 10, max(16, min(height, width) / 3))
    fine = 1 / _log_uniform(rng, 4, 9)
    position = along + span / 2
    phase = 2 * np.pi * (coarse * position + (fine - coarse) / (2 * span) * position**2)
    return 0.5 + 0.5 * np.sin(phase, dtype=np.float32)


def checkerboard(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Turned squares of two colors, edges one pixel soft."""
    x, y = grid(height, width)
    side = _log_uniform(rng, 3, max(8, min(height, width) / 6))
    angle = rng.uniform(0, np.pi / 2)
    cosine, sine = np.float32(np.cos(angle) / side), np.float32(np.sin(angle) / side)
    u, v = cosine * x + sine * y + rng.random(), -sine * x + cosine * y + rng.random()
    # A sine of period two squares, steep enough to cross from -1 to 1 within about one pixel.
    waves = [np.clip(np.sin(np.pi * w) * (side / 1.6), -1, 1) for w in (u, v)]
    return (0.5 + 0.5 * waves[0] * waves[1]).astype(np.float32)


def hair(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Curved strokes about one pixel wide, in nearly one direction."""
    count = max(6, int(rng.uniform(0.4, 0.9) * (height + width) / 2))
    length = np.hypot(height, width) * rng.uniform(0.25, 0.7)
    direction = rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.25, (count, 1))
    bend = rng.normal(0, 0.8 / length, (count, 1))
    along = np.arange(-length / 2, length / 2, 0.7, dtype=np.float32)[None]
    turned = direction + bend * along
    x = rng.uniform(0, width, (count, 1)) + along * np.cos(turned)
    y = rng.uniform(0, height, (count, 1)) + along * np.sin(turned)
    # Spread each point over its four neighbors; a margin of one pixel swallows what falls outside.
    x, y = np.clip(x, -1, width).ravel() + 1, np.clip(y, -1, height).ravel() + 1
    left, top = x.astype(np.intp), y.astype(np.intp)
    right_fraction, low_fraction = x - left, y - top
    stride = width + 3
    at = top * stride + left
    ink = np.bincount(
        np.concatenate([at, at + 1, at + stride, at + stride + 1]),
        np.concatenate(
            [
                (1 - right_fraction) * (1 - low_fraction),
                right_fraction * (1 - low_fraction),
                (1 - right_fraction) * low_fraction,
                right_fraction * low_fraction,
            ]
        ),
        minlength=(height + 3) * stride,
    ).reshape(height + 3, stride)
    return np.minimum(ink[1 : height + 1, 1 : width + 1], 1).astype(np.float32)


def glyphs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Rows of small letters and digits, strokes one or two pixels wide."""
    scale = int(rng.integers(1, 2 + (min(height, width) >= 48)))
    rows, columns = -(-height // (6 * scale)) + 1, -(-width // (6 * scale)) + 1
    chosen = _BITMAPS[rng.integers(len(_BITMAPS), size=(rows, columns))]  # [rows, columns, 6, 6]
    page = chosen.transpose(0, 2, 1, 3).reshape(rows * 6, columns * 6)
    page = page.repeat(scale, axis=0).repeat(scale, axis=1)
    top, left = rng.integers(6 * scale, size=2)
    return page[top : top + height, left : left + width]


def noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Grains of one to three pixels."""
    grain = int(rng.integers(1, 4))
    small = rng.random((-(-height // grain), -(-width // grain)), dtype=np.float32)
    return small.repeat(grain, axis=0).repeat(grain, axis=1)[:height, :width]


GROUNDS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "gradient": gradient,
    "stripes": stripes,
    "checkerboard": checkerboard,
    "hair": hair,
    "glyphs": glyphs,
    "noise": noise,
}
