"""The defective regions of an image: where its score map lies above a threshold for pixels."""

from typing import NamedTuple

import cv2
import numpy as np


class DefectRegion(NamedTuple):
    """Pixels above a threshold that touch each other, by a side or a corner. JSON holds what ``_asdict`` returns.

    Rows and columns are counted from 0 in the map that was given.

    Attributes:
      box: (top, left, bottom, right) of the smallest box around it; bottom and right lie outside the region.
      area: How many pixels it has; holes do not count.
      polygon: Its outer contour as (column, row) of pixels that belong to it, clockwise in the image. The first follows
        on the last one. Corners alone are given, so a single pixel is one point, and a thin line goes there and back.
      peak_score: Its highest score.
      mean_score: The mean of its scores.
      peak: (row, column) of its highest score.
    """

    box: tuple[int, int, int, int]
    area: int
    polygon: list[tuple[int, int]]
    peak_score: float
    mean_score: float
    peak: tuple[int, int]


def region_mask(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Which pixels of a map float32 (h, w) are defective: uint8 (h, w), 1 above the threshold; 0 also where it is NaN.

    The threshold is rounded to float32 as the scores are.
    """
    return (scores > np.float32(threshold)).view(np.uint8)


def find_regions(scores: np.ndarray, threshold: float) -> list[DefectRegion]:
    """The regions of a map that lie above a threshold, those of the highest peak first.

    Args:
      scores: float32 (h, w), NaN where the image is not judged.
      threshold: Scores above it are defective.
    """
    mask, found = region_mask(scores, threshold), []
    if not mask.any():
        return found
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    polygons = _polygons(mask, labels)
    for number, (left, top, width, height, area) in enumerate(stats[1:].tolist(), start=1):
        box = np.s_[top : top + height, left : left + width]
        # OpenCV copies nothing: the map of a large scan is held once.
        inside, part = (labels[box] == number).view(np.uint8), scores[box]
        _, peak, _, (x, y) = cv2.minMaxLoc(part, mask=inside)
        corners, place = (top, left, top + height, left + width), (top + y, left + x)
        found.append(DefectRegion(corners, area, polygons[number], peak, cv2.mean(part, mask=inside)[0], place))
    return sorted(found, key=lambda region: (-region.peak_score, region.peak))


def _polygons(mask: np.ndarray, labels: np.ndarray) -> dict[int, list[tuple[int, int]]]:
    """The outer contours of the regions, by the labels (h, w) of their pixels."""
    # Unlike RETR_EXTERNAL it also returns regions that lie in a hole of another one; holes have a parent.
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    found = {}
    for contour, (*_, parent) in zip(contours, hierarchy.reshape(-1, 4).tolist(), strict=True):
        if parent < 0:
            # OpenCV goes round counterclockwise; from the same corner the other way round it is clockwise.
            points = np.roll(contour[::-1, 0], 1, axis=0).tolist()
            column, row = points[0]
            found[int(labels[row, column])] = [(x, y) for x, y in points]
    return found
