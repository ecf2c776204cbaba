"""Masks: which pixels of a mask file are marked, how it lies on its image, and how it is made smaller."""

import logging
import os

import cv2
import numpy as np

from jaxad.data.codec import MAX_PIXELS, Pixels, decode_pixels, inverted, turn
from jaxad.data.image import Decoded, read_bytes
from jaxad.errors import UserError

# Which share of a smaller mask's pixel must have been marked: some, more than half, or all.
MASK_RULES = ("any", "half", "all")

# Shares of the brightest value, between which an approximate mask of two values has pixels at its edges alone.
_DARK, _BRIGHT = 0.25, 0.75
_REACH = 17  # pixels: an edge is blurred within a JPEG's blocks of 8 pixels, to both sides
_NOISE = 0.1  # share of white within which a JPEG's values lie around black and white, but for the edges
_MOST = 0.9  # share of an image; a mask that marks more may have black and white the wrong way round
_KINDS = 4  # different values near black, and near white, that show a JPEG's noise


def read_mask(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes a mask file, turned upright by its own EXIF orientation.

    Marked is:

    - in a palette every index but 0, whatever its color; where only some pixels are fully transparent, the others, if
      all of these have index 0, or none has;
    - in grey or RGB pixels every one that is not black: classes may have any number, and an edge any level;
    - where alpha varies, be it a channel or of the one color that a PNG hides: every pixel that is not fully
      transparent, if all of these have one color; otherwise those of them that are not black;
    - in JPEG and lossy WebP, whose blacks are not quite black, what exceeds half of the brightest value. So it is in a
      lossless file that holds a saved JPEG: nearly all of its values lie close to black or to white, with many
      different ones at both ends.

    Returns:
      uint8 (h, w), 1 where the image is marked as defective, else 0.

    Raises:
      UserError: As in `jaxad.data.image.read_image`; or a lossy file has more than two values, so that what is
        noise cannot be told; or a palette has transparent pixels and others of index 0 and of further ones, so that it
        cannot be told which is background.
    """
    return _read(path, max_pixels)[0]


def read_mask_of(
    path: str | os.PathLike, image: Decoded, image_path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decodes the mask of a defective image that was turned upright: uint8 (h, w) of 0 and 1, as large as the image.

    A mask without an EXIF orientation was drawn either on the upright image or on the pixels as they are stored. Where
    the two differ in size, the mask's size tells; elsewhere nothing does, and the mask is refused.

    A mask that marks no pixel, or nearly all, is used as it is, with a logged warning.

    Raises:
      UserError: As in `read_mask`; or the mask does not lie on the image in one way only.
    """
    (mask, orientation), shape = _read(path, max_pixels), image.image.shape[:2]
    if image.orientation != 1 and orientation == 1:
        stored = shape[::-1] if image.orientation >= 5 else shape
        if mask.shape == shape == stored:
            raise UserError(
                f"image '{image_path}' is turned by its EXIF orientation ({image.orientation}), and whether its mask "
                f"'{path}' was drawn before or after that cannot be told; save the image turned and without the "
                "orientation, with a mask to match",
                about=image_path,
            )
        if mask.shape == stored:
            mask = turn(mask, image.orientation)
    if mask.shape != shape:
        raise UserError(
            f"mask '{path}' is {mask.shape[1]} x {mask.shape[0]} pixels (width x height), but its image "
            f"'{image_path}' is {shape[1]} x {shape[0]}; make them the same size",
            about=path,
        )
    if not mask.any():
        # Published sets have such masks (four of the magnetic tiles), so this is no error.
        logging.warning("mask '%s' marks no pixel of its defective image; it is used as it is", path)
    elif (share := mask.mean()) > _MOST:
        what = "invert it if the marked part is good"
        logging.warning("mask '%s' marks %.0f %% of its defective image; %s", path, 100 * share, what)
    return mask


def read_value(path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> int:
    """The one value above 0 of a mask file, which names its class.

    Raises:
      UserError: As in `read_mask`, or there is another number of such values.
    """
    values = np.unique(decode_pixels(read_bytes(path), path, max_pixels=max_pixels, raw=True).values)
    values = values[values > 0]
    if len(values) != 1:
        raise UserError(
            f"mask '{path}' holds {len(values)} different values above 0, where one names its defect type; replace it",
            about=path,
        )
    return int(values[0])


def resize_mask(mask: np.ndarray, size: tuple[int, int], *, rule: str = "any") -> np.ndarray:
    """Makes a mask smaller, where a new pixel is marked by its share of marked area, or larger by the nearest pixel.

    By the rule ``any``, no defect vanishes or falls apart. By the others, small ones do. Height and width are treated
    apart.

    Args:
      mask: uint8 (h, w) of 0 and 1.
      size: The new (height, width).
      rule: Of the area that a new pixel covers, the share that must be marked: above 0 (``any``), above 0.5 (``half``),
        or 1 (``all``). Shares are exact, so there is no rounding at 0.5 and 1.

    Returns:
      uint8 (*size,) of 0 and 1; the argument itself when it already has this size.

    Raises:
      ValueError: There is no such rule.
    """
    if rule not in MASK_RULES:
        raise ValueError(f"the rule must be one of {', '.join(MASK_RULES)}, not {rule!r}")
    if mask.shape == tuple(size):
        return mask
    marked, area = mask, 1  # of the new pixels, in the same unit
    for axis, length in enumerate(size):
        old = mask.shape[axis]
        if length < old:
            marked, area = _covered_area(marked, length, axis), area * old
        elif length > old:
            marked = marked.take((2 * np.arange(length) + 1) * old // (2 * length), axis=axis)
    least = {"any": 1, "half": area // 2 + 1, "all": area}[rule]
    return np.ascontiguousarray(marked >= least).astype(np.uint8)


def _covered_area(array: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Shrinks one axis of whole numbers to `length`; each new element is the sum of those that it covers, by share.

    The unit is 1 / length of an old element, which makes all shares whole: a new element covers as many of these as
    there were old elements.

    Returns:
      int64, the array's shape with `length` in place of the axis.
    """
    edges = np.arange(length + 1, dtype=np.int64) * array.shape[axis]
    first, left = np.divmod(edges, length)  # an edge cuts the old element `first`: `left` units lie to its left
    # `reduceat` counts a cut element whole on the right of its edge. What lies to the left is moved there.
    cut = array.take(first.clip(max=array.shape[axis] - 1), axis=axis) * np.expand_dims(left, 1 - axis)
    return length * np.add.reduceat(array, first[:-1], axis=axis, dtype=np.int64) + np.diff(cut, axis=axis)


def _read(path: str | os.PathLike, max_pixels: int) -> tuple[np.ndarray, int]:
    """A mask, and the EXIF orientation that it was turned by."""
    pixels = decode_pixels(read_bytes(path), path, max_pixels=max_pixels, raw=True)
    return _marked(pixels, path), pixels.orientation


def _marked(pixels: Pixels, path: str | os.PathLike) -> np.ndarray:
    values = pixels.values
    if pixels.is_indexed:
        return _marked_by_index(values, path)
    if pixels.has_white_zero:  # black is the largest value; a file of white alone has none
        values = inverted(values, values[..., 0].max() or values.dtype.type(1))
    visible = np.ones(values.shape[:2], bool)
    if values.shape[2] in (2, 4):
        values, alpha = values[..., :-1], values[..., -1]
        if alpha.min() != alpha.max():
            visible = alpha > 0
            shown = values[visible]
            if (shown == shown[0]).all():
                return visible.astype(np.uint8)
    brightness = values.max(axis=-1) * visible
    white = np.iinfo(brightness.dtype).max
    if pixels.is_lossy:
        return _marked_by_halves(brightness, path)
    level = white // 2 if _is_saved_jpeg(brightness) else 0
    return (brightness > level).astype(np.uint8)


def _marked_by_index(values: np.ndarray, path: str | os.PathLike) -> np.ndarray:
    index = values[..., 0]
    if values.shape[2] == 1:
        return (index != 0).astype(np.uint8)
    # What is hidden is no defect. Editors put it at any index, so that 0 may be the one color that was drawn with.
    seen = values[..., 1] > 0
    if (index[seen] == 0).any() and index[seen].any():
        raise UserError(
            f"mask '{path}' has a palette with transparent pixels and visible ones of index 0 and of others, so that "
            "it cannot be told which are good; save it in grey, with 0 for good pixels",
            about=path,
        )
    return seen.astype(np.uint8)


def _is_saved_jpeg(brightness: np.ndarray) -> bool:
    white = np.iinfo(brightness.dtype).max
    counts = np.bincount(brightness.ravel(), minlength=white + 1)
    near = int(white * _NOISE)
    dark, middle, bright = counts[1 : near + 1], counts[near + 1 : white - near], counts[white - near : white]
    kinds = min(np.count_nonzero(dark), np.count_nonzero(bright))
    return kinds >= _KINDS and dark.sum() + bright.sum() > middle.sum()


def _marked_by_halves(brightness: np.ndarray, path: str | os.PathLike) -> np.ndarray:
    """What exceeds half of the brightest value; raises UserError unless the values between lie at edges alone."""
    top = int(brightness.max())
    if not top:
        return np.zeros(brightness.shape, np.uint8)
    bright = (brightness > _BRIGHT * top).astype(np.uint8)
    near = cv2.dilate(bright, np.ones((_REACH, _REACH), np.uint8))
    alone = (brightness > _DARK * top) & (near == 0)
    if top <= np.iinfo(brightness.dtype).max * _DARK or alone.any():
        raise UserError(
            f"mask '{path}' is stored with loss and has other values than black and one brighter one, so that its "
            "defects cannot be told from noise; save it as PNG",
            about=path,
        )
    return (brightness > np.median(brightness[bright > 0]) / 2).astype(np.uint8)
