"""What can be wrong with good files: copies, blur, exposure, masks; found without looking at a label of a test image.

**Copies.** Photographs of one object in one position look alike, so a digest of what they look like calls all of them
the same. Two images are compared by how each deviates from the mean of the training images: what all of them share is
gone, and what is left is their own. A copy that was moved by a pixel deviates along the mean's gradients, so candidates
are looked for without these; then one is moved onto the other, and both are compared again.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

SIDE = 64  # pixels a side of a thumbnail
_FINE, _BLUR = 128, 2.5  # a thumbnail is made at this side and blurred, so that a move by part of a pixel is exact
_DETAIL = 4.0  # standard deviation in pixels of a thumbnail: what is coarser than that is no detail
_BORDER = 4  # pixels of a thumbnail that a move may bring in from outside
_CANDIDATES = 3  # training images that an image is moved onto
_NEAR, SAME = 0.5, 0.98  # correlations of a candidate, and of a copy
_FAINT = 0.25  # grey levels, of which deviations are less than what rounding makes
_SHARP_SIDE = 512  # longest side in pixels at which sharpness is measured
_DARK, _BRIGHT = 2, 253  # from here on a grey level counts as clipped
SPREADS = 6.0  # robust standard deviations beyond which a value is an outlier
_MOST = 0.9  # share of an image; a mask that marks more may have black and white the wrong way round
_FEW = 3  # pixels; a mask that marks no more may be a slip of the pen


class Measures(NamedTuple):
    """What is kept of an image.

    Attributes:
      height, width: In pixels.
      color: Whether some pixel is not grey.
      digest: SHA-256 of its size and its pixels.
      sharpness: Natural logarithm of the variance of the Laplacian, of the grey image at most 512 pixels a side, over
        the square of the span of its grey levels without the tenths at both ends, so that contrast is no sharpness.
      brightness: Mean grey level, from 0 to 255.
      dark, bright: Shares of pixels that are clipped, from 0 to 1.
      thumbnail: float32 (SIDE, SIDE), the grey image.
    """

    height: int
    width: int
    color: bool
    digest: str
    sharpness: float
    brightness: float
    dark: float
    bright: float
    thumbnail: np.ndarray


class Copy(NamedTuple):
    """An image that shows what a training image shows.

    Attributes:
      index, other: Which image it is, and which training image.
      correlation: Of what both deviate from the mean by, up to 1.
    """

    index: int
    other: int
    correlation: float


def measure(image: np.ndarray) -> Measures:
    """Measures an image, uint8 (h, w, 3)."""
    height, width = image.shape[:2]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    digest = hashlib.sha256(f"{image.shape}".encode())
    digest.update(np.ascontiguousarray(image))
    counts = np.bincount(grey.ravel(), minlength=256) / grey.size
    color = bool((image[..., 0] != image[..., 1]).any() or (image[..., 1] != image[..., 2]).any())
    return Measures(
        height,
        width,
        color,
        digest.hexdigest(),
        _sharpness(grey, float(np.diff(np.searchsorted(np.cumsum(counts), (0.1, 0.9)))[0])),
        float(counts @ np.arange(256)),
        float(counts[: _DARK + 1].sum()),
        float(counts[_BRIGHT:].sum()),
        thumbnail(grey),
    )


def _sharpness(grey: np.ndarray, span: float) -> float:
    shrink = _SHARP_SIDE / max(grey.shape)
    if shrink < 1:
        size = [max(1, round(side * shrink)) for side in grey.shape[::-1]]
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    edges = cv2.Laplacian(grey, cv2.CV_32F).var(dtype=np.float64)
    return float(np.log((edges + 1e-3) / (span**2 + 1)))


def thumbnail(grey: np.ndarray) -> np.ndarray:
    """A small square version without aliasing: uint8 (h, w) to float32 (SIDE, SIDE)."""
    how = cv2.INTER_AREA if min(grey.shape) >= _FINE else cv2.INTER_LINEAR
    fine = cv2.resize(grey.astype(np.float32), (_FINE, _FINE), interpolation=how)
    return cv2.resize(cv2.GaussianBlur(fine, (0, 0), _BLUR), (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def spreads(values: Sequence[float], reference: Sequence[float], *, least: float) -> np.ndarray:
    """How many robust standard deviations values lie above the median of a reference.

    The standard deviation is 1.4826 times the median absolute deviation, which is that of a normal distribution.

    Args:
      values: Any number of values.
      reference: The values of the training images.
      least: The smallest standard deviation that is taken, for a reference whose values are nearly the same.

    Returns:
      float64 (n,), negative below the median.
    """
    median = np.median(reference)
    deviation = 1.4826 * np.median(np.abs(np.asarray(reference) - median))
    return (np.asarray(values, np.float64) - median) / max(deviation, least)


def outliers(images: Sequence[Measures], training: Sequence[Measures]) -> dict[str, list[int]]:
    """Which images differ from the training images by more than `SPREADS` robust standard deviations.

    Returns:
      The indices by what is the matter: ``blurred``, ``dark`` or ``bright``. An image is bright by its mean or by its
      clipped pixels, and dark likewise.
    """

    def over(field: str, least: float) -> np.ndarray:
        return spreads(*([getattr(one, field) for one in part] for part in (images, training)), least=least)

    brightness = over("brightness", 2.0)
    found = {
        "blurred": over("sharpness", 0.1) < -SPREADS,
        "dark": (brightness < -SPREADS) | (over("dark", 0.01) > SPREADS),
        "bright": (brightness > SPREADS) | (over("bright", 0.01) > SPREADS),
    }
    return {what: np.flatnonzero(flags).tolist() for what, flags in found.items() if flags.any()}


def copies(images: Sequence[np.ndarray] | None, training: Sequence[np.ndarray]) -> list[Copy]:
    """Which images show what a training image shows, be it encoded anew, made smaller, or moved by a few pixels.

    Args:
      images: Thumbnails; None for the training images themselves, each compared with the others.
      training: Those of the training images. Of fewer than two no mean can tell what is their own.

    Returns:
      The nearest training image of each image that has a copy, the most alike first. Two training images are named
      once.
    """
    if len(training) < 2 or (images is not None and not len(images)):
        return []
    contrast = float(np.median([thumb.std() for thumb in training]))
    known = np.stack([_with_contrast(thumb, contrast) for thumb in training])
    mean = known.mean(axis=0)
    along = np.linalg.qr(np.stack([np.ones_like(mean), mean, *_gradients(mean)]).reshape(4, -1).T)[0]
    directions = _directions(known - mean, along)
    found = {}
    for index, image in enumerate(known if images is None else images):
        image = image if images is None else _with_contrast(image, contrast)
        alike = directions @ _directions((image - mean)[None], along)[0]
        if images is None:
            alike[index] = -1
        near = [int(other) for other in np.argsort(-alike)[:_CANDIDATES] if alike[other] > _NEAR]
        best = max(((similarity(image, known[other], mean), other) for other in near), default=(0.0, 0))
        if best[0] >= SAME:
            pair = (index, best[1]) if images is not None else (max(index, best[1]), min(index, best[1]))
            found[pair] = Copy(*pair, best[0])
    return sorted(found.values(), key=lambda copy: -copy.correlation)


def similarity(image: np.ndarray, other: np.ndarray, mean: np.ndarray) -> float:
    """Moves a thumbnail onto another one, and correlates what both deviate from a mean by.

    Args:
      image, other: float32 (SIDE, SIDE).
      mean: That of the training images.

    Returns:
      The smaller of two correlations, up to 1: of all that deviates, and of its detail alone. 0 where nothing deviates.
    """
    inner = slice(_BORDER, -_BORDER)
    place, moved = np.zeros(2), image
    for _ in range(3):  # steps of Lucas and Kanade, with a gain and an offset of the grey levels
        columns = [*_gradients(moved), moved, np.ones_like(moved)]
        step = _least_squares([column[inner, inner] for column in columns], other[inner, inner])
        place = np.clip(place + step[:2] / max(step[2], 0.3), -_BORDER, _BORDER)
        transform = np.float32([[1, 0, place[0]], [0, 1, place[1]]])
        moved = cv2.warpAffine(
            image,
            transform,
            image.shape,
            flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    gain, offset = _least_squares([part[inner, inner] for part in (moved, np.ones_like(moved))], other[inner, inner])
    both = [np.float32(gain * moved + offset) - mean, other - mean]
    detail = [part - cv2.GaussianBlur(part, (0, 0), _DETAIL) for part in both]
    return min(_correlation(*(part[inner, inner] for part in pair)) for pair in (both, detail))


def _with_contrast(image: np.ndarray, contrast: float) -> np.ndarray:
    """A thumbnail with a mean of 0 and this standard deviation: exposure is nothing of an image's own."""
    centered = image - image.mean()
    return centered * np.float32(contrast / max(centered.std(), 1.0))


