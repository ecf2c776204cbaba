"""NSA's synthetic defects on the device: `host.random_synthesize` with static shapes (Schlüter et al. 2022, Section 3).

Where patches come from and go to depends on the images as they were, so it is drawn for all patches at once
(`sampling`); only the blending is one patch after another. The paper's baselines and ablations are settings of the
same function: see `settings.Synthesis`. Everything is for one image; callers use ``jax.vmap``.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxad.augment.boxes import Box, box_mask
from jaxad.augment.nsa import host, labels, median_filters, poisson, sampling
from jaxad.augment.nsa.settings import (
    BLENDINGS,
    CONTINUOUS,
    LABELS,
    OBJECT_TESTS,
    SHAPES,
    SIZE_BOUNDS,
    SOURCES,
    Synthesis,
)
from jaxad.errors import UserError

_POISSON = ("source", "mixed")
_ELLIPSES = 5
_ONE = 2048  # OpenCV's fixed point: a weight of 1


class Synthetic(NamedTuple):
    """A synthetic example.

    Attributes:
      image: uint8 (h, w, c), the blended image.
      label: float32 (h, w), what the network is taught.
      mask: uint8 (h, w) of 0 and 1, the label mask: object pixels of the patches.
      boxes: int32 (settings.patches, 4), the destination boxes in order: top, bottom, left, right; zeros where no
        patch was blended.
      patches: int32, number of patches that were blended.
      skipped: int32, number of patches that were tried and found no place, or were too small to blend.
    """

    image: jax.Array
    label: jax.Array
    mask: jax.Array
    boxes: jax.Array
    patches: jax.Array
    skipped: jax.Array


class Patch(NamedTuple):
    """A patch that is ready to be blended, in a static window (n, m) whose corner is the box's.

    Attributes:
      pixels: uint8 (n, m, c), resized.
      box: Where it goes.
      label: bool (n, m), its part of the label mask.
      blend: bool (n, m), the mask of the blending.
      accepted: bool, whether there is a place for it and enough of it to blend.
    """

    pixels: jax.Array
    box: Box
    label: jax.Array
    blend: jax.Array
    accepted: jax.Array


class Defects(NamedTuple):
    """One draw of an image's synthetic defects.

    Attributes:
      patches: `settings.patches` of them, stacked along a first axis.
      tried: bool (settings.patches,), which of them the example has, if they find a place.
      factor: float32, the factor of the blending.
    """

    patches: Patch
    tried: jax.Array
    factor: jax.Array


class _Objects(NamedTuple):
    """The objects before a plain background, in the images as they were before the first patch.

    Attributes:
      source: bool (h, w), of the patches' image.
      table: Its `sampling.area_table`.
      under: bool (h + n, w + m), of the destination, padded by the window.
      windows: Its `sampling.bit_windows`.
      under_table: Its `sampling.area_table`.
    """

    source: jax.Array
    table: jax.Array
    under: jax.Array
    windows: jax.Array
    under_table: jax.Array


def sample_defects(key: jax.Array, image: jax.Array, partner: jax.Array, *, settings: Synthesis) -> Defects:
    """Draws patches of ``partner``, their places in ``image`` and the factor of the blending.

    The first patch is always tried, each further one with probability 1/2, up to ``settings.patches``.

    Args:
      key: PRNG key.
      image: uint8 (h, w, c) with c = 3 or 1, the destination.
      partner: uint8 (h, w, c), another training image, the source of the patches; unused with source "same".
      settings: The category's settings (static).

    Raises:
      UserError: As `check`.
      ValueError: The images differ in shape.
    """
    check(image.shape, settings=settings)
    if image.shape != partner.shape:
        raise ValueError(f"image and partner differ in shape: {image.shape} and {partner.shape}")
    coins, factors, drawn = jax.random.split(key, 3)
    tried = jnp.arange(settings.patches) == 0
    tried |= jax.random.bernoulli(coins, 0.5, (settings.patches,))
    factor = jax.random.uniform(factors, minval=settings.factor[0], maxval=settings.factor[1])
    source = image if settings.source == "same" else partner
    window = sampling.window(image.shape, settings=settings)
    objects = _find_objects(image, source, window, settings)
    draw = functools.partial(_draw_patch, source=source, objects=objects, window=window, settings=settings)
    patches = jax.vmap(draw)(jax.random.split(drawn, settings.patches))
    return Defects(patches._replace(accepted=patches.accepted & tried), tried, factor)


def synthesize(image: jax.Array, defects: Defects, *, settings: Synthesis, label: str = "logistic") -> Synthetic:
    """Blends patches into ``image`` and labels the change.

    Args:
      image: uint8 (h, w, c) with c = 3 or 1, the destination.
      defects: What `sample_defects` returned for it.
      settings: The category's settings (static).
      label: A name of `settings.LABELS`; "factor" is the factor of the blending where the binary label is 1.

    Returns:
      The example; its label is zero everywhere when every patch was skipped.

    Raises:
      UserError: As `check`.
    """
    check(image.shape, settings=settings, label=label)
    patches, tried, factor = defects
    blended, mask = _blend_all(image, patches, factor, settings)
    top, left, height, width = patches.box
    boxes = jnp.stack([top, top + height, left, left + width], axis=1) * patches.accepted[:, None]
    count = patches.accepted.sum(dtype=jnp.int32)
    label_map = _label(label, image, blended, mask, factor, settings)
    return Synthetic(blended, label_map, mask, boxes, count, tried.sum(dtype=jnp.int32) - count)


def random_synthesize(
    key: jax.Array, image: jax.Array, partner: jax.Array, *, settings: Synthesis, label: str = "logistic"
) -> Synthetic:
    """Blends random patches of ``partner`` into ``image``, in the distribution of `host.random_synthesize`.

    A patch that finds no place leaves the image as it is.

    Args:
      key: PRNG key.
      image: uint8 (h, w, c) with c = 3 or 1, the destination.
      partner: uint8 (h, w, c), another training image, the source of the patches; unused with source "same".
      settings: The category's settings (static).
      label: As of `synthesize`.

    Returns:
      The example; its label is zero everywhere when every patch was skipped.

    Raises:
      UserError: As `check`.
      ValueError: The images differ in shape.
    """
    defects = sample_defects(key, image, partner, settings=settings)
    return synthesize(image, defects, settings=settings, label=label)


def check(shape: tuple[int, ...], *, settings: Synthesis, label: str = "logistic") -> None:
    """Refuses settings that cannot be drawn on the device, for images of `shape` (h, w, ...), before they are traced.

    Raises:
      UserError: A name is unknown, settings contradict each other, or patches can be too large for the image.
    """
    named = {"synthesis.source": (settings.source, SOURCES), "synthesis.shape": (settings.shape, SHAPES)}
    named |= {"synthesis.blending": (settings.blending, BLENDINGS), "label": (label, LABELS)}
    named |= {"synthesis.size_bounds": (settings.size_bounds, SIZE_BOUNDS)}
    named |= {"synthesis.object_test": (settings.object_test, OBJECT_TESTS)}
    for name, (value, known) in named.items():
        if value not in known:
            raise UserError(f"config.{name} must be one of {', '.join(known)}, not {value!r}", about=name)
    if settings.gamma[0] != int(settings.gamma[0]) or settings.gamma[0] < 1:
        raise UserError(
            f"config.synthesis.gamma has the shape {settings.gamma[0]}, but the device draws whole shapes from 1 only; "
            "make it whole or set config.data.synthesis to host",
            about="synthesis.gamma",
        )
    if settings.resized and not settings.moved:
        raise UserError(
            "config.synthesis.moved false needs config.synthesis.resized false: it would change the place",
            about="synthesis.moved",
        )
    if settings.resized and settings.size_bounds == "full" and settings.shape == "cutpaste":
        raise UserError(
            "config.synthesis.size_bounds full is for patches that were drawn within these bounds, but "
            "config.synthesis.shape cutpaste has its own; set one of them otherwise, or config.synthesis.resized=false",
            about="synthesis.size_bounds",
        )
    low, high = settings.factor
    if not 0 < low <= high <= 1:
        raise UserError(
            f"config.synthesis.factor must be (low, high) with 0 < low <= high <= 1, not {settings.factor}",
            about="synthesis.factor",
        )
    if settings.blending == "paste" and low != 1:
        raise UserError(
            "config.synthesis.blending paste has no factor; set config.synthesis.factor to (1.0, 1.0)",
            about="synthesis.blending",
        )
    window = sampling.window(shape, settings=settings)
    if settings.moved and any(length > side - 3 for length, side in zip(window, shape, strict=False)):
        raise UserError(
            f"a patch of up to {window[0]}x{window[1]} pixels cannot be moved in an image of {shape[0]}x{shape[1]}; "
            "lower config.synthesis.half_height or config.synthesis.half_width",
            about="synthesis.half_height",
        )


def object_mask(image: jax.Array, *, background: tuple[float, float] | None) -> jax.Array | None:
    """Pixels unlike a plain background (equation 8), bool (h, w), or None without one: see `host.object_mask`."""
    if background is None:
        return None
    brightness, threshold = background
    total = image.astype(jnp.float32).sum(axis=2)
    return median_filters.majority(jnp.abs(total - brightness * image.shape[2]) > threshold * image.shape[2], 7)


def resize(planes: jax.Array, box: Box, size: tuple[jax.Array, jax.Array], window: tuple[int, int]) -> jax.Array:
    """Bilinear resizing of a part of an image, as OpenCV computes it for uint8 (`host.resize`).

    Pixels have their centres half-way, the box's edge pixels are repeated outwards, and nothing is smoothed before.
    OpenCV works in whole numbers and truncates between columns and rows. So does this, in the same places, because it
    decides over the border of a mask of 0 and 1: only weights half-way between multiples of 1/2048 may round
    differently.

    Args:
      planes: uint8 (c, h, w) with c at most 4.
      box: The part, int32 scalars.
      size: Height and width of the result, int32 scalars.
      window: Static height and width, at least the size.

    Returns:
      int32 (c, n, m); beyond the size its last row and column go on.
    """
    first, second, down = _neighbours(box.top, box.height, size[0], window[0])
    left, right, across = _neighbours(box.left, box.width, size[1], window[1])
    # All values of a pixel travel in one word, and only once: the barrier keeps XLA from fetching it for each value.
    shifts = 8 * jnp.arange(len(planes), dtype=jnp.uint32)[:, None, None]
    words = (planes.astype(jnp.uint32) << shifts).sum(axis=0, dtype=jnp.uint32)
    rows = jnp.take(words, jnp.concatenate([first, second]), axis=0, mode="clip")
    pixels = jnp.take(rows, jnp.concatenate([left, right]), axis=1, mode="clip")
    values = (jax.lax.optimization_barrier(pixels) >> shifts & 255).astype(jnp.int32)
    left, right = jnp.split(values, 2, axis=2)
    above, below = jnp.split(((_ONE - across) * left + across * right) >> 4, 2, axis=1)
    down = down[:, None]
    return (((_ONE - down) * above >> 16) + (down * below >> 16) + 2) >> 2


def _neighbours(start: jax.Array, length: jax.Array, size: jax.Array, count: int) -> tuple[jax.Array, ...]:
    """For each of ``count`` resized pixels, both pixels that it lies between and the second one's weight in 1/2048."""
    position = (2 * jnp.arange(count) + 1) * length - size  # in units of 1 / (2 size)
    first = position // (2 * size)
    weight = (_ONE * (position - first * 2 * size) + size) // (2 * size)
    return start + jnp.clip(first, 0, length - 1), start + jnp.clip(first + 1, 0, length - 1), weight


