"""CutPaste and CutPaste-Scar on the device (Li et al. 2021, Section 2.2 and Appendix A.2).

A draw is a small record, and a deterministic function applies it to a window of static size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxad.augment import color
from jaxad.augment.boxes import (
    Bar,
    Box,
    bar_pixels,
    box_limit,
    box_mask,
    draw_place,
    sample_bar,
    sample_box,
    scar_limit,
)
from jaxad.augment.cutpaste.options import CutPasteOptions


class Patch(NamedTuple):
    """One CutPaste: where the patch is cut, where it is pasted, and its colour jitter (None for none)."""

    source_top: jax.Array
    source_left: jax.Array
    box: Box
    jitter: color.Jitter | None


class Scar(NamedTuple):
    """One CutPaste-Scar: where the upright scar is cut, where it is pasted, and its colour jitter (None for none)."""

    source_top: jax.Array
    source_left: jax.Array
    bar: Bar
    jitter: color.Jitter | None


def _corner(image: jax.Array, top: jax.Array, left: jax.Array, window: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Where a window of static size starts so that it lies in the image and holds what begins at (top, left)."""
    return jnp.minimum(top, image.shape[0] - window[0]), jnp.minimum(left, image.shape[1] - window[1])


def paste(image: jax.Array, patch: Patch, *, window: tuple[int, int]) -> jax.Array:
    """Pastes a patch of an image at another place of it.

    Args:
      image: float32 (h, w, 3) in [0, 1].
      patch: What to cut and where to paste it; both places lie in the image.
      window: Static height and width, at least the patch's and at most the image's; what is worked on.

    Returns:
      float32 (h, w, 3); bit-identical to the image outside the pasted patch.
    """
    box = patch.box
    source = _corner(image, patch.source_top, patch.source_left, window)
    target = _corner(image, box.top, box.left, window)
    down = (box.top - target[0]) - (patch.source_top - source[0])
    right = (box.left - target[1]) - (patch.source_left - source[1])
    cut = jnp.roll(jax.lax.dynamic_slice(image, (*source, 0), (*window, 3)), (down, right), (0, 1))
    inside = box_mask(box._replace(top=box.top - target[0], left=box.left - target[1]), window)
    if patch.jitter is not None:
        cut = color.jitter(cut, patch.jitter, inside)
    under = jax.lax.dynamic_slice(image, (*target, 0), (*window, 3))
    return jax.lax.dynamic_update_slice(image, jnp.where(inside[..., None], cut, under), (*target, 0))


def paste_scar(image: jax.Array, scar: Scar, *, window: int) -> jax.Array:
    """Pastes an upright rectangle of an image rotated at another place of it, each pixel from the nearest one.

    Args:
      image: float32 (h, w, 3) in [0, 1].
      scar: What to cut and where to paste it; both places lie in the image.
      window: Static side of the square that is worked on, at least the diagonal of the scar and at most the image's
        shorter side.

    Returns:
      float32 (h, w, 3); bit-identical to the image outside the pasted scar.
    """
    square = (window, window)
    source = _corner(image, scar.source_top, scar.source_left, square)
    skipped = (scar.source_top - source[0], scar.source_left - source[1])
    cut = jax.lax.dynamic_slice(image, (*source, 0), (*square, 3))
    if scar.jitter is not None:
        cut = color.jitter(cut, scar.jitter, box_mask(Box(*skipped, scar.bar.length, scar.bar.width), square))
    target = _corner(image, scar.bar.top, scar.bar.left, square)
    steps = jnp.arange(window)
    row, column, inside = bar_pixels(scar.bar, target[0] + steps[:, None], target[1] + steps)
    rotated = cut[jnp.where(inside, row + skipped[0], 0), jnp.where(inside, column + skipped[1], 0)]
    under = jax.lax.dynamic_slice(image, (*target, 0), (*square, 3))
    return jax.lax.dynamic_update_slice(image, jnp.where(inside[..., None], rotated, under), (*target, 0))


def _sample_jitter(key: jax.Array, options: CutPasteOptions) -> color.Jitter | None:
    color.check_strength(options.jitter, "config.proxy.jitter")
    return color.sample_jitter(key, strength=options.jitter, hue=options.jitter) if options.jitter else None


def sample_patch(key: jax.Array, shape: tuple[int, ...], *, options: CutPasteOptions) -> Patch:
    """Draws a CutPaste for an image of `shape` (h, w, ...); raises UserError as `box_limit`."""
    boxes, sources, jitters = jax.random.split(key, 3)
    box = sample_box(boxes, shape, options=options)
    return Patch(*draw_place(sources, shape, box.height, box.width), box, _sample_jitter(jitters, options))


def sample_scar(key: jax.Array, shape: tuple[int, ...], *, options: CutPasteOptions) -> Scar:
    """Draws a CutPaste-Scar for an image of `shape` (h, w, ...); raises UserError as `scar_limit`."""
    bars, sources, jitters = jax.random.split(key, 3)
    bar = sample_bar(bars, shape, options=options)
    return Scar(*draw_place(sources, shape, bar.length, bar.width), bar, _sample_jitter(jitters, options))


def cutpaste(key: jax.Array, image: jax.Array, *, options: CutPasteOptions) -> jax.Array:
    """CutPaste: a patch of the image, its colours jittered, pasted at another place; float32 (h, w, 3) in [0, 1]."""
    window = box_limit(image.shape, options=options)
    return paste(image, sample_patch(key, image.shape, options=options), window=window)


def cutpaste_scar(key: jax.Array, image: jax.Array, *, options: CutPasteOptions) -> jax.Array:
    """CutPaste-Scar: a thin, long patch, jittered and rotated, pasted at another place; float32 (h, w, 3) in [0, 1]."""
    window = scar_limit(image.shape, options=options)
    return paste_scar(image, sample_scar(key, image.shape, options=options), window=window)
