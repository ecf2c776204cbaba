"""Colour jitter: brightness, contrast, saturation and hue in random order (Li et al. 2021, Appendix A.2).

The operations are those of torchvision's `ColorJitter`, which the paper cites. None of them moves a pixel. Each takes
and returns the colour planes of an image: these are three times faster to work on than interleaved values.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxad.errors import UserError

Planes = tuple[jax.Array, jax.Array, jax.Array]  # red, green, blue: float32 (h, w) in [0, 1]
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: the grey level of an RGB colour


class Jitter(NamedTuple):
    """One draw of the colour jitter.

    Attributes:
      factors: float32 (3,), of brightness, contrast and saturation; 1 changes nothing.
      hue: float32, the shift of the hue in turns; 0 changes nothing.
      order: int32 (4,), a permutation of brightness (0), contrast (1), saturation (2) and hue (3), first to last.
    """

    factors: jax.Array
    hue: jax.Array
    order: jax.Array


def luma(planes: Planes | jax.Array) -> jax.Array:
    """The grey level (h, w) of three colour planes (ITU-R BT.601)."""
    return sum(weight * plane for weight, plane in zip(LUMA, planes, strict=True))


def _blend(planes: Planes, reference: jax.Array | float, factor: jax.Array | float) -> Planes:
    return tuple(jnp.clip(factor * plane + (1 - factor) * reference, 0, 1) for plane in planes)


def adjust_brightness(planes: Planes, factor: jax.Array | float) -> Planes:
    """Every value times `factor`, clipped to [0, 1]."""
    return _blend(planes, 0.0, factor)


def adjust_contrast(planes: Planes, factor: jax.Array | float, inside: jax.Array) -> Planes:
    """Moves every value away from the mean grey level of the pixels inside, bool (h, w), by `factor`; clipped."""
    mean = jnp.where(inside, luma(planes), 0).sum() / inside.sum()
    return _blend(planes, mean, factor)


def adjust_saturation(planes: Planes, factor: jax.Array | float) -> Planes:
    """Moves every pixel away from its own grey level by `factor`, clipped to [0, 1]."""
    return _blend(planes, luma(planes), factor)


def adjust_hue(planes: Planes, turns: jax.Array | float) -> Planes:
    """Turns the hue of the HSV model, leaving saturation and value alone; a third of a turn takes red to green."""
    red, green, blue = planes
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    scale = 1 / jnp.where(chroma > 0, chroma, 1)  # grey has no hue; its chroma of 0 makes any other the same
    # Which channel is largest is compared, never asked of `value`: a compiler may round the two differently.
    green_or_blue = jnp.where(green >= blue, 2 + scale * (blue - red), 4 + scale * (red - green))
    is_red = (red >= green) & (red >= blue)
    hue = jnp.where(is_red, scale * (green - blue), green_or_blue) + 6 * turns  # in sixths of a turn

    def channel(offset):
        sixth = hue + offset
        sixth = sixth - 6 * jnp.floor(sixth / 6)
        return value - chroma * jnp.clip(jnp.minimum(sixth, 4 - sixth), 0, 1)

    return channel(5), channel(3), channel(1)


def color_jitter(image: jax.Array, drawn: Jitter, inside: jax.Array | None = None) -> jax.Array:
    """Applies the four operations in the drawn order.

    Args:
      image: float32 (h, w, 3) in [0, 1].
      drawn: What `sample_jitter` returned.
      inside: bool (h, w), the pixels that count for the contrast's mean; all where not given. What is outside is
        changed too and means nothing.

    Returns:
      float32 (h, w, 3) in [0, 1].
    """
    inside = jnp.ones(image.shape[:2], bool) if inside is None else inside
    operations = (
        lambda planes: adjust_brightness(planes, drawn.factors[0]),
        lambda planes: adjust_contrast(planes, drawn.factors[1], inside),
        lambda planes: adjust_saturation(planes, drawn.factors[2]),
        lambda planes: adjust_hue(planes, drawn.hue),
    )

    # A scan, not four calls in a row: these would be fused into each other and worked out several times.
    def step(planes, operation):
        return jax.lax.switch(operation, operations, planes), None

    planes, _ = jax.lax.scan(step, tuple(image[..., channel] for channel in range(3)), drawn.order)
    return jnp.stack(planes, axis=-1)


def check_strength(strength: float, name: str) -> None:
    """Refuses a jitter strength outside [0, 0.5] with a `UserError` that names the setting."""
    if not 0 <= strength <= 0.5:
        raise UserError(
            f"{name} must lie in [0, 0.5], as half a turn of hue is the most there is, not {strength}",
            about=name.removeprefix("config.") if name.startswith("config.") else None,
        )


def sample_jitter(key: jax.Array, *, strength: float, hue: float) -> Jitter:
    """Draws factors from U(1 - strength, 1 + strength), the hue's shift in turns from U(-hue, hue), and an order."""
    drawn = jax.random.uniform(key, (8,), jnp.float32)
    changes = 2 * drawn[:4] - 1
    return Jitter(1 + strength * changes[:3], hue * changes[3], jnp.argsort(drawn[4:]))


def random_color_jitter(key: jax.Array, image: jax.Array, *, strength: float, hue: float) -> jax.Array:
    """Jitters the colours of a whole image.

    Args:
      key: Source of randomness.
      image: float32 (h, w, 3) in [0, 1].
      strength: Largest change of each factor, in [0, 0.5].
      hue: Largest shift of the hue in turns, in [0, 0.5]. The image itself is returned where both are 0.

    Returns:
      float32 (h, w, 3) in [0, 1].

    Raises:
      UserError: A strength lies outside its range.
    """
    check_strength(strength, "the strength of the colour jitter")
    check_strength(hue, "the hue of the colour jitter")
    return color_jitter(image, sample_jitter(key, strength=strength, hue=hue)) if strength or hue else image
