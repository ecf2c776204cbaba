"""The augmentations that CutPaste is compared with: Cutout, Scar, Confetti (Li et al. 2021, Sections 3.1 and 5.1).

Their shapes are CutPaste's and CutPaste-Scar's, so that only the filling differs, as in the paper's Table 4.
"""

import jax
import jax.numpy as jnp

from jaxad.augment.boxes import Box, RotatedBox, box_mask, rotated_box_mask, sample_box, sample_rotated_box
from jaxad.augment.cutpaste.options import CutPasteOptions
from jaxad.errors import UserError

GREY = 0.5


def fill(image: jax.Array, inside: jax.Array, color: jax.Array | float) -> jax.Array:
    """Gives the pixels inside (bool (h, w)) one color, (3,) or a number; float32 (h, w, 3), the rest untouched."""
    return jnp.where(inside[..., None], color, image)


def cutout_grey(image: jax.Array, box: Box) -> jax.Array:
    """Cutout: a box filled with mid-grey, the paper's standard form.

    Args:
      image: float32 (h, w, 3) in [0, 1].
      box: What is filled.

    Returns:
      float32 (h, w, 3); bit-identical to the image outside the box.
    """
    return cutout_color(image, box, GREY)


def cutout_mean(image: jax.Array, box: Box) -> jax.Array:
    """Cutout filled with the image's own mean color; arguments as of `cutout_grey`."""
    return cutout_color(image, box, image.mean((0, 1)))


def cutout_color(image: jax.Array, box: Box, color: jax.Array | float) -> jax.Array:
    """Cutout filled with a color, (3,) or a number in [0, 1]; other arguments as of `cutout_grey`."""
    return fill(image, box_mask(box, image.shape[:2]), color)


def scar(image: jax.Array, box: RotatedBox, color: jax.Array | float) -> jax.Array:
    """Scar: a rotated box filled with a color, (3,) or a number in [0, 1]; float32 (h, w, 3)."""
    return fill(image, rotated_box_mask(box, image.shape[:2]), color)


def confetti(image: jax.Array, box: Box, offset: jax.Array) -> jax.Array:
    """Confetti noise: an offset (3,) added to the colors of a box, clipped to [0, 1]; the structure stays visible.

    Args:
      image: float32 (h, w, 3) in [0, 1].
      box: What is changed.
      offset: float32 (3,), what is added to each channel.

    Returns:
      float32 (h, w, 3); bit-identical to the image outside the box.
    """
    return fill(image, box_mask(box, image.shape[:2]), jnp.clip(image + offset, 0, 1))


def random_cutout_grey(key: jax.Array, image: jax.Array, *, options: CutPasteOptions) -> jax.Array:
    """`cutout_grey` of a box of CutPaste's sizes; float32 (h, w, 3) in [0, 1]."""
    return cutout_grey(image, sample_box(key, image.shape, options=options))


def random_cutout_mean(key: jax.Array, image: jax.Array, *, options: CutPasteOptions) -> jax.Array:
    """`cutout_mean` of a box of CutPaste's sizes; float32 (h, w, 3) in [0, 1]."""
    return cutout_mean(image, sample_box(key, image.shape, options=options))


def random_cutout_color(key: jax.Array, image: jax.Array, *, options: CutPasteOptions) -> jax.Array:
    """`cutout_color` of a box of CutPaste's sizes by a color that is uniform over RGB; float32 (h, w, 3)."""
    boxes, colors = jax.random.split(key)
    box = sample_box(boxes, image.shape, options=options)
    return cutout_color(image, box, jax.random.uniform(colors, (3,), jnp.float32))


def random_scar(key: jax.Array, image: jax.Array, *, options: CutPasteOptions) -> jax.Array:
    """`scar` of a thin, long box by a color that is uniform over RGB; float32 (h, w, 3) in [0, 1]."""
    boxes, colors = jax.random.split(key)
    box = sample_rotated_box(boxes, image.shape, options=options)
    return scar(image, box, jax.random.uniform(colors, (3,), jnp.float32))


def random_confetti(key: jax.Array, image: jax.Array, *, options: CutPasteOptions) -> jax.Array:
    """`confetti` in a box of CutPaste's sizes, by an offset that is uniform in +-`options.confetti` for each channel.

    The paper names no size and no strength.

    Raises:
      UserError: `options.confetti` is not in (0, 1].
    """
    if not 0 < options.confetti <= 1:
        raise UserError(f"config.proxy.confetti must lie in (0, 1], not {options.confetti}", about="proxy.confetti")
    boxes, colors = jax.random.split(key)
    offset = jax.random.uniform(colors, (3,), jnp.float32, minval=-options.confetti, maxval=options.confetti)
    return confetti(image, sample_box(boxes, image.shape, options=options), offset)
