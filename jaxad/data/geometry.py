"""How an image of any size becomes one of the size that a network takes, and where each of its pixels goes."""

from typing import NamedTuple

import cv2
import numpy as np
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad.data.image import resize_image
from jaxad.data.mask import resize_mask
from jaxad.data.record import Record, Source
from jaxad.metrics.ranking import IGNORED

_LOOKED_AT = 16  # training images by which the aspect ratio is chosen

Box = tuple[int, int, int, int]  # top, left, bottom, right; the last two lie outside


class Placement(NamedTuple):
    """Where an image lies in a frame.

    Attributes:
      source: The part of the image that is shown, in its own pixels.
      target: Where it lies in the frame, in pixels of the frame.
    """

    source: Box
    target: Box


class Geometry(NamedTuple):
    """A frame of one size, and how images are brought into it.

    ``squeeze`` changes the aspect ratio. ``crop`` cuts off what the frame has no room for. ``pad`` and ``keep`` show
    the whole image at its own aspect ratio, and fill the rest of the frame with its mirror image: nothing alien lies
    beside it. What is filled is not judged, see `Record.box`. Both are the same but for the frame: that of ``keep``
    has the aspect ratio of the training images, to half of `configs.STEP` pixels, and images that differ by no more
    than that fill it.

    Attributes:
      size: (height, width) of the frame.
      resize: One of `configs.RESIZES`.
    """

    size: tuple[int, int]
    resize: str = "squeeze"

    @property
    def fills(self) -> bool:
        """Whether parts of a frame may be filled."""
        return self.resize in ("keep", "pad")

    def placement(self, shape: tuple[int, int]) -> Placement:
        """Where an image of this (height, width) lies."""
        whole, frame = (0, 0, *shape), (0, 0, *self.size)
        if self.resize == "squeeze":
            return Placement(whole, frame)
        scales = [new / old for new, old in zip(self.size, shape, strict=True)]
        if self.resize == "crop":
            kept = [max(1, round(new / max(scales))) for new in self.size]
            return Placement(_central(kept, shape), frame)
        shown = [max(1, round(old * min(scales))) for old in shape]
        near = configs.STEP // 2 if self.resize == "keep" else 0
        if all(new - length <= near for new, length in zip(self.size, shown, strict=True)):
            return Placement(whole, frame)
        return Placement(whole, _central(shown, self.size))

    def image(self, image: np.ndarray) -> np.ndarray:
        """An image in the frame: uint8 (h, w, c) to (*size, c)."""
        (top, left, bottom, right), target = self.placement(image.shape[:2])
        shown = resize_image(image[top:bottom, left:right], (target[2] - target[0], target[3] - target[1]))
        if shown.shape[:2] == self.size:
            return shown
        beside = (target[0], self.size[0] - target[2], target[1], self.size[1] - target[3])
        return cv2.copyMakeBorder(shown, *beside, cv2.BORDER_REFLECT_101).reshape(*self.size, image.shape[2])

    def mask(self, mask: np.ndarray, *, rule: str = "any") -> np.ndarray:
        """A mask of 0 and 1 in the frame, uint8 (*size,), `IGNORED` where there is no image; see `resize_mask`."""
        (top, left, bottom, right), target = self.placement(mask.shape)
        shown = resize_mask(mask[top:bottom, left:right], (target[2] - target[0], target[3] - target[1]), rule=rule)
        if shown.shape == self.size:
            return shown
        framed = np.full(self.size, IGNORED, np.uint8)
        framed[target[0] : target[2], target[1] : target[3]] = shown
        return framed

    def record(self, record: Record, *, mask_rule: str = "any") -> Record:
        """A record in the frame; its box is where the image lies."""
        box = self.placement(record.image.shape[:2]).target if self.fills else None
        mask = record.mask
        if mask is None and not record.label and box:  # so that what is filled is told
            mask = np.zeros(record.image.shape[:2], np.uint8)
        mask = None if mask is None else self.mask(mask, rule=mask_rule)
        singles = record.single_defects
        if singles is not None:
            framed = ((self.mask(single, rule=mask_rule), share) for single, share in singles)
            singles = tuple((np.where(single == IGNORED, 0, single), share) for single, share in framed)
        return record._replace(image=self.image(record.image), mask=mask, box=box, single_defects=singles)


def _central(size: list[int], shape: tuple[int, int]) -> Box:
    """The box of this height and width in the middle of a shape."""
    top, left = ((outer - inner) // 2 for outer, inner in zip(shape, size, strict=True))
    return top, left, top + size[0], left + size[1]


def trained(config: ConfigDict) -> Geometry:
    """The geometry of the images that are trained on."""
    return Geometry(configs.frame(config, config.data.size), configs.resize(config))


def scored(config: ConfigDict) -> Geometry:
    """The geometry of the images that are scored: that of the training where tiles of it are."""
    if configs.tile(config):
        return trained(config)
    return Geometry(configs.frame(config, config.score.size), configs.resize(config))


def is_inside(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """Which pixels of frames of a size (h, w) lie in boxes, int (n, 4): bool (n, h, w), or None where all do."""
    top, left, bottom, right = np.moveaxis(np.asarray(boxes)[:, :, None, None], 1, 0)
    rows, columns = np.arange(size[0])[:, None], np.arange(size[1])
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return None if inside.all() else inside


def aspect_of(source: Source) -> float:
    """Width over height of the training images: the median of a few of them, which are evenly spaced."""
    numbers = np.linspace(0, len(source) - 1, min(len(source), _LOOKED_AT)).round().astype(int)
    shapes = [source[int(number)].image.shape for number in numbers]
    return float(np.median([shape[1] / shape[0] for shape in shapes]))
