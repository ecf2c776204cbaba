"""Two random views of an image for a Siamese network: crop, mirror image, colour jitter, grey and blur.

Yoa et al. 2021, Section III-B, train with SimSiam and do not say how its two views differ. These are SimSiam's (Chen
and He, CVPR 2021, Section 3), tamed by default for inspection images, which are aligned: crops keep most of the part,
nothing is mirrored, as a part's left and right can differ, and colour and sharpness hardly change, since these are what
defects change.

Crop, mirror image and blur are linear and separable. Each axis gets one matrix for the three of them, and an image is
resampled by two products, with no gather. What is drawn is the same on any number of devices; views differ by the
rounding of the products.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxad.augment import color
from jaxad.errors import UserError


class ViewOptions(NamedTuple):
    """How the two views of an image differ from it.

    Attributes:
      area: Bounds of the share of the image's area that a crop keeps (SimSiam: 0.2, 1).
      aspect: Bounds of a crop's width over its height in pixels, log-uniform (SimSiam: 3/4, 4/3).
      flip: Probability of a horizontal mirror image (SimSiam: 0.5).
      jitter: Largest change of brightness, contrast and saturation, by U(1 - jitter, 1 + jitter) (SimSiam: 0.4).
      hue: Largest shift of the hue in turns, in both directions (SimSiam: 0.1).
      jitter_probability: Probability of the colour jitter, of all four together (SimSiam: 0.8).
      grey: Probability of a view without colour (SimSiam: 0.2).
      blur: Probability of the Gaussian blur (SimSiam: 0.5).
      sigma: Bounds of the blur's standard deviation in pixels of a view whose shorter side is 224, uniform (SimSiam:
        0.1, 2).
    """

    area: tuple[float, float] = (0.8, 1.0)
    aspect: tuple[float, float] = (0.95, 1.05)
    flip: float = 0.0
    jitter: float = 0.1
    hue: float = 0.02
    jitter_probability: float = 0.8
    grey: float = 0.0
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)


class Crop(NamedTuple):
    """An upright rectangle of an image: where it begins and its size, float32 pixels, not whole ones."""

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array


class View(NamedTuple):
    """One draw of a view.

    Attributes:
      crop: What the view shows.
      flip: Whether it is mirrored from left to right, bool.
      sigma: Standard deviation of its blur in pixels, float32; 0 for none.
      jittered: Whether its colours are jittered, bool.
      jitter: How; None where the options allow none.
      grey: Whether it has no colour, bool.
    """

    crop: Crop
    flip: jax.Array
    sigma: jax.Array
    jittered: jax.Array
    jitter: color.Jitter | None
    grey: jax.Array


_LIMITS = {
    "area": (0, 1),
    "aspect": (0, math.inf),
    "sigma": (0, math.inf),
    "flip": (0, 1),
    "jitter": (0, 1),
    "hue": (0, 0.5),  # half a turn is the most there is
    "jitter_probability": (0, 1),
    "grey": (0, 1),
    "blur": (0, 1),
}


def check_options(options: ViewOptions) -> None:
    """Refuses a setting outside its range with a `UserError` that names it."""
    for name, (least, most) in _LIMITS.items():
        value = getattr(options, name)
        if name in ("area", "aspect", "sigma"):
            low, high = value
            above = low >= 0 if name == "sigma" else low > 0
            if not (above and low <= high <= most and high < math.inf):
                relation = "<=" if name == "sigma" else "<"
                limit = f" <= {most}" if most < math.inf else ""
                raise UserError(
                    f"config.view.{name} must be (low, high) with 0 {relation} low <= high{limit}, not {value}",
                    about=f"view.{name}",
                )
        elif not least <= value <= most:
            raise UserError(f"config.view.{name} must lie in [{least}, {most}], not {value}", about=f"view.{name}")


def crop_matrix(start: jax.Array | float, length: jax.Array | float, *, size: int) -> jax.Array:
    """Linear interpolation along one axis that enlarges a part of it to the whole, as a matrix.

    Pixel centres lie at halves, and beyond the part's first and last centre their values are held, as if the part had
    been cut out first. A part is never longer than the axis, hence never shrunk, and needs no low-pass filter.

    Args:
      start: Where the part begins in pixels, at least 0; need not be whole.
      length: Length of the part in pixels, from 1 to size - start; need not be whole.
      size: Pixels of the axis, before and after.

    Returns:
      float32 (size, size), rows sum to 1: the enlarged axis is this times the given one.
    """
    place = jnp.clip((jnp.arange(size, dtype=jnp.float32) + 0.5) * (length / size) - 0.5, 0, length - 1) + start
    return jnp.clip(1 - jnp.abs(place[:, None] - jnp.arange(size, dtype=jnp.float32)), 0)


def blur_matrix(sigma: jax.Array | float, *, size: int) -> jax.Array:
    """Gaussian blur along one axis, as a matrix.

    At the border what lies outside has no weight, and the weights inside are normalised: nothing is made up there.

    Args:
      sigma: Standard deviation in pixels, at least 0; 0 gives the identity.
      size: Pixels of the axis.

    Returns:
      float32 (size, size), rows sum to 1.
    """
    places = jnp.arange(size, dtype=jnp.float32)
    distance = (places[:, None] - places) / jnp.maximum(sigma, 1e-3)  # a neighbour's weight of exp(-5e5) is 0
    weights = jnp.exp(-0.5 * distance**2)
    return weights / weights.sum(axis=1, keepdims=True)


def resample(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Every channel of an image (h, w, c) as rows @ channel @ columns.T, in full float32.

    Args:
      image: float32 (h, w, c).
      rows: float32 (h', h).
      columns: float32 (w', w).

    Returns:
      float32 (h', w', c).
    """
    exact = jax.lax.Precision.HIGHEST
    down = jnp.einsum("ij,jkc->ikc", rows, image, precision=exact)
    return jnp.einsum("lk,ikc->ilc", columns, down, precision=exact)


