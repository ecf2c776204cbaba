"""The region of interest: polygons in an image, outside of which nothing is trained on, scored or counted.

``config.data.roi`` holds it as text. What a user gives there, `jaxad.data.roi_finding` turns into polygons in shares of
width and height, once a training begins. So a detector needs no file, and takes images of any size.
"""

import functools
import math
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxad.errors import UserError

AUTOMATIC = "auto"
_FOUND_IN = " = "  # stands between what the user gave, such as the name of a file, and the polygons that it became
_NUMBERS = re.compile(r"[-+\d.,;eE\s]+")
_ROUNDING = 0.01  # pixels by which the rounding of shares may move a corner
_HOW = "write the corners of each polygon as 'x,y x,y x,y', with ';' between polygons"
Polygon = tuple[tuple[float, float], ...]  # corners (x, y)
Box = tuple[int, int, int, int]  # top, left, bottom, right; the last two lie outside


class Roi(NamedTuple):
    """The region: what lies in an odd number of polygons, so that one in another one is a hole.

    Attributes:
      polygons: Corners (x, y) in shares of the image's width and height, in [0, 1].
    """

    polygons: tuple[Polygon, ...]

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Top, left, bottom and right of the smallest box around all polygons, in shares."""
        columns, rows = zip(*(corner for polygon in self.polygons for corner in polygon), strict=True)
        return min(rows), min(columns), max(rows), max(columns)

    @property
    def aspect(self) -> float:
        """Width over height of this box in a square image."""
        top, left, bottom, right = self.bounds
        return (right - left) / (bottom - top)

    def box(self, shape: tuple[int, int]) -> Box:
        """The smallest box of whole pixels around it in an image of this (height, width)."""
        begins, ends = [], []
        for side, first, last in zip(shape, self.bounds[:2], self.bounds[2:], strict=True):
            begins.append(min(math.floor(first * side + _ROUNDING), side - 1))
            ends.append(max(math.ceil(last * side - _ROUNDING), begins[-1] + 1))
        return begins[0], begins[1], ends[0], ends[1]

    def in_image(self, shape: tuple[int, int], part: Box) -> np.ndarray:
        """Which pixels of a part of an image of this (height, width) lie in it, by their centers: bool, read-only."""
        size = part[2] - part[0], part[3] - part[1]
        return _inside(self.polygons, tuple(map(float, shape)), (-float(part[0]), -float(part[1])), size)

    def in_frame(self, box: Box, size: tuple[int, int]) -> np.ndarray:
        """Which pixels of a frame lie in it where its own box is this one of the frame: bool (*size,), read-only."""
        scale, offset = [], []
        for begin, end, first, last in zip(box[:2], box[2:], self.bounds[:2], self.bounds[2:], strict=True):
            scale.append((end - begin) / (last - first))
            offset.append(begin - first * scale[-1])
        return _inside(self.polygons, tuple(scale), tuple(offset), size)


@functools.lru_cache(4)  # images of one size, and their frames
def _inside(
    polygons: tuple[Polygon, ...], scale: tuple[float, float], offset: tuple[float, float], size: tuple[int, int]
) -> np.ndarray:
    """The pixels (row, column) whose centers lie in an odd number of polygons, which are scaled and moved before."""
    changes = np.zeros((size[0], size[1] + 1), np.uint8)  # where a row enters or leaves a polygon
    for polygon in polygons:
        corners = np.array(polygon)[:, ::-1] * scale + offset
        for (top, start), (bottom, end) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            if top > bottom:
                top, start, bottom, end = bottom, end, top, start
            rows = np.arange(max(0, math.ceil(top - 0.5)), min(size[0], math.ceil(bottom - 0.5)))
            crossed = start + (rows + 0.5 - top) / (bottom - top) * (end - start) if len(rows) else rows
            changes[rows, np.ceil(crossed - 0.5).clip(0, size[1]).astype(int)] ^= 1
    inside = np.bitwise_xor.accumulate(changes[:, :-1], axis=1).astype(bool)
    if not inside.any():  # something is left of an image of a few pixels
        inside[:] = True
    inside.flags.writeable = False
    return inside


def to_text(polygons: Sequence[Sequence[Sequence[float]]], origin: str = "") -> str:
    """Polygons in shares as ``config.data.roi`` holds them; `origin` is what they were made of."""
    corners = (" ".join(f"{x:.5g},{y:.5g}" for x, y in polygon) for polygon in polygons)
    return (f"{origin}{_FOUND_IN}" if origin else "") + "; ".join(corners)


def origin_of(text: str) -> str:
    """What the polygons were made of: `AUTOMATIC`, the name of a file, or "" where a user gave them."""
    return text.rpartition(_FOUND_IN)[0]


def is_found(text: str) -> bool:
    """Whether polygons stand in the place of what the user gave."""
    return _FOUND_IN in text


def numbers_of(text: str) -> list[list[tuple[float, float]]] | None:
    """The corners of each polygon as they were given, in shares or in pixels; None where it is no list of numbers.

    Raises:
      UserError: A polygon has fewer than three corners, or a corner is no pair of numbers.
    """
    written = text.rpartition(_FOUND_IN)[2]
    if not _NUMBERS.fullmatch(written):
        return None
    found = []
    for part in written.split(";"):
        try:
            corners = [tuple(map(float, corner.split(","))) for corner in part.split()]
        except ValueError:
            corners = [()]
        if any(len(corner) != 2 for corner in corners):
            raise UserError(f"config.data.roi has corners that are no pair of numbers: '{part.strip()}'; {_HOW}",
                            about="data.roi")  # fmt: skip
        if len(corners) < 3:
            raise UserError(
                f"config.data.roi has a polygon of {len(corners)} corners, where 3 are the fewest; {_HOW}",
                about="data.roi",
            )
        if min(min(corner) for corner in corners) < 0:
            raise UserError(
                f"config.data.roi has a corner outside the image, with a number below 0: '{part.strip()}'; corners "
                "lie between 0,0 at the upper left and the image's width,height",
                about="data.roi",
            )
        found.append(corners)
    return found


def check(text: str) -> None:
    """Refuses a text that is neither `AUTOMATIC` nor polygons nor the path of a file, with a UserError."""
    if not text or text == AUTOMATIC or numbers_of(text) is not None or os.path.isfile(text):
        return
    raise UserError(
        f"config.data.roi must be auto, polygons (x,y x,y x,y) or the path of a mask file, not '{text}', which is no "
        "file",
        about="data.roi",
    )


def read(text: str) -> Roi | None:
    """The region that a config holds; None for whole images.

    Raises:
      UserError: It is no polygon in shares: a training has not looked at the images yet.
    """
    if not text:
        return None
    polygons = numbers_of(text)
    if polygons is None or max(max(corner) for polygon in polygons for corner in polygon) > 1:
        raise UserError(
            f"config.data.roi is '{text}', which depends on the training images; give a polygon in shares of the "
            "image's width and height here, from 0 to 1",
            about="data.roi",
        )
    return Roi(tuple(map(tuple, polygons)))
