"""The picture of what `jaxad.check` found: images under a headline each, and pairs side by side."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from jaxad.reporting.sample_grid import rgb

SIDE = 160  # pixels a side of an image
_GAP, _LINE = 8, 16  # pixels between tiles, and a line of a caption
_HEADLINE = 36
_COLUMNS = 8  # images, of which a pair takes two
_INK = (45, 55, 72)


class Tile(NamedTuple):
    """Images side by side over a caption.

    Attributes:
      images: uint8 (h, w, c), RGB or grey, of any sizes.
      caption: A name for each image.
    """

    images: Sequence[np.ndarray]
    caption: Sequence[str]


def contact_sheet(sections: Sequence[tuple[str, Sequence[Tile]]]) -> np.ndarray:
    """Draws tiles under headlines.

    Args:
      sections: A headline and its tiles, of which at least one section has one.

    Returns:
      uint8 (height, width, 3), RGB.
    """
    width = _COLUMNS * (SIDE + _GAP) + _GAP
    strips = []
    for headline, tiles in sections:
        strip = np.full((_HEADLINE, width, 3), 255, np.uint8)
        strips += [_written(strip, headline, (_GAP, _HEADLINE - 10), 0.55), *_rows(tiles, width)]
    return np.vstack(strips)


def _rows(tiles: Sequence[Tile], width: int) -> list[np.ndarray]:
    rows, row, taken = [], [], 0
    for tile in tiles:
        if row and taken + len(tile.images) > _COLUMNS:
            rows, row, taken = [*rows, row], [], 0
        row.append(_drawn(tile))
        taken += len(tile.images)
    padded = []
    for parts in [*rows, row] if row else rows:
        joined = np.hstack(parts)
        padded.append(
            cv2.copyMakeBorder(joined, 0, 0, 0, width - joined.shape[1], cv2.BORDER_CONSTANT, value=(255,) * 3)
        )
    return padded


def _drawn(tile: Tile) -> np.ndarray:
    """A tile with a gap to its left; the images of a pair touch but for a thin line."""
    columns = []
    for image, name in zip(tile.images, tile.caption, strict=True):
        column = np.full((SIDE + _LINE + _GAP, SIDE + _GAP, 3), 255, np.uint8)
        height, width = (max(1, round(side * SIDE / max(image.shape[:2]))) for side in image.shape[:2])
        top, left = (SIDE - height) // 2, (SIDE - width) // 2
        small = cv2.resize(rgb(image), (width, height), interpolation=cv2.INTER_AREA)
        column[top : top + height, _GAP + left : _GAP + left + width] = small
        columns.append(_written(column, name, (_GAP, SIDE + _LINE - 4), 0.4, SIDE))
    if len(columns) > 1:
        whole = np.hstack(columns)
        cv2.rectangle(whole, (_GAP - 3, 0), (whole.shape[1] - 1, SIDE + _LINE), (217, 84, 30), 2)
        return whole
    return columns[0]


def _written(strip: np.ndarray, text: str, place: tuple[int, int], scale: float, width: int = 0) -> np.ndarray:
    """Writes a text, from the left smaller where it would be wider than `width`; it has no letters beyond ASCII."""
    text = text.encode("ascii", "replace").decode()
    font = cv2.FONT_HERSHEY_SIMPLEX
    if width:
        length = cv2.getTextSize(text, font, scale, 1)[0][0]
        scale *= min(1.0, width / max(length, 1))
    cv2.putText(strip, text, place, font, scale, _INK, 1, cv2.LINE_AA)
    return strip
