"""What becomes the region of interest: a mask file, polygons in pixels, or what the training images show."""

from pathlib import Path

import cv2
import numpy as np
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad.data import roi
from jaxad.data.mask import read_mask, resize_mask
from jaxad.data.record import Source
from jaxad.data.roi import Roi
from jaxad.errors import UserError

_LOOKED_AT = 16  # training images that tell their size
_LEAST = 32  # pixels a side; below the coarsest stride of the networks an image holds no feature of its own
_ASPECTS = 0.02  # the share by which the aspect ratio of a mask may differ from that of the images
_LARGEST = 2048  # pixels: the longest side of a mask whose contours are followed
# How `automatic` looks at the images, in pixels of their small versions unless it is said otherwise.
_IMAGES, _SIDE = 64, 256
_BORDER = 0.03  # share of the longest side
_PLAIN = 0.85  # share of the border that must have the background's color
_LEVELS = 16.0  # grey levels by which the background may differ from this color, at least
_SPREADS = 6.0  # the same in standard deviations
_SPECK = 0.001  # share of the image; smaller things are no part
_CLOSED, _MARGIN = 0.015, 0.03  # shares of the longest side
_MOST = 0.95  # share of the image beyond which a region is of no use


def resolve(config: ConfigDict, source: Source) -> tuple[str, str]:
    """What a training puts in the place of ``config.data.roi``, and a line that says what part of an image it is.

    Args:
      config: Its ``data.roi`` is not empty.
      source: The training images.

    Raises:
      UserError: It cannot be used, or does not fit the images.
    """
    text, about = configs.roi(config), "of each image is trained on and scored"
    shapes = _shapes(source)
    if text == roi.AUTOMATIC:
        mask, reason = automatic(source)
        if mask is None:
            return "", f"config.data.roi=auto finds no region, and whole images count: {reason}"
        found = roi.to_text(_outlines(mask, 2.0), roi.AUTOMATIC)  # what is rough needs no fine line
        about += f", by config.data.roi=auto: {reason}"
    elif (polygons := roi.numbers_of(text)) is None:
        mask = _mask_for(text, shapes)
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        side = min(rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1)
        shown = max(config.data.size, config.score.size)  # the shorter side of the frame
        found = roi.to_text(_outlines(mask, 0.5 * side / shown), Path(text).name)
        about += f", by the mask '{text}'"
    else:
        found = text if max(np.max(polygon) for polygon in polygons) <= 1 else roi.to_text(_shares(polygons, shapes))
        about += f", by config.data.roi{f' of {roi.origin_of(text)}' if roi.is_found(text) else ''}"
    region = roi.read(found)
    _check_size(region, shapes)
    kept = region.in_image((1000, 1000), (0, 0, 1000, 1000)).mean()
    return found, f"{100 * kept:.3g} % {about}"


def _shapes(source: Source) -> list[tuple[int, int]]:
    """(height, width) of a few training images, which are evenly spaced."""
    return [source[number].image.shape[:2] for number in _spaced(len(source), _LOOKED_AT)]


def _spaced(count: int, most: int) -> list[int]:
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def _shares(polygons: list, shapes: list[tuple[int, int]]) -> list[np.ndarray]:
    """Polygons in pixels as shares of the images."""
    if len(set(shapes)) > 1:
        raise UserError(
            "config.data.roi is given in pixels, but the training images differ in size; give shares of width and "
            "height, from 0 to 1",
            about="data.roi",
        )
    height, width = shapes[0]
    for polygon in polygons:
        for x, y in polygon:
            if x > width or y > height:
                raise UserError(
                    f"config.data.roi has the corner {x:g},{y:g} outside the training images, which are {width} x "
                    f"{height} pixels (width x height); correct it",
                    about="data.roi",
                )
    return [np.divide(polygon, (width, height)) for polygon in polygons]


def _mask_for(path: str, shapes: list[tuple[int, int]]) -> np.ndarray:
    """The mask of a file, uint8 (h, w), which must have the aspect ratio of the images and mark something."""
    mask = read_mask(path)
    height, width = mask.shape
    for rows, columns in shapes:
        if abs(width * rows / (height * columns) - 1) > _ASPECTS:
            raise UserError(
                f"the mask of config.data.roi '{path}' is {width} x {height} pixels (width x height), which is not the "
                f"aspect ratio of a training image of {columns} x {rows}; draw it on one of the training images",
                about="data.roi",
            )
    if not mask.any():
        raise UserError(
            f"the mask of config.data.roi '{path}' marks no pixel; paint what is to be judged white", about="data.roi"
        )
    return mask


