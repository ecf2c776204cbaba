"""The region of an image that a detector judges, at the size for scoring and at the image's own size.

What a training never saw, such as the border around a central crop, is not judged: it would look anomalous in every
image, good or bad. Nor is what fills a frame beside an image, or what lies outside the region of interest.
"""

from typing import NamedTuple

import cv2
import numpy as np
from ml_collections import ConfigDict

from jaxad.data import geometry
from jaxad.data.geometry import Box, Geometry
from jaxad.data.image import resize_map, smooth_map
from jaxad.errors import UserError


class Region(NamedTuple):
    """The part of a frame that is judged: all of it, what a crop leaves of it, or the region of interest in it.

    Attributes:
      geometry: The frame, and how images lie in it.
      border: Width of what is not judged on each side of the frame, in its pixels.
    """

    geometry: Geometry
    border: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frame."""
        return self.geometry.size

    @property
    def seen_size(self) -> tuple[int, int]:
        """Height and width of what the network sees of it."""
        height, width = self.size
        return height - 2 * self.border, width - 2 * self.border

    def seen(self, images: np.ndarray) -> np.ndarray:
        """The part that the network sees of images, uint8 (n, *size, c); raises UserError for other arrays."""
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:3] != self.size:
            height, width = self.size
            raise UserError(
                f"images to score must be uint8 (n, {height}, {width}, c), not {images.dtype} {images.shape}"
            )
        inside = (slice(self.border, side - self.border) for side in self.size)
        return images[:, *inside]

    def inside(self, maps: np.ndarray) -> np.ndarray:
        """The part of maps (..., h, w) that is judged."""
        rows, columns = (slice(self.border, side - self.border) for side in maps.shape[-2:])
        return maps[..., rows, columns]

    def bordered(self, maps: np.ndarray) -> np.ndarray:
        """Maps (n, *size) from maps of the region alone: zero outside it, as the papers' protocol counts it."""
        return np.pad(maps, ((0, 0), (self.border,) * 2, (self.border,) * 2))

    def _places(self, size: tuple[int, int]) -> tuple[Box, Box]:
        """What is judged of an image of this height and width: where it lies in the frame, and in the image."""
        source, target = self.geometry.placement(size)
        in_frame, in_image = [], []
        axes = zip(source[:2], source[2:], target[:2], target[2:], self.size, strict=True)
        for first, last, begin, end, side in axes:
            start, stop = max(begin, self.border), min(end, side - self.border)
            scale, most = (last - first) / (end - begin), (last - first - 1) // 2  # something is left of a small image
            before, after = (min(round(pixels * scale), most) for pixels in (start - begin, end - stop))
            in_frame.append((start, stop))
            in_image.append((first + before, last - after))
        (top, bottom), (left, right) = in_frame
        (first, last), (begin, end) = in_image
        return (top, left, bottom, right), (first, begin, last, end)

    def judged_at(self, size: tuple[int, int]) -> Box:
        """(top, left, bottom, right) of the region in an image of this height and width; a box around what has another
        shape."""
        return self._places(size)[1]

    def peak_at(self, scored: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
        """(row, column) of the highest judged value of a map (*self.size), in an image of this height and width."""
        (top, left, bottom, right), judged = self._places(size)
        part, valid = scored[top:bottom, left:right], self.geometry.valid([self.geometry.box(size)])
        if valid is not None:
            part = np.where(valid[0, top:bottom, left:right], part, -np.inf)
        cells = np.unravel_index(part.argmax(), part.shape)
        source, target = self.geometry.placement(size)
        place = []
        for axis, (start, cell) in enumerate(zip((top, left), cells, strict=True)):
            scale = (source[axis + 2] - source[axis]) / (target[axis + 2] - target[axis])
            pixel = source[axis] + int((start + int(cell) + 0.5 - target[axis]) * scale)
            # The region is rounded, where the peak's place is cut off.
            place.append(min(max(pixel, judged[axis]), judged[axis + 2] - 1))
        if (inside := self.geometry.judged(size)) is None or inside[place[0] - judged[0], place[1] - judged[1]]:
            return place[0], place[1]
        # A pixel's center may lie outside the region of interest where that of one of another size lies inside.
        rows, columns = np.nonzero(inside)
        rows, columns = rows + judged[0], columns + judged[1]
        nearest = np.argmin((rows - place[0]) ** 2 + (columns - place[1]) ** 2)
        return int(rows[nearest]), int(columns[nearest])

    def map_at(self, scored: np.ndarray, size: tuple[int, int], *, sigma: float = 0.0) -> np.ndarray:
        """A map (*self.size) in an image of this height and width: float32, NaN outside the region.

        It is resampled by `resize_map`. For a picture it can be smoothed first, with a standard deviation `sigma` in
        its own pixels.
        """
        (top, left, bottom, right), judged = self._places(size)
        full = np.full(size, np.nan, np.float32)
        part = np.ascontiguousarray(scored[top:bottom, left:right])
        valid = self.geometry.valid([self.geometry.box(size)])
        if self.geometry.roi is not None and valid is not None:
            part = _continued(part, valid[0, top:bottom, left:right])
        placed = resize_map(smooth_map(part, sigma), (judged[2] - judged[0], judged[3] - judged[1]))
        full[judged[0] : judged[2], judged[1] : judged[3]] = placed
        if (inside := self.geometry.judged(size)) is not None:
            full[judged[0] : judged[2], judged[1] : judged[3]][~inside] = np.nan
        return full


def _continued(part: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """A map (h, w) whose pixels that do not count have the value of the nearest one that does.

    So resampling mixes nothing else into those at the edge of the region of interest.
    """
    _, labels = cv2.distanceTransformWithLabels(
        (~valid).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    values = np.zeros(labels.max() + 1, part.dtype)
    values[labels[valid]] = part[valid]
    return values[labels]


def region_of(config: ConfigDict) -> Region:
    """The region of the images that a detector scores: ``config.evaluate.crop`` of the frame, 0 for all of it."""
    crop = config.evaluate.crop
    return Region(geometry.scored(config), (config.score.size - crop) // 2 if crop else 0)
