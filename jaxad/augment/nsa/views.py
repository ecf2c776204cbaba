"""Training views on the device: rotation, flip and crops of one image (Schlüter et al. 2022, Section 4.1).

The counterpart of `host_views`, with the same distribution. ``random_view`` draws, ``view`` is deterministic.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxad.augment.boxes import sample_place
from jaxad.augment.nsa import host_views

# Whole numbers find every pixel the same source on every device; sines and cosines are multiples of 1 / _ONE. Fewer
# bits, as in `boxes`, would take a neighbour for up to 1.6 % of the pixels of 256; these fit up to 3,000 pixels.
_SHIFT = 18
_ONE = 1 << _SHIFT


def random_view(
    key: jax.Array,
    image: jax.Array,
    *,
    rotation: float,
    center_crop: tuple[int, int] | None,
    crop: tuple[int, int],
    flip: bool,
) -> jax.Array:
    """One random training view of an image that has its working size already.

    Rotation, centre crop, flip and random crop, in this order.

    Args:
      key: Key of the draw.
      image: uint8 (h, w, c).
      rotation: Largest angle in degrees, uniform in both directions; 0 turns nothing.
      center_crop: Height and width of the center that the random crop is taken from; None keeps the whole image.
      crop: Height and width of the random crop.
      flip: Whether to turn the image upside down with probability 1/2.

    Returns:
      uint8 (*crop, c).

    Raises:
      UserError: A crop is larger than the image.
    """
    angle, coin, place = jax.random.split(key, 3)
    top, left = sample_place(place, center_crop or image.shape, *crop)
    return view(
        image,
        jax.random.uniform(angle, minval=-rotation, maxval=rotation) if rotation else None,
        jax.random.bernoulli(coin) if flip else False,
        top,
        left,
        center_crop=center_crop,
        crop=crop,
    )


def view(
    image: jax.Array,
    degrees: jax.Array | float | None,
    flip: jax.Array | bool,
    top: jax.Array | int,
    left: jax.Array | int,
    *,
    center_crop: tuple[int, int] | None,
    crop: tuple[int, int],
) -> jax.Array:
    """A rotated image's centre, upside down or not, and of that the rectangle of size ``crop`` at (top, left).

    Args:
      image: (h, w, c).
      degrees: Rotation about the centre, counter-clockwise, nearest neighbour, black outside; None for none, which
        makes the view a contiguous block of the image that needs no gather.
      flip: Whether to turn the centre upside down.
      top: First row of the rectangle in the centre, from 0 to the difference of the two heights.
      left: First column, likewise.
      center_crop: Height and width of the centre; None keeps the whole image.
      crop: Height and width of the view.

    Returns:
      (*crop, c) of the image's dtype.

    Raises:
      UserError: A crop is larger than the image.
    """
    center = host_views.crop_center(image, center_crop) if center_crop else image
    host_views.crop_at(center, 0, 0, crop)  # refuses what does not fit
    # Row `top` of an image that is upside down is the last one of the rectangle before that.
    top = jnp.where(flip, center.shape[0] - crop[0] - top, top)
    if degrees is None:
        shown = jax.lax.dynamic_slice(center, (top, left, np.int32(0)), (*crop, image.shape[2]))
    else:
        row, column = (round((side - kept) / 2) for side, kept in zip(image.shape[:2], center.shape[:2], strict=True))
        shown = _turned(image, degrees, row + top, column + left, crop)
    return jnp.where(flip, shown[::-1], shown)


def _turned(
    image: jax.Array, degrees: jax.Array | float, top: jax.Array, left: jax.Array, size: tuple[int, int]
) -> jax.Array:
    """The rectangle of a rotated image at (top, left), (*size, c); only its own pixels are gathered."""
    height, width = image.shape[:2]
    radians = jnp.deg2rad(degrees)
    cosine, sine = (jnp.round(_ONE * f(radians)).astype(jnp.int32) for f in (jnp.cos, jnp.sin))
    # Twice the distances from the centre are whole numbers.
    down = 2 * (top + jnp.arange(size[0])[:, None]) + 1 - height
    right = 2 * (left + jnp.arange(size[1])) + 1 - width
    row = (cosine * down + sine * right + _ONE * height) >> (_SHIFT + 1)
    column = (cosine * right - sine * down + _ONE * width) >> (_SHIFT + 1)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return jnp.where(inside[..., None], image[row, column], 0)
