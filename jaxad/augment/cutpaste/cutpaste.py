"""CutPaste and CutPaste-Scar on the device (Li et al. 2021, Section 2.2 and Appendix A.2).

A draw is a small record, and a deterministic function applies it to a window of static size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxad.augment import color
from jaxad.augment.boxes import (
    Box,
    RotatedBox,
    box_limit,
    box_mask,
    rotated_pixels,
    sample_box,
    sample_place,
    sample_rotated_box,
    scar_limit,
)
from jaxad.augment.cutpaste.options import CutPasteOptions

_FIRST = np.int32(0)  # the first channel; all places of a slice have one type, also in a process with 64 bits


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
    box: RotatedBox
    jitter: color.Jitter | None


def _corner(image: jax.Array, top: jax.Array, left: jax.Array, window: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Where a window of static size starts so that it lies in the image and holds what begins at (top, left)."""
    return jnp.minimum(top, image.shape[0] - window[0]), jnp.minimum(left, image.shape[1] - window[1])


def paste_patch(image: jax.Array, patch: Patch, *, window: tuple[int, int]) -> jax.Array:
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
    cut = jnp.roll(jax.lax.dynamic_slice(image, (*source, _FIRST), (*window, 3)), (down, right), (0, 1))
    inside = box_mask(box._replace(top=box.top - target[0], left=box.left - target[1]), window)
    if patch.jitter is not None:
        cut = color.color_jitter(cut, patch.jitter, inside)
    under = jax.lax.dynamic_slice(image, (*target, _FIRST), (*window, 3))
    return jax.lax.dynamic_update_slice(image, jnp.where(inside[..., None], cut, under), (*target, _FIRST))


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
    cut = jax.lax.dynamic_slice(image, (*source, _FIRST), (*square, 3))
    if scar.jitter is not None:
        cut = color.color_jitter(cut, scar.jitter, box_mask(Box(*skipped, scar.box.length, scar.box.width), square))
    target = _corner(image, scar.box.top, scar.box.left, square)
    steps = jnp.arange(window)
    row, column, inside = rotated_pixels(scar.box, target[0] + steps[:, None], target[1] + steps)
    rotated = cut[jnp.where(inside, row + skipped[0], 0), jnp.where(inside, column + skipped[1], 0)]
    under = jax.lax.dynamic_slice(image, (*target, _FIRST), (*square, 3))
    return jax.lax.dynamic_update_slice(image, jnp.where(inside[..., None], rotated, under), (*target, _FIRST))


def paste_patch_or_scar(
    image: jax.Array, patch: Patch, scar: Scar, is_patch: jax.Array | bool, *, windows: tuple[tuple[int, int], int]
) -> jax.Array:
    """`paste_patch` where `is_patch`, else `paste_scar`; `windows` are those of the two."""
    return jnp.where(
        is_patch, paste_patch(image, patch, window=windows[0]), paste_scar(image, scar, window=windows[1])
    )


def _sample_jitter(key: jax.Array, options: CutPasteOptions) -> color.Jitter | None:
    color.check_strength(options.jitter, "config.proxy.jitter")
    return color.sample_jitter(key, strength=options.jitter, hue=options.jitter) if options.jitter else None


def sample_patch(key: jax.Array, shape: tuple[int, ...], *, options: CutPasteOptions) -> Patch:
    """Draws a CutPaste for an image of `shape` (h, w, ...); raises UserError as `box_limit`."""
    boxes, sources, jitters = jax.random.split(key, 3)
    box = sample_box(boxes, shape, options=options)
    return Patch(*sample_place(sources, shape, box.height, box.width), box, _sample_jitter(jitters, options))


def sample_scar(key: jax.Array, shape: tuple[int, ...], *, options: CutPasteOptions) -> Scar:
    """Draws a CutPaste-Scar for an image of `shape` (h, w, ...); raises UserError as `scar_limit`."""
    boxes, sources, jitters = jax.random.split(key, 3)
    box = sample_rotated_box(boxes, shape, options=options)
    return Scar(*sample_place(sources, shape, box.length, box.width), box, _sample_jitter(jitters, options))


def random_paste_patch(key: jax.Array, image: jax.Array, *, options: CutPasteOptions) -> jax.Array:
    """CutPaste: a patch of the image, its colors jittered, pasted at another place; float32 (h, w, 3) in [0, 1].

    Raises:
      UserError: As `box_limit`.
    """
    window = box_limit(image.shape, options=options)
    return paste_patch(image, sample_patch(key, image.shape, options=options), window=window)


def random_paste_scar(key: jax.Array, image: jax.Array, *, options: CutPasteOptions) -> jax.Array:
    """CutPaste-Scar: a thin, long patch, jittered and rotated, pasted at another place; float32 (h, w, 3) in [0, 1].

    Raises:
      UserError: As `scar_limit`.
    """
    window = scar_limit(image.shape, options=options)
    return paste_scar(image, sample_scar(key, image.shape, options=options), window=window)


def random_paste_patch_or_scar(key: jax.Array, image: jax.Array, *, options: CutPasteOptions) -> jax.Array:
    """CutPaste or CutPaste-Scar, each half of the time (Section 5.2); float32 (h, w, 3) in [0, 1]."""
    choice, drawn = jax.random.split(key)
    patch, scar = (sample(drawn, image.shape, options=options) for sample in (sample_patch, sample_scar))
    windows = box_limit(image.shape, options=options), scar_limit(image.shape, options=options)
    return paste_patch_or_scar(image, patch, scar, jax.random.bernoulli(choice), windows=windows)