def _check_size(region: Roi, shapes: list[tuple[int, int]]) -> None:
    top, left, bottom, right = region.bounds
    for height, width in shapes:
        if min((bottom - top) * height, (right - left) * width) < _LEAST - 0.5:
            columns, rows = round((right - left) * width), round((bottom - top) * height)
            raise UserError(
                f"config.data.roi spans {columns} x {rows} pixels (width x height) of a training image of {width} x "
                f"{height}, but at least {_LEAST} a side are needed; enlarge it",
                about="data.roi",
            )


def _outlines(mask: np.ndarray, error: float) -> list[np.ndarray]:
    """The outlines of a mask as polygons in shares, which are off by so many of its pixels at most."""
    if (longest := max(mask.shape)) > _LARGEST:
        mask = resize_mask(mask, tuple(max(1, round(side * _LARGEST / longest)) for side in mask.shape), rule="any")
        error *= _LARGEST / longest
    # OpenCV's contours go through pixels. Here each pixel is the 3 x 3 points of its corners, sides and center, so
    # that contours go around it.
    double = np.pad(cv2.resize(mask, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST), 1)
    points = double[1:, 1:] | double[:-1, 1:] | double[1:, :-1] | double[:-1, :-1]
    contours, _ = cv2.findContours(points, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    simple = [cv2.approxPolyDP(contour, 2 * error, True)[:, 0] for contour in contours]
    kept = [polygon for polygon in simple if len(polygon) > 2] or [contours[0][:, 0]]
    return [polygon / (2 * mask.shape[1], 2 * mask.shape[0]) for polygon in kept]


def automatic(source: Source) -> tuple[np.ndarray | None, str]:
    """What the training images show before a plain background.

    The background has the color of the images' common border. What has another color in any of some images, or varies
    from one to the next more than the border does, belongs to the region, with a margin. What then touches is one part,
    whose convex hull is taken.

    Returns:
      uint8 (h, w) of 0 and 1 for all images, or None where there is no such background or it is too small; and why, for
      the user to read.
    """
    first = source[0].image.shape[:2]
    height, width = (max(8, round(side * _SIDE / max(first))) for side in first)
    images = np.stack([_small(source[number].image, (width, height)) for number in _spaced(len(source), _IMAGES)])
    around = np.ones((height, width), bool)
    wide = max(2, round(_BORDER * _SIDE))
    around[wide:-wide, wide:-wide] = False
    border = images[:, around].astype(np.float32)
    color = np.median(border, axis=(0, 1))
    off = np.abs(border - color).max(axis=-1)
    limit = max(_LEVELS, _SPREADS * 1.4826 * float(np.median(off)))
    plain = float((off <= min(limit, 2 * _LEVELS)).mean())
    if plain < _PLAIN:
        return None, f"only {100 * plain:.0f} % of the images' border has one plain color"
    shown = np.any([_without_specks(np.abs(image - color).max(axis=-1) > limit) for image in images], axis=0)
    if len(images) > 1:
        varies = images.std(axis=0).max(axis=-1)
        noise = np.median(varies[around]) + _SPREADS * 1.4826 * np.median(np.abs(varies - np.median(varies[around])))
        shown |= _without_specks(varies > max(noise, _LEVELS / 2))
    mask = _filled(shown)
    if not mask.any():
        return None, "the images show nothing but a plain background"
    if (share := mask.mean()) > _MOST:
        return None, f"what is no background covers {100 * share:.0f} % of them"
    return mask, "the rest is a plain background"


def _small(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    shrunk = cv2.resize(image, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], -1)
    return cv2.medianBlur(shrunk, 3).reshape(shrunk.shape)


def _without_specks(marked: np.ndarray) -> np.ndarray:
    """Pixels bool (h, w) without groups of a few."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(marked.view(np.uint8), connectivity=8)
    large = stats[:, cv2.CC_STAT_AREA] >= _SPECK * marked.size
    large[0] = False
    return large[labels] if count > 1 else np.zeros_like(marked)


def _filled(marked: np.ndarray) -> np.ndarray:
    """The convex hulls of groups of pixels bool (h, w), with a margin: uint8 (h, w).

    A part may lie at angles that the images do not show, between those that they show.
    """

    def disc(share: float) -> np.ndarray:
        return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(share * _SIDE) + 1,) * 2)

    reach = round(2 * _CLOSED * _SIDE)  # beside the image there is nothing, so that closing joins nothing to its border
    closed = cv2.morphologyEx(np.pad(marked.astype(np.uint8), reach), cv2.MORPH_CLOSE, disc(_CLOSED))
    parts = cv2.dilate(closed[reach:-reach, reach:-reach], disc(_MARGIN))
    contours, _ = cv2.findContours(parts, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hulls = [cv2.convexHull(contour) for contour in contours]
    return cv2.drawContours(np.zeros_like(parts), hulls, -1, 1, cv2.FILLED)
