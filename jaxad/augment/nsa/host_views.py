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


def crop_at(image: np.ndarray, top: int, left: int, size: tuple[int, int]) -> np.ndarray:
    """The rectangle of a size whose top left corner lies at (top, left).

    Args:
      image: (h, w, c).
      top: Row of the first pixel, at least 0.
      left: Column of the first pixel, at least 0.
      size: Height and width of the result.

    Returns:
      (*size, c), a view of the image.

    Raises:
      UserError: The rectangle does not lie inside the image.
    """
    height, width = image.shape[:2]
    if top < 0 or left < 0 or top + size[0] > height or left + size[1] > width:
        raise UserError(
            f"a crop of {size[0]}x{size[1]} pixels does not fit into an image of {height}x{width}; "
            "lower config.view.crop and config.view.center_crop or raise config.data.size",
            about="view.crop",
        )
    return image[top : top + size[0], left : left + size[1]]


def crop_center(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The central rectangle of a size, a view (*size, c); raises UserError when it does not fit."""
    height, width = image.shape[:2]
    return crop_at(image, round((height - size[0]) / 2), round((width - size[1]) / 2), size)


def flip_vertical(image: np.ndarray) -> np.ndarray:
    """The image (h, w, c) upside down, as a view."""
    return image[::-1]


def random_view(
    rng: np.random.Generator,
    image: np.ndarray,
    *,
    rotation: float,
    center_crop: tuple[int, int] | None,
    crop: tuple[int, int],
    flip: bool,
) -> np.ndarray:
    """One random training view of an image that has its working size already.

    Rotation, centre crop, flip and random crop, in this order. Objects use a centre crop and some of them a rotation,
    textures the flip. The two images of a pair get independent views (call twice).

    Args:
      rng: Source of randomness.
      image: uint8 (h, w, c).
      rotation: Largest angle in degrees, uniform in both directions; 0 turns nothing.
      center_crop: Height and width of the center that the random crop is taken from; None keeps the whole image.
      crop: Height and width of the random crop.
      flip: Whether to turn the image upside down with probability 1/2.

    Returns:
      uint8 (*crop, c), contiguous and independent of the input's memory.

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


def _random_crop(rng: np.random.Generator, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    top, left = (rng.integers(max(old - new, 0) + 1) for old, new in zip(image.shape[:2], size, strict=True))
    return crop_at(image, top, left, size)
