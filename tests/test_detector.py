"""A trained detector: padded batches, crops, sizes, peaks, threshold, and its directory."""

import copy
import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxad
from jaxad import checkpoint, methods
from jaxad import config as configs
from jaxad import detector as detectors
from jaxad.data.image import resize_image
from jaxad.detector import Detector, fit_threshold
from jaxad.errors import UserError
from jaxad.methods.method import Method, Scores
from tests.parts import BASELINE, NSA

SIZE = 32


def config(**overrides):
    given = {"data.size": str(SIZE), "score.sigma": "1.0", "evaluate.batch": "3"}
    return configs.load(BASELINE, given | {key.replace("__", "."): str(value) for key, value in overrides.items()})


def pictures(count, *, size=SIZE, seed=0):
    return np.random.default_rng(seed).integers(80, 120, (count, size, size, 3)).astype(np.uint8)


def baseline(threshold=None, **overrides):
    """A baseline detector fitted to 20 noisy grey pictures."""
    settings = config(**overrides)
    density = methods.create(settings).fit({}, pictures(20, seed=9), jax.random.key(0))
    return Detector(settings, {}, jax.device_get(density), threshold, heat_range=(0.5, 2.0), good_scores=(1.5, 0.25))


def cropping(found, crop):
    """A detector that judges the central square of side `crop`, with everything else of `found`."""
    other = copy.copy(found)
    other.config = copy.deepcopy(found.config)
    other.config.evaluate.crop = crop
    return other


@pytest.fixture
def neighbours(monkeypatch):
    """A detector whose map is each pixel's difference from the mean of the *image*, so a crop changes it."""

    def score(variables, density, images):
        maps = jnp.abs(images - images.mean((1, 2), keepdims=True)).mean(-1)
        return Scores(maps.mean((1, 2)), maps)

    method = Method(None, None, None, None, score)
    monkeypatch.setitem(methods.METHODS, "baseline_mean", lambda config: method)
    return Detector(config(), {}, {})


@pytest.fixture
def divided(monkeypatch):
    """A detector whose map is the sum of the image's first channel and of twice its second one."""

    def parts(variables, density, images):
        return {"first": images[..., 0], "second": variables["weight"] * images[..., 1]}

    def score(variables, density, images):
        maps = sum(parts(variables, density, images).values())
        return Scores(maps.mean((1, 2)), maps)

    method = Method(None, None, None, None, score, parts=parts)
    monkeypatch.setitem(methods.METHODS, "baseline_mean", lambda config: method)
    return Detector(config(), {"weight": np.float32(2)}, {})


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 9, 17])
def test_padding_changes_no_score(count):
    found, images = baseline(), pictures(count)
    together = found.score(images)
    assert together.image.shape == (count,) and together.map.shape == (count, SIZE, SIZE)
    assert together.image.dtype == together.map.dtype == np.float32
    for number in range(count):
        alone = found.score(images[number : number + 1], batch=1)
        np.testing.assert_allclose(alone.image, together.image[number : number + 1], rtol=1e-6)
        np.testing.assert_allclose(alone.map[0], together.map[number], rtol=1e-5, atol=1e-6)


def test_a_batch_compiles_once(neighbours):
    for count in (2, 3, 4, 10):
        neighbours.score(pictures(count))
    assert neighbours._score._cache_size() == 1


