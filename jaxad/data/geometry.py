"""How an image of any size becomes one of the size that a network takes, and where each of its pixels goes."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad.data import roi
from jaxad.data.image import resize_image
from jaxad.data.mask import resize_mask
from jaxad.data.record import Record, Source
from jaxad.data.roi import Box, Roi
from jaxad.metrics.ranking import IGNORED

_LOOKED_AT = 16  # training images by which the aspect ratio is chosen
OUTSIDE = 128  # grey level in the place of what lies outside the region of interest


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

    With a region of interest, its box is what is shown of each image, as if there were no more of it. What lies outside
    the region is plain grey, before anything is resampled, so that no pixel of it changes anything.

    Attributes:
      size: (height, width) of the frame.
      resize: One of `configs.RESIZES`.
      roi: The region of interest; None for whole images.
    """

    size: tuple[int, int]
    resize: str = "squeeze"
    roi: Roi | None = None

    @property
    def fills(self) -> bool:
        """Whether parts of a frame may be filled."""
        return self.roi is not None or self.resize in ("keep", "pad")

    def placement(self, shape: tuple[int, int]) -> Placement:
        """Where an image of this (height, width) lies."""
        frame, whole = (0, 0, *self.size), self._whole(shape)
        if self.resize == "squeeze":
            return Placement(whole, frame)
        sides = whole[2] - whole[0], whole[3] - whole[1]
        scales = [new / old for new, old in zip(self.size, sides, strict=True)]
        if self.resize == "crop":
            kept = [max(1, round(new / max(scales))) for new in self.size]
            top, left, bottom, right = _central(kept, sides)
            return Placement((whole[0] + top, whole[1] + left, whole[0] + bottom, whole[1] + right), frame)
        shown = [max(1, round(old * min(scales))) for old in sides]
        near = configs.STEP // 2 if self.resize == "keep" else 0
        if all(new - length <= near for new, length in zip(self.size, shown, strict=True)):
            return Placement(whole, frame)
        return Placement(whole, _central(shown, self.size))

    def _whole(self, shape: tuple[int, int]) -> Box:
        """All that may be shown of an image of this (height, width)."""
        return (0, 0, *shape) if self.roi is None else self.roi.box(shape)

    def box(self, shape: tuple[int, int]) -> Box:
        """Where an image of this (height, width) lies, as `valid` takes it: also what ``crop`` cuts off counts."""
        source, target = self.placement(shape)
        begins, ends = [], []
        for axis, (begin, end) in enumerate(zip(self._whole(shape)[:2], self._whole(shape)[2:], strict=True)):
            scale = (target[axis + 2] - target[axis]) / (source[axis + 2] - source[axis])
            begins.append(target[axis] - round((source[axis] - begin) * scale))
            ends.append(target[axis + 2] + round((end - source[axis + 2]) * scale))
        return begins[0], begins[1], ends[0], ends[1]

    def valid(self, boxes: Sequence[Box] | np.ndarray | None) -> np.ndarray | None:
        """Which pixels of frames count, where images lie in boxes (n, 4): bool (n, *size), or None where all do.

        Without boxes all images fill their frames, and what counts is the same in all of them: (1, *size).
        """
        boxes = np.array([(0, 0, *self.size)]) if boxes is None else np.asarray(boxes)
        top, left, bottom, right = np.moveaxis(boxes[:, :, None, None], 1, 0)
        rows, columns = np.arange(self.size[0])[:, None], np.arange(self.size[1])
        inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
        if self.roi is not None:
            for one, box in zip(inside, boxes.tolist(), strict=True):
                one &= self.roi.in_frame(tuple(box), self.size)
        return None if inside.all() else inside

    def judged(self, shape: tuple[int, int]) -> np.ndarray | None:
        """Which pixels of the part that is shown of an image, its placement's source, count; None where all do."""
        inside = None if self.roi is None else self.roi.in_image(shape, self.placement(shape).source)
        return None if inside is None or inside.all() else inside

    def image(self, image: np.ndarray) -> np.ndarray:
        """An image in the frame: uint8 (h, w, c) to (*size, c)."""
        (top, left, bottom, right), target = self.placement(image.shape[:2])
        shown, inside = image[top:bottom, left:right], self.judged(image.shape[:2])
        if inside is not None:
            shown = np.where(inside[..., None], shown, np.uint8(OUTSIDE))
        shown = resize_image(shown, (target[2] - target[0], target[3] - target[1]))
        if shown.shape[:2] == self.size:
            return shown
        beside = (target[0], self.size[0] - target[2], target[1], self.size[1] - target[3])
        return cv2.copyMakeBorder(shown, *beside, cv2.BORDER_REFLECT_101).reshape(*self.size, image.shape[2])

    def mask(self, mask: np.ndarray, *, rule: str = "any") -> np.ndarray:
        """A mask of 0 and 1 in the frame, uint8 (*size,), `IGNORED` where there is no image; see `resize_mask`."""
        (top, left, bottom, right), target = self.placement(mask.shape)
        shown, inside = mask[top:bottom, left:right], self.judged(mask.shape)
        if inside is not None:
            shown = shown * inside
        shown = resize_mask(shown, (target[2] - target[0], target[3] - target[1]), rule=rule)
        framed, valid = np.zeros(self.size, np.uint8), self.valid([self.box(mask.shape)])
        framed[target[0] : target[2], target[1] : target[3]] = shown
        return framed if valid is None else np.where(valid[0], framed, np.uint8(IGNORED))

    def record(self, record: Record, *, mask_rule: str = "any") -> Record:
        """A record in the frame; its box is where the image lies, or its region of interest."""
        box = self.box(record.image.shape[:2]) if self.fills else None
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
    return _of(config, config.data.size)


def scored(config: ConfigDict) -> Geometry:
    """The geometry of the images that are scored: that of the training where tiles of it are."""
    if configs.tile(config):
        return trained(config)
    return _of(config, config.score.size)


def _of(config: ConfigDict, side: int) -> Geometry:
    return Geometry(configs.frame(config, side), configs.resize(config), roi.read(configs.roi(config)))


def aspect_of(source: Source, region: Roi | None = None) -> float:
    """Width over height of the training images, or of the box of their region of interest: the median of a few of
    them, which are evenly spaced."""
    numbers = np.linspace(0, len(source) - 1, min(len(source), _LOOKED_AT)).round().astype(int)
    shapes = [source[int(number)].image.shape for number in numbers]
    return float(np.median([shape[1] / shape[0] for shape in shapes])) * (1.0 if region is None else region.aspect)
