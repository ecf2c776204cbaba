"""Poisson blending on the device: what ``cv2.seamlessClone`` computes, with static shapes, batched by ``jax.vmap``.

OpenCV solves for the image whose gradients are the patch's inside the mask and the destination's elsewhere, in the
bounding box of the mask, with the destination on the box's border (Schlüter et al. 2022, equations 1 to 4; Pérez et
al. 2003). Its equation is linear, so here the *correction* r to the destination u is solved for,

    laplacian r = div(w (v - grad u)),    r = 0 on the box's border,

with v the guiding gradients and w the eroded mask. Where the patch changes nothing, r is exactly zero.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class _Span(NamedTuple):
    """The rows (or columns) strictly inside the box's border: window index of the first, and their number, int32."""

    first: jax.Array
    count: jax.Array


def clone(patch: jax.Array, under: jax.Array, mask: jax.Array, *, mixed: bool) -> jax.Array:
    """Poisson-blends a patch over the image under it, as ``cv2.seamlessClone`` does before it rounds.

    As there, the outermost ring of the mask counts as zero, the patch is black outside the mask, the box is the
    bounding box of the mask's non-zero pixels (found inside: a larger window changes nothing), and the mask is eroded
    three times by 3x3 before it weights the gradients, grey levels by their minimum. A box without an interior (less
    than 3 pixels on a side; OpenCV fails there) or without a pixel leaves the image as it is.

    The Laplacian is inverted by the type-I sine transform, written as four matrix products at
    ``jax.lax.Precision.HIGHEST``: by default a TPU would round their operands to bfloat16, and a GPU to TF32, with
    errors of some tenths and some hundredths of a grey level; float32 keeps within 1e-3 for boxes of 102 pixels a
    side. What decides here is small, as a solution of 99.999 is truncated to 99.

    Args:
      patch: float32 (h, w, c), grey levels from 0 to 255; h and w are 3 or more.
      under: float32 (h, w, c), grey levels of the destination.
      mask: float32 (h, w) in [0, 1], the weight of the patch's gradients: 0 outside, 1 for plain cloning, and
        level / 255 where OpenCV is given a grey mask.
      mixed: False for the patch's gradients (NORMAL_CLONE). True (MIXED_CLONE) takes, per pixel and channel, the
        patch's (gx, gy) where its |gx - gy| exceeds the destination's, and the destination's elsewhere.

    Returns:
      float32 (h, w, c), neither clipped nor rounded (see ``truncate``); equal to ``under`` outside the box and on its
      border.
    """
    inner = mask[1:-1, 1:-1]
    mask = jnp.pad(inner, 1)
    source = jnp.where(mask[..., None] > 0, patch, 0)
    weight = _erode(mask)[:-1, :-1, None]
    if mixed:
        weight = jnp.where(_contrast(source) > _contrast(under), weight, 0)
    rows, columns = (_interior((inner > 0).any(axis=axis)) for axis in (1, 0))
    correction = _solve(_divergence(weight, source - under), rows, columns)
    return under + jnp.pad(correction, ((1, 1), (1, 1), (0, 0)))


def truncate(blended: jax.Array) -> jax.Array:
    """Whole grey levels as OpenCV makes them: clipped to [0, 255] and truncated, not rounded; float32, any shape."""
    return jnp.floor(jnp.clip(blended, 0, 255))


def _erode(mask: jax.Array) -> jax.Array:
    """The smallest of each 7x7 neighbourhood, which is what three erosions by 3x3 leave."""
    for window in ((7, 1), (1, 7)):
        mask = jax.lax.reduce_window(mask, jnp.inf, jax.lax.min, window, (1, 1), "SAME")
    return mask


def _contrast(image: jax.Array) -> jax.Array:
    """|gx - gy| of the forward differences, in which the pixel itself cancels; (h - 1, w - 1, c)."""
    return jnp.abs(image[:-1, 1:] - image[1:, :-1])


def _divergence(weight: jax.Array, image: jax.Array) -> jax.Array:
    """div(weight grad image) in the window less its outermost ring, (h - 2, w - 2, c).

    Gradients are forward and the divergence backward differences, so that it is the 5-point Laplacian at weight 1;
    ``weight`` is (h - 1, w - 1, c or 1).
    """
    x = weight * jnp.diff(image, axis=1)[:-1]
    y = weight * jnp.diff(image, axis=0)[:, :-1]
    return jnp.diff(x, axis=1)[1:] + jnp.diff(y, axis=0)[:, 1:]


def _interior(occupied: jax.Array) -> _Span:
    """What lies strictly between the first and the last True of bool (n,); anything in the window if none is."""
    first = jnp.argmax(occupied) + 1
    last = len(occupied) - 2 - jnp.argmax(occupied[::-1])
    return _Span(first, jnp.maximum(last - first + 1, 0))


def _solve(divergence: jax.Array, rows: _Span, columns: _Span) -> jax.Array:
    """Inverts the 5-point Laplacian on the box's interior, zero on and outside its border; (h, w, c)."""
    height, width, _ = divergence.shape
    vertical, horizontal = _sines(height, rows), _sines(width, columns)
    eigenvalues = _eigenvalues(height, rows)[:, None] + _eigenvalues(width, columns)
    # Channels lie between rows and columns, so that all four are plain matrix products.
    spectrum = _product("ik,ijc->kcj", vertical, divergence)
    spectrum = _product("kcj,jl->kcl", spectrum, horizontal) / eigenvalues[:, None]
    correction = _product("kcl,jl->kcj", spectrum, horizontal)
    return _product("ik,kcj->ijc", vertical, correction)


def _product(subscripts: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, left, right, precision=jax.lax.Precision.HIGHEST)


def _sines(length: int, span: _Span) -> jax.Array:
    """The orthonormal type-I sine basis of the interior (window index, frequency), zero in the rest of the window."""
    position = jnp.arange(length)[:, None] - span.first + 1
    frequency = jnp.arange(length) + 1
    period = 2 * (span.count + 1)
    # Reduced in whole numbers: the sine of a large float32 angle would be wrong.
    angle = (position * frequency % period) * (2 * jnp.pi / period)
    valid = (position >= 1) & (position <= span.count) & (frequency <= span.count)
    return jnp.where(valid, jnp.sin(angle) * jnp.sqrt(2 / (span.count + 1)), 0)


def _eigenvalues(length: int, span: _Span) -> jax.Array:
    """Those of the second difference, negative, by frequency; -1 where there is none, to divide a zero by."""
    frequency = jnp.arange(length) + 1
    # 2 cos(2 a) - 2 would cancel for the low frequencies, which matter most.
    values = -4 * jnp.sin(frequency * (jnp.pi / 2) / (span.count + 1)) ** 2
    return jnp.where(frequency <= span.count, values, -1)
