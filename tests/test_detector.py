"""A trained detector: padded batches, crops, sizes, peaks, threshold, and its directory."""

import inspect
import json
import pickle

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxad
from jaxad import config as configs
from jaxad import detector as detectors
from jaxad import methods
from jaxad.data.geometry import Geometry
from jaxad.data.image import resize_image
from jaxad.detector import Detector
from jaxad.errors import UserError
from jaxad.methods.method import Hooks, Method, Scores, untrained
from jaxad.runtime import checkpoint
from jaxad.scoring.regions import find_regions
from tests.parts import BASELINE, NSA
from tests.refusals import refuses

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


@pytest.fixture
def neighbours(monkeypatch):
    """A detector whose map is each pixel's difference from the mean of the *image*, so a crop changes it."""

    def score(variables, density, images):
        maps = jnp.abs(images - images.mean((1, 2), keepdims=True)).mean(-1)
        return Scores(maps.mean((1, 2)), maps)

    method = Method(None, None, None, score)
    monkeypatch.setitem(methods.METHODS, "baseline_mean", lambda config: method)
    return Detector(config(), {}, {})


@pytest.fixture
def divided(monkeypatch):
    """A detector whose map is the sum of the image's first channel and of twice its second one."""

    def map_terms(variables, density, images):
        return {"first": images[..., 0], "second": variables["weight"] * images[..., 1]}

    def score(variables, density, images):
        maps = sum(map_terms(variables, density, images).values())
        return Scores(maps.mean((1, 2)), maps)

    method = Method(None, None, None, score, hooks=Hooks(map_terms=map_terms))
    monkeypatch.setitem(methods.METHODS, "baseline_mean", lambda config: method)
    return Detector(config(), {"weight": np.float32(2)}, {})


def test_a_score_that_cannot_leave_pixels_out_is_refused(neighbours):
    images = pictures(2)
    neighbours.score(images)
    neighbours.region = neighbours.region._replace(geometry=Geometry((SIZE, SIZE), "pad"))
    with refuses(about="method", word="takes no `valid`"):
        neighbours.score(images, boxes=[(4, 0, 12, SIZE)] * 2)


def test_a_method_without_training_takes_what_its_score_takes():
    for score in (lambda variables, density, images, valid=None: None, lambda variables, density, images: None):
        made = untrained(Method(None, None, None, score))
        assert inspect.signature(made.score) == inspect.signature(score)


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


@pytest.mark.medium
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
    cropped = Detector(config(evaluate__crop=crop), {}, {}).score(images)
    small = config(data__size=crop, score__size=crop)
    alone = Detector(small, {}, {}).score(np.ascontiguousarray(images[:, inside, inside]))
    assert cropped.map.shape == (4, SIZE, SIZE)
    np.testing.assert_allclose(cropped.map[:, inside, inside], alone.map, rtol=1e-6)
    np.testing.assert_allclose(cropped.image, alone.image, rtol=1e-6)
    outside = np.ones((SIZE, SIZE), bool)
    outside[inside, inside] = False
    assert not cropped.map[:, outside].any()
    assert not np.allclose(cropped.image, neighbours.score(images).image)


def test_no_crop_and_the_whole_image_are_the_same(neighbours):
    images = pictures(2)
    whole = Detector(config(evaluate__crop=SIZE), {}, {})
    np.testing.assert_array_equal(neighbours.score(images).map, whole.score(images).map)


@pytest.mark.parametrize("shape", [(1, 33, 33, 3), (1, 32, 40, 3), (32, 32, 3)])
def test_images_of_another_size_are_not_scored(neighbours, shape):
    with refuses(None, "(n, 32, 32, c)"):
        neighbours.score(np.zeros(shape, np.uint8))


@pytest.mark.medium
@pytest.mark.parametrize("count", [1, 8, 17])  # 8 simulated devices
@pytest.mark.parametrize("crop", [0, 24])
def test_parts_sum_to_the_map(divided, count, crop):
    images = pictures(count)
    divided = Detector(config(evaluate__crop=crop), divided.variables, {})
    parts, border = divided.map_terms(images), (SIZE - (crop or SIZE)) // 2
    assert list(parts) == ["first", "second"]
    for maps, expected in zip(parts.values(), (images[..., 0] / 255, images[..., 1] / 127.5), strict=True):
        expected = np.pad(expected[:, border : SIZE - border, border : SIZE - border], [(0, 0)] + 2 * [(border,) * 2])
        assert maps.dtype == np.float32
        np.testing.assert_allclose(maps, expected, rtol=1e-6)
    np.testing.assert_allclose(sum(parts.values()), divided.score(images).map, rtol=1e-6)