def sample_ellipses(
    key: jax.Array,
    box: Box,
    size: tuple[jax.Array, jax.Array],
    window: tuple[int, int],
    *,
    least: tuple[int, int],
) -> jax.Array:
    """Draws the union of 5 ellipses in a patch, in the source's pixels and resized with it (ablation D).

    The paper says no more. Centres are uniform in the box, angles uniform, and semi-axes uniform from the smallest
    half-size of a patch to a quarter of the box's side, about as in the authors' program. Unlike there, places are
    judged by the whole box, and the ellipses are turned (where a sign in the program makes bands of some).

    Args:
      key: PRNG key.
      box: The part of the source image, int32 scalars.
      size: Height and width after resizing, int32 scalars.
      window: Static height and width, at least the size.
      least: Smallest half-height and half-width of a patch in pixels.

    Returns:
      bool (n, m).
    """
    row, column, high, wide, angle = jax.random.uniform(key, (5, _ELLIPSES, 1, 1))
    high, wide = (
        low + share * jnp.maximum(side / 4 - low, 0)
        for share, low, side in zip((high, wide), least, (box.height, box.width), strict=True)
    )
    down = ((jnp.arange(window[0])[:, None] + 0.5) / size[0] - row) * box.height
    right = ((jnp.arange(window[1]) + 0.5) / size[1] - column) * box.width
    cosine, sine = jnp.cos(jnp.pi * angle), jnp.sin(jnp.pi * angle)
    along, across = down * cosine + right * sine, right * cosine - down * sine
    return ((along / high) ** 2 + (across / wide) ** 2 <= 1).any(axis=0)


