"""The samples of a test set in the order of their scores, and how many of them score at least as much as each other.

Images and pixels are sorted once, and reduced to `Thresholds` for the full set and again for each defect type.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

IGNORED = 255  # in a mask: a pixel of no image, see `jaxad.data.geometry`


class Ranking(NamedTuple):
    """Samples in ascending order of score, each with a code that says which image and which component it is from.

    Code c < n: a good sample of image c. Code n + j: a sample of component j. For image-level metrics, every image is
    one sample and every defective image a component of its own.
    """

    scores: np.ndarray  # uint32 (m,) ascending, in the order of the scores they stand for
    codes: np.ndarray  # uint32 (m,)
    images: int  # n
    component_image: np.ndarray  # int (k,) the image that component j lies in
    component_size: np.ndarray  # int (k,) its number of samples


class Thresholds(NamedTuple):
    """Cumulative counts at every distinct score of an anomalous sample, highest score first."""

    fp_above: np.ndarray  # (t,) good samples scoring more than the threshold
    fp: np.ndarray  # (t,) good samples scoring at least the threshold
    tp: np.ndarray  # (t,) anomalous samples scoring at least the threshold
    overlap: np.ndarray  # (t,) covered fraction of a component, averaged over components
    good: int  # all good samples
    anomalous: int  # all anomalous samples


def sortable(scores: np.ndarray) -> np.ndarray:
    """Maps finite float32 to uint32 in the same order, equal to equal, by their bits."""
    bits = (scores + np.float32(0)).view(np.int32)  # adding zero turns -0.0 into 0.0, its equal
    # IEEE 754 bit patterns of positive floats are ordered like integers, those of negative floats in reverse.
    flip = (bits >> 31) | np.int32(-(2**31))
    return (bits ^ flip).view(np.uint32)


def _ranking(keys: np.ndarray, images: int, component_image: Sequence[int], component_size: Sequence[int]) -> Ranking:
    """Sorts keys, uint64 with the score in the upper and the code in the lower half; overwrites them."""
    keys.sort()  # sorting values is several times faster than argsort and a gather
    scores = (keys >> np.uint64(32)).astype(np.uint32)
    return Ranking(
        scores,
        keys.astype(np.uint32),
        images,
        np.asarray(component_image, np.int64),
        np.asarray(component_size, np.int64),
    )


def rank_images(labels: np.ndarray, scores: np.ndarray) -> Ranking:
    """Ranks whole images: labels (n,) of 0 and 1, scores (n,) finite. Raises ValueError for other values or shapes."""
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.shape != scores.shape or labels.ndim != 1:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape} must be two equally long vectors")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    defective = np.flatnonzero(labels)
    codes = np.arange(len(labels), dtype=np.uint64)
    codes[defective] = len(labels) + np.arange(len(defective))
    ranks = np.unique(scores, return_inverse=True)[1].astype(np.uint64)
    return _ranking(ranks << np.uint64(32) | codes, len(labels), defective, np.ones(len(defective)))


def rank_pixels(masks: Sequence[np.ndarray], maps: np.ndarray) -> Ranking:
    """Ranks all pixels of a test set.

    Args:
      masks: n masks (h, w), non-zero where anomalous; their 8-connected components are the regions of AU-PRO. Pixels
        of the value `IGNORED` are no samples.
      maps: float32 (n, h, w), finite.

    Raises:
      ValueError: Shapes differ, maps are of another type or not finite.
    """
    if len(masks) != len(maps) or maps.dtype != np.float32:
        raise ValueError(f"need as many masks as maps, in float32, not {len(masks)} and {maps.shape} {maps.dtype}")
    keys, ignored = np.empty(maps.shape, np.uint64), np.zeros(maps.shape, bool)
    component_image, component_size = [], []
    for i, (mask, scores) in enumerate(zip(masks, maps, strict=True)):
        if mask.shape != scores.shape:
            raise ValueError(f"mask {i} is {mask.shape}, its map {scores.shape}")
        if not np.isfinite(scores).all():
            raise ValueError(f"map {i} is not finite")
        codes = np.full(mask.shape, i, np.uint64)
        ignored[i] = mask == IGNORED
        marked = (mask != 0) & ~ignored[i]
        if marked.any():
            count, components, stats, _ = cv2.connectedComponentsWithStats(marked.astype(np.uint8), connectivity=8)
            inside = components > 0
            codes[inside] = components[inside] - 1 + len(maps) + len(component_size)
            component_image += [i] * (count - 1)
            component_size += stats[1:, cv2.CC_STAT_AREA].tolist()
        keys[i] = sortable(scores)
        keys[i] <<= np.uint64(32)
        keys[i] |= codes
    keys = keys[~ignored] if ignored.any() else keys.ravel()
    return _ranking(keys, len(maps), component_image, component_size)


def select(ranking: Ranking, chosen: np.ndarray) -> Thresholds:
    """Counts at every threshold over the chosen images alone, chosen: bool (n,); linear in the number of samples."""
    good = np.concatenate([chosen, np.zeros(len(ranking.component_image), bool)])[ranking.codes]
    good_below = np.cumsum(good, dtype=np.int64)
    total_good = int(good_below[-1]) if len(good_below) else 0

    component_chosen = chosen[ranking.component_image]
    at = np.flatnonzero(np.concatenate([np.zeros(len(chosen), bool), component_chosen])[ranking.codes])
    levels, group = np.unique(ranking.scores[at], return_inverse=True)
    first = np.searchsorted(ranking.scores, levels, "left")
    last = np.searchsorted(ranking.scores, levels, "right")
    component = ranking.codes[at] - ranking.images
    weight = 1.0 / ranking.component_size[component] / max(component_chosen.sum(), 1)

    def down(values: np.ndarray) -> np.ndarray:
        return np.cumsum(values[::-1])

    return Thresholds(
        fp_above=total_good - good_below[last - 1][::-1],
        fp=total_good - (good_below[first] - good[first])[::-1],
        tp=down(np.bincount(group, minlength=len(levels))),
        overlap=down(np.bincount(group, weight, minlength=len(levels))),
        good=total_good,
        anomalous=len(at),
    )
