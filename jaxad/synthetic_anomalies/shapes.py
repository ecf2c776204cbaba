"""Shapes of synthetic anomalies on the host: squares, ellipses, hearts and digits (Li et al. 2021, Section 5.3).

Every function is ``(rng, side, ..., *, size) -> mask``: size, angle and place are drawn, and the whole shape lies in
the image. The size is that of the shape's own box before it is turned, its longer side as a share of the image's.
"""

import math

import cv2
import numpy as np

from jaxad.errors import UserError

_LARGEST = math.sqrt(0.5)  # of a square that fits into the image however it is turned
_FLATTEST = 0.5  # the shorter axis of an ellipse over the longer


def check_size(size: tuple[float, float]) -> None:
    """Raises a UserError where these are no bounds of a shape's size."""
    low, high = size
    if not 0 < low <= high <= _LARGEST:
        raise UserError(
            f"config.size must be (low, high) with 0 < low <= high <= 0.707, shares of the image's side, not {size}",
            about="size",
        )


def _extent(rng: np.random.Generator, side: int, size: tuple[float, float]) -> float:
    """A shape's longer side in pixels, at least 2."""
    check_size(size)
    return max(2.0, side * rng.uniform(*size))


def _axes(rng: np.random.Generator, extent: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along the axes of a shape that is turned by any angle, y upwards; its box runs from -1 to 1.

    They are of the pixels' centres of a canvas that holds the box, float64 (m, m).
    """
    angle, reach = rng.uniform(0, 2 * math.pi), math.ceil(extent / math.sqrt(2))
    down, right = np.mgrid[-reach : reach + 1, -reach : reach + 1] / (extent / 2)
    cosine, sine = math.cos(angle), math.sin(angle)
    return cosine * right - sine * down, -sine * right - cosine * down


def _placed(rng: np.random.Generator, shape: np.ndarray, side: int) -> np.ndarray:
    """What is true of a canvas, at a place that is uniform over all where it lies in the image: bool (side, side)."""
    rows, columns = (np.flatnonzero(shape.any(axis)) for axis in (1, 0))
    cut = shape[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    top, left = (int(rng.integers(side - length + 1)) for length in cut.shape)
    mask = np.zeros((side, side), bool)
    mask[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
    return mask


def square(rng: np.random.Generator, side: int, *, size: tuple[float, float]) -> np.ndarray:
    """A square turned by any angle.

    Args:
      rng: Source of randomness.
      side: Of the image, in pixels.
      size: Bounds of the shape's longer side as a share of the image's, uniform between; at most 0.707.

    Returns:
      bool (side, side).

    Raises:
      UserError: The bounds are no such shares.
    """
    x, y = _axes(rng, _extent(rng, side, size))
    return _placed(rng, np.maximum(abs(x), abs(y)) <= 1, side)


def ellipse(rng: np.random.Generator, side: int, *, size: tuple[float, float]) -> np.ndarray:
    """An ellipse turned by any angle, its shorter axis uniform in 0.5 to 1 of the longer; arguments as of `square`."""
    x, y = _axes(rng, _extent(rng, side, size))
    return _placed(rng, x**2 + (y / rng.uniform(_FLATTEST, 1)) ** 2 <= 1, side)


def heart(rng: np.random.Generator, side: int, *, size: tuple[float, float]) -> np.ndarray:
    """A heart, (x^2 + y^2 - 1)^3 <= x^2 y^3, turned by any angle; arguments as of `square`."""
    x, y = _axes(rng, _extent(rng, side, size))
    x, y = 1.14 * x, 1.14 * y + 0.118  # it is 2.28 wide, 2.24 high, and its box's centre lies above its origin
    return _placed(rng, (x**2 + y**2 - 1) ** 3 <= x**2 * y**3, side)


def digit(rng: np.random.Generator, side: int, glyphs: np.ndarray, *, size: tuple[float, float]) -> np.ndarray:
    """One of many handwritten digits, upright as they are in their set; `side`, `size` and errors as of `square`.

    Args:
      rng: Source of randomness.
      side: Of the image, in pixels.
      glyphs: (n, h, w), from 0 without ink, each with some; enlarged by cubic interpolation, its ink is where it has
        more than half of its highest value.
      size: Bounds of the longer side of the ink's box.

    Returns:
      bool (side, side).
    """
    extent, glyph = _extent(rng, side, size), glyphs[int(rng.integers(len(glyphs)))].astype(np.float32)
    rows, columns = (np.flatnonzero((glyph > glyph.max() / 2).any(axis)) for axis in (1, 0))
    scale = extent / max(np.ptp(rows) + 1, np.ptp(columns) + 1)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(np.pad(glyph, 1), None, fx=scale, fy=scale, interpolation=method)
    return _placed(rng, resized > resized.max() / 2, side)
