"""Outlines of the shapes data set, as signed distances.

Every function takes points x (to the right) and y (down), [H, W], in units of the shape's radius,
and returns their distance to the outline in the same unit, negative inside, [H, W].
"""

from collections.abc import Callable

import numpy as np


def _half_planes(x: np.ndarray, y: np.ndarray, count: int, distance: float) -> np.ndarray:
    """Signed distance to a regular polygon whose sides are ``distance`` from its center."""
    angles = np.pi / 2 + 2 * np.pi * np.arange(count) / count
    sides = [np.float32(np.cos(a)) * x + np.float32(np.sin(a)) * y for a in angles]
    return np.maximum.reduce(sides) - distance


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y) - 0.88


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _box(x, y, 0.7, 0.7)


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _half_planes(x, y, 3, 0.5)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    angle = np.arctan2(x, -y)  # 0 at the upper point
    folded = np.abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    radius = np.sqrt(x * x + y * y)
    u, v = radius * np.cos(folded), radius * np.sin(folded)
    # The edge runs from the outer point (outer, 0) to the inner corner at a tenth of a turn.
    outer, inner_u, inner_v = 0.93, 0.4 * np.cos(np.pi / 5), 0.4 * np.sin(np.pi / 5)
    length = np.hypot(outer - inner_u, inner_v)
    return ((u - outer) * inner_v + v * (outer - inner_u)) / length


def _plus(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.minimum(_box(x, y, 0.95, 0.3), _box(x, y, 0.3, 0.95))


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # A square on its corner with a half disc on each upper side.
    y = y - 0.12
    root = np.float32(np.sqrt(0.5))
    u, v, half = root * (x + y), root * (x - y), 0.52
    square = np.maximum(np.abs(u), np.abs(v))
    left = np.sqrt((u + half) ** 2 + v * v)
    right = np.sqrt(u * u + (v - half) ** 2)
    return np.minimum(np.minimum(square, left), right) - half


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.sqrt(x * x + y * y) - 0.7) - 0.23


def _bar(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _box(x, y, 0.95, 0.25)


SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "plus": _plus,
    "heart": _heart,
    "ring": _ring,
    "bar": _bar,
}
