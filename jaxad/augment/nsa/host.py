"""NSA: synthetic defects by Poisson-blending patches of another image (Schlüter et al. 2022, Section 3).

Host functions on uint8 images. Sampling, blending and labelling are separate: ``sample_*`` draw boxes, ``blend_patch``
and ``object_mask`` are deterministic, ``host_labels`` holds the labels and ``synthesize`` puts them together. Where the
paper's text and the authors' program differ, this follows the program, which produced the published numbers.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from jaxad.augment.nsa import host_labels
from jaxad.augment.nsa.settings import CONTINUOUS, Synthesis
from jaxad.errors import UserError

TRIES = 200
_CLONE_FLAGS = {"source": cv2.NORMAL_CLONE, "mixed": cv2.MIXED_CLONE}
SMALLEST_MASK = 50  # pixels; below that seamlessClone is not reliable
NARROWEST_MASK = 3  # pixels; below that seamlessClone fails


class Box(NamedTuple):
    """A rectangle of pixels; ``bottom`` and ``right`` are exclusive."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def area(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)


class Synthetic(NamedTuple):
    """A synthetic example.

    Attributes:
      image: uint8 (h, w, c), the blended image.
      label: float32 (h, w), what the network is taught.
      mask: uint8 (h, w) of 0 and 1, the label mask: object pixels of the patches' rectangles.
      boxes: int (k, 4), the accepted destination boxes in order: top, bottom, left, right.
      skipped: Number of patches that were tried and found no place, or were too small to blend.
    """

    image: np.ndarray
    label: np.ndarray
    mask: np.ndarray
    boxes: np.ndarray
    skipped: int


def random_synthesize(
    rng: np.random.Generator, image: np.ndarray, partner: np.ndarray, *, settings: Synthesis, label: str = "logistic"
) -> Synthetic:
    """Blends patches of ``partner`` into ``image`` and labels the change.

    The first patch is always tried, each further one with probability 1/2, up to ``settings.patches``. A patch that
    finds no place leaves the image as it is.

    Args:
      rng: Source of randomness.
      image: uint8 (h, w, c) with c = 3 or 1, the destination; unchanged.
      partner: uint8 (h, w, c), another training image, the source of the patches.
      settings: The category's settings.
      label: A name of `settings.LABELS`, but not "factor".

    Returns:
      The example; its label is zero everywhere when every patch was skipped.

    Raises:
      UserError: ``label`` is not one of the names above, or the settings are some that only the device supports.
      ValueError: The images differ in shape.
    """
    if image.shape != partner.shape:
        raise ValueError(f"image and partner differ in shape: {image.shape} and {partner.shape}")
    refuse_unsupported(settings)
    # Also later patches are judged by the objects of the images as they were before the first one.
    objects = [object_mask(x, background=settings.background) for x in (partner, image)]
    blended = image.copy()
    mask = np.zeros(image.shape[:2], np.uint8)
    boxes, skipped = [], 0
    for index in range(settings.patches):
        if index > 0 and rng.random() < 0.5:
            continue
        box = _add_patch(rng, blended, mask, partner, *objects, settings=settings)
        if box is None:
            skipped += 1
        else:
            boxes.append(box)
    label_map = _label(label, image, blended, mask, settings)
    return Synthetic(blended, label_map, mask, np.array(boxes, np.int64).reshape(-1, 4), skipped)


def refuse_unsupported(settings: Synthesis) -> None:
    """Raises UserError for settings of the baselines, the ablations and the paper's text, which only the device has."""
    only = {"source": ("other",), "shape": ("rectangle",), "resized": (True,), "moved": (True,)}
    only |= {"blending": tuple(_CLONE_FLAGS), "factor": ((1.0, 1.0),), "tolerance": (1.0,)}
    only |= {"size_bounds": ("half",), "object_test": ("source",)}
    for name, values in only.items():
        value = getattr(settings, name)
        if value not in values:
            allowed = " or ".join(map(str, values))
            raise UserError(
                f"config.synthesis.{name} must be {allowed} on the host, not {value!r}; "
                "set config.data.synthesis to device for the others",
                about=f"synthesis.{name}",
            )


def _label(kind: str, image: np.ndarray, blended: np.ndarray, mask: np.ndarray, settings: Synthesis) -> np.ndarray:
    if kind == "binary":
        return host_labels.binary(image, blended, mask).astype(np.float32)
    if kind in CONTINUOUS:
        return host_labels.continuous(image, blended, mask)
    if kind == "logistic":
        return host_labels.logistic(image, blended, mask, steepness=settings.steepness, midpoint=settings.midpoint)
    raise UserError(
        f"config.label {kind!r} is not known; choose binary, continuous, continuous_sigmoid or logistic", about="label"
    )