def test_only_the_region_that_was_trained_on_is_judged(divided):
    """A bright frame around the central 24 of 32 pixels, in an image twice as high and three times as wide."""
    found = Detector(config(evaluate__crop=24), divided.variables, {})
    image = np.full((64, 96, 3), 255, np.uint8)
    image[8:56, 12:84] = 50
    image[20:24, 60:66] = 100
    [made] = found.predict([image])
    assert made.judged == (8, 12, 56, 84) and made.peak == (21, 61)
    judged = np.zeros((64, 96), bool)
    judged[8:56, 12:84] = True
    assert np.isnan(made.map[~judged]).all() and np.isfinite(made.map[judged]).all()
    assert made.map[judged].max() < 1.5  # nothing of the frame, which would be 3
    assert made.score < 0.7
    [whole] = Detector(config(), divided.variables, {}).predict([image])
    assert whole.judged == (0, 0, 64, 96) and np.isfinite(whole.map).all() and whole.map.max() > 2.9


def test_ranges_are_those_of_the_judged_region(divided):
    found = Detector(config(evaluate__crop=24), divided.variables, {})
    scores = found.score(pictures(3))
    found.fit_ranges(scores)
    inside = scores.map[:, 4:28, 4:28]
    assert found.heat_range == (pytest.approx(np.median(inside)), pytest.approx(inside.max()))


def test_a_small_image_keeps_its_peak(divided):
    """A hot pixel of the scored map, in an image of an eighth of its side: it is not left out."""
    scored = np.zeros((SIZE, SIZE), np.float32)
    scored[13, 21] = 64
    assert divided.region.peak_at(scored, (4, 4)) == (1, 2)
    small = divided.region.map_at(scored, (4, 4))
    assert small[1, 2] == 64 and small.sum() == 64
    assert divided.region.peak_at(scored, (320, 3)) == (135, 2)
    tall = divided.region.map_at(scored, (64, 4))
    assert tall.argmax() // 4 in (26, 27) and tall.argmax() % 4 == 2 and not tall[:, [0, 1, 3]].any()


def test_only_pictures_are_smoothed(divided):
    scored = np.zeros((SIZE, SIZE), np.float32)
    scored[13, 21] = 1
    drawn = divided.region.map_at(scored, (SIZE, SIZE), sigma=1.0)
    assert drawn[13, 21] == pytest.approx(0.159, abs=2e-3) and drawn.sum() == pytest.approx(1, abs=1e-3)
    np.testing.assert_array_equal(divided.region.map_at(scored, (SIZE, SIZE)), scored)


def test_a_map_without_parts(neighbours):
    assert neighbours.map_terms(pictures(2)) is None


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
        assert one.peak == (int((row + 0.5) * image.shape[0] / SIZE), int((column + 0.5) * image.shape[1] / SIZE))
        assert one.map.dtype == np.float32
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


def test_images_are_taken_from_any_iterable(tmp_path):
    """What the user has: paths, Pillow's images, arrays, in lists, generators and stacks, or a single one."""
    found, images = baseline(), list(pictures(7))
    expected = found.predict(images)
    assert len(expected) == 7  # with a batch of 3
    paths = []
    for number, image in enumerate(images):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(image).save(paths[-1])
    for given in (paths, map(str, paths), (Image.open(path) for path in paths), iter(images), np.stack(images),
                  jnp.asarray(np.stack(images)), (images[0], *paths[1:6], Image.open(paths[6]))):  # fmt: skip
        made = found.predict(given)
        assert [one.score for one in made] == [one.score for one in expected]
        assert [one.map.shape for one in made] == [(SIZE, SIZE)] * 7
    for one in (paths[2], str(paths[2]), Image.open(paths[2]), images[2]):
        [made] = found.predict(one)
        assert made.score == pytest.approx(expected[2].score, rel=1e-6)


