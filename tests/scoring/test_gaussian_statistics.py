"""Gaussians from sums against those from the features themselves."""

import numpy as np
import pytest

from jaxad.scoring import density as densities
from jaxad.scoring import gaussian_statistics as gs
from tests.refusals import refuses


def features(locations=(3, 2), n=40, d=5, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(*locations, n, d)) * (1 + np.arange(d)) + 30).astype(np.float32)


def in_parts(x, sizes):
    """The statistics of features that come in parts."""
    parts = np.split(x, np.cumsum(sizes)[:-1], axis=-2)
    sums = gs.Statistics.around(parts[0].mean(axis=-2, dtype=np.float64))
    for part in parts:
        sums.add(part)
    return sums


@pytest.mark.parametrize("locations", [(), (3, 2)])
@pytest.mark.parametrize("options", [{"shrinkage": "ledoit_wolf", "ridge": 0.0}, {"shrinkage": "ridge", "ridge": 0.1}])
@pytest.mark.parametrize("sizes", [[40], [8, 30, 2]])
def test_sums_give_the_gaussian_of_the_features(locations, options, sizes):
    x = features(locations)
    found, expected = gs.gaussian(in_parts(x, sizes), **options), densities.fit_gaussian(x, **options)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6)
    np.testing.assert_allclose(found.whitening, expected.whitening, rtol=1e-5, atol=1e-6)


def test_fewer_features_than_channels_score_as_the_low_rank_gaussian_does():
    x = features((), n=6, d=20)
    options = {"shrinkage": "ridge", "ridge": 0.5}
    found, expected = gs.gaussian(in_parts(x, [6]), **options), densities.fit_gaussian(x, **options)
    new = features((), n=9, d=20, seed=1)
    np.testing.assert_allclose(densities.gaussian_score(found, new), densities.gaussian_score(expected, new), rtol=1e-4)


def test_the_share_of_the_location_by_hand():
    """Each location has variance 1 over the images, and the means of the locations, 0 and 4, have variance 4."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4000, 1)) + np.array([0.0, 4.0])[:, None, None]
    assert abs(gs.location_share(in_parts(x, [4000])) - 0.8) < 0.01
    assert abs(gs.location_share(in_parts(x, [4000]), np.array([True, False]))) < 0.01


def test_locations_that_do_not_differ_have_no_share():
    """Also of few images, whose means differ by chance."""
    x = np.random.default_rng(0).normal(size=(400, 3, 6))
    assert gs.location_share(in_parts(x, [3])) < 0.02
    assert gs.location_share(in_parts(np.ones((4, 3, 2)), [3])) == 0


def test_infinite_features_and_singular_covariances_are_refused():
    with refuses(None, "finite"):
        gs.Statistics.around(np.zeros(1)).add(np.array([[np.nan]]))
    with refuses("density.ridge", "singular"):
        gs.gaussian(in_parts(np.ones((4, 2)), [4]), shrinkage="ledoit_wolf", ridge=0.0)
