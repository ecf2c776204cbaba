"""The per-pixel baseline against NumPy, SciPy and numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxad import config as configs
from jaxad import methods
from jaxad.methods.method import reduce_map
from tests.parts import BASELINE
from tests.refusals import refuses

MAPS = np.array([[[4.0, 1.0], [0.0, 3.0]], [[-1.0, -2.0], [-3.0, -4.0]]], np.float32)


def create(**overrides):
    changed = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return methods.create(configs.load(BASELINE, changed))


def images(count, *, size=(20, 24), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3)).astype(np.uint8)


def test_mean_and_deviation_are_numpys():
    good = images(7)
    density = create().fit({}, good, jax.random.key(0))
    np.testing.assert_allclose(density["mean"], good.mean(0) / 255, atol=1e-7)
    np.testing.assert_allclose(density["std"], good.std(0) / 255, atol=1e-7)
    assert density["mean"].dtype == density["std"].dtype == jnp.float32


def test_the_deviation_of_constant_pixels_is_zero():
    good = np.broadcast_to(images(1), (11, 20, 24, 3))
    assert not np.asarray(create().fit({}, list(good), jax.random.key(0))["std"]).any()


@pytest.mark.medium
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["plain", "jitted"])
def test_score_against_numpy(transform):
    good, new = images(6), images(3, seed=5)
    method = create(score__sigma=2.0, score__floor=3.0, score__reduction="max")
    density = method.fit({}, good, jax.random.key(0))
    scores = transform(method.score)({}, density, new.astype(np.float32) / 255)
    distance = (np.abs(new - good.mean(0)) / (good.std(0) + 3)).mean(-1)
    maps = [ndimage.gaussian_filter(d, 2.0, mode="reflect", truncate=4) for d in distance]
    np.testing.assert_allclose(scores.map, maps, rtol=1e-5)
    np.testing.assert_allclose(scores.image, np.max(maps, (1, 2)), rtol=1e-5)


def test_score_by_hand():
    # Two good pictures of 100 and 120: mean 110, deviation 10. A picture of 140 lies 30 / (10 + 5) = 2 away everywhere.
    good = np.stack([np.full((8, 8, 3), level, np.uint8) for level in (100, 120)])
    method = create(score__floor=5.0, score__reduction="mean")
    density = method.fit({}, good, jax.random.key(0))
    scores = method.score({}, density, np.full((1, 8, 8, 3), 140 / 255, np.float32))
    np.testing.assert_allclose(scores.map, 2.0, rtol=1e-5)
    np.testing.assert_allclose(scores.image, [2.0], rtol=1e-5)


def test_the_other_fields_do_nothing():
    method, image = create(), images(1)[0]
    assert method.loss is None and method.init(jax.random.key(0), image) == {}
    assert method.augment(None, {"image": image})["image"] is image
    assert method.host_augment is None


@pytest.mark.parametrize("reduction, top, expected", [
    ("mean", 1.0, [2.0, -2.5]),
    ("max", 1.0, [4.0, -1.0]),
    ("top", 0.5, [3.5, -1.5]),
    ("top", 0.75, [8 / 3, -2.0]),
    ("top", 1.0, [2.0, -2.5]),
    ("top", 0.01, [4.0, -1.0]),  # at least one pixel
])  # fmt: skip
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["plain", "jitted"])
def test_reductions_by_hand(reduction, top, expected, transform):
    scores = transform(lambda maps: reduce_map(maps, reduction=reduction, top=top))(MAPS)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_reductions_that_do_not_exist():
    with refuses("score.reduction", "median"):
        reduce_map(MAPS, reduction="median", top=1.0)
    for top in (0.0, 1.5):
        with refuses("score.top", str(top)):
            reduce_map(MAPS, reduction="top", top=top)