def _add_patch(
    rng: np.random.Generator,
    blended: np.ndarray,
    mask: np.ndarray,
    partner: np.ndarray,
    partner_object: np.ndarray | None,
    image_object: np.ndarray | None,
    *,
    settings: Synthesis,
) -> Box | None:
    """Adds one patch to ``blended`` and ``mask`` in place; None when it is skipped."""
    bounds = {"half_height": settings.half_height, "half_width": settings.half_width}
    source = sample_source_box(
        rng,
        blended.shape[:2],
        partner_object,
        gamma=settings.gamma,
        object_fraction=settings.object_fraction,
        **bounds,
    )
    if source is None:
        return None
    scale = float(np.clip(rng.normal(1, 0.5), *settings.scale))
    height, width = resized_size(source, scale, blended.shape[:2], **bounds)
    patch = resize(partner[source.slices], height, width)
    patch_object = None if partner_object is None else resize(partner_object[source.slices], height, width)
    box = sample_destination_box(
        rng,
        (height, width),
        blended.shape[:2],
        patch_object,
        image_object,
        object_fraction=settings.object_fraction,
        overlap=settings.overlap,
    )
    if box is None or not is_blendable(box):
        return None
    blended[box.slices] = blend_patch(patch, blended[box.slices], gradients=settings.blending)
    mask[box.slices] = 1 if patch_object is None else patch_object | image_object[box.slices]
    return box


def object_mask(image: np.ndarray, *, background: tuple[float, float] | None) -> np.ndarray | None:
    """Pixels that differ from a plain background (equation 8, with '>' as in the program), cleaned by a 7x7 median.

    Args:
      image: uint8 (h, w, c).
      background: Brightness b and threshold t in grey levels, or None.

    Returns:
      uint8 (h, w) of 0 and 1, or None without a background.
    """
    if background is None:
        return None
    brightness, threshold = background
    channels = image.shape[2]
    total = host_labels.channel_sum(image).astype(np.float32)
    distant = np.abs(total - brightness * channels) > threshold * channels
    return host_labels.majority(distant.view(np.uint8), 7)


def first_accepted(propose: Callable[[], Box], accept: Callable[[Box], bool]) -> Box | None:
    """The first proposal that is accepted within 200 tries; a hit on the 200th is discarded, so 199 count."""
    for _ in range(TRIES - 1):
        box = propose()
        if accept(box):
            return box
    return None


def sample_source_box(
    rng: np.random.Generator,
    shape: tuple[int, int],
    partner_object: np.ndarray | None,
    *,
    half_height: tuple[float, float],
    half_width: tuple[float, float],
    gamma: tuple[float, float, float],
    object_fraction: float,
) -> Box | None:
    """Draws a patch of the source image (equations 5 to 7): one size, then centres until it shows enough object.

    Args:
      rng: Source of randomness.
      shape: Height and width of the images.
      partner_object: uint8 (h, w) of 0 and 1, object of the source image, or None to accept any place.
      half_height: Bounds of the half-height, as fractions of the height.
      half_width: Bounds of the half-width, as fractions of the width.
      gamma: Shape, scale and offset of the half-sizes' distribution.
      object_fraction: Smallest share of object pixels in the patch (exclusive).

    Returns:
      The box, clipped at the image border, or None when no centre was found.
    """
    gamma_shape, gamma_scale, offset = gamma
    limits = [pixel_bounds(b, side) for b, side in zip((half_height, half_width), shape, strict=True)]
    half = [
        int(np.clip((offset + rng.gamma(gamma_shape, gamma_scale)) * side, *limit))
        for side, limit in zip(shape, limits, strict=True)
    ]

    def propose() -> Box:
        row, column = (rng.integers(low, side - low) for (low, _), side in zip(limits, shape, strict=True))
        return clipped_box(int(row), int(column), half, shape)

    def accept(box: Box) -> bool:
        return partner_object is None or object_share(partner_object[box.slices]) > object_fraction

    return first_accepted(propose, accept)


