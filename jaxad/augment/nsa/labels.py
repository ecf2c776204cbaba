"""NSA's three pixel labels on the device (Schlüter et al. 2022, Section 3, equations 13 and 14).

The counterparts of `host_labels`, and equal to them where the tolerance is 1.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxad.augment.nsa import median_filters


def binary(original: jax.Array, blended: jax.Array, mask: jax.Array, *, tolerance: float = 1.0) -> jax.Array:
    """Where blending changed the image (equation 13): mean absolute difference above a tolerance, 5x5 median.

    Args:
      original: uint8 (h, w, c), before blending.
      blended: uint8 (h, w, c), after blending.
      mask: (h, w) of 0 and 1, the label mask.
      tolerance: In grey levels: 1 on the host and in the authors' program, 0 as the equation is printed.

    Returns:
      float32 (h, w) of 0 and 1.
    """
    return _changed(_difference(original, blended), mask, original.shape[2], tolerance).astype(jnp.float32)


def continuous(original: jax.Array, blended: jax.Array, mask: jax.Array, *, tolerance: float = 1.0) -> jax.Array:
    """How far blending changed the image (equation 13): mean difference on ``binary``, median over a disk of radius 5.

    Args:
      original: uint8 (h, w, c), before blending.
      blended: uint8 (h, w, c), after blending.
      mask: (h, w) of 0 and 1, the label mask.
      tolerance: In grey levels: 1 on the host and in the authors' program, 0 as the equation is printed.

    Returns:
      float32 (h, w), grey levels in [0, 255].
    """
    return jnp.asarray(_levels(original.shape[2]))[_changed_and_median(original, blended, mask, tolerance)[1]]


def logistic(
    original: jax.Array,
    blended: jax.Array,
    mask: jax.Array,
    *,
    steepness: float,
    midpoint: float,
    tolerance: float = 1.0,
) -> jax.Array:
    """The degree of abnormality: a logistic function of ``continuous``, zero outside ``binary`` (equation 14).

    Args:
      original: uint8 (h, w, c), before blending.
      blended: uint8 (h, w, c), after blending.
      mask: (h, w) of 0 and 1, the label mask.
      steepness: The paper's k, per grey level.
      midpoint: The paper's y0 in grey levels, where the label is 1/2.
      tolerance: Of ``binary``.

    Returns:
      float32 (h, w) in [0, 1].
    """
    changed, median = _changed_and_median(original, blended, mask, tolerance)
    # 1 / (1 + exp(-x)), in the form that cannot overflow.
    degrees = 0.5 + 0.5 * np.tanh(np.float32(steepness / 2) * (_levels(original.shape[2]) - np.float32(midpoint)))
    return changed * jnp.asarray(degrees)[median]


def _levels(channels: int) -> np.ndarray:
    """Every mean absolute difference that a sum over the channels can give, float32 (255 * channels + 1,).

    Labels are read from tables like this one: that is cheaper than computing them at every pixel, and exact, where
    XLA turns a division into a product.
    """
    return np.arange(255 * channels + 1, dtype=np.uint16) / np.float32(channels)


def _difference(original: jax.Array, blended: jax.Array) -> jax.Array:
    """Sum over the channels of the absolute difference, int16 (h, w)."""
    return jnp.abs(original.astype(jnp.int16) - blended.astype(jnp.int16)).sum(axis=2, dtype=jnp.int16)


def _changed(difference: jax.Array, mask: jax.Array, channels: int, tolerance: float) -> jax.Array:
    most = int(tolerance * channels)  # differences are whole numbers
    return median_filters.majority((difference > most) & (mask > 0), 5)


def _changed_and_median(
    original: jax.Array, blended: jax.Array, mask: jax.Array, tolerance: float
) -> tuple[jax.Array, jax.Array]:
    """``binary`` as bool (h, w), and ``continuous`` times the number of channels, int16 (h, w)."""
    channels = original.shape[2]
    difference = _difference(original, blended)
    changed = _changed(difference, mask, channels, tolerance)
    padded = jnp.pad(difference * changed, median_filters.RADIUS, mode="edge")
    return changed, median_filters.disk_median(padded, highest=255 * channels)
