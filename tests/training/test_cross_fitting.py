"""Cross-fitting: each image is scored by a density of others, the rate is kept, and enough images end it."""

import jax
import numpy as np
import pytest
from scipy.stats import binom

import jaxad
from jaxad import detector as detectors
from jaxad import methods
from jaxad.scoring.threshold import fit_threshold
from jaxad.training import refit as refits
from jaxad.training.cross_fitting import FOLDS, cross_fit, folds, largest_fold
from tests.methods.test_features import config_of, shifted, small  # noqa: F401
from tests.refusals import refuses
from tests.test_detector import baseline as pixels
from tests.test_detector import config as pixel_config
from tests.test_detector import pictures


@pytest.mark.parametrize("images", [3, 9, 10, 11, 50, 59])
def test_folds_divide_the_images(images):
    parts = folds(images, seed=1)
    assert sorted(np.concatenate(parts).tolist()) == list(range(images)) and len(parts) == min(FOLDS, images)
    sizes = [len(part) for part in parts]
    assert max(sizes) == largest_fold(images) and max(sizes) - min(sizes) <= 1
    assert all((np.diff(part) > 0).all() for part in parts)
    assert [part.tolist() for part in parts] == [part.tolist() for part in folds(images, seed=1)]


def test_each_image_is_scored_by_a_density_without_its_fold():
    found, images = pixels(), pictures(23, size=32, seed=4)
    good, figures = cross_fit(found, images)
    method = methods.create(found.config)
    for fold in folds(len(images), seed=found.config.seed):
        density = method.fit({}, np.delete(images, fold, axis=0), jax.random.key(0))
        expected = found.with_weights({}, jax.device_get(density)).score(images[fold])
        np.testing.assert_allclose(good.image[fold], expected.image, rtol=1e-6)
        np.testing.assert_allclose(good.map[fold], expected.map, rtol=1e-5, atol=1e-6)
    assert good.image.mean() > found.score(pictures(20, seed=9)).image.mean()  # those it was fitted to score lower
    assert 0 <= figures["synthetic_image_auroc"] <= 1


def per_pixel(good, new):
    """The baseline without a blur: the highest |x - mean| / (std + floor), of (t, n, d) for (t, m, d): (t, m)."""
    mean, std = good.mean(1, keepdims=True), good.std(1, keepdims=True)
    return (np.abs(new - mean) / (std + 0.1)).max(-1)


def nearest(good, new):
    """The distance to the nearest good image."""
    squares = (new**2).sum(-1)[:, :, None] + (good**2).sum(-1)[:, None] - 2 * new @ good.transpose(0, 2, 1)
    return np.sqrt(np.maximum(squares.min(-1), 0))


@pytest.mark.parametrize("score", [per_pixel, nearest])
@pytest.mark.parametrize("count", [20, 50])
@pytest.mark.parametrize("rate", [0.05, 0.1])
def test_the_realized_rate_is_the_one_that_was_asked(score, count, rate):
    """Over trainings with a new image each, within the bounds of a binomial count (probability 0.999 on either side).

    Of held-out scores, a new one exceeds the threshold with a probability between (m - 1) / (n + 1) and m / (n + 1).
    That densities of fewer images score higher may lower it: by a fifth is allowed for. The bound that is proven for
    `nearest` is twice the rate and more.
    """
    rng, trainings = np.random.default_rng(count), 3000
    images, new = rng.normal(size=(trainings, count, 16)), rng.normal(size=(trainings, 1, 16))
    scores = np.empty((trainings, count))
    for fold in folds(count, seed=0):
        scores[:, fold] = score(np.delete(images, fold, axis=1), images[:, fold])
    thresholds = [fit_threshold(row, false_alarm_rate=rate) for row in scores]
    called = int((score(images, new)[:, 0] > thresholds).sum())
    rank = int(rate * (count + 1) + 1e-9)
    assert binom.ppf(0.001, trainings, 0.8 * (rank - 1) / (count + 1)) <= called
    assert called <= binom.ppf(0.999, trainings, rank / (count + 1)) <= binom.ppf(0.999, trainings, rate)


def test_more_features_never_lie_farther():
    """What the bound of twice the rate rests on for nearest neighbors: no score without a fold is lower."""
    rng = np.random.default_rng(0)
    images, new = rng.normal(size=(20, 30, 8)), rng.normal(size=(20, 5, 8))
    for fold in folds(30, seed=0):
        assert (nearest(np.delete(images, fold, axis=1), new) >= nearest(images, new) - 1e-6).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gaussian_per_location", "gaussian", "nearest_neighbor", "auto"])
def test_a_training_of_few_images_fits_all_and_keeps_the_scorer(name, tmp_path, capsys):
    config = config_of("auto", density__name=name, data__holdout=0.25)
    found = jaxad.train(config, shifted(24), tmp_path / "run")
    told = capsys.readouterr().out
    assert "all to train on; for the threshold each is scored by a density of others" in told
    assert "thresholds from 24 good images that were cross-fitted: " in told
    assert told.count("density.name=auto is") == (name == "auto") and told.count("the bank keeps") <= 1
    assert len(found.calibration.scores) == 24 and found.calibration.cross_fitted
    expected = methods.create(found.config).fit({}, shifted(24), jax.random.key(config.seed))
    for one, other in zip(jax.tree.leaves(found.density), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert found.threshold == fit_threshold(np.array(found.calibration.scores), false_alarm_rate=0.05)
    loaded = jaxad.load(tmp_path / "run")
    assert loaded.calibration == found.calibration and loaded.pixel_threshold == found.pixel_threshold
    assert (tmp_path / "run" / "synthetic.json").is_file()


@pytest.mark.slow
def test_images_that_are_added_end_it_once_there_are_enough(tmp_path, capsys):
    config = config_of("auto", density__name="gaussian", data__holdout=0.25, threshold__cross_fit_below=20)
    jaxad.train(config, shifted(12), tmp_path / "run")
    found = jaxad.refit(tmp_path / "run", shifted(5, seed=1))
    kept = refits._read(tmp_path / "run")
    assert kept.crossed and (kept.fitted, len(kept.seen), len(found.calibration.scores)) == (17, 17, 17)
    every = np.concatenate([shifted(12), shifted(5, seed=1)])
    expected, _ = cross_fit(found, every)
    np.testing.assert_allclose(found.calibration.scores, np.sort(expected.image), rtol=1e-5)
    capsys.readouterr()
    found = jaxad.refit(tmp_path / "run", shifted(3, seed=2))
    kept = refits._read(tmp_path / "run")
    assert "the detector has 20 now, of which 5 are held out" in capsys.readouterr().out
    assert not kept.crossed and (kept.fitted, len(kept.seen)) == (15, 5)
    assert len(found.calibration.scores) == 5 and not found.calibration.cross_fitted
    held = {image.tobytes() for image in kept.seen}
    fitted = [image for image in [*every, *shifted(3, seed=2)] if image.tobytes() not in held]
    expected = methods.create(config).fit({}, fitted, jax.random.key(config.seed))
    for one, other in zip(jax.tree.leaves(found.density), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    jaxad.refit(tmp_path / "run", shifted(4, seed=3))
    assert len(refits._read(tmp_path / "run").seen) == 6
    assert detectors.load(tmp_path / "run").threshold is not None


def test_a_trained_network_is_not_cross_fitted():
    with refuses("threshold.cross_fit_below", "config.epochs"):
        jaxad.configs.load("nsa_logistic", "cap", threshold={"cross_fit_below": 10})
    assert pixel_config(threshold__cross_fit_below=10).threshold.cross_fit_below == 10