def test_an_image_that_cannot_be_read_raises_or_has_its_error_in_its_place(tmp_path):
    """Here in the second of three batches, as a file and as an array; other images have the scores that they had."""
    found, images = baseline(), [*pictures(7)]
    expected = found.predict(images)
    paths = [tmp_path / f"{number}.png" for number in range(7)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    paths[4].write_bytes(paths[4].read_bytes()[:-20])
    with refuses(paths[4], "truncated") as caught:
        found.predict(paths)
    made = found.predict([*paths[:6], np.zeros(3), images[6]], keep_errors=True)
    assert [str(one) for one in made if isinstance(one, UserError)] == [str(made[4]), str(made[6])]
    sentence = str(caught.value)
    assert str(made[4]) == sentence and str(made[6]).startswith("image 6 must be uint8 (h, w), ")
    for one, number in zip([*made[:4], made[5]], (0, 1, 2, 3, 5), strict=True):
        assert one.score == expected[number].score
        np.testing.assert_array_equal(one.map, expected[number].map)
    [alone] = found.predict(paths[4], keep_errors=True)
    assert str(alone) == sentence
    with refuses(None, "batch"):
        found.predict(paths, batch=0, keep_errors=True)


def test_a_generator_is_consumed_batch_by_batch(neighbours, monkeypatch):
    held, most, score = [], [], neighbours.score

    def watched(*arguments, **options):
        most.append(len(held))
        held.clear()
        return score(*arguments, **options)

    monkeypatch.setattr(neighbours, "score", watched)

    def generated():
        for image in pictures(10):
            held.append(image)
            yield image

    assert len(neighbours.predict(generated(), batch=4)) == 10 and most == [4, 4, 2]
    assert neighbours.predict(generated(), batch=np.int64(10)) and most[3:] == [10]
    neighbours.predict(iter(pictures(1)))
    assert neighbours._score._cache_size() == 2  # batches of 4 and of 1 both have one image for each of 8 devices


@pytest.mark.parametrize("batch", [0, -1, 1.5, "8", True, np.float32(2)])
def test_a_batch_that_is_none(batch):
    for call in (lambda found: found.predict(pictures(2), batch=batch),
                 lambda found: found.score(pictures(2), batch=batch)):  # fmt: skip
        with refuses(None, repr(batch)):
            call(baseline())


@pytest.mark.parametrize("images", [
    pictures(2) / np.float32(255),
    pictures(1)[0],
    pictures(2)[:, :16],
    np.zeros((2, SIZE, SIZE), np.uint8),
])  # fmt: skip
def test_stacks_that_cannot_be_scored(images):
    with refuses(None, f"{images.dtype} {images.shape}"):
        baseline().score(images)


def test_small_images_of_tfds_are_accepted_as_its_training_accepts_them():
    image = pictures(1, size=28)[0]
    with refuses(None, "28 x 28"):
        baseline().predict([pictures(1)[0], image])
    assert len(baseline(data__source="tfds").predict([image])) == 1


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


def calibrated(**overrides):
    """A baseline with thresholds from 30 other pictures."""
    found = baseline(**overrides)
    found.fit_thresholds(found.score(pictures(30, seed=5)), cross_fitted=False)
    return found


def test_thresholds_regions_and_the_percentile_of_a_prediction():
    found, image = calibrated(), pictures(1, size=64, seed=6)[0]
    image[20:30, 40:50] = 255
    [made] = found.predict([image])
    good = found.score(pictures(30, seed=5))
    assert found.calibration.peaks == tuple(sorted(good.map.max((1, 2)).tolist()))
    assert made.percentile == 100 and made.defective and made.pixel_threshold == found.pixel_threshold
    assert made.regions == find_regions(made.map, found.pixel_threshold)
    top, left, bottom, right = made.regions[0].box
    assert top <= 20 and left <= 40 and bottom >= 30 and right >= 50 and made.regions[0].peak_score <= made.map.max()
    plain = found.predict(pictures(30, seed=5))
    share = np.mean([bool(one.regions) for one in plain])
    assert share <= 0.05 and plain[0].percentile == 100 * np.mean(good.image < np.float32(plain[0].score))
    [alone] = baseline().predict([image])
    assert alone.percentile is alone.pixel_threshold is alone.regions is None


def test_what_is_not_judged_has_no_part_in_the_threshold_for_pixels(divided):
    found = Detector(config(evaluate__crop=24), divided.variables, {})
    scores = found.score(pictures(30, seed=5))
    framed = scores._replace(map=np.where(scores.map == 0, 99, scores.map))
    found.fit_thresholds(framed, cross_fitted=False)
    assert found.pixel_threshold < 9 and found.calibration.peaks[-1] < 9


@pytest.mark.medium
def test_another_false_alarm_rate_is_set_kept_and_passed_on(tmp_path):
    found = calibrated()
    first, regions = (found.threshold, found.pixel_threshold), found.calibration.regions
    assert regions is not None
    found.save(tmp_path / "w")
    loaded = jaxad.load(tmp_path / "w")
    assert loaded.calibration == found.calibration
    loaded.set_false_alarm_rate(0.3)
    assert (loaded.threshold, loaded.pixel_threshold) == found.calibration.thresholds(0.3)
    assert loaded.threshold < first[0] and loaded.calibration.regions is None
    again = pickle.loads(pickle.dumps(loaded))
    assert (again.threshold, again.pixel_threshold) == (loaded.threshold, loaded.pixel_threshold)
    loaded.save(tmp_path / "w")
    assert jaxad.load(tmp_path / "w").threshold == loaded.threshold
    for rate in (-0.1, 1.0):
        with refuses("threshold.false_alarm_rate", "[0, 1)"):
            loaded.set_false_alarm_rate(rate)
    other = jaxad.load(tmp_path / "w", {"score.reduction": "mean"})
    assert other.threshold is other.pixel_threshold is other.calibration is None
    with refuses(None, "held out"):
        other.set_false_alarm_rate(0.1)


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
    loaded = checkpoint.load(tmp_path / "detector.json")[0]["variables"]
    assert jax.tree.structure(loaded) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, loaded, tree)


