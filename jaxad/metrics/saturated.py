"""The saturated per-region overlap of MVTec LOCO AD: Bergmann et al., IJCV 2022, Section 3.3.

Of a defect, min(covered pixels / saturation, 1) is covered, averaged over defects. A logical defect, such as a missing
part, needs not be covered whole: its saturation says how much is enough. Defects are given one by one, since they may
consist of parts that don't touch, and lie upon each other.
"""

from collections.abc import Sequence

import numpy as np

from jaxad.metrics.ranking import Ranking, Thresholds, sortable

# AU-sPRO and the false positive rate up to which each integrates: those of the authors' program, the paper's is 0.05.
LIMITS = {"auspro_001": 0.01, "auspro_005": 0.05, "auspro_01": 0.1, "auspro_03": 0.3, "auspro_1": 1.0}

Defects = Sequence[tuple[np.ndarray, float]]


def select_saturated(
    ranking: Ranking, maps: np.ndarray, defects: Sequence[Defects | None], chosen: np.ndarray
) -> Thresholds:
    """Counts with the saturated overlap over the chosen images; the `aupro` of these is AU-sPRO.

    Good pixels are those of `ranking`. A pixel of several defects counts in each. A defect of which no pixel is left at
    this size is left out.

    Args:
      ranking: The pixels of n images, anomalous where any defect of an image lies.
      maps: float32 (n, h, w), finite, the same scores.
      defects: Those of each image, each as a mask (h, w), non-zero where anomalous, and its saturation: the share of
        these pixels that is enough, in (0, 1]. None for an image without any.
      chosen: bool (n,).

    Raises:
      ValueError: Shapes differ, maps are of another type, or a saturation is no such share.
    """
    if not len(defects) == len(maps) == len(chosen) == ranking.images or maps.dtype != np.float32:
        raise ValueError(f"need as many lists of defects as maps, in float32, not {len(defects)} and {maps.shape}")
    scores, weights, count = [np.empty(0, np.uint32)], [np.empty(0)], 0
    for i in np.flatnonzero(chosen):
        for mask, share in defects[i] or ():
            if mask.shape != maps.shape[1:] or not 0 < share <= 1:
                raise ValueError(f"a defect of image {i} has another size, or a saturation outside (0, 1]")
            own = np.sort(sortable(maps[i][mask != 0]))[::-1]
            if not len(own):
                continue
            enough = share * len(own)
            scores.append(own)
            weights.append(np.clip(enough - np.arange(len(own)), 0, 1) / enough)  # the highest pixels count
            count += 1

    is_component = np.zeros(len(ranking.component_image), bool)
    good = ranking.scores[np.concatenate([chosen, is_component])[ranking.codes]]
    levels, group = np.unique(np.concatenate(scores), return_inverse=True)
    overlap = np.bincount(group, np.concatenate(weights), len(levels)) / max(count, 1)

    def good_above(side: str) -> np.ndarray:
        return len(good) - np.searchsorted(good, levels, side)[::-1]

    return Thresholds(
        fp_above=good_above("right"),
        fp=good_above("left"),
        tp=np.cumsum(np.bincount(group, minlength=len(levels))[::-1]),
        overlap=np.cumsum(overlap[::-1]),
        good=len(good),
        anomalous=len(group),
    )


def over_types(by_defect: dict[str, dict]) -> dict[str, dict[str, float | None]]:
    """The means over defect types that MVTec LOCO AD reports, such as of logical and structural anomalies.

    Args:
      by_defect: The metrics of each type against all good images, by level and name.

    Returns:
      {"image": {"auroc"}, "pixel": {AU-sPRO by limit}}; None where a type's is None, or without types.
    """

    def mean(level: str, name: str) -> float | None:
        values = [own[level][name] for own in by_defect.values()]
        return None if None in values or not values else float(np.mean(values))

    return {"image": {"auroc": mean("image", "auroc")}, "pixel": {name: mean("pixel", name) for name in LIMITS}}
