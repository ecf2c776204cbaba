"""NSA's three pixel labels (Schlüter et al. 2022, Section 3, equations 13 and 14)."""

import cv2
import numpy as np

_RADIUS = 5
_ROWS, _COLUMNS = np.mgrid[-_RADIUS : _RADIUS + 1, -_RADIUS : _RADIUS + 1]
_DISK = np.argwhere(_ROWS**2 + _COLUMNS**2 <= _RADIUS**2)  # 81 offsets into the padded image


def binary(original: np.ndarray, blended: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Where blending changed the image (equation 13): mean absolute difference above one grey level, 5x5 median.

    Args:
      original: uint8 (h, w, c), before blending.
      blended: uint8 (h, w, c), after blending.
      mask: uint8 (h, w) of 0 and 1, the label mask.

    Returns:
      uint8 (h, w) of 0 and 1.
    """
    return _changed(_difference(original, blended), mask, original.shape[2])


def continuous(original: np.ndarray, blended: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """How far blending changed the image (equation 13): mean difference on ``binary``, median over a disk of radius 5.

    Args:
      original: uint8 (h, w, c), before blending.
      blended: uint8 (h, w, c), after blending.
      mask: uint8 (h, w) of 0 and 1, the label mask.

    Returns:
      float32 (h, w), grey levels in [0, 255].
    """
    return _binary_and_continuous(original, blended, mask)[1]


def logistic(
    original: np.ndarray, blended: np.ndarray, mask: np.ndarray, *, steepness: float, midpoint: float
) -> np.ndarray:
    """The degree of abnormality: a logistic function of ``continuous``, zero outside ``binary`` (equation 14).

    Args:
      original: uint8 (h, w, c), before blending.
      blended: uint8 (h, w, c), after blending.
      mask: uint8 (h, w) of 0 and 1, the label mask.
      steepness: The paper's k, per grey level.
      midpoint: The paper's y0 in grey levels, where the label is 1/2.

    Returns:
      float32 (h, w) in [0, 1].
    """
    changed, difference = _binary_and_continuous(original, blended, mask)
    # 1 / (1 + exp(-x)), in the form that cannot overflow.
    return changed * (0.5 + 0.5 * np.tanh(np.float32(steepness / 2) * (difference - np.float32(midpoint))))


def disk_median(values: np.ndarray) -> np.ndarray:
    """Median over a disk of radius 5 (81 pixels), at every pixel whose disk lies inside the array.

    The answer is built from its highest bit down: a bit stays set where at least 41 of the 81 neighbours reach the
    number built so far. Whole shifted images are compared at once, and one pass suffices for each bit.

    Args:
      values: uint16 (h + 10, w + 10).

    Returns:
      uint16 (h, w).
    """
    stride = values.shape[1]
    height, width = values.shape[0] - 2 * _RADIUS, stride - 2 * _RADIUS
    # Flat slices of the whole array are contiguous; what wraps around its rows lands in columns that are cut off.
    length = (height - 1) * stride + width
    flat = np.ascontiguousarray(values).ravel()
    neighbours = [flat[start : start + length] for start in _DISK @ (stride, 1)]
    median = np.zeros(length, np.uint16)
    candidate, count = np.empty(length, np.uint16), np.empty(length, np.uint8)
    reaches = np.empty(length, bool)
    for bit in reversed(range(int(values.max()).bit_length())):
        np.bitwise_or(median, np.uint16(1 << bit), out=candidate)
        count[:] = 0
        for neighbour in neighbours:
            np.greater_equal(neighbour, candidate, out=reaches)
            np.add(count, reaches.view(np.uint8), out=count)
        np.copyto(median, candidate, where=count > len(neighbours) // 2)
    full = np.zeros((height, stride), np.uint16)
    full.ravel()[:length] = median
    return full[:, :width]


def majority(mask: np.ndarray, side: int) -> np.ndarray:
    """Median of a uint8 (h, w) mask of 0 and 1 over squares of an odd side, the border repeated outwards.

    For two values the median is the majority, a box sum that takes a tenth of a sorted median's time.
    """
    count = cv2.boxFilter(mask, -1, (side, side), normalize=False, borderType=cv2.BORDER_REPLICATE)
    return (count > side * side // 2).view(np.uint8)


def channel_sum(image: np.ndarray) -> np.ndarray:
    """Sum over the channels of a uint8 (h, w, c) image, uint16 (h, w)."""
    total = image[..., 0].astype(np.uint16)
    for channel in range(1, image.shape[2]):
        total += image[..., channel]
    return total


def _difference(original: np.ndarray, blended: np.ndarray) -> np.ndarray:
    """Sum over the channels of the absolute difference, uint16 (h, w)."""
    return channel_sum(cv2.absdiff(original, blended).reshape(original.shape))


def _changed(difference: np.ndarray, mask: np.ndarray, channels: int) -> np.ndarray:
    return majority((difference > channels).view(np.uint8) & mask, 5)


def _binary_and_continuous(
    original: np.ndarray, blended: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    channels = original.shape[2]
    difference = _difference(original, blended)
    changed = _changed(difference, mask, channels)
    result = np.zeros(mask.shape, np.float32)
    left, top, width, height = cv2.boundingRect(changed)
    if width:
        # A disk centred outside the box of the changed pixels holds zeros on more than half its pixels.
        padded = cv2.copyMakeBorder(difference * changed, *[_RADIUS] * 4, cv2.BORDER_REPLICATE)
        values = padded[top : top + height + 2 * _RADIUS, left : left + width + 2 * _RADIUS]
        result[top : top + height, left : left + width] = disk_median(values) / np.float32(channels)
    return changed, result
