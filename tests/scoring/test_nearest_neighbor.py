"""Coresets and nearest neighbors against scikit-learn and numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

from jaxad.scoring import nearest_neighbor as nn
from tests.refusals import refuses

KEY = jax.random.key(3)


def features(n, d, seed=0, offset=0.0):
    """Correlated features in a few directions, as a network's are."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n, 6)) @ rng.normal(size=(6, d)) + 0.3 * rng.normal(size=(n, d))
    return (mixed + offset).astype(np.float32)


def greedy(x, first, count):
    """The coreset as it is defined: every distance is computed for every choice."""
    distances = pairwise_distances(x.astype(np.float64))
    chosen = [first]
    while len(chosen) < count:
        chosen.append(int(distances[chosen].min(axis=0).argmax()))
    return chosen


@pytest.mark.parametrize("candidates", [1, 7, 128])
@pytest.mark.parametrize("n, d, count", [(500, 12, 150), (90, 40, 90), (300, 3, 1)])
def test_the_coreset_is_the_greedy_one(monkeypatch, candidates, n, d, count):
    """Whatever number of candidates a round looks at, also where it is larger than the set."""
    monkeypatch.setattr(nn, "CANDIDATES", candidates)
    x = features(n, d, offset=20.0)
    chosen = nn.greedy_coreset(KEY, x, count=count)
    assert list(chosen) == greedy(x, chosen[0], count)


def test_the_first_choice_is_drawn():
    x = features(200, 5)
    assert len({int(nn.greedy_coreset(jax.random.key(seed), x, count=1)[0]) for seed in range(8)}) > 4


def test_a_coreset_of_equal_features_has_none_twice():
    chosen = nn.greedy_coreset(KEY, np.ones((30, 4), np.float32), count=30)
    assert sorted(chosen) == list(range(30))


def test_a_single_feature_is_its_own_coreset():
    assert list(nn.greedy_coreset(KEY, np.ones((1, 4), np.float32), count=1)) == [0]


@pytest.mark.parametrize("count", [0, 11])
def test_a_coreset_that_cannot_be_is_refused(count):
    with refuses(None, "coreset"):
        nn.greedy_coreset(KEY, features(10, 3), count=count)


@pytest.mark.parametrize("rows", [16, 50, 4096])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["plain", "jitted"])
def test_nearest_is_scikit_learns(monkeypatch, rows, transform):
    """Searched in parts of any size, far away from zero, where the products of float32 alone would round."""
    monkeypatch.setattr(nn, "ROWS", rows)
    known, asked = features(150, 9, offset=100.0), features(70, 9, seed=1, offset=100.0)
    distances, at = transform(lambda x: nn.nearest(nn.fit_bank(known), x))(jnp.asarray(asked.reshape(2, 5, 7, 9)))
    expected, numbers = NearestNeighbors(n_neighbors=1).fit(known).kneighbors(asked)
    np.testing.assert_allclose(distances.reshape(-1), expected[:, 0], rtol=1e-5)
    assert distances.shape == at.shape == (2, 5, 7) and (np.ravel(at) == numbers[:, 0]).all()


def test_a_feature_of_the_bank_has_distance_zero():
    known = features(40, 6)
    distances, at = nn.nearest(nn.fit_bank(known), jnp.asarray(known))
    assert not distances.any() and list(at) == list(range(40))


@pytest.mark.parametrize("pairs", [nn.PAIRS, 60 * 7])
@pytest.mark.parametrize("offset", [0, 300])
def test_neighbors_are_scikit_learns(offset, pairs, monkeypatch):
    monkeypatch.setattr(nn, "PAIRS", pairs)  # how many are compared at a time
    known = features(60, 5) + offset
    expected = NearestNeighbors(n_neighbors=4).fit(known).kneighbors(known, return_distance=False)
    assert (nn.fit_bank(known, neighbors=4).neighbors == expected).all()


def test_of_equal_points_each_is_its_own_first_neighbor():
    known = np.repeat(features(20, 5), 3, axis=0)
    neighbors = nn.fit_bank(known, neighbors=3).neighbors
    assert list(neighbors[:, 0]) == list(range(60))
    assert (neighbors // 3 == np.arange(60)[:, None] // 3).all()


def test_the_weight_of_an_image_by_hand():
    """Of two positions the second is farther away: at 3, next to the point 1, whose neighbors are at 1 and 2."""
    bank = nn.Bank(jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0, 1], [1, 2], [2, 1]]))
    asked = jnp.array([[[0.5], [-2.0]]])
    weight = nn.image_weight(bank, asked, jnp.array([[0.5, 2.0]]), jnp.array([[0, 0]]))
    np.testing.assert_allclose(weight, 1 - np.exp(2) / (np.exp(2) + np.exp(3)), rtol=1e-6)


def test_distances_that_overflow_have_a_weight_too():
    bank = nn.fit_bank(np.array([[0.0], [1.0], [500.0]], np.float32), neighbors=2)
    asked = jnp.full((1, 1, 1), 900.0)
    assert np.isfinite(nn.image_weight(bank, asked, *(part for part in nn.nearest(bank, asked)))).all()


def test_a_bank_with_too_few_features_or_infinite_ones_is_refused():
    with refuses("score.reweight", "lower"):
        nn.fit_bank(features(3, 2), neighbors=4)
    with refuses(None, "finite"):
        nn.fit_bank(np.array([[1.0], [np.inf]], np.float32))