def test_scores_are_those_of_the_method():
    found, images = baseline(), pictures(4)
    method = methods.create(found.config)
    expected = method.score({}, found.density, jnp.asarray(images, jnp.float32) / 255)
    np.testing.assert_allclose(found.score(images).map, expected.map, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("crop", [2, 24, 30])
def test_the_crop_protocol(neighbours, crop):
    images = pictures(4)
    border = (SIZE - crop) // 2
    inside = slice(border, SIZE - border)
    cropped = cropping(neighbours, crop).score(images)
    alone = neighbours.score(np.ascontiguousarray(images[:, inside, inside]))
    assert cropped.map.shape == (4, SIZE, SIZE)
    np.testing.assert_allclose(cropped.map[:, inside, inside], alone.map, rtol=1e-6)
    np.testing.assert_allclose(cropped.image, alone.image, rtol=1e-6)
    outside = np.ones((SIZE, SIZE), bool)
    outside[inside, inside] = False
    assert not cropped.map[:, outside].any()
    assert not np.allclose(cropped.image, neighbours.score(images).image)


def test_no_crop_and_the_whole_image_are_the_same(neighbours):
    images = pictures(2)
    np.testing.assert_array_equal(neighbours.score(images).map, cropping(neighbours, SIZE).score(images).map)


@pytest.mark.parametrize(
    "crop, words", [(33, "is 33, but the images are 32"), (31, "cannot be centred in 32"), (-2, "is -2")]
)
def test_crops_that_do_not_fit(neighbours, crop, words):
    with pytest.raises(UserError, match=words):
        cropping(neighbours, crop).score(pictures(1))


@pytest.mark.parametrize("count", [1, 8, 17])  # 8 simulated devices
@pytest.mark.parametrize("crop", [0, 24])
def test_parts_sum_to_the_map(divided, count, crop):
    images = pictures(count)
    parts, border = cropping(divided, crop).parts(images), (SIZE - (crop or SIZE)) // 2
    assert list(parts) == ["first", "second"]
    for maps, expected in zip(parts.values(), (images[..., 0] / 255, images[..., 1] / 127.5), strict=True):
        expected = np.pad(expected[:, border : SIZE - border, border : SIZE - border], [(0, 0)] + 2 * [(border,) * 2])
        assert maps.dtype == np.float32
        np.testing.assert_allclose(maps, expected, rtol=1e-6)
    total = cropping(divided, crop).score(images).map
    np.testing.assert_allclose(sum(parts.values()), total, rtol=1e-6)


def test_a_map_without_parts(neighbours):
    assert neighbours.parts(pictures(2)) is None


def test_prediction_of_images_of_different_sizes():
    found = baseline(threshold=1.0)
    images = [pictures(1, size=96, seed=size)[0][:size, : 2 * size] for size in (32, 40, 37)]
    made = found.predict(images)
    assert [one.map.shape for one in made] == [(32, 64), (40, 80), (37, 74)]
    small = found.score(np.stack([resize_image(image, (SIZE, SIZE)) for image in images]))
    for one, score, map_, image in zip(made, small.image, small.map, images, strict=True):
        assert one.score == pytest.approx(float(score)) and isinstance(one.score, float)
        np.testing.assert_array_equal(one.map, cv2.resize(map_, image.shape[1::-1], interpolation=cv2.INTER_LINEAR))
        row, column = np.unravel_index(map_.argmax(), map_.shape)
        middle = [(row + 0.5) * image.shape[0] / SIZE, (column + 0.5) * image.shape[1] / SIZE]
        assert one.peak == tuple(int(at) for at in middle) and one.map.dtype == np.float32
        assert one.judged == (0, 0, *image.shape[:2])
        assert one.threshold == 1.0 and one.defective is (one.score > 1.0)


@pytest.mark.parametrize("row, column", [(10, 60), (80, 20), (0, 0), (95, 127)])
def test_the_peak_lies_where_the_defect_is(row, column):
    image = np.full((96, 128, 3), 100, np.uint8)
    image[max(row - 4, 0) : row + 5, max(column - 5, 0) : column + 6] = 255
    found = baseline().predict([image])[0]
    assert abs(found.peak[0] - row) <= 4 and abs(found.peak[1] - column) <= 5


def test_one_image_is_scored_as_among_others():
    found, images = baseline(), pictures(5)
    alone, among = found.predict(images[2:3])[0], found.predict(images)[2]
    assert alone.score == pytest.approx(among.score, rel=1e-6) and alone.peak == among.peak


def test_decisions():
    scores = [one.score for one in baseline().predict(pictures(3))]
    middle = sorted(scores)[1]
    made = baseline(threshold=middle).predict(pictures(3))
    assert [one.defective for one in made] == [score > middle for score in scores]  # at the threshold: good
    assert all(one.defective is None and one.threshold is None for one in baseline().predict(pictures(2)))


def test_nothing_to_predict():
    assert baseline().predict([]) == []


@pytest.mark.parametrize("image, words", [
    (np.zeros((40, 40, 3), np.float32), "float32"),
    (np.zeros((40, 40), np.uint8), r"\(40, 40\)"),
    (np.zeros((40, 40, 4), np.uint8), r"\(40, 40, 4\)"),
])  # fmt: skip
def test_arrays_that_are_no_images(image, words):
    with pytest.raises(UserError, match=r"image 1 must be uint8 \(h, w, 3\), not .*" + words):
        baseline().predict([pictures(1)[0], image])


def test_the_threshold_by_hand():
    scores = np.arange(1, 12, dtype=np.float32)[::-1]  # 11 scores: each exceeds a tenth of the others more
    assert fit_threshold(scores, false_alarm_rate=0.0) == 11
    assert fit_threshold(scores, false_alarm_rate=0.05) == 11
    assert fit_threshold(scores, false_alarm_rate=0.1) == 10
    assert fit_threshold(scores, false_alarm_rate=0.2) == 9
    assert fit_threshold(scores, false_alarm_rate=0.25) == 9
    assert fit_threshold(np.array([3.0]), false_alarm_rate=0.5) == 3
    assert fit_threshold(np.array([]), false_alarm_rate=0.1) is None
    assert isinstance(fit_threshold(scores, false_alarm_rate=0.1), float)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.3])
def test_the_threshold_keeps_the_rate_and_no_lower_one_would(rate):
    scores = np.random.default_rng(0).normal(size=50)
    threshold = fit_threshold(scores, false_alarm_rate=rate)
    others = len(scores) - 1
    assert threshold in scores and (scores > threshold).sum() <= rate * others
    lower = scores[scores < threshold].max()
    assert (scores > lower).sum() > rate * others


