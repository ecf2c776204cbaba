"""Pictures of augmentations of the same images, with their names, for the report."""

from collections.abc import Sequence
from functools import partial
from operator import itemgetter

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from jaxad.augment import color
from jaxad.augment.boxes import Box
from jaxad.augment.cutpaste import proxy_tasks
from jaxad.augment.cutpaste.options import CutPasteOptions
from jaxad.augment.dla.local import LOCAL, LocalOptions, random_local_augmentation
from jaxad.augment.dla.views import ViewOptions, random_view_pair
from jaxad.errors import UserError
from jaxad.runtime import devices


def _image_jitter(key: jax.Array, image: jax.Array, *, options: CutPasteOptions) -> jax.Array:
    return color.random_color_jitter(key, image, strength=options.image_jitter, hue=options.image_jitter)


# Every class of every proxy task, and what every image of them goes through before.
AUGMENTATIONS: dict[str, proxy_tasks.Augmentation] = {
    **{name: make for classes in proxy_tasks.PROXIES.values() for name, make in classes.items()},
    "colour jitter": _image_jitter,
    "translation": proxy_tasks.random_translate,
}
_GAP = 4
_FRAME = (0, 230, 118)


def _label(name: str, width: int) -> np.ndarray:
    """A white strip with a name as wide as it fits."""
    height = max(14, width // 8)
    strip = np.full((height, width, 3), 255, np.uint8)
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, height / 32
    length = cv2.getTextSize(name, font, scale, 1)[0][0]
    scale *= min(1.0, (width - 4) / length)
    cv2.putText(strip, name, (2, round(0.72 * height)), font, scale, (45, 55, 72), 1, cv2.LINE_AA)
    return strip


def _pixels(image: np.ndarray) -> np.ndarray:
    """An image in [0, 1] as uint8."""
    return np.uint8(np.round(255 * image))


def _column(tiles: Sequence[np.ndarray], *, below: int = _GAP) -> np.ndarray:
    """Tiles of one width, one below the other, with a gap to the right of each and another one below it."""
    bordered = [cv2.copyMakeBorder(tile, 0, below, 0, _GAP, cv2.BORDER_CONSTANT, value=(255,) * 3) for tile in tiles]
    return np.vstack(bordered)


def _framed(image: np.ndarray, box: Box) -> np.ndarray:
    """An image with a line around, not over, a rectangle, as far as it lies in the image."""
    drawn = image.copy()
    for away in range(1, max(1, round(max(image.shape) / 128)) + 1):
        start = int(box.left) - away, int(box.top) - away
        end = int(box.left + box.width) - 1 + away, int(box.top + box.height) - 1 + away
        cv2.rectangle(drawn, start, end, _FRAME)
    return drawn


def _fits(name: str, shape: tuple[int, ...], options: CutPasteOptions) -> bool:
    """Whether the options of an augmentation, which the task at hand may not use, fit into images of a shape."""
    image = jax.ShapeDtypeStruct(shape[1:], jnp.float32)
    try:
        jax.eval_shape(partial(AUGMENTATIONS[name], options=options), jax.random.key(0), image)
    except UserError:
        return False
    return True


def augmentation_grid(key: jax.Array, images: np.ndarray, *, options: CutPasteOptions) -> np.ndarray:
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

    @devices.jit_unoptimized
    def draw(keys):
        return [
            jax.vmap(partial(AUGMENTATIONS[name], options=options))(jax.random.split(k, len(images)), float_images)
            for name, k in zip(names, keys, strict=True)
        ]

    columns = []
    for name, made in zip(names, draw(jax.random.split(key, len(names))), strict=True):
        columns.append(_column([_label(name, images.shape[2]), *_pixels(np.asarray(made))]))
    return np.hstack(columns)


def local_grid(
    key: jax.Array, images: np.ndarray, *, view: ViewOptions | None, local: LocalOptions | None
) -> np.ndarray:
    """Draws the two views and the local augmentations of a few images (Yoa et al. 2021, Figure 3).

    Args:
      key: Source of randomness; each image has its own draw.
      images: uint8 (n, h, w, 3), one row each.
      view: How the two global views differ from the image; None leaves them out.
      local: How images are augmented locally; None leaves all of it out.

    Returns:
      uint8 (rows, columns, 3), RGB: the image, its rectangle framed, its views, the rectangle after each augmentation
      alone, and their sum; above each tile its name, and behind that of an augmentation what it weighs in the sum.
    """

    @devices.jit_unoptimized
    @jax.vmap
    def draw(key, image):
        views, negative = jax.random.split(key)
        return (
            None if view is None else random_view_pair(views, image, options=view),
            None if local is None else random_local_augmentation(negative, image, options=local),
        )

    keys = jax.random.split(key, len(images))
    drawn = devices.to_host(draw(keys, jnp.asarray(images, jnp.float32) / 255))
    rows = []
    for number, image in enumerate(images):
        views, found = jax.tree.map(itemgetter(number), drawn)
        row = {"image": image if found is None else _framed(image, found.box)}
        if views is not None:
            row |= zip(("view", "view'"), _pixels(views), strict=True)
        if found is not None:
            names = [local.mode] if local.mode in LOCAL else LOCAL
            weighted = [f"{name} {weight:.2f}" for name, weight in zip(names, found.weights, strict=True)]
            row |= zip(weighted, _pixels(found.made), strict=True)
            row["negative sample"] = _pixels(found.image)
        rows.append([np.vstack([_label(name, image.shape[1]), tile]) for name, tile in row.items()])
    return np.hstack([_column(tiles, below=4 * _GAP) for tiles in zip(*rows, strict=True)])
