"""Where NSA's patches are cut and where they go, drawn on the device (Schlüter et al. 2022, equations 5 to 12).

The host (`host`) proposes one place after another until one is accepted, at most 199. Here all 199 are drawn and tested
at once, and the first accepted one is taken. The proposals are independent of each other and of the tests, so this is
the same distribution exactly, without a loop whose length depends on the data.

Sizes are computed in float32 where the host has float64: where a size is a whole number before it is truncated, the
rounding decides, and one patch in 200 is a pixel wider or narrower than the host would make it.
"""

import jax
import jax.numpy as jnp

from jaxad.augment.boxes import Box, box_limit, sample_box, sample_place
from jaxad.augment.cutpaste.options import CutPasteOptions
from jaxad.augment.nsa.host import TRIES, pixel_bounds
from jaxad.augment.nsa.settings import Synthesis

_WORD = 32  # pixels in a word
_TRIED = TRIES - 1  # a hit on the last try is discarded


def window(shape: tuple[int, ...], *, settings: Synthesis) -> tuple[int, int]:
    """Height and width in pixels of the tallest and the widest patch in the destination, of an image of `shape`."""
    bounds = settings.half_height, settings.half_width
    limits = [pixel_bounds(fractions, side)[1] for fractions, side in zip(bounds, shape[:2], strict=True)]
    if settings.resized and settings.size_bounds == "half":
        return tuple(limits)
    if settings.shape == "cutpaste":
        return box_limit(shape, options=CutPasteOptions())
    return tuple(min(2 * limit, side) for limit, side in zip(limits, shape[:2], strict=True))


def area_table(mask: jax.Array) -> jax.Array:
    """Number of object pixels above and to the left of every corner of the pixels: int32 (h + 1, w + 1)."""
    sums = jnp.cumsum(jnp.cumsum(mask, axis=0, dtype=jnp.int32), axis=1)
    return jnp.pad(sums, ((1, 0), (1, 0)))


def object_share(table: jax.Array, box: Box) -> jax.Array:
    """Share of object pixels in a box (or in several), from the mask's `area_table`; float32."""
    bottom, right = box.top + box.height, box.left + box.width
    count = table[bottom, right] - table[box.top, right] - table[bottom, box.left] + table[box.top, box.left]
    return count / (box.height * box.width)