def _gradients(image: np.ndarray) -> list[np.ndarray]:
    """By column and by row, in levels a pixel."""
    return [cv2.Sobel(image, cv2.CV_32F, dx, dy, ksize=3) / 8 for dx, dy in ((1, 0), (0, 1))]


def _directions(deviations: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Deviations (n, SIDE, SIDE) without what lies along some orthonormal columns, of length 1, or 0 if faint."""
    flat = deviations.reshape(len(deviations), -1)
    flat = flat - flat @ along @ along.T
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.where(length > _FAINT * SIDE, flat / np.maximum(length, 1e-9), 0)


def _least_squares(columns: Sequence[np.ndarray], target: np.ndarray) -> np.ndarray:
    """The factors of columns that come closest to a target; a small ridge keeps those of flat images finite."""
    matrix = np.stack([column.ravel() for column in columns]).astype(np.float64)
    return np.linalg.solve(matrix @ matrix.T + 1e-3 * np.eye(len(matrix)), matrix @ target.ravel())


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    lengths = np.linalg.norm(first), np.linalg.norm(second)
    if min(lengths) <= _FAINT * np.sqrt(first.size) / 2:
        return 0.0
    return float((first * second).sum() / (lengths[0] * lengths[1]))


def suspicious_mask(mask: np.ndarray) -> str | None:
    """What is unlikely about a defective image's mask, uint8 (h, w) of 0 and 1: ``empty``, ``full`` or ``tiny``."""
    marked = int(np.count_nonzero(mask))
    if not marked:
        return "empty"
    if marked > _MOST * mask.size:
        return "full"
    return "tiny" if marked <= _FEW else None