def test_other_scoring_drops_the_threshold_that_was_fitted_for_this(workdir):
    assert detectors.load(workdir, {"score.reduction": "mean"}).threshold is None
    assert detectors.load(workdir, {"score.reduction": "max"}).threshold == 1.25  # as it was
    assert detectors.load(workdir, {"evaluate.batch": "2"}).threshold == 1.25


@pytest.mark.parametrize("key", ["seed", "data.size", "data.holdout", "method"])
def test_what_training_settled_cannot_be_changed(workdir, key):
    value = {"method": "baseline_mean", "data.holdout": "0.3"}.get(key, "64")
    with refuses(key, str(workdir)):
        detectors.load(workdir, {key: value})


def test_a_detector_that_is_not_finished_or_damaged(workdir):
    (workdir / "detector.json").unlink()
    with refuses(workdir, "yet"):
        jaxad.load(workdir)
    baseline().save(workdir)
    complete = json.loads((workdir / "detector.json").read_text())
    for part in (complete, complete["values"]):
        for key in list(part):
            value = part.pop(key)
            (workdir / "detector.json").write_text(json.dumps(complete))
            with refuses(workdir, f"'{key}'"):
                jaxad.load(workdir)
            part[key] = value
    (workdir / "detector.json").write_text(json.dumps(complete))
    for litter in (".DS_Store", "Thumbs.db", ".nfs0000000012", "notes.txt"):
        (workdir / "detector" / litter).write_text("x")
        (workdir / "detector" / complete["arrays"] / litter).write_text("x")
    jaxad.load(workdir)
    baseline().save(workdir)  # what jaxad did not write is let be
    jaxad.load(workdir)
    names = {path.name for path in (workdir / "detector").iterdir()}
    assert len(names) == 5 and names > {".DS_Store", "Thumbs.db", ".nfs0000000012", "notes.txt"}


def test_the_package_has_nothing_else():
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        jaxad.lode  # noqa: B018 - the access is the test


def test_textures_are_scored_at_their_own_size():
    settings = configs.load(f"{NSA}:tile")
    assert (settings.data.size, settings.score.size, settings.evaluate.crop) == (264, 256, 0)
