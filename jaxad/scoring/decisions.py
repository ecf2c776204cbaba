"""How the decisions by the fitted thresholds fit the labels of a test set, for images and for pixels."""

import numpy as np

from jaxad import metrics
from jaxad.metrics import TestScores
from jaxad.scoring.region import Region
from jaxad.scoring.regions import find_regions


def image_decisions(scores: TestScores, threshold: float) -> dict[str, float | None]:
    """Shares of good and of defective test images above a threshold, in [0, 1]; None where there are none."""
    called = scores.image_scores > threshold
    return {
        name: float(called[scores.labels == label].mean()) if (scores.labels == label).any() else None
        for name, label in (("false_alarm_rate", 0), ("detection_rate", 1))
    }


def pixel_decisions(scores: TestScores, threshold: float, region: Region) -> dict:
    """How pixels above a threshold fit the masks, over all pixels of the images whose masks are known.

    Pixels that are not judged are called good.

    Args:
      scores: The test set.
      threshold: For pixels.
      region: What is judged.

    Returns:
      ``seg_f1``, the harmonic mean of ``precision`` and ``recall``, the shares of right pixels among those above the
      threshold and of found ones among the anomalous (SegF1 of MVTec AD 2). All three are None, with the ``reason``,
      where no pixel is anomalous; the precision also where none is above. ``false_alarm_rate`` is the share of good
      images with a region, ``regions_per_good_image`` the mean number of these; None without good images.
    """
    maps = scores.maps.copy()
    for one, mask in zip(maps, scores.masks, strict=True):
        if mask is not None:
            one[mask == metrics.IGNORED] = np.nan
    judged = region.inside(maps)
    good = [find_regions(one, threshold) for one in judged[scores.labels == 0]]
    alarms = {
        "false_alarm_rate": float(np.mean([bool(found) for found in good])) if good else None,
        "regions_per_good_image": float(np.mean([len(found) for found in good])) if good else None,
    }
    known, masks = metrics.known_masks(scores)
    called = np.zeros(scores.maps.shape, bool)
    region.inside(called)[...] = judged > np.float32(threshold)
    hit = total = marked = 0
    for one, mask in zip(called[known], masks, strict=True):
        anomalous = mask == 1
        hit += int((one & anomalous).sum())
        total += int(anomalous.sum())
        marked += int(one.sum())
    if not total:
        why = "no anomalous test images" if not scores.labels.any() else "no anomalous pixel is known by a mask"
        return {"seg_f1": None, "precision": None, "recall": None, "reason": why, **alarms}
    precision = hit / marked if marked else None
    return {"seg_f1": 2 * hit / (total + marked), "precision": precision, "recall": hit / total, **alarms}
