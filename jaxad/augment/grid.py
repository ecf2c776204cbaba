"""The picture of every augmentation on the same images, each column with its name, for the report."""

from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from jaxad import parallel
from jaxad.augment import proxies
from jaxad.augment.regions import Options
from jaxad.errors import UserError

# Every class of every proxy task, and what every image of them goes through before.
AUGMENTATIONS: dict[str, proxies.Augmentation] = {
    **{name: make for classes in proxies.PROXIES.values() for name, make in classes.items()},
    "colour jitter": proxies.image_jitter,
    "translation": proxies.translation,
}
_GAP = 4


def _label(name: str, width: int) -> np.ndarray:
    """A white strip with a name as wide as it fits."""
    height = max(14, width // 8)
    strip = np.full((height, width, 3), 255, np.uint8)
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, height / 32
    length = cv2.getTextSize(name, font, scale, 1)[0][0]
    scale *= min(1.0, (width - 4) / length)
    cv2.putText(strip, name, (2, round(0.72 * height)), font, scale, (45, 55, 72), 1, cv2.LINE_AA)
    return strip


def _fits(name: str, shape: tuple[int, ...], options: Options) -> bool:
    """Whether the options of an augmentation, which the task at hand may not use, fit into images of a shape."""
    image = jax.ShapeDtypeStruct(shape[1:], jnp.float32)
    try:
        jax.eval_shape(partial(AUGMENTATIONS[name], options=options), jax.random.key(0), image)
    except UserError:
        return False
    return True


def augmentation_grid(key: jax.Array, images: np.ndarray, *, options: Options) -> np.ndarray:
    """Draws every augmentation of a few images.

    Args:
      key: Source of randomness; each cell has its own draw.
      images: uint8 (n, h, h, 3), one row each.
      options: How images are changed.

    Returns:
      uint8 (rows, columns, 3), RGB: one column for each of `AUGMENTATIONS` whose options fit into the images, its name
      above.
    """
    float_images = jnp.asarray(images, jnp.float32) / 255
    names = [name for name in AUGMENTATIONS if _fits(name, images.shape, options)]

    @parallel.once
    def draw(keys):
        return [
            jax.vmap(partial(AUGMENTATIONS[name], options=options))(jax.random.split(k, len(images)), float_images)
            for name, k in zip(names, keys, strict=True)
        ]

    columns = []
    for name, made in zip(names, draw(jax.random.split(key, len(names))), strict=True):
        tiles = [_label(name, images.shape[2]), *np.uint8(np.round(255 * np.asarray(made)))]
        tiles = [cv2.copyMakeBorder(tile, 0, _GAP, 0, _GAP, cv2.BORDER_CONSTANT, value=(255,) * 3) for tile in tiles]
        columns.append(np.vstack(tiles))
    return np.hstack(columns)
