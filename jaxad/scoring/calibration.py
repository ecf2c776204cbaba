"""What a detector keeps of good images that it was not fitted to: enough to set its thresholds for any rate later."""

from typing import NamedTuple

import numpy as np

from jaxad.scoring.regions import find_regions
from jaxad.scoring.threshold import fit_threshold


class Calibration(NamedTuple):
    """The scores of n good images that the density which scored them was not fitted to.

    Attributes:
      scores: Their image scores, in ascending order.
      peaks: The highest judged value of each map, in ascending order.
      regions: The mean number of regions above the pixel threshold in such an image, for the rate that the training
        asked for; None for another rate, since it takes the maps.
      cross_fitted: Whether they are the images that the detector was fitted to, each scored without itself; else they
        were held out.
    """

    scores: tuple[float, ...]
    peaks: tuple[float, ...]
    regions: float | None
    cross_fitted: bool

    def thresholds(self, false_alarm_rate: float) -> tuple[float, float]:
        """The threshold of image scores and that of pixels for this rate, see `fit_threshold`.

        A new good image has a pixel above the latter, and so a region, with at most this probability where the images
        were held out: its map must then have a higher peak than those of nearly all n images. For those that were
        cross-fitted see `jaxad.training.cross_fitting`.
        """
        return tuple(
            fit_threshold(np.array(values), false_alarm_rate=false_alarm_rate) for values in (self.scores, self.peaks)
        )

    def percentile(self, score: float) -> float:
        """The share of the n good images with a lower image score, in percent."""
        return 100 * float(np.searchsorted(self.scores, score)) / len(self.scores)


def calibrate(
    scores: np.ndarray, maps: np.ndarray, *, false_alarm_rate: float, cross_fitted: bool
) -> tuple[Calibration, tuple[float, float]]:
    """The calibration by good images, and the thresholds for a rate (see `Calibration.thresholds`).

    Args:
      scores: (n,) image scores, with n at least 1.
      maps: float32 (n, h, w), what is judged of their maps; NaN where there is no image.
      false_alarm_rate: In [0, 1).
      cross_fitted: See `Calibration`.

    Raises:
      UserError: The rate lies outside [0, 1), or a score is not finite.
    """
    peaks = np.nanmax(maps, axis=(1, 2))
    kept = Calibration(*(tuple(np.sort(values).tolist()) for values in (scores, peaks)), None, cross_fitted)
    thresholds = kept.thresholds(false_alarm_rate)
    regions = sum(len(find_regions(one, thresholds[1])) for one in maps) / len(maps)
    return kept._replace(regions=regions), thresholds
