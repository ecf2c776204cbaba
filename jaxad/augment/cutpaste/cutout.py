"""The augmentations that CutPaste is compared with: Cutout, Scar, Confetti (Li et al. 2021, Sections 3.1 and 5.1).

Their shapes are CutPaste's and CutPaste-Scar's, so that only the filling differs, as in the paper's Table 4.
"""

import jax
import jax.numpy as jnp

from jaxad.augment.boxes import bar_mask, box_mask, sample_bar, sample_box
from jaxad.augment.cutpaste.options import CutPasteOptions
from jaxad.errors import UserError

GREY = 0.5


def fill(image: jax.Array, inside: jax.Array, colour: jax.Array | float) -> jax.Array:
    """Gives the pixels inside (bool (h, w)) one colour, (3,) or a number; float32 (h, w, 3), the rest untouched."""
    return jnp.where(inside[..., None], colour, image)


def shift_colour(image: jax.Array, inside: jax.Array, offset: jax.Array) -> jax.Array:
    """Adds an offset (3,) to the pixels inside (bool (h, w)), clipped to [0, 1]; float32 (h, w, 3), the rest untouched.

    The structure below stays visible, as in confetti noise.
    """
    return jnp.where(inside[..., None], jnp.clip(image + offset, 0, 1), image)


def _box(key: jax.Array, image: jax.Array, options: CutPasteOptions) -> jax.Array:
    return box_mask(sample_box(key, image.shape, options=options), image.shape[:2])


def cutout_grey(key: jax.Array, image: jax.Array, *, options: CutPasteOptions) -> jax.Array:
    """Cutout: a patch filled with mid-grey, the paper's standard form; float32 (h, w, 3) in [0, 1]."""
    return fill(image, _box(key, image, options), GREY)


def cutout_mean(key: jax.Array, image: jax.Array, *, options: CutPasteOptions) -> jax.Array:
    """Cutout filled with the image's own mean colour; float32 (h, w, 3) in [0, 1]."""
    return fill(image, _box(key, image, options), image.mean((0, 1)))


def cutout_random(key: jax.Array, image: jax.Array, *, options: CutPasteOptions) -> jax.Array:
    """Cutout filled with one random colour, uniform over RGB; float32 (h, w, 3) in [0, 1]."""
    boxes, colours = jax.random.split(key)
    return fill(image, _box(boxes, image, options), jax.random.uniform(colours, (3,), jnp.float32))


def scar(key: jax.Array, image: jax.Array, *, options: CutPasteOptions) -> jax.Array:
    """Scar: a thin, long, rotated rectangle of one random colour, uniform over RGB; float32 (h, w, 3) in [0, 1]."""
    bars, colours = jax.random.split(key)
    inside = bar_mask(sample_bar(bars, image.shape, options=options), image.shape[:2])
    return fill(image, inside, jax.random.uniform(colours, (3,), jnp.float32))


def confetti(key: jax.Array, image: jax.Array, *, options: CutPasteOptions) -> jax.Array:
    """Confetti noise: the colour of a patch shifted where it is; float32 (h, w, 3) in [0, 1].

    The paper names no size and no strength: the patch is CutPaste's, the shift uniform in +-`options.confetti` for
    each channel.
    """
    if not 0 < options.confetti <= 1:
        raise UserError(f"config.proxy.confetti must lie in (0, 1], not {options.confetti}", about="proxy.confetti")
    boxes, colours = jax.random.split(key)
    offset = jax.random.uniform(colours, (3,), jnp.float32, minval=-options.confetti, maxval=options.confetti)
    return shift_colour(image, _box(boxes, image, options), offset)
