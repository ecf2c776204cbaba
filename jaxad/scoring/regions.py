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
      peak: (row, column) of its highest score; of equal ones the first, row by row.
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
    mask = region_mask(scores, threshold)
    places = np.flatnonzero(mask)
    if not len(places):
        return []
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    labels, values = labels.ravel()[places] - 1, scores.ravel()[places]
    order = np.lexsort((places, -values, labels))  # the highest of each region comes first in its part
    first = order[np.searchsorted(labels[order], np.arange(count - 1))]
    means = np.bincount(labels, values.astype(np.float64)) / np.bincount(labels)
    polygons = _polygons(mask, places, labels)
    found = []
    for number, at in enumerate(first.tolist()):
        left, top, width, height, area = stats[number + 1].tolist()
        row, column = divmod(int(places[at]), scores.shape[1])
        box = (top, left, top + height, left + width)
        found.append(DefectRegion(box, area, polygons[number], float(values[at]), float(means[number]), (row, column)))
    return sorted(found, key=lambda region: (-region.peak_score, region.peak))


def _polygons(mask: np.ndarray, places: np.ndarray, labels: np.ndarray) -> dict[int, list[tuple[int, int]]]:
    """The outer contours of the regions by their labels, (n,), of the pixels at these places of the mask."""
    # Unlike RETR_EXTERNAL it also returns regions that lie in a hole of another one; holes have a parent.
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outer = [
        contour[:, 0] for contour, (*_, parent) in zip(contours, hierarchy.reshape(-1, 4), strict=True) if parent < 0
    ]
    starts = np.array([contour[0] for contour in outer])
    owners = labels[np.searchsorted(places, starts[:, 1] * mask.shape[1] + starts[:, 0])]
    # OpenCV goes round counterclockwise; from the same corner the other way round it is clockwise.
    return {
        int(owner): [tuple(point) for point in np.roll(contour[::-1], 1, axis=0).tolist()]
        for owner, contour in zip(owners, outer, strict=True)
    }
