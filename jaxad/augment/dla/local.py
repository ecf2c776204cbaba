"""Dynamic local augmentation (Yoa et al., IEEE Access 2021, Section III-C): hard changes within a random rectangle.

Each augmentation of an image changes the same rectangle (Figure 3). The stronger one changes it, the more it weighs in
their sum: turning a place without shape changes nothing, and neither does greying one without colour.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxad.augment import color
from jaxad.augment.boxes import Box, box_mask, sample_place, unrotate
from jaxad.errors import UserError

_SIDE = 224  # of the images to which the sizes of the rectangle refer, as their maps do; the paper also names 256


class LocalOptions(NamedTuple):
    """How the local augmentations change an image.

    Attributes:
      size: Fewest and most pixels of the rectangle's height, and of its width, in an image of 224 (Section IV);
        scaled with the shorter side.
      angle: Largest rotation in degrees, in both directions (the paper gives none).
      jitter: Largest change of brightness, contrast and saturation (the paper gives none; SimSiam's).
      hue: Largest shift of the hue in turns (as above).
      parts: The permutation cuts the rectangle into parts x parts (the paper gives no number; 2 in Tack et al. 2020,
        whose permutation it follows).
      mode: `dynamic`, the weighted sum of Equation 6; `static`, all weights one (LA in Table 2); or the name of one
        augmentation in `LOCAL`, which is then the only one.
    """

    size: tuple[int, int] = (50, 128)
    angle: float = 180.0
    jitter: float = 0.4
    hue: float = 0.1
    parts: int = 2
    mode: str = "dynamic"


class Local(NamedTuple):
    """A locally augmented image and what it was made of.

    Attributes:
      image: float32 (h, w, 3) in [0, 1], the negative sample.
      made: float32 (k, h, w, 3), the image after each augmentation alone, in the order of `LOCAL`.
      weights: float32 (k,), what each of them weighs.
      box: The rectangle outside of which all of them are the image to the bit.
    """

    image: jax.Array
    made: jax.Array
    weights: jax.Array
    box: Box


def region_limit(shape: tuple[int, ...], *, options: LocalOptions) -> tuple[int, int]:
    """Fewest and most pixels of the height, and of the width, of the rectangle in an image of `shape` (h, w, ...).

    Raises:
      UserError: The range is empty or not whole, or the rectangle can be larger than the image.
    """
    low, high = options.size
    if not (low == int(low) and high == int(high) and 0 < low <= high):
        raise UserError(
            f"config.local.size must be whole (low, high) with 0 < low <= high, not {options.size}", about="local.size"
        )
    side = min(shape[:2])
    least, most = (max(1, math.floor(size * side / _SIDE + 0.5)) for size in (low, high))
    if most > side:
        raise UserError(
            f"a region of up to {most}x{most} pixels (config.local.size {options.size} in an image of {_SIDE}) does "
            f"not fit into an image of {shape[0]}x{shape[1]}; lower the largest size to {_SIDE} or less",
            about="local.size",
        )
    return least, most


def sample_region(key: jax.Array, shape: tuple[int, ...], *, options: LocalOptions) -> Box:
    """Draws the rectangle in an image of `shape` (h, w, ...).

    Height and width are separate, each uniform over the whole numbers of its range; the place is uniform over all
    where the rectangle lies in the image.

    Raises:
      UserError: As `region_limit`.
    """
    least, most = region_limit(shape, options=options)
    sizes, places = jax.random.split(key)
    height, width = jax.random.randint(sizes, (2,), least, most + 1)
    return Box(*sample_place(places, shape, height, width), height, width)


def _inside(image: jax.Array, box: Box, changed: jax.Array) -> jax.Array:
    return jnp.where(box_mask(box, image.shape[:2])[..., None], changed, image)


def _mirror(index: jax.Array, count: int) -> jax.Array:
    """Indices reflected at the first and at the last of `count` pixels, neither of which is doubled."""
    last = count - 1
    return last - jnp.abs(last - index % max(2 * last, 1))


def rotate(image: jax.Array, box: Box, degrees: jax.Array | float) -> jax.Array:
    """Turns what is in a rectangle about the rectangle's centre, counter-clockwise, by the nearest pixel.

    What turns in from outside of the rectangle is what the image has there, mirrored at the image's border. Black
    corners would give the negative samples away by something that no defect has. Positions are counted in integers, so
    they are the same alone, in a batch, and on one of many devices.

    Args:
      image: float32 (h, w, 3).
      box: The rectangle, which lies in the image.
      degrees: The angle.

    Returns:
      float32 (h, w, 3); bit-identical to the image outside the rectangle.
    """
    rows, columns = jnp.arange(image.shape[0])[:, None], jnp.arange(image.shape[1])
    row, column = unrotate(box, (box.height, box.width), degrees, rows, columns)
    row, column = _mirror(box.top + row, image.shape[0]), _mirror(box.left + column, image.shape[1])
    return _inside(image, box, image[row, column])


def permute(image: jax.Array, box: Box, order: jax.Array, *, parts: int) -> jax.Array:
    """Exchanges the parts of a rectangle that is cut into parts x parts equal ones.

    A part has height // parts x width // parts pixels; rows and columns that are left over at the lower and at the
    right edge stay what they are.

    Args:
      image: float32 (h, w, 3).
      box: The rectangle, which lies in the image and has at least `parts` rows and columns.
      order: int32 (parts * parts,), a permutation: part i, counted row by row, takes what part order[i] holds.
      parts: Parts along each side.

    Returns:
      float32 (h, w, 3); bit-identical to the image outside the rectangle.
    """
    height, width = box.height // parts, box.width // parts
    rows, columns = jnp.arange(image.shape[0])[:, None], jnp.arange(image.shape[1])
    down, right = rows - box.top, columns - box.left
    inside = (down >= 0) & (down < parts * height) & (right >= 0) & (right < parts * width)
    part = jnp.where(inside, down // height * parts + right // width, 0)
    source = order[part]
    row = source // parts * height + down % height + box.top
    column = source % parts * width + right % width + box.left
    return image[jnp.where(inside, row, rows), jnp.where(inside, column, columns)]


def grey(image: jax.Array, box: Box) -> jax.Array:
    """Makes a rectangle of an image (h, w, 3) grey, by the luma of ITU-R BT.601; the rest stays to the bit."""
    return _inside(image, box, color.luma(jnp.moveaxis(image, -1, 0))[..., None])


def jitter(image: jax.Array, box: Box, drawn: color.Jitter) -> jax.Array:
    """Jitters the colors of a rectangle of an image (h, w, 3), by its own mean; the rest stays to the bit."""
    return _inside(image, box, color.color_jitter(image, drawn, box_mask(box, image.shape[:2])))


def random_rotate(key: jax.Array, image: jax.Array, box: Box, *, options: LocalOptions) -> jax.Array:
    """The rectangle turned by an angle that is uniform in +-`options.angle` degrees; float32 (h, w, 3)."""
    turned = jax.random.uniform(key, (), jnp.float32, minval=-options.angle, maxval=options.angle)
    return rotate(image, box, turned)


def random_jitter(key: jax.Array, image: jax.Array, box: Box, *, options: LocalOptions) -> jax.Array:
    """The rectangle with its colors jittered; float32 (h, w, 3)."""
    return jitter(image, box, color.sample_jitter(key, strength=options.jitter, hue=options.hue))


def random_permute(key: jax.Array, image: jax.Array, box: Box, *, options: LocalOptions) -> jax.Array:
    """The parts of the rectangle in an order uniform over all, their own among them; float32 (h, w, 3)."""
    order = jnp.argsort(jax.random.uniform(key, (options.parts**2,), jnp.float32))
    return permute(image, box, order, parts=options.parts)


def _grey(key: jax.Array, image: jax.Array, box: Box, *, options: LocalOptions) -> jax.Array:
    return grey(image, box)


# Each is (key, image, box, *, options) -> image, and changes nothing outside of the box. A new one is one line.
LOCAL: dict[str, Callable[..., jax.Array]] = {
    "rotation": random_rotate,
    "jitter": random_jitter,
    "permutation": random_permute,
    "grey": _grey,
}


def dynamic_weights(image: jax.Array, made: jax.Array) -> jax.Array:
    """What each augmentation weighs: its share of the change that all of them make (Equations 4 and 5).

    Args:
      image: float32 (h, w, 3).
      made: float32 (k, h, w, 3), the image after each augmentation.

    Returns:
      float32 (k,), with sum 1. All are equal where nothing has changed, for which the paper has 0 / 0.
    """
    change = jnp.mean((made - image) ** 2, (1, 2, 3))
    total = change.sum()
    return jnp.where(total > 0, change / jnp.where(total > 0, total, 1), 1 / len(made))


def combine(image: jax.Array, box: Box, made: jax.Array, weights: jax.Array) -> jax.Array:
    """The weighted sum of the augmented images (Equation 6) within the rectangle.

    Args:
      image: float32 (h, w, 3) in [0, 1].
      box: The rectangle.
      made: float32 (k, h, w, 3) in [0, 1], the image after each augmentation.
      weights: float32 (k,), with sum 1.

    Returns:
      float32 (h, w, 3) in [0, 1]; bit-identical to the image outside the rectangle, where the weighted sum is the
      image up to rounding.
    """
    total = sum(weight * one for weight, one in zip(weights, made, strict=True))
    return _inside(image, box, jnp.clip(total, 0, 1))


def combine_static(image: jax.Array, box: Box, made: jax.Array) -> jax.Array:
    """All augmentations at once with weights of one: the sum of their changes, added to the image; clipped to [0, 1].

    This is the LA of Table 2. Equation 6 with weights of one would be k times the image where nothing has changed.

    Args:
      image: float32 (h, w, 3) in [0, 1].
      box: The rectangle.
      made: float32 (k, h, w, 3) in [0, 1], the image after each augmentation.

    Returns:
      float32 (h, w, 3) in [0, 1]; bit-identical to the image outside the rectangle.
    """
    return _inside(image, box, jnp.clip(image + sum(one - image for one in made), 0, 1))


def check(shape: tuple[int, ...], *, options: LocalOptions) -> None:
    """Refuses options that do not fit images of `shape` (h, w, ...) with a `UserError` that names the setting."""
    least, _ = region_limit(shape, options=options)
    if not 0 < options.angle <= 180:
        raise UserError(f"config.local.angle must lie in (0, 180] degrees, not {options.angle}", about="local.angle")
    if not 0 <= options.jitter <= 1:
        raise UserError(f"config.local.jitter must lie in [0, 1], not {options.jitter}", about="local.jitter")
    color.check_strength(options.hue, "config.local.hue")
    if options.mode == "jitter" and not (options.jitter or options.hue):
        raise UserError(
            "config.local.jitter and config.local.hue are 0, so config.local.mode jitter changes nothing",
            about="local.jitter",
        )
    if not (options.parts == int(options.parts) and 2 <= options.parts <= least):
        raise UserError(
            f"config.local.parts must be a whole number from 2 to {least}, the smallest side of a region in an image "
            f"of {shape[0]}x{shape[1]}, not {options.parts}",
            about="local.parts",
        )
    modes = ("dynamic", "static", *LOCAL)
    if options.mode not in modes:
        raise UserError(
            f"config.local.mode must be one of {', '.join(modes)}, not {options.mode!r}", about="local.mode"
        )


def local_augmentation(image: jax.Array, box: Box, made: jax.Array, *, mode: str) -> Local:
    """Puts the augmentations of a rectangle together.

    Args:
      image: float32 (h, w, 3) in [0, 1].
      box: The rectangle.
      made: float32 (k, h, w, 3) in [0, 1], the image after each augmentation.
      mode: `dynamic` for the weighted sum, `static` for all weights one, anything else for the first augmentation.

    Returns:
      The negative sample and its parts.
    """
    if mode == "dynamic":
        weights = dynamic_weights(image, made)
        return Local(combine(image, box, made, weights), made, weights, box)
    result = combine_static(image, box, made) if mode == "static" else made[0]
    return Local(result, made, jnp.ones(len(made), jnp.float32), box)


def random_local_augmentation(key: jax.Array, image: jax.Array, *, options: LocalOptions) -> Local:
    """Augments a random rectangle of an image.

    Args:
      key: Source of randomness. The rectangle and what each augmentation draws are the same in every mode.
      image: float32 (h, w, 3) in [0, 1].
      options: Which changes, and how strong.

    Returns:
      The negative sample and its parts. Where the mode is one augmentation, k is 1 and the image is made[0].

    Raises:
      UserError: As `check`.
    """
    check(image.shape, options=options)
    regions, *keys = jax.random.split(key, 1 + len(LOCAL))
    box = sample_region(regions, image.shape, options=options)
    named = zip(LOCAL.items(), keys, strict=True)
    chosen = [(make, own) for (name, make), own in named if options.mode in ("dynamic", "static", name)]
    made = jnp.stack([make(own, image, box, options=options) for make, own in chosen])
    return local_augmentation(image, box, made, mode=options.mode)