def _find_objects(image: jax.Array, source: jax.Array, window: tuple[int, int], settings: Synthesis) -> _Objects | None:
    if settings.background is None:
        return None
    cut, under = (object_mask(x, background=settings.background) for x in (source, image))
    tables = sampling.area_table(cut), sampling.area_table(under)
    return _Objects(cut, tables[0], _pad(under, window), sampling.bit_windows(under, window), tables[1])


def _draw_patch(
    key: jax.Array, source: jax.Array, objects: _Objects | None, window: tuple[int, int], settings: Synthesis
) -> Patch:
    """Draws a patch of ``source``, as if it were tried."""
    shape, bounds = source.shape[:2], (settings.half_height, settings.half_width)
    sources, sizes, places, shapes = jax.random.split(key, 4)
    cut, found = sampling.sample_source(sources, shape, objects and objects.table, settings=settings)
    size = sampling.sample_size(sizes, cut, shape, settings=settings) if settings.resized else (cut.height, cut.width)
    planes = jnp.moveaxis(source, 2, 0)
    if objects is not None:  # the object is resized with the image
        planes = jnp.concatenate([planes, objects.source[None].astype(jnp.uint8)])
    patch = resize(planes, cut, size, window) if settings.resized else _cut(planes, cut, window)
    pixels = jnp.moveaxis(patch[: source.shape[2]], 0, 2).astype(jnp.uint8)
    inside, inner = box_mask(Box(0, 0, *size), window), box_mask(Box(1, 1, size[0] - 2, size[1] - 2), window)
    patch_object = None if objects is None else (patch[-1] > 0) & inside
    box, placed = cut, True
    if settings.moved:
        tests = (None, None) if objects is None else (objects.windows, objects.under_table)
        box, placed = sampling.sample_destination(places, size, shape, patch_object, *tests, settings=settings)
    shown = inside  # without a background, everything is object
    if objects is not None:
        shown = patch_object | jax.lax.dynamic_slice(objects.under, (box.top, box.left), window)
    label = inside & shown
    if settings.shape == "ellipses":
        least = [sampling.pixel_bounds(b, side)[0] for b, side in zip(bounds, shape, strict=True)]
        label &= sample_ellipses(shapes, cut, size, window, least=least)
    # What is background in both images is blended too, so that a rectangle is blended as a whole.
    blend = inner & (label | ~shown)
    accepted = found & placed
    if settings.blending in _POISSON:
        accepted &= is_blendable(blend)
    return Patch(pixels, box, label, blend, accepted)