def test_the_threshold_never_reads_test_data_and_refuses_a_senseless_rate():
    for rate in (-0.1, 1.0):
        with pytest.raises(UserError, match=r"config\.threshold\.false_alarm_rate must lie in \[0, 1\)"):
            fit_threshold(np.arange(3.0), false_alarm_rate=rate)


def test_ranges_and_normalised_scores_by_hand():
    found = baseline()
    good = np.array([[[0, 1], [2, 3]], [[4, 5], [6, 9]]], np.float32)
    found.fit_ranges(Scores(np.array([1, 3], np.float32), good))
    assert found.heat_range == (3.5, 9.0)
    assert found.good_scores == (2.0, 1.0)
    made = found.normalize(Scores(np.array([2, 5], np.float32), np.array([[[3.5, 9]], [[-2, 14.5]]], np.float32)))
    np.testing.assert_array_equal(made.image, [0, 3])
    np.testing.assert_array_equal(made.map, [[[0, 1]], [[-1, 2]]])
    assert made.image.dtype == np.float64 and made.map.dtype == np.float32


def test_without_a_spread_scores_are_only_shifted():
    found = baseline()
    found.fit_ranges(Scores(np.array([7], np.float32), np.full((1, 2, 2), 3, np.float32)))
    assert found.heat_range == (3.0, 3.0) and found.good_scores == (7.0, 0.0)
    made = found.normalize(Scores(np.array([7, 9], np.float32), np.array([[[3, 5]], [[1, 3]]], np.float32)))
    np.testing.assert_array_equal(made.image, [0, 2])
    np.testing.assert_array_equal(made.map, [[[0, 2]], [[-2, 0]]])


@pytest.fixture
def workdir(tmp_path):
    found = baseline(threshold=1.25)
    configs.claim(tmp_path, found.config)
    found.save(tmp_path)
    return tmp_path


def test_save_and_load(workdir):
    made, loaded = baseline(threshold=1.25), jaxad.load(workdir)
    assert (loaded.threshold, loaded.heat_range, loaded.good_scores) == (1.25, (0.5, 2.0), (1.5, 0.25))
    assert configs.flatten(loaded.config) == configs.flatten(made.config)
    np.testing.assert_array_equal(loaded.density["mean"], made.density["mean"])
    np.testing.assert_array_equal(loaded.score(pictures(5)).map, made.score(pictures(5)).map)
    assert detectors.load(str(workdir)).threshold == 1.25  # a path as text, too
    assert jaxad.load is detectors.load


def test_saving_again_replaces(workdir):
    found = baseline(threshold=3.0)
    found.density["mean"] = found.density["mean"] + 1
    found.save(workdir)
    loaded = jaxad.load(workdir)
    assert loaded.threshold == 3.0
    np.testing.assert_array_equal(loaded.density["mean"], found.density["mean"])


def test_no_threshold_survives_as_none(workdir):
    baseline().save(workdir)
    assert jaxad.load(workdir).threshold is None


def test_trees_of_variables_come_back_nested(tmp_path):
    tree = {"params": {"a": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}}, "batch_stats": {"n": np.float32(3)}}
    Detector(config(), tree, {}).save(tmp_path)
    loaded = checkpoint.read(tmp_path / "detector")["variables"]
    assert jax.tree.structure(loaded) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, loaded, tree)


def test_other_scoring_drops_the_threshold_that_was_fitted_for_this(workdir):
    assert detectors.load(workdir, {"score.reduction": "mean"}).threshold is None
    assert detectors.load(workdir, {"score.reduction": "max"}).threshold == 1.25  # as it was
    assert detectors.load(workdir, {"evaluate.batch": "2"}).threshold == 1.25


@pytest.mark.parametrize("key", ["seed", "data.size", "data.holdout", "method"])
def test_what_training_settled_cannot_be_changed(workdir, key):
    value = {"method": "baseline_mean", "data.holdout": "0.3"}.get(key, "64")
    with pytest.raises(UserError, match=rf"config\.{key} was settled by the training of"):
        detectors.load(workdir, {key: value})


def test_a_detector_that_is_not_finished_or_damaged(workdir):
    (workdir / "detector.json").unlink()
    with pytest.raises(UserError, match="holds no trained detector yet; complete its training"):
        jaxad.load(workdir)
    complete = {"threshold": 1.0, "heat_range": [0, 1], "good_scores": [0, 1]}
    for key in complete:
        (workdir / "detector.json").write_text(json.dumps({k: v for k, v in complete.items() if k != key}))
        with pytest.raises(UserError, match=r"detector\.json is damaged; run its training command again to rewrite it"):
            jaxad.load(workdir)
    baseline().save(workdir)
    (workdir / "detector" / "extra").write_text("x")
    with pytest.raises(UserError, match="is damaged"):
        jaxad.load(workdir)


def test_the_package_has_nothing_else():
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        jaxad.lode  # noqa: B018 - the access is the test


def test_textures_are_scored_at_their_own_size():
    settings = configs.load(f"{NSA}:tile")
    assert (settings.data.size, settings.score.size, settings.evaluate.crop) == (264, 256, 0)