def bit_windows(mask: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Every horizontal run of 32 pixels of a mask as a word, so that a patch at any place is cut out in whole words.

    Args:
      mask: bool (h, w).
      size: Static height and width of the patches that are to be cut out.

    Returns:
      uint32 (32, q, h + size[0]): in [r, q, i] the pixels of row i from column 32 q + r on, the lowest bit first.
    """
    # A word more than the patch's, because its first one is seldom at its place.
    words = pack(jnp.pad(mask, ((0, size[0]), (0, size[1] + 2 * _WORD))))
    shifts = jnp.arange(_WORD, dtype=jnp.uint32)[:, None, None]
    return (words[:-1] >> shifts) | (words[1:] << 1 << (_WORD - 1 - shifts))


def pack(mask: jax.Array) -> jax.Array:
    """A patch's mask bool (n, m) in words, uint32 (ceil(m / 32), n), the leftmost pixel in the lowest bit."""
    height, width = mask.shape
    padded = jnp.pad(mask.T, ((0, -width % _WORD), (0, 0))).astype(jnp.uint32)
    weights = jnp.uint32(1) << jnp.arange(_WORD, dtype=jnp.uint32)
    return (padded.reshape(-1, _WORD, height) * weights[:, None]).sum(axis=1, dtype=jnp.uint32)


def overlap_count(words: jax.Array, windows: jax.Array, top: jax.Array, left: jax.Array) -> jax.Array:
    """Number of object pixels of a patch that land on object pixels of the destination, exactly (equation 12).

    Args:
      words: The patch's object, from `pack`.
      windows: The destination's object, from `bit_windows`.
      top: First row in the destination, int32 scalar.
      left: First column in the destination, int32 scalar.

    Returns:
      int32 scalar.
    """
    under = jax.lax.dynamic_slice(windows, (left % _WORD, left // _WORD, top), (1, *words.shape))[0]
    return jax.lax.population_count(words & under).astype(jnp.int32).sum()


def sample_source(
    key: jax.Array, shape: tuple[int, int], table: jax.Array | None, *, settings: Synthesis
) -> tuple[Box, jax.Array]:
    """Draws a patch of the source image (equations 5 to 7): one size, then places until it shows enough object.

    Args:
      key: PRNG key.
      shape: Height and width of the images.
      table: `area_table` of the source image's object, or None to accept any place.
      settings: The category's settings.

    Returns:
      The box, clipped at the image border, and whether a place was found, bool.
    """
    count = 1 if table is None else _TRIED
    boxes = (_cutpaste_boxes if settings.shape == "cutpaste" else _gamma_boxes)(key, shape, count, settings)
    if table is None:
        return Box(*(side[0] for side in boxes)), jnp.array(True)
    return _first(boxes, object_share(table, boxes) > settings.object_fraction)


def sample_size(
    key: jax.Array, box: Box, shape: tuple[int, int], *, settings: Synthesis
) -> tuple[jax.Array, jax.Array]:
    """Draws height and width of a patch after resizing: by equation 9, or clipped as the program does (`host`)."""
    scale = jnp.clip(1 + 0.5 * jax.random.normal(key), *settings.scale)
    rows, columns = (
        pixel_bounds(fractions, side)
        for fractions, side in zip((settings.half_height, settings.half_width), shape, strict=True)
    )
    if settings.size_bounds == "full":
        # The box was drawn within the bounds, so both can be kept by one factor.
        least = jnp.maximum(2 * rows[0] / box.height, 2 * columns[0] / box.width)
        most = jnp.minimum(2 * rows[1] / box.height, 2 * columns[1] / box.width)
        scale = jnp.maximum(least, jnp.minimum(scale, most))
        return tuple(jnp.round(scale * length).astype(jnp.int32) for length in (box.height, box.width))
    height = jnp.clip(scale * box.height, *rows)
    width = jnp.clip((height / box.height * box.width).astype(jnp.int32), *columns)
    return jnp.clip((width / box.width * box.height).astype(jnp.int32), *rows), width


def sample_destination(
    key: jax.Array,
    size: tuple[jax.Array, jax.Array],
    shape: tuple[int, int],
    patch_object: jax.Array | None,
    windows: jax.Array | None,
    table: jax.Array | None,
    *,
    settings: Synthesis,
) -> tuple[Box, jax.Array]:
    """Draws where the patch goes (equations 10 to 12): wholly inside the image, one pixel from its border.

    As on the host it is the patch itself that must show enough object, unless ``settings.object_test`` says that it is
    the destination below it, as in equation 11.

    Args:
      key: PRNG key.
      size: Height and width of the patch, int32 scalars.
      shape: Height and width of the image.
      patch_object: bool (n, m), object of the patch in a static window, or None to accept any place.
      windows: `bit_windows` of the destination's object, or None as well.
      table: `area_table` of the destination's object, or None as well.
      settings: The category's settings.

    Returns:
      The box and whether a place was found, bool.
    """
    count = 1 if patch_object is None else _TRIED
    free = jnp.array([side - 2 * (length // 2) - 2 for length, side in zip(size, shape, strict=True)])
    top, left = 1 + _integers(key, free, count)
    boxes = Box(top, left, *(jnp.full(count, length) for length in size))
    if patch_object is None:
        return Box(*(side[0] for side in boxes)), jnp.array(True)
    total = patch_object.sum()
    words = pack(patch_object)
    overlap = jax.vmap(lambda top, left: overlap_count(words, windows, top, left))(top, left) / total
    share = object_share(table, boxes) if settings.object_test == "destination" else total / (size[0] * size[1])
    return _first(boxes, (overlap > settings.overlap) & (share > settings.object_fraction))


def _first(boxes: Box, accepted: jax.Array) -> tuple[Box, jax.Array]:
    index = jnp.argmax(accepted)
    return Box(*(side[index] for side in boxes)), accepted.any()


def _integers(key: jax.Array, bounds: jax.Array, count: int) -> jax.Array:
    """Whole numbers, uniform from 0 to below each of the bounds (k,): int32 (k, count)."""
    shares = jax.random.uniform(key, (len(bounds), count))
    return jnp.floor(shares * bounds[:, None]).astype(jnp.int32)


def _gamma_boxes(key: jax.Array, shape: tuple[int, int], count: int, settings: Synthesis) -> Box:
    sizes, places = jax.random.split(key)
    gamma_shape, scale, offset = settings.gamma
    sides, bounds = jnp.array(shape), (settings.half_height, settings.half_width)
    low, high = jnp.array([pixel_bounds(b, side) for b, side in zip(bounds, shape, strict=True)]).T
    # A Gamma variable of whole shape is a sum of that many exponential ones.
    drawn = offset + scale * jax.random.exponential(sizes, (2, int(gamma_shape))).sum(axis=1)
    half = jnp.clip(drawn * sides, low, high).astype(jnp.int32)[:, None]
    centres = low[:, None] + _integers(places, sides - 2 * low, count)
    first, last = jnp.maximum(centres - half, 0), jnp.minimum(centres + half, sides[:, None])
    return Box(*first, *(last - first))


def _cutpaste_boxes(key: jax.Array, shape: tuple[int, int], count: int, settings: Synthesis) -> Box:
    sizes, places = jax.random.split(key)
    size = sample_box(sizes, shape, options=CutPasteOptions())
    keys = jax.random.split(places, count)
    top, left = jax.vmap(lambda key: sample_place(key, shape, size.height, size.width))(keys)
    return Box(top, left, jnp.full(count, size.height), jnp.full(count, size.width))
