"""The region of an image that is judged, and the score map at other sizes."""

import numpy as np
import pytest

from jaxad.data.geometry import Geometry
from jaxad.data.roi import Roi
from jaxad.reporting import charts
from jaxad.scoring.region import Region


@pytest.mark.parametrize("shape", [(64, 64), (64, 300), (37, 29)])
def test_a_hot_pixel_survives_shrinking_and_keeps_its_place(shape):
    scored = np.zeros((256, 256), np.float32)
    scored[129, 202] = 7
    region = Region(Geometry((256, 256)))
    small = region.map_at(scored, shape)
    assert small.shape == shape and small.max() == pytest.approx(7, rel=0.3 if shape[1] > 256 else 1e-6)
    place = (int(129.5 * shape[0] / 256), int(202.5 * shape[1] / 256))
    assert region.peak_at(scored, shape) == place
    assert small[place] == small.max()


def test_what_is_outside_is_nan_and_enters_nothing():
    scored = np.zeros((32, 32), np.float32)
    scored[0, 0], scored[20, 10] = 100, 1
    scored[4:28, 4:28] += 2
    region = Region(Geometry((32, 32)), border=4)
    for shape in ((32, 32), (64, 96), (16, 40)):
        top, left, bottom, right = region.judged_at(shape)
        full = region.map_at(scored, shape, sigma=1.0)
        judged = (bottom - top) * (right - left)
        assert np.isfinite(full[top:bottom, left:right]).all() and np.isnan(full).sum() == full.size - judged
        assert np.nanmin(full) > 1.99 and np.nanmax(full) < 3.01
    assert region.judged_at((64, 96)) == (8, 12, 56, 84)
    assert region.peak_at(scored, (64, 96)) == (41, 31)


@pytest.mark.parametrize("side", range(32, 300, 9))
def test_a_peak_lies_in_the_judged_region(side):
    scored = np.zeros((256, 256), np.float32)
    scored[16, 239] = 1
    region = Region(Geometry((256, 256)), border=16)
    assert np.isfinite(region.map_at(scored, (side, side))[region.peak_at(scored, (side, side))])


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 500)])
def test_something_is_judged_of_any_image(shape):
    region, scored = Region(Geometry((256, 256)), border=127), np.zeros((256, 256), np.float32)
    top, left, bottom, right = region.judged_at(shape)
    row, column = region.peak_at(scored, shape)
    assert top <= row < bottom and left <= column < right and np.isfinite(region.map_at(scored, shape)).any()


def test_what_is_not_judged_is_dark():
    image = np.full((32, 32, 3), 100, np.uint8)
    drawn = charts.overlay(
        image, Region(Geometry((32, 32)), border=4).map_at(np.zeros((32, 32), np.float32), (32, 32)), low=0, high=1
    )
    assert (drawn[:4] == 50).all() and not (drawn[4:28, 4:28] == 50).all(-1).any()


L_SHAPE = Roi((((0.0, 0.0), (0.5, 0.0), (0.5, 0.5), (1.0, 0.5), (1.0, 1.0), (0.0, 1.0)),))


def test_a_map_with_a_region_of_interest_by_hand():
    region = Region(Geometry((4, 4), "squeeze", L_SHAPE))
    scored = np.float32([[1, 2, 99, 99], [3, 4, 99, 99], [5, 6, 7, 8], [9, 10, 11, 12]])
    nan = np.nan
    expected = np.float32([[1, 2, nan, nan], [3, 4, nan, nan], [5, 6, 7, 8], [9, 10, 11, 12]])
    np.testing.assert_array_equal(region.map_at(scored, (4, 4)), expected)
    assert region.judged_at((4, 4)) == (0, 0, 4, 4) and region.peak_at(scored, (4, 4)) == (3, 3)
    assert region.peak_at(-scored, (4, 4)) == (0, 0)
    larger = region.map_at(scored, (8, 8))
    assert np.isnan(larger[:4, 4:]).all() and np.isfinite(larger).sum() == 48 and np.nanmax(larger) == 12
    # Nothing from outside is mixed in: beside the edge a pixel has the value of its nearest inside.
    assert larger[1, 3] == pytest.approx(0.75 * 2 + 0.25 * 4)
    smoothed = region.map_at(np.where(np.isnan(expected), 99, np.float32(3)), (8, 8), sigma=1.0)
    np.testing.assert_allclose(smoothed[np.isfinite(smoothed)], 3, rtol=1e-5)


# In a coarse frame, and in a coarse image, all pixels may have their centers in the region.
NEARLY_ALL = Roi((((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.05, 1.0), (0.0, 0.95)),))


@pytest.mark.parametrize("size", [(3, 3), (5, 9), (33, 31)])
@pytest.mark.parametrize("roi", [L_SHAPE, NEARLY_ALL])
def test_peaks_lie_in_the_region_of_interest_at_any_size(size, roi):
    region, rng = Region(Geometry((8, 8), "squeeze", roi)), np.random.default_rng(0)
    for _ in range(20):
        scored = rng.normal(size=(8, 8)).astype(np.float32)
        row, column = region.peak_at(scored, size)
        assert np.isfinite(region.map_at(scored, size)[row, column])
