"""What is kept of good images: thresholds for any rate, percentiles and regions, by hand and against the rate."""

import numpy as np
import pytest
from scipy.stats import binom

from jaxad.scoring.calibration import Calibration, calibrate
from jaxad.scoring.regions import find_regions
from jaxad.scoring.threshold import fit_threshold


def noise(rng, count, side=6):
    """Maps of correlated noise, float32 (count, side, side)."""
    maps = rng.normal(size=(count, side + 2, side + 2))
    return np.float32(sum(maps[:, y : y + side, x : x + side] for y in range(3) for x in range(3)))


def test_a_calibration_by_hand():
    maps = np.zeros((3, 4, 4), np.float32)
    maps[0, 0, 0], maps[0, 3, 3], maps[1, 1, 1], maps[2, 2, 2] = 5, 5, 2, 3
    kept, (image, pixel) = calibrate(np.array([0.3, 0.1, 0.2]), maps, false_alarm_rate=0.5, cross_fitted=False)
    assert kept.scores == pytest.approx((0.1, 0.2, 0.3)) and kept.peaks == (2.0, 3.0, 5.0) and not kept.cross_fitted
    assert (image, pixel) == (pytest.approx(0.25), 4.0)  # of 3 and a new one, one in two may lie above the second
    assert kept.regions == pytest.approx(2 / 3)  # both corners of the first
    assert kept.thresholds(0.0) == (fit_threshold(np.array([0.1, 0.2, 0.3]), false_alarm_rate=0.0), 5.75)
    assert [kept.percentile(score) for score in (0.0, 0.15, 0.2, 9)] == pytest.approx([0, 100 / 3, 100 / 3, 100])


def test_thresholds_for_another_rate_are_those_of_another_training():
    rng = np.random.default_rng(0)
    scores, maps = rng.gamma(2, size=50), noise(rng, 50)
    kept = calibrate(scores, maps, false_alarm_rate=0.05, cross_fitted=True)[0]
    for rate in (0.0, 0.02, 0.1, 0.5):
        other, thresholds = calibrate(scores, maps, false_alarm_rate=rate, cross_fitted=True)
        assert kept.thresholds(rate) == thresholds and kept[:2] == other[:2]
        assert other.regions == np.mean([len(find_regions(one, thresholds[1])) for one in maps])
    assert Calibration(kept.scores, kept.peaks, None, True).thresholds(0.05) == kept.thresholds(0.05)


@pytest.mark.parametrize("count", [20, 50, 100, 300])
@pytest.mark.parametrize("rate", [0.05, 0.1])
def test_a_new_good_image_has_a_region_as_often_as_asked(count, rate):
    """Over trainings with new images, within the bounds of a binomial count (probability 0.999 on either side).

    A region appears with a probability between (m - 1) / (count + 1) and m / (count + 1), see test_threshold.py.
    """
    trainings, rng, marked = 500, np.random.default_rng(count), 0
    for _ in range(trainings):
        maps = noise(rng, count + 1)
        _, (_, pixel) = calibrate(np.zeros(count), maps[:-1], false_alarm_rate=rate, cross_fitted=False)
        marked += bool(find_regions(maps[-1], pixel))
    rank = int(rate * (count + 1) + 1e-9)
    low, high = (rank - 1) / (count + 1) if rank else 0.0, max(rank, 1) / (count + 1)
    assert binom.ppf(0.001, trainings, low) <= marked <= binom.ppf(0.999, trainings, high)
    assert high <= rate or rank == 0
