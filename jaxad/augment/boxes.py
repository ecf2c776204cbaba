"""Where synthetic defects are: upright and rotated boxes, drawn as in Li et al. 2021, Appendix A.2.

Every index is exact: rotation counts in integers, so a region is the same whether it is made alone, in a batch, or on
one of many devices.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxad.augment.cutpaste.options import CutPasteOptions
from jaxad.errors import UserError

_SHIFT = 14
_ONE = 1 << _SHIFT  # sines and cosines are multiples of 1 / _ONE; exact for images of up to 16,000 pixels


class Box(NamedTuple):
    """An upright rectangle: its first row and column, and its size, int32 pixels."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


class RotatedBox(NamedTuple):
    """A rotated rectangle.

    Attributes:
      top: First row of the upright rectangle that bounds it, int32.
      left: First column of that rectangle, int32.
      length: Pixels along its vertical side before it is rotated, int32.
      width: Pixels along its horizontal side before it is rotated, int32.
      angle: Counter-clockwise rotation in degrees, float32.
    """

    top: jax.Array
    left: jax.Array
    length: jax.Array
    width: jax.Array
    angle: jax.Array


def box_mask(box: Box, shape: tuple[int, int]) -> jax.Array:
    """Which pixels of an image of `shape` lie in a box: bool (h, w)."""
    rows, columns = jnp.arange(shape[0])[:, None] - box.top, jnp.arange(shape[1]) - box.left
    return (rows >= 0) & (rows < box.height) & (columns >= 0) & (columns < box.width)