def is_blendable(mask: jax.Array) -> jax.Array:
    """Whether a blending mask, bool (n, m), has at least 50 pixels in 3 rows and 3 columns: see `host.is_blendable`."""
    narrowest = jnp.minimum(mask.any(axis=0).sum(), mask.any(axis=1).sum())
    return (narrowest >= host.NARROWEST_MASK) & (mask.sum() >= host.SMALLEST_MASK)


def _blend_all(
    image: jax.Array, patches: Patch, factor: jax.Array, settings: Synthesis
) -> tuple[jax.Array, jax.Array]:
    """Blends the accepted patches in order; the image, uint8 (h, w, c), and the label mask, uint8 (h, w)."""
    height, width, channels = image.shape
    window = patches.label.shape[1:]

    def add(state: tuple[jax.Array, jax.Array], patch: Patch) -> tuple[tuple[jax.Array, jax.Array], None]:
        image, mask = state
        corner = patch.box.top, patch.box.left
        under = jax.lax.dynamic_slice(image, (*corner, np.int32(0)), (*window, channels))
        blended = jnp.where(patch.accepted, _blend(patch, under, factor, settings), under)
        before = jax.lax.dynamic_slice(mask, corner, window)
        inside = box_mask(Box(0, 0, patch.box.height, patch.box.width), window)
        # A later patch overwrites its rectangle of the mask.
        after = jnp.where(inside & patch.accepted, patch.label.astype(jnp.uint8), before)
        image = jax.lax.dynamic_update_slice(image, blended, (*corner, np.int32(0)))
        return (image, jax.lax.dynamic_update_slice(mask, after, corner)), None

    padded = _pad(image, window)
    # Made from the image, so that both parts of the state vary over the same mapped axes.
    (image, mask), _ = jax.lax.scan(add, (padded, jnp.zeros_like(padded[..., 0])), patches)
    return image[:height, :width], mask[:height, :width]


