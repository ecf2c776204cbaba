"""The region of an image that a detector judges, at the size for scoring and at the image's own size.

What a training never saw, such as the border around a central crop, is not judged: it would look anomalous in every
image, good or bad.
"""

from typing import NamedTuple

import numpy as np

from jaxad.data.image import resize_map, smooth_map
from jaxad.errors import UserError


class Region(NamedTuple):
    """The central square that is judged.

    Attributes:
      size: ``config.score.size``, the side of the images that are scored, in pixels.
      crop: ``config.evaluate.crop``, the side of the square; 0 for the whole image.
    """

    size: int
    crop: int

    @property
    def border(self) -> int:
        """Width of what is not judged on each side of an image, in pixels of the size for scoring."""
        return (self.size - self.crop) // 2 if self.crop else 0

    def seen(self, images: np.ndarray) -> np.ndarray:
        """The part that the network sees of images, uint8 (n, size, size, c); raises UserError for other arrays."""
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:3] != (self.size, self.size):
            raise UserError(
                f"images to score must be uint8 (n, {self.size}, {self.size}, c), not {images.dtype} {images.shape}"
            )
        inside = slice(self.border, self.size - self.border)
        return images[:, inside, inside]

    def inside(self, maps: np.ndarray) -> np.ndarray:
        """The part of maps (..., size, size) that is judged."""
        rows, columns = (slice(self.border, side - self.border) for side in maps.shape[-2:])
        return maps[..., rows, columns]

    def bordered(self, maps: np.ndarray) -> np.ndarray:
        """Maps (n, size, size) from maps of the region alone: zero outside it, as the papers' protocol counts it."""
        return np.pad(maps, ((0, 0), (self.border,) * 2, (self.border,) * 2))

    def judged_at(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) of the region in an image of this height and width."""
        top, left = (min(round(self.border * side / self.size), (side - 1) // 2) for side in size)
        return top, left, size[0] - top, size[1] - left

    def peak_at(self, scored: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
        """(row, column) of the highest judged value of a map (size, size), in an image of this height and width."""
        judged = self.inside(scored)
        cells = np.unravel_index(judged.argmax(), judged.shape)
        row, column = (
            int((self.border + int(cell) + 0.5) * new / old)
            for cell, old, new in zip(cells, scored.shape, size, strict=True)
        )
        top, left, bottom, right = self.judged_at(size)  # rounded, where the peak's place is cut off
        return min(max(row, top), bottom - 1), min(max(column, left), right - 1)

    def map_at(self, scored: np.ndarray, size: tuple[int, int], *, sigma: float = 0.0) -> np.ndarray:
        """A map (size, size) in an image of this height and width: float32, NaN outside the region.

        It is resampled by `resize_map`. For a picture it can be smoothed first, with a standard deviation `sigma` in
        its own pixels.
        """
        top, left, bottom, right = self.judged_at(size)
        full = np.full(size, np.nan, np.float32)
        judged = smooth_map(np.ascontiguousarray(self.inside(scored)), sigma)
        full[top:bottom, left:right] = resize_map(judged, (bottom - top, right - left))
        return full