def sample_destination_box(
    rng: np.random.Generator,
    size: tuple[int, int],
    shape: tuple[int, int],
    patch_object: np.ndarray | None,
    image_object: np.ndarray | None,
    *,
    object_fraction: float,
    overlap: float,
) -> Box | None:
    """Draws where the resized patch goes (equations 10 to 12): wholly inside the image, one pixel from its border.

    The program tests the object share of the *resized patch* where equation 11 has the destination's, so a patch that
    fails it fails at every place.

    Args:
      rng: Source of randomness.
      size: Height and width of the resized patch.
      shape: Height and width of the image.
      patch_object: uint8 ``size`` of 0 and 1, object of the resized patch, or None to accept any place.
      image_object: uint8 ``shape`` of 0 and 1, object of the destination image, or None as well.
      object_fraction: Smallest share of object pixels in the patch (exclusive).
      overlap: Smallest share of the patch's object that lands on the destination's object (exclusive).

    Returns:
      The box, or None when no place was found.
    """
    if patch_object is not None and object_share(patch_object) <= object_fraction:
        return None

    def propose() -> Box:
        row, column = (
            int(rng.integers(length // 2 + 1, side - length // 2 - 1)) for length, side in zip(size, shape, strict=True)
        )
        top, left = row - size[0] // 2, column - size[1] // 2
        return Box(top, top + size[0], left, left + size[1])

    def accept(box: Box) -> bool:
        return patch_object is None or object_overlap(patch_object, image_object[box.slices]) > overlap

    return first_accepted(propose, accept)


def pixel_bounds(fractions: tuple[float, float], side: int) -> tuple[int, int]:
    """Bounds of a size in whole pixels of a side."""
    low, high = fractions
    return round(low * side), round(high * side)


def clipped_box(row: int, column: int, half: tuple[int, int], shape: tuple[int, int]) -> Box:
    """The box around a centre with the given half-sizes, as far as it lies in the image."""
    return Box(
        max(row - half[0], 0), min(row + half[0], shape[0]), max(column - half[1], 0), min(column + half[1], shape[1])
    )


def object_share(mask: np.ndarray) -> float:
    """Share of object pixels in a uint8 (h, w) mask of 0 and 1."""
    return cv2.countNonZero(mask) / mask.size


def object_overlap(patch_object: np.ndarray, image_object: np.ndarray) -> float:
    """Share of the patch's object pixels that are also object pixels of the destination (equation 12)."""
    return cv2.countNonZero(patch_object & image_object) / cv2.countNonZero(patch_object)


def resized_size(
    box: Box,
    scale: float,
    shape: tuple[int, int],
    *,
    half_height: tuple[float, float],
    half_width: tuple[float, float],
) -> tuple[int, int]:
    """Height and width of a patch after resizing (equation 9).

    The *full* sizes are clipped with the bounds of the *half*-sizes, as in the program, so a patch in the destination
    takes at most 40 % of a side. The aspect ratio is kept as far as the bounds allow.
    """
    height, width = box.bottom - box.top, box.right - box.left
    rows, columns = pixel_bounds(half_height, shape[0]), pixel_bounds(half_width, shape[1])
    new_height = np.clip(scale * height, *rows)
    new_width = int(np.clip(int(new_height / height * width), *columns))
    new_height = int(np.clip(int(new_width / width * height), *rows))
    return new_height, new_width


def resize(patch: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear resizing of a uint8 patch (h, w, c) or mask (h, w); a mask stays one of 0 and 1."""
    return cv2.resize(patch, (width, height)).reshape(height, width, *patch.shape[2:])


def is_blendable(box: Box) -> bool:
    """Whether the box less its outermost ring, the mask of the blending, has at least 50 pixels and 3 on either side.

    OpenCV fails on a narrower mask; patches are that narrow in images below 150 pixels a side only.
    """
    height, width = box.bottom - box.top - 2, box.right - box.left - 2
    return min(height, width) >= NARROWEST_MASK and height * width >= SMALLEST_MASK


def blend_patch(patch: np.ndarray, under: np.ndarray, *, gradients: str) -> np.ndarray:
    """Poisson-blends a patch over the part of the image that it covers (equations 1 to 4).

    The blending mask is the rectangle less its outermost ring: the label's mask together with what is background in
    both images, which for rectangles is all of it. Only the pixels inside depend on the rest of the image, through
    the rectangle's own border, so the rectangle is all that is needed.

    Args:
      patch: uint8 (h, w, c) with c = 3 or 1.
      under: uint8 (h, w, c), the destination's pixels.
      gradients: "source" for the patch's gradients, "mixed" for the larger of both at each pixel.

    Returns:
      uint8 (h, w, c).

    Raises:
      UserError: ``gradients`` has another value.
    """
    if gradients not in _CLONE_FLAGS:
        raise UserError(
            f"config.synthesis.blending {gradients!r} is not known on the host; choose source or mixed",
            about="synthesis.blending",
        )
    height, width, channels = under.shape
    if channels == 1:  # OpenCV wants three
        patch, under = (np.repeat(x, 3, axis=2) for x in (patch, under))
    # OpenCV erodes the mask that it is given in place; this one is used once.
    mask = np.zeros((height, width), np.uint8)
    mask[1:-1, 1:-1] = 255
    blended = cv2.seamlessClone(patch, under, mask, (width // 2, height // 2), _CLONE_FLAGS[gradients])
    return blended[..., :channels]