def sample_crop(key: jax.Array, shape: tuple[int, ...], *, options: ViewOptions) -> Crop:
    """Draws a crop of an image of `shape` (h, w, ...), which always lies in the image.

    The area is uniform; the aspect log-uniform over those of its range with which this area fits into the image, the
    nearest one where none does; the place uniform. torchvision's RandomResizedCrop draws area and aspect again until
    they fit, up to ten times, so that large areas become rarer than asked for, and rounds to whole pixels. Here every
    box is used: one draw, and no rounding that could take two devices to different pixels.

    Raises:
      UserError: As `check_options`.
    """
    check_options(options)
    height, width = shape[:2]
    area, aspect, top, left = jax.random.uniform(key, (4,), jnp.float32)
    area = options.area[0] + (options.area[1] - options.area[0]) * area
    fits = jnp.log(area * (width / height)), jnp.log((width / height) / area)  # the full width; the full height
    low, high = (jnp.clip(math.log(bound), *fits) for bound in options.aspect)
    root = jnp.exp((low + (high - low) * aspect) / 2)
    side = jnp.sqrt(area * (height * width))
    tall, wide = jnp.clip(side / root, 1, height), jnp.clip(side * root, 1, width)
    return Crop((height - tall) * top, (width - wide) * left, tall, wide)


def sample_view(key: jax.Array, shape: tuple[int, ...], *, options: ViewOptions) -> View:
    """Draws a view of an image of `shape` (h, w, ...); raises as `check_options`."""
    crops, colors, chances = jax.random.split(key, 3)
    crop = sample_crop(crops, shape, options=options)
    flip, blur, sigma, jittered, grey = jax.random.uniform(chances, (5,), jnp.float32)
    sigma = options.sigma[0] + (options.sigma[1] - options.sigma[0]) * sigma
    sigma = jnp.where(blur < options.blur, sigma * (min(shape[:2]) / 224), 0)
    changes = options.jitter or options.hue
    jitter = color.sample_jitter(colors, strength=options.jitter, hue=options.hue) if changes else None
    return View(crop, flip < options.flip, sigma, jittered < options.jitter_probability, jitter, grey < options.grey)


def view(image: jax.Array, drawn: View) -> jax.Array:
    """Makes the view of an image that was drawn.

    SimSiam crops, jitters, makes grey, blurs and mirrors, in this order. Here crop, blur and mirror image come first,
    in one resampling, then jitter and grey. The mirror image commutes with everything and grey with the blur; only the
    blur comes before the jitter instead of after it, which matters where the jitter clips or turns the hue.

    Args:
      image: float32 (h, w, 3) in [0, 1].
      drawn: What `sample_view` returned.

    Returns:
      float32 (h, w, 3) in [0, 1].
    """

    def axis(start, length, size):
        blur, crop = blur_matrix(drawn.sigma, size=size), crop_matrix(start, length, size=size)
        return jnp.matmul(blur, crop, precision=jax.lax.Precision.HIGHEST)

    rows = axis(drawn.crop.top, drawn.crop.height, image.shape[0])
    columns = axis(drawn.crop.left, drawn.crop.width, image.shape[1])
    view = resample(image, rows, jnp.where(drawn.flip, columns[::-1], columns))
    if drawn.jitter is not None:
        view = jnp.where(drawn.jittered, color.color_jitter(view, drawn.jitter), view)
    view = jnp.where(drawn.grey, color.luma(jnp.moveaxis(view, -1, 0))[..., None], view)
    return jnp.clip(view, 0, 1)  # rounding can leave it


def view_pair(image: jax.Array, drawn: View) -> jax.Array:
    """Both views of an image float32 (h, w, 3) in [0, 1] that a `View` of two draws holds: (2, h, w, 3)."""
    return jax.vmap(view, in_axes=(None, 0))(image, drawn)


def random_view(key: jax.Array, image: jax.Array, *, options: ViewOptions) -> jax.Array:
    """One random view of an image.

    Args:
      key: Source of randomness.
      image: float32 (h, w, 3) in [0, 1].
      options: How views differ from the image.

    Returns:
      float32 (h, w, 3) in [0, 1].

    Raises:
      UserError: As `check_options`.
    """
    return view(image, sample_view(key, image.shape, options=options))


def random_view_pair(key: jax.Array, image: jax.Array, *, options: ViewOptions) -> jax.Array:
    """Two independent views of an image float32 (h, w, 3) in [0, 1]: (2, h, w, 3); raises as `random_view`."""
    drawn = jax.vmap(lambda key: sample_view(key, image.shape, options=options))(jax.random.split(key))
    return view_pair(image, drawn)
