"""Training views: rotation, flip and crops of one image on the host (Schlüter et al. 2022, Section 4.1)."""

import cv2
import numpy as np

from jaxad.errors import UserError


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Turns an image about its centre, counter-clockwise; nearest neighbour, black outside.

    Args:
      image: uint8 (h, w, c).
      degrees: Angle; positive turns counter-clockwise.

    Returns:
      uint8 (h, w, c).
    """
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    turned = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)
    return turned.reshape(image.shape)  # OpenCV drops a single channel


def crop_at(image: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    """The square of ``side`` pixels whose top left corner lies at (top, left).

    Args:
      image: (h, w, c).
      top: Row of the first pixel, at least 0.
      left: Column of the first pixel, at least 0.
      side: Height and width of the result.

    Returns:
      (side, side, c), a view of the image.

    Raises:
      UserError: The square does not lie inside the image.
    """
    height, width = image.shape[:2]
    if top < 0 or left < 0 or top + side > height or left + side > width:
        raise UserError(
            f"a crop of {side}x{side} pixels does not fit into an image of {height}x{width}; "
            "lower config.view.crop and config.view.center_crop or raise config.data.size",
            about="view.crop",
        )
    return image[top : top + side, left : left + side]


def crop_center(image: np.ndarray, side: int) -> np.ndarray:
    """The central square of ``side`` pixels, a view (side, side, c); raises UserError when it does not fit."""
    height, width = image.shape[:2]
    return crop_at(image, round((height - side) / 2), round((width - side) / 2), side)


def flip_vertical(image: np.ndarray) -> np.ndarray:
    """The image (h, w, c) upside down, as a view."""
    return image[::-1]


def random_view(
    rng: np.random.Generator,
    image: np.ndarray,
    *,
    rotation: float,
    center_crop: int,
    crop: int,
    flip: bool,
) -> np.ndarray:
    """One random training view of an image that has its working size already.

    Rotation, centre crop, flip and random crop, in this order. Objects use a centre crop and some of them a rotation,
    textures the flip. The two images of a pair get independent views (call twice).

    Args:
      rng: Source of randomness.
      image: uint8 (h, w, c).
      rotation: Largest angle in degrees, uniform in both directions; 0 turns nothing.
      center_crop: Side of the central square that the random crop is taken from; 0 keeps the whole image.
      crop: Side of the random crop.
      flip: Whether to turn the image upside down with probability 1/2.

    Returns:
      uint8 (crop, crop, c), contiguous and independent of the input's memory.

    Raises:
      UserError: A crop is larger than the image.
    """
    if rotation:
        image = rotate(image, rng.uniform(-rotation, rotation))
    if center_crop:
        image = crop_center(image, center_crop)
    if flip and rng.random() < 0.5:
        image = flip_vertical(image)
    return _random_crop(rng, image, crop).copy()


def _random_crop(rng: np.random.Generator, image: np.ndarray, side: int) -> np.ndarray:
    height, width = image.shape[:2]
    return crop_at(image, rng.integers(max(height - side, 0) + 1), rng.integers(max(width - side, 0) + 1), side)
