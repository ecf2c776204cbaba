"""The threshold: a number between two scores, which no rounding crosses, with a rate that it keeps."""

import numpy as np
import pytest
from scipy.stats import gamma

from jaxad.scoring.threshold import ROUNDING, fit_threshold
from tests.refusals import refuses
from tests.test_detector import baseline, pictures

HELD_OUT = {
    "ordinary": np.random.default_rng(0).normal(1, 0.2, 50),
    "one": np.array([0.7]),
    "one zero": np.array([0.0]),
    "two": np.array([0.7, 0.71]),
    "equal": np.full(9, 0.3),
    "zeros": np.zeros(5),
    "zeros and one": np.array([0, 0, 0, 0, 0.2]),
    "negative": -np.random.default_rng(1).gamma(2, 3, 30),
    "both signs": np.linspace(-1, 1, 11),
    "densities": np.exp(np.random.default_rng(2).normal(6, 4, 40)),  # up to 1e6
    "huge": 1e30 * np.random.default_rng(3).random(20),
    "tiny": 1e-30 * np.random.default_rng(4).random(20),
    "far from zero": 1000 + np.random.default_rng(5).random(20),
    "pairs": np.repeat(np.arange(1.0, 11), 2) * (1 + 1e-7 * np.tile([0, 1], 10)),
    "the public case": np.array([0.0312, 0.0352, 0.0408, 0.04110001, 0.0411 + 3e-8]),
}


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.1, 0.29, 0.5, 0.99])
@pytest.mark.parametrize("name", HELD_OUT)
def test_rounding_changes_no_decision_and_the_rate_is_kept(name, rate):
    scores = np.float32(HELD_OUT[name])
    threshold = fit_threshold(scores, false_alarm_rate=rate)
    called = scores > threshold
    assert called.sum() <= max(rate * (len(scores) + 1) - 1, 0) + 1e-6
    for seed in range(20):
        noise = np.random.default_rng(seed).uniform(-1, 1, len(scores)) * np.abs(scores).max() * ROUNDING / 3
        for moved in (scores * np.float32(1 + 1e-7), scores * np.float32(1 - 1e-7), np.float32(scores + noise)):
            np.testing.assert_array_equal(moved > threshold, called)


def test_the_threshold_by_hand():
    scores = np.arange(1, 12, dtype=np.float32)[::-1]  # a new score is above the m-th highest with probability m / 12
    assert fit_threshold(scores, false_alarm_rate=0.0) == 11.5
    assert fit_threshold(scores, false_alarm_rate=0.05) == 11.5
    assert fit_threshold(scores, false_alarm_rate=0.1) == 11.5
    assert fit_threshold(scores, false_alarm_rate=0.2) == 10.5
    assert fit_threshold(scores, false_alarm_rate=0.25) == 9.5
    assert fit_threshold(np.arange(99.0), false_alarm_rate=0.29) == 70.5  # 0.29 of 100 is 28.999...
    assert fit_threshold(np.array([1.0, 2.0, 5.0]), false_alarm_rate=0.0) == 6.0
    assert fit_threshold(np.array([3.0]), false_alarm_rate=0.5) == pytest.approx(3 * (1 + ROUNDING), rel=1e-12)
    assert fit_threshold(np.array([-3.0]), false_alarm_rate=0.5) == pytest.approx(-3 * (1 - ROUNDING), rel=1e-12)
    assert 0 < fit_threshold(np.zeros(4), false_alarm_rate=0.1) < 1e-30
    assert fit_threshold(np.array([]), false_alarm_rate=0.1) is None
    assert isinstance(fit_threshold(scores, false_alarm_rate=0.1), float)


def test_scores_that_differ_by_rounding_count_as_one():
    """The two highest are one score: the rate allows one of them above, which would be decided by the last bit."""
    scores = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10 + 1e-6])
    assert fit_threshold(scores, false_alarm_rate=0.2) == pytest.approx(10.45, abs=1e-3)
    assert fit_threshold(scores, false_alarm_rate=0.25) == 9.5
    assert fit_threshold(np.append(scores[:9], [10, 20.0]), false_alarm_rate=0.2) == 15


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.3])
def test_the_threshold_keeps_the_rate_and_no_lower_one_would(rate):
    scores = np.random.default_rng(0).normal(size=50)
    threshold = fit_threshold(scores, false_alarm_rate=rate)
    every = len(scores) + 1  # with the new one
    assert threshold not in scores and (scores > threshold).sum() <= max(rate * every - 1, 0)
    lower = scores[scores < threshold].max()
    assert (scores >= lower).sum() + 1 > rate * every


@pytest.mark.parametrize("count", [20, 50, 100, 300])
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1])
def test_new_good_images_exceed_it_as_often_as_asked(count, rate):
    """Over many trainings, by the exact probability that a score of the same distribution exceeds each threshold.

    Their mean lies within three standard errors of the bounds that the ranks give: m / (count + 1) scores exceed the
    m-th highest, and the threshold lies between the m-th and the one above. Where the images allow no such rate, the
    bounds are those of the lowest that they allow.
    """
    rng, skewed = np.random.default_rng(count), gamma(2.0)
    thresholds = [fit_threshold(scores, false_alarm_rate=rate) for scores in skewed.rvs((2000, count), rng)]
    realized = skewed.sf(thresholds)
    rank = max(int(rate * (count + 1) + 1e-9), 1)
    margin = 3 * realized.std(ddof=1) / np.sqrt(len(realized))
    assert (rank - 1) / (count + 1) - margin <= realized.mean() <= rank / (count + 1) + margin
    assert rate < 1 / (count + 1) or realized.mean() <= rate + margin


def test_a_senseless_rate_and_scores_that_are_not_finite_are_refused():
    for rate in (-0.1, 1.0):
        with refuses("threshold.false_alarm_rate", "[0, 1)"):
            fit_threshold(np.arange(3.0), false_alarm_rate=rate)
    for value in (np.nan, np.inf):
        with refuses(None, "finite"):
            fit_threshold(np.array([1.0, value]), false_alarm_rate=0.1)


@pytest.mark.medium
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3])
def test_decisions_are_the_same_for_every_batch(rate):
    """Programs for other batches round otherwise; each image that the threshold was fitted on keeps its side."""
    found, images = baseline(), pictures(24, seed=3)
    scores = found.score(images).image
    found.threshold = fit_threshold(scores, false_alarm_rate=rate)
    expected = [bool(score > found.threshold) for score in scores]
    for batch in (None, 1, 5, 24):
        assert [one.defective for one in found.predict(images, batch=batch)] == expected
    assert [found.predict(image)[0].defective for image in images] == expected
