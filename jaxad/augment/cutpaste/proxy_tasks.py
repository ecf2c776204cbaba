"""The proxy tasks: what a network learns to tell apart, before any defect is seen (Li et al. 2021, Section 2.1).

One table. A new proxy is one line: its classes by name, each a function of the image, class 0 the image itself.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxad.augment import color
from jaxad.augment.cutpaste import cutout
from jaxad.augment.cutpaste.cutpaste import random_paste_patch, random_paste_patch_or_scar, random_paste_scar
from jaxad.augment.cutpaste.options import CutPasteOptions
from jaxad.errors import UserError

Augmentation = Callable[..., jax.Array]  # (key, image, *, options) -> image


def quarter_turns(image: jax.Array, *, turns: int) -> jax.Array:
    """The image (h, h, 3) turned counter-clockwise by `turns` times 90 degrees.

    Raises:
      UserError: The image is not square.
    """
    if image.shape[0] != image.shape[1]:
        raise UserError(f"the rotation proxy needs square images, not {image.shape[0]}x{image.shape[1]}")
    return jnp.rot90(image, turns)


def _normal(key: jax.Array, image: jax.Array, *, options: CutPasteOptions) -> jax.Array:
    return image


def _turned(key: jax.Array, image: jax.Array, *, options: CutPasteOptions, turns: int) -> jax.Array:
    return quarter_turns(image, turns=turns)


PROXIES: dict[str, dict[str, Augmentation]] = {
    "cutpaste": {"normal": _normal, "CutPaste": random_paste_patch},
    "cutpaste_scar": {"normal": _normal, "CutPaste-Scar": random_paste_scar},
    "cutpaste_union": {"normal": _normal, "CutPaste or -Scar": random_paste_patch_or_scar},
    "cutpaste_3way": {"normal": _normal, "CutPaste": random_paste_patch, "CutPaste-Scar": random_paste_scar},
    "rotation": {"normal": _normal} | {f"rotation {90 * n}": partial(_turned, turns=n) for n in (1, 2, 3)},
    "cutout_grey": {"normal": _normal, "Cutout, grey": cutout.random_cutout_grey},
    "cutout_mean": {"normal": _normal, "Cutout, mean": cutout.random_cutout_mean},
    "cutout_random": {"normal": _normal, "Cutout, colour": cutout.random_cutout_color},
    "scar": {"normal": _normal, "Scar": cutout.random_scar},
    "confetti": {"normal": _normal, "Confetti": cutout.random_confetti},
}


_BOXES = ("cutpaste", "cutpaste_union", "cutpaste_3way", "cutout_grey", "cutout_mean", "cutout_random", "confetti")
_SCARS = ("cutpaste_scar", "cutpaste_union", "cutpaste_3way", "scar")
# The tasks that use an option of `CutPasteOptions`. All tasks use those that are not here.
TASKS_WITH = {
    "area": _BOXES,
    "aspect": _BOXES,
    "scar_width": _SCARS,
    "scar_length": _SCARS,
    "scar_angle": _SCARS,
    "side": _SCARS,
    "jitter": ("cutpaste", "cutpaste_scar", "cutpaste_union", "cutpaste_3way"),
    "confetti": ("confetti",),
}


def classes(proxy: str) -> dict[str, Augmentation]:
    """The classes of a proxy by name; raises UserError where there is no such proxy."""
    if proxy not in PROXIES:
        raise UserError(f"config.proxy.task must be one of {', '.join(PROXIES)}, not {proxy!r}", about="proxy.task")
    return PROXIES[proxy]


def translate(image: jax.Array, down: jax.Array, right: jax.Array, *, reach: int) -> jax.Array:
    """Shifts an image (h, w, 3) by whole pixels; what comes in is mirrored at the border.

    Args:
      image: The image.
      down: int32, rows to move down, from -reach to reach.
      right: int32, columns to move right, from -reach to reach.
      reach: The largest shift, static, less than either side.
    """
    padded = jnp.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    start = (jnp.int32(reach - down), jnp.int32(reach - right), jnp.int32(0))
    return jax.lax.dynamic_slice(padded, start, image.shape)


def random_translate(key: jax.Array, image: jax.Array, *, options: CutPasteOptions) -> jax.Array:
    """A random shift of up to `options.translation` of the shorter side, uniform over whole pixels.

    Raises:
      UserError: The share is not in [0, 1).
    """
    if not 0 <= options.translation < 1:
        raise UserError(
            f"config.proxy.translation must lie in [0, 1), not {options.translation}", about="proxy.translation"
        )
    reach = int(options.translation * min(image.shape[:2]))
    down, right = jax.random.randint(key, (2,), -reach, reach + 1)
    return translate(image, down, right, reach=reach) if reach else image


def _view(key: jax.Array, image: jax.Array, options: CutPasteOptions) -> jax.Array:
    """Random translation and color jitter, which come before any class is made (Appendix A.1)."""
    shifts, colors = jax.random.split(key)
    moved = random_translate(shifts, image, options=options)
    return color.random_color_jitter(colors, moved, strength=options.image_jitter, hue=options.image_jitter)


def proxy_batch(
    keys: jax.Array, images: jax.Array, *, proxy: str, options: CutPasteOptions
) -> tuple[jax.Array, jax.Array]:
    """Every image as every class of a proxy, without leaving the device.

    All classes of an image are made from the same view of it, so that nothing but the class tells them apart.

    Args:
      keys: One key for each image, (b,).
      images: float32 (b, h, w, 3) in [0, 1].
      proxy: A name in `PROXIES`.
      options: How images are changed.

    Returns:
      Images float32 (k * b, h, w, 3), the b images of class 0 first, and labels int32 (k * b,).

    Raises:
      UserError: The proxy is unknown, or the options do not fit the images.
    """
    made = classes(proxy).values()

    def one(key, image):
        own, *others = jax.random.split(key, 1 + len(made))
        image = _view(own, image, options)
        return jnp.stack([make(key, image, options=options) for make, key in zip(made, others, strict=True)])

    stacked = jax.vmap(one, out_axes=1)(keys, images)
    labels = jnp.repeat(jnp.arange(len(made), dtype=jnp.int32), len(images))
    return stacked.reshape(-1, *images.shape[1:]), labels
