"""The part of an image that a detector judges, and its score map at other sizes.

A detector judges the central square of ``config.evaluate.crop`` pixels of the image at the size for scoring; with 0
it judges the whole image. What lies outside is NaN in the maps of this module.
"""

import cv2
import numpy as np


def inside(side: int, crop: int) -> tuple[slice, slice]:
    """Rows and columns of the central square of side `crop` in a map of that side; all of them where `crop` is 0."""
    start = (side - crop) // 2 if crop else 0
    return slice(start, side - start), slice(start, side - start)


def outside_nan(map: np.ndarray, crop: int) -> np.ndarray:
    """A map (size, size), NaN outside of the central square."""
    if not crop:
        return map
    marked = np.full_like(map, np.nan)
    part = inside(len(map), crop)
    marked[part] = map[part]
    return marked


def judged(side: int, crop: int, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of the central square of a map of that side, in pixels of an image (h, w)."""
    part = inside(side, crop)[0]
    (top, left), (bottom, right) = (
        [round(edge * pixels / side) for pixels in shape] for edge in (part.start, part.stop)
    )
    return top, left, max(bottom, top + 1), max(right, left + 1)


def peak(map: np.ndarray, crop: int, shape: tuple[int, int]) -> tuple[int, int]:
    """(row, column) of the highest value in the central square of a map, in pixels of an image (h, w)."""
    part = inside(len(map), crop)
    found = np.unravel_index(map[part].argmax(), map[part].shape)
    top, left, bottom, right = judged(len(map), crop, shape)
    # The middle of the map's pixel; rounding may have put the edge of the judged part beyond it.
    row, column = (
        int((int(at) + part[0].start + 0.5) * pixels / len(map)) for at, pixels in zip(found, shape, strict=True)
    )
    return min(max(row, top), bottom - 1), min(max(column, left), right - 1)


def smooth(map: np.ndarray, sigma: float) -> np.ndarray:
    """A map blurred by a Gaussian of `sigma` pixels for a picture; NaN stays NaN and enters nothing."""
    known = np.isfinite(map)
    if not sigma or not known.any():
        return map
    rows, columns = (np.flatnonzero(known.any(axis)) for axis in (1, 0))
    part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    made = map.copy()
    made[part] = cv2.GaussianBlur(np.ascontiguousarray(map[part]), (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return made


def at_size(map: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A map (size, size) with NaN outside of a central square, at the size of an image.

    An axis that grows is interpolated linearly. On one that shrinks a pixel is the highest of those that it covers, so
    that no peak is lost.

    Args:
      map: float32 (size, size).
      shape: The new (height, width).

    Returns:
      float32 (height, width), NaN outside of `judged`.
    """
    known = ~np.isnan(map)
    whole = known.all()
    rows = np.flatnonzero(known.any(1))
    part = slice(rows[0], rows[-1] + 1) if len(rows) else slice(0, len(map))
    border = part.start
    # What is outside repeats the square's edge, so that none of it enters the values inside.
    made = map if whole else np.pad(map[part, part], border, mode="edge")
    for axis, pixels in enumerate(shape):
        if pixels < made.shape[axis]:
            made = _highest(made, pixels, axis)
    made = cv2.resize(made, shape[::-1], interpolation=cv2.INTER_LINEAR)
    if whole:
        return made
    top, left, bottom, right = judged(len(map), len(map) - 2 * border, shape)
    marked = np.full_like(made, np.nan)
    marked[top:bottom, left:right] = made[top:bottom, left:right]
    return marked


def _highest(map: np.ndarray, pixels: int, axis: int) -> np.ndarray:
    """Shrinks one axis; each new pixel is the highest of all that it covers, be it in part."""
    old = map.shape[axis]
    new = np.arange(pixels)
    first, last = new * old // pixels, ((new + 1) * old - 1) // pixels
    covered = np.minimum(first[:, None] + np.arange((last - first).max() + 1), last[:, None])
    return np.take(map, covered, axis).max(axis + 1)
