"""What scorers of features are fitted on: candidates of a bank, and sums, however the images are divided."""

import jax
import numpy as np
import pytest

from jaxad import config as configs
from jaxad.methods import features_summary as summaries
from tests.parts import ROOT


def summary(name="nearest_neighbor", **changes):
    given = {"density.name": name} | {key.replace("__", "."): str(value) for key, value in changes.items()}
    return summaries.empty_summary(jax.random.key(0), name, configs.load(f"{ROOT}/experiments/lite.py:auto", given))


@pytest.mark.parametrize("most", [7, 40, 60, 1000])
def test_candidates_do_not_depend_on_how_images_are_divided(most):
    x = np.random.default_rng(0).normal(size=(6, 2, 5, 3)).astype(np.float32)
    found = []
    for parts in ([[0, 1, 2, 3, 4, 5]], [[0], [1], [2, 3, 4, 5]], [[3, 5], [0, 1], [2, 4]]):
        candidates = summary(density__patches=most)
        for part in parts:
            candidates.add(np.array(part), x[part])
        found.append(candidates.features())
        assert candidates.seen == 60
    assert len(found[0]) == min(most, 60)
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    assert {tuple(row) for row in found[0]} <= {tuple(row) for row in x.reshape(-1, 3)}


def test_every_position_is_a_candidate_as_often_as_any_other():
    x = np.tile(np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1), (4000, 1, 1, 1))
    candidates = summary(density__patches=16_000)
    candidates.add(np.arange(4000), x)
    counts = np.bincount(candidates.features()[:, 0].astype(int), minlength=16)
    assert abs(counts - 1000).max() < 5 * np.sqrt(750)


@pytest.mark.parametrize("name", [summaries.PER_LOCATION, summaries.SHARED, summaries.NEAREST])
def test_a_restored_summary_goes_on_as_the_first_would(name):
    x = np.random.default_rng(0).normal(size=(30, 2, 3, 4)).astype(np.float32)
    one = summary(name)
    one.add(np.arange(20), x[:20])
    held = {name: np.array(value) for name, value in one.arrays().items()}
    config = configs.load(f"{ROOT}/experiments/lite.py:auto", {"density.name": name})
    other = summaries.restore_summary(jax.random.key(0), held, config)
    for each in (one, other):
        each.add(np.arange(20, 30), x[20:])
    for name, value in one.fit().items():
        np.testing.assert_array_equal(other.fit()[name], value)
