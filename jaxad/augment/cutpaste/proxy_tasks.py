"""The proxy tasks: what a network learns to tell apart, before any defect is seen (Li et al. 2021, Section 2.1).

One table. A new proxy is one line: its classes by name, each a function of the image, class 0 the image itself.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxad.augment import color
from jaxad.augment.cutpaste import cutout
from jaxad.augment.cutpaste.cutpaste import cutpaste, cutpaste_scar
from jaxad.augment.cutpaste.options import CutPasteOptions
from jaxad.errors import UserError

Augmentation = Callable[..., jax.Array]  # (key, image, *, options) -> image


def normal(key: jax.Array, image: jax.Array, *, options: CutPasteOptions) -> jax.Array:
    """The image itself."""
    return image


def quarter_turns(key: jax.Array, image: jax.Array, *, options: CutPasteOptions, turns: int) -> jax.Array:
    """The image (h, h, 3) turned counter-clockwise by `turns` times 90 degrees; nothing in it is random.

    Raises:
      UserError: The image is not square.
    """
    if image.shape[0] != image.shape[1]:
        raise UserError(f"the rotation proxy needs square images, not {image.shape[0]}x{image.shape[1]}")
    return jnp.rot90(image, turns)


def union(key: jax.Array, image: jax.Array, *, options: CutPasteOptions) -> jax.Array:
    """CutPaste or CutPaste-Scar, each half of the time (Section 5.2)."""
    choice, drawn = jax.random.split(key)
    patch, thin = (f(drawn, image, options=options) for f in (cutpaste, cutpaste_scar))
    return jnp.where(jax.random.bernoulli(choice), patch, thin)


PROXIES: dict[str, dict[str, Augmentation]] = {
    "cutpaste": {"normal": normal, "CutPaste": cutpaste},
    "cutpaste_scar": {"normal": normal, "CutPaste-Scar": cutpaste_scar},
    "cutpaste_union": {"normal": normal, "CutPaste or -Scar": union},
    "cutpaste_3way": {"normal": normal, "CutPaste": cutpaste, "CutPaste-Scar": cutpaste_scar},
    "rotation": {"normal": normal} | {f"rotation {90 * n}": partial(quarter_turns, turns=n) for n in (1, 2, 3)},
    "cutout_grey": {"normal": normal, "Cutout, grey": cutout.cutout_grey},
    "cutout_mean": {"normal": normal, "Cutout, mean": cutout.cutout_mean},
    "cutout_random": {"normal": normal, "Cutout, colour": cutout.cutout_random},
    "scar": {"normal": normal, "Scar": cutout.scar},
    "confetti": {"normal": normal, "Confetti": cutout.confetti},
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
    return jax.lax.dynamic_slice(padded, (reach - down, reach - right, 0), image.shape)


def translation(key: jax.Array, image: jax.Array, *, options: CutPasteOptions) -> jax.Array:
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


def image_jitter(key: jax.Array, image: jax.Array, *, options: CutPasteOptions) -> jax.Array:
    """Colour jitter of the whole image, up to `options.image_jitter`."""
    return color.color_jitter(key, image, strength=options.image_jitter, hue=options.image_jitter)


def view(key: jax.Array, image: jax.Array, *, options: CutPasteOptions) -> jax.Array:
    """Random translation and colour jitter, which come before any class is made (Appendix A.1)."""
    shifts, colours = jax.random.split(key)
    return image_jitter(colours, translation(shifts, image, options=options), options=options)


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
        image = view(own, image, options=options)
        return jnp.stack([make(key, image, options=options) for make, key in zip(made, others, strict=True)])

    stacked = jax.vmap(one, out_axes=1)(keys, images)
    labels = jnp.repeat(jnp.arange(len(made), dtype=jnp.int32), len(images))
    return stacked.reshape(-1, *images.shape[1:]), labels