def _blend(patch: Patch, under: jax.Array, factor: jax.Array, settings: Synthesis) -> jax.Array:
    """A patch blended over uint8 (n, m, c); equal to it where nothing is blended."""
    pixels, under = patch.pixels.astype(jnp.float32), under.astype(jnp.float32)
    if settings.blending in _POISSON:
        weight = patch.blend * (jnp.ceil(255 * factor) / 255)  # a grey level of OpenCV's mask
        blended = poisson.truncate(poisson.clone(pixels, under, weight, mixed=settings.blending == "mixed"))
    else:
        blended = jnp.floor(under + patch.label[..., None] * factor * (pixels - under))
    return blended.astype(jnp.uint8)


def _pad(image: jax.Array, window: tuple[int, int]) -> jax.Array:
    """Zeros below and to the right, so that a window from any pixel on lies inside."""
    return jnp.pad(image, ((0, window[0]), (0, window[1]), *((0, 0),) * (image.ndim - 2)))


def _cut(planes: jax.Array, box: Box, window: tuple[int, int]) -> jax.Array:
    """The window (c, n, m) of (c, h, w) that begins at a box's corner."""
    padded = jnp.pad(planes, ((0, 0), (0, window[0]), (0, window[1])))
    return jax.lax.dynamic_slice(padded, (np.int32(0), box.top, box.left), (len(planes), *window))


def _label(
    kind: str, image: jax.Array, blended: jax.Array, mask: jax.Array, factor: jax.Array, settings: Synthesis
) -> jax.Array:
    change = {"tolerance": settings.tolerance}
    if kind in CONTINUOUS:
        return labels.continuous(image, blended, mask, **change)
    if kind == "logistic":
        sigmoid = {"steepness": settings.steepness, "midpoint": settings.midpoint}
        return labels.logistic(image, blended, mask, **sigmoid, **change)
    binary = labels.binary(image, blended, mask, **change)
    return factor * binary if kind == "factor" else binary
