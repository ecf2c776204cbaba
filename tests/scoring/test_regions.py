"""Regions above a threshold against SciPy's components, polygons that are filled again, and regions by hand."""

import json

import cv2
import numpy as np
import pytest
from scipy import ndimage

from jaxad.scoring.regions import find_regions, region_mask


def noise(shape, *, sigma, seed=0):
    return cv2.GaussianBlur(np.random.default_rng(seed).normal(size=shape).astype(np.float32), (0, 0), sigma)


def test_regions_by_hand():
    scores = np.zeros((6, 8), np.float32)
    scores[1, 1], scores[2, 2] = 3, 5  # they touch by a corner
    scores[4:6, 5:8] = [[2, 2, 2], [2, 7, 2]]
    scores[0, 7] = 1  # not above the threshold
    one, two = find_regions(scores, 1.0)
    assert one._asdict() == {
        "box": (4, 5, 6, 8), "area": 6, "polygon": [(5, 4), (7, 4), (7, 5), (5, 5)],
        "peak_score": 7.0, "mean_score": pytest.approx(17 / 6), "peak": (5, 6),
    }  # fmt: skip
    assert two == ((1, 1, 3, 3), 2, [(1, 1), (2, 2)], 5.0, 4.0, (2, 2))
    assert json.loads(json.dumps(one._asdict()))["polygon"][0] == [5, 4]


def test_a_region_in_the_hole_of_another_is_one_of_its_own():
    scores = np.ones((9, 9), np.float32)
    scores[1:8, 1:8] = 0
    scores[4, 4] = 2
    inner, outer = find_regions(scores, 0.5)
    assert inner == ((4, 4, 5, 5), 1, [(4, 4)], 2.0, 2.0, (4, 4))
    assert outer.area == 81 - 49 and outer.polygon == [(0, 0), (8, 0), (8, 8), (0, 8)] and outer.peak == (0, 0)


@pytest.mark.parametrize("sigma", [0.6, 2.0, 6.0])
@pytest.mark.parametrize("shape", [(60, 90), (1, 70), (45, 1)])
def test_regions_are_those_of_scipy(shape, sigma):
    scores = noise(shape, sigma=sigma)
    threshold = float(np.quantile(scores, 0.7))
    labels, count = ndimage.label(scores > threshold, np.ones((3, 3)))
    numbers, found = np.arange(1, count + 1), find_regions(scores, threshold)
    boxes = [(rows.start, columns.start, rows.stop, columns.stop) for rows, columns in ndimage.find_objects(labels)]
    expected = zip(
        boxes,
        ndimage.sum_labels(np.ones(shape), labels, numbers),
        ndimage.maximum(scores, labels, numbers),
        ndimage.mean(scores.astype(np.float64), labels, numbers),
        ndimage.maximum_position(scores, labels, numbers),
        strict=True,
    )
    for region, (box, area, peak, mean, place) in zip(sorted(found), sorted(expected), strict=True):
        assert region.box == box and region.area == area and region.peak_score == peak
        assert region.mean_score == pytest.approx(mean, rel=1e-9) and region.peak == place
    peaks = [region.peak_score for region in found]
    assert peaks == sorted(peaks, reverse=True)


def test_a_filled_polygon_is_the_region_with_its_holes():
    scores = noise((80, 120), sigma=2.0, seed=1)
    labels, _ = ndimage.label(scores > 0, np.ones((3, 3)))
    for region in find_regions(scores, 0.0):
        points = np.array(region.polygon, np.int32)
        drawn = cv2.fillPoly(np.zeros(scores.shape, np.uint8), [points], 1)
        np.testing.assert_array_equal(drawn, ndimage.binary_fill_holes(labels == labels[region.peak]))
        x, y = points.T.astype(int)  # the shoelace formula: positive for clockwise, since rows go down
        assert (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() >= 0


def test_what_is_not_judged_belongs_to_no_region():
    scores = np.full((5, 5), np.nan, np.float32)
    assert find_regions(scores, 0.0) == [] and not region_mask(scores, 0.0).any()
    scores[1:4, 1:4] = 1
    [region] = find_regions(scores, 0.5)
    assert region.box == (1, 1, 4, 4) and region.area == 9
    mask = region_mask(scores, 0.5)
    assert mask.dtype == np.uint8 and mask.sum() == 9 and mask[1:4, 1:4].all()


def test_no_score_above_the_threshold_is_no_region():
    assert find_regions(np.full((4, 4), 0.5, np.float32), 0.5) == []