def _turn(degrees: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of an angle, as int32 multiples of 1 / _ONE."""
    radians = jnp.deg2rad(degrees)
    return tuple(jnp.round(_ONE * f(radians)).astype(jnp.int32) for f in (jnp.cos, jnp.sin))


def rotated_extent(box: RotatedBox) -> tuple[jax.Array, jax.Array]:
    """Height and width of the upright rectangle that bounds a rotated box, int32 pixels, rounded up."""
    cosine, sine = (jnp.abs(x) for x in _turn(box.angle))
    height = cosine * box.length + sine * box.width
    width = sine * box.length + cosine * box.width
    return (height + _ONE - 1) >> _SHIFT, (width + _ONE - 1) >> _SHIFT


def unrotate(
    box: Box,
    size: tuple[jax.Array, jax.Array],
    degrees: jax.Array | float,
    rows: jax.Array,
    columns: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Where pixels lie in a rectangle that was turned counter-clockwise, by the nearest pixel of the upright one.

    Args:
      box: A box with the turned rectangle's centre.
      size: Height and width of the rectangle when upright.
      degrees: The angle.
      rows: int32 (h, 1), rows of the image.
      columns: int32 (w,), columns of the image.

    Returns:
      Row and column in the upright rectangle, int32 (h, w), outside of it too.
    """
    cosine, sine = _turn(degrees)
    # Twice the distances from the centre are whole numbers.
    down, right = 2 * (rows - box.top) + 1 - box.height, 2 * (columns - box.left) + 1 - box.width
    row = (cosine * down + sine * right + _ONE * size[0]) >> (_SHIFT + 1)
    column = (cosine * right - sine * down + _ONE * size[1]) >> (_SHIFT + 1)
    return row, column


def rotated_pixels(box: RotatedBox, rows: jax.Array, columns: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where the pixels of an image lie in a rotated box, by the nearest pixel of the upright one.

    Args:
      box: The box.
      rows: int32 (h, 1), rows of the image.
      columns: int32 (w,), columns of the image.

    Returns:
      Row and column in the upright box, int32 (h, w), and whether the pixel's centre is in the box, bool (h, w).
    """
    bounds = Box(box.top, box.left, *rotated_extent(box))
    row, column = unrotate(bounds, (box.length, box.width), box.angle, rows, columns)
    return row, column, (row >= 0) & (row < box.length) & (column >= 0) & (column < box.width)


def rotated_box_mask(box: RotatedBox, shape: tuple[int, int]) -> jax.Array:
    """Which pixels of an image of `shape` lie in a rotated box: bool (h, w)."""
    return rotated_pixels(box, jnp.arange(shape[0])[:, None], jnp.arange(shape[1]))[2]


def _ordered(low: float, high: float) -> bool:
    return 0 < low <= high


def box_limit(shape: tuple[int, ...], *, options: CutPasteOptions) -> tuple[int, int]:
    """Height and width in pixels of the tallest and the widest patch of an image of `shape` (h, w, ...).

    Raises:
      UserError: A range is empty, or a patch can be larger than the image.
    """
    (low, high), area = options.aspect, min(shape[:2]) ** 2 * options.area[1]
    if not _ordered(*options.area) or not 0 < low < 1 < high:
        raise UserError(
            "config.proxy.area must be (low, high) with 0 < low <= high and config.proxy.aspect (low, high) with "
            f"0 < low < 1 < high, not {options.area} and {options.aspect}",
            about="proxy.area",
        )
    limit = max(1, round(math.sqrt(area * high))), max(1, round(math.sqrt(area / low)))
    if limit[0] > shape[0] or limit[1] > shape[1]:
        raise UserError(
            f"a patch of up to {limit[0]}x{limit[1]} pixels (config.proxy.area {options.area}, config.proxy.aspect "
            f"{options.aspect}) does not fit into an image of {shape[0]}x{shape[1]}; lower the largest area or the "
            "most extreme aspect",
            about="proxy.area",
        )
    return limit


def _scar_scale(shape: tuple[int, ...], options: CutPasteOptions) -> float:
    return (options.side or min(shape[:2])) / 256


def scar_limit(shape: tuple[int, ...], *, options: CutPasteOptions) -> int:
    """Side in pixels of a square that holds every scar of an image of `shape` (h, w, ...), however rotated.

    Raises:
      UserError: A range is empty, or a scar can be larger than the image.
    """
    sizes = (*options.scar_width, *options.scar_length)
    whole = all(size == int(size) for size in sizes)
    ranges = _ordered(*options.scar_width) and _ordered(*options.scar_length)
    if not (whole and ranges and 0 <= options.scar_angle <= 180 and options.side >= 0):
        raise UserError(
            "config.proxy.scar_width and config.proxy.scar_length must be whole (low, high) with 0 < low <= high, "
            "config.proxy.scar_angle from 0 to 180 and config.proxy.side at least 0, not "
            f"{options.scar_width}, {options.scar_length}, {options.scar_angle} and {options.side}",
            about="proxy.scar_width",
        )
    scale = _scar_scale(shape, options)
    longest = [_scaled(sizes[1], scale, least) for sizes, least in ((options.scar_width, 1), (options.scar_length, 2))]
    limit = math.ceil(math.hypot(*longest))
    if limit > min(shape[:2]):
        raise UserError(
            f"a scar of up to {longest[0]}x{longest[1]} pixels, {limit} when rotated, does not fit into an image of "
            f"{shape[0]}x{shape[1]}; lower config.proxy.scar_width, config.proxy.scar_length or config.proxy.side",
            about="proxy.scar_length",
        )
    return limit


def _scaled(size: int, scale: float, least: int) -> int:
    return max(least, math.floor(size * scale + 0.5))


def sample_place(
    key: jax.Array, shape: tuple[int, ...], height: jax.Array, width: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """First row and column of a rectangle, uniform over all places where it lies in an image of `shape` (h, w, ...)."""
    rows, columns = jax.random.uniform(key, (2,), jnp.float32)
    return _pick(rows, shape[0] - height + 1), _pick(columns, shape[1] - width + 1)


def _pick(share: jax.Array, count: jax.Array | int) -> jax.Array:
    """The whole number below `count` that a share in [0, 1) of it falls on."""
    return jnp.floor(share * count).astype(jnp.int32)


def sample_box(key: jax.Array, shape: tuple[int, ...], *, options: CutPasteOptions) -> Box:
    """Draws a patch of an image of `shape` (h, w, ...) as RandomErasing does, which the paper follows.

    The area, a share of the square of the image's shorter side, is uniform, the aspect ratio uniform below 1 for half
    of the draws and above 1 for the others (an inference from the paper's union of two intervals), the place uniform
    over all where the patch lies in the image.

    Raises:
      UserError: As `box_limit`.
    """
    tallest, widest = box_limit(shape, options=options)
    sizes, places = jax.random.split(key)
    area, half, aspect = jax.random.uniform(sizes, (3,), jnp.float32)
    area = min(shape[:2]) ** 2 * (options.area[0] + (options.area[1] - options.area[0]) * area)
    wide, tall = (low + (high - low) * aspect for low, high in ((options.aspect[0], 1), (1, options.aspect[1])))
    aspect = jnp.where(half < 0.5, wide, tall)
    height = jnp.clip(jnp.round(jnp.sqrt(area * aspect)), 1, tallest).astype(jnp.int32)
    width = jnp.clip(jnp.round(jnp.sqrt(area / aspect)), 1, widest).astype(jnp.int32)
    return Box(*sample_place(places, shape, height, width), height, width)


def sample_rotated_box(key: jax.Array, shape: tuple[int, ...], *, options: CutPasteOptions) -> RotatedBox:
    """Draws a scar of an image of `shape` (h, w, ...): size, angle, and a place where all of it lies in the image.

    Raises:
      UserError: As `scar_limit`.
    """
    scar_limit(shape, options=options)
    scale = _scar_scale(shape, options)
    drawn, places = jax.random.split(key)
    width, length, angle = jax.random.uniform(drawn, (3,), jnp.float32)

    def size(share, bounds, least):
        # Every whole size of an image of 256 is as likely; a box of length 1 may rotate out of every pixel's centre.
        low, high = (int(bound) for bound in bounds)
        sizes = jnp.array([_scaled(size, scale, least) for size in range(low, high + 1)], jnp.int32)
        return sizes[_pick(share, len(sizes))]

    length, width = size(length, options.scar_length, 2), size(width, options.scar_width, 1)
    angle = options.scar_angle * (2 * angle - 1)
    box = RotatedBox(jnp.int32(0), jnp.int32(0), length, width, angle)
    top, left = sample_place(places, shape, *rotated_extent(box))
    return box._replace(top=top, left=left)
