"""Images that are no squares, with every method, in training, evaluation and prediction."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

import jaxad
from jaxad import config as configs
from jaxad import evaluate, methods, metrics, predict
from jaxad.data.pipeline import split_holdout
from jaxad.metrics import IGNORED
from tests.parts import ROOT, command, write

pytestmark = pytest.mark.medium

HEIGHT, WIDTH = 96, 256
SMALL = {"data.size": 64, "data.holdout": 0.25}
TRAINED = {"batch": 8, "epochs": 1, "log_every": 1, "synthetic_every": 0}
METHODS = {
    "baseline_mean": {"score.sigma": 1.0},
    "lite": {"density.name": "gaussian_per_location", "density.channels": 8},
    "nsa_logistic": {"view.center_crop": 0, "view.crop": 64, "score.size": 64, "dtype": "float32", **TRAINED},
    "cutpaste_3way": {**TRAINED, "steps_per_epoch": 1, "score.size": 64},
    "cutpaste_patch": {**TRAINED, "steps_per_epoch": 1, "patch.crop": 48, "patch.stride": 16, "score.size": 64},
    "dla": {**TRAINED, "score.passes": 2},
    "lite_nsa": {**TRAINED, "steps_per_epoch": 1, "density.channels": 8},
}


def load(experiment, category, overrides):
    return configs.load(f"{ROOT}/experiments/{experiment}.py:{category}", overrides, rules_of=methods.rules_of)


def surface(number, *, shape=(HEIGHT, WIDTH), spot=None):
    """A striped image, another one for each number; bright around `spot`, (row, column)."""
    rows, columns = np.indices(shape)
    image = 110 + 30 * np.sin(columns / 9) + 20 * np.cos(rows / 7)
    image = image + np.random.default_rng(number).normal(0, 3, shape)
    if spot:
        image[spot[0] - 6 : spot[0] + 6, spot[1] - 6 : spot[1] + 6] = 255
    return np.repeat(image.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def made(root, *, shape=(HEIGHT, WIDTH)):
    """Writes a data set of such images in MVTec AD's layout, one of them of another aspect ratio."""
    scale = shape[0] / HEIGHT
    for number in range(12):
        write(root / "train" / "good" / f"{number:02d}.png", surface(number, shape=shape))
    for number in range(3):
        write(root / "test" / "good" / f"{number}.png", surface(100 + number, shape=shape))
        spot = int((20 + 20 * number) * scale), (40 + 80 * number) * shape[1] // WIDTH
        around = tuple(slice(place - int(6 * scale), place + int(6 * scale)) for place in spot)
        spotted, mask = surface(200 + number, shape=shape), np.zeros(shape, np.uint8)
        spotted[around], mask[around] = 255, 255
        write(root / "test" / "spot" / f"{number}.png", spotted)
        write(root / "ground_truth" / "spot" / f"{number}_mask.png", mask)
    write(root / "test" / "good" / "tall.png", surface(300, shape=(200, 100)))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return made(tmp_path_factory.mktemp("surfaces"))


@pytest.fixture(scope="module", params=[(480, 640), (250, 1000), (512, 4096)], ids=str)
def photographs(request, tmp_path_factory):
    """A data set, and the shape of its images."""
    return made(tmp_path_factory.mktemp("photographs"), shape=request.param), request.param


def works(name, root, shape, tmp_path):
    """Trains, evaluates and predicts; returns the detector and its results."""
    options = {key: value for key, value in (SMALL | METHODS[name]).items()}
    config = load(name, "object" if name != "lite" else "auto", options)
    found = jaxad.train(config, root, tmp_path)
    assert jaxad.load(tmp_path).config.data.aspect == pytest.approx(shape[1] / shape[0], abs=1e-4)
    results = evaluate.evaluate(found, tmp_path)
    assert results["counts"] == {"good": 4, "defective": 3, "with_mask": 3}
    assert results["pixel"]["auroc"] is not None
    assert command(predict.main, root / "test", "--workdir", tmp_path, "--maps", "npy") == 0
    folder = tmp_path / "predictions"
    for path in (folder / "maps").iterdir():
        its = (200, 100) if "tall" in path.name else shape
        assert np.load(path).shape == its and np.isfinite(np.load(path)).all()
        with Image.open(folder / "heatmaps" / f"{path.stem}.jpg") as heatmap:
            assert heatmap.size == tuple(side * min(1, predict.SIDE / max(its)) for side in its[::-1])
    return found, results


LOCATES = ("baseline_mean", "lite", "lite_nsa")  # without a long training
SLOW = ("cutpaste_3way", "cutpaste_patch", "dla", "lite_nsa")  # to compile for eight devices


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in METHODS])
def test_every_method_keeps_the_aspect_ratio(name, root, tmp_path, capsys):
    found, results = works(name, root, (HEIGHT, WIDTH), tmp_path)
    assert name not in LOCATES or results["pixel"]["auroc"] > 0.95
    assert found.region.size == (64, 160)  # 64 * 256 / 96 is 171, and 32 is a step
    assert "images are 160 x 64 pixels" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_images_as_cameras_make_them(name, photographs, tmp_path):
    root, (height, width) = photographs
    found, results = works(name, root, (height, width), tmp_path)
    assert name not in LOCATES or results["pixel"]["auroc"] > 0.9  # 64 x 96 pixels leave few positions
    assert found.region.size[0] == 64 and abs(found.region.size[1] - 64 * width / height) <= 16


@pytest.mark.parametrize("shape", [(480, 640), (250, 1000), (1000, 250), (512, 4096)])
def test_a_map_lines_up_with_its_image_within_a_pixel_of_the_map(shape):
    spot = (shape[0] // 3, 2 * shape[1] // 3)
    config = load("baseline_mean", "object", {"data.size": 128, "score.sigma": 1.0})
    found = jaxad.train(config, [surface(number, shape=shape) for number in range(6)])
    [prediction] = found.predict([surface(50, shape=shape, spot=spot)])
    assert prediction.map.shape == shape
    scale = max(side / framed for side, framed in zip(shape, found.region.size, strict=True))
    hot = prediction.map > prediction.map.max() / 2
    center = cv2.moments(hot.astype(np.uint8))
    found_at = center["m01"] / center["m00"], center["m10"] / center["m00"]
    assert np.abs(np.subtract(found_at, np.subtract(spot, 0.5))).max() < 1  # a pixel of the image itself
    assert np.abs(np.subtract(prediction.peak, spot)).max() < 6 + scale


def test_padding_is_neither_scored_nor_counted(tmp_path):
    images = [surface(number) for number in range(8)]
    options = {"data.size": 128, "data.resize": "pad", "score.sigma": 1.0, "data.holdout": 0.25}
    options |= {"threshold.cross_fit_below": 0}
    found = jaxad.train(load("baseline_mean", "object", options), images, tmp_path)
    frame = np.stack([found.region.geometry.image(images[0])])
    box = found.region.geometry.placement((HEIGHT, WIDTH)).target
    assert box == (40, 0, 88, 128)
    spoiled = frame.copy()
    spoiled[:, :34] = 255 - spoiled[:, :34]  # far enough for the blur
    clean, other = (found.score(stack, boxes=[box]) for stack in (frame, spoiled))
    np.testing.assert_allclose(other.image, clean.image, rtol=1e-6)
    assert (clean.map[0, :40] == 0).all() and (clean.map[0, 88:] == 0).all()
    np.testing.assert_allclose(other.map, clean.map, atol=1e-5)
    assert found.score(spoiled).image[0] > 2 * clean.image[0]  # without the box, what is beside the image counts
    _, held = split_holdout(["x"] * 8, holdout=0.25, seed=0)
    good = [prediction.score for prediction in found.predict([images[number] for number in held])]
    assert max(good) < found.threshold and found.good_scores[0] == pytest.approx(np.mean(good), rel=1e-5)
    figures = json.loads((tmp_path / "synthetic.json").read_text())
    assert figures["synthetic_image_auroc"] > 0.9


def test_cropping_judges_what_the_crop_shows():
    options = {"data.size": 64, "data.resize": "crop", "score.sigma": 1.0}
    found = jaxad.train(load("baseline_mean", "object", options), [surface(number) for number in range(6)])
    [prediction] = found.predict([surface(9, spot=(48, 128))])
    assert prediction.judged == (0, 80, 96, 176)
    assert np.isnan(prediction.map[:, :80]).all() and np.isfinite(prediction.map[:, 80:176]).all()
    assert np.abs(np.subtract(prediction.peak, (48, 128))).max() <= 7


def test_values_that_do_not_fit_together_are_refused():
    with pytest.raises(jaxad.UserError, match=r"data.aspect has no effect while config.data.resize is squeeze"):
        load("lite", "bottle", {"data.aspect": 2.0})
    with pytest.raises(jaxad.UserError, match=r"config.data.resize must be one of squeeze, keep, pad, crop"):
        jaxad.train(load("baseline_mean", "object", {"data.resize": "stretch"}), [surface(1)] * 4)
    with pytest.raises(jaxad.UserError, match=r"config.evaluate.crop 128 judges a part of what .* shows whole"):
        jaxad.train(load("nsa_logistic", "object", {"evaluate.crop": 128}), [surface(1)] * 4)


def test_the_same_workdir_goes_on_with_its_aspect_ratio(tmp_path):
    config = load("baseline_mean", "object", {"data.size": 64})
    images = [surface(number) for number in range(6)]
    jaxad.train(config, images, tmp_path)
    assert jaxad.train(config, images, tmp_path).config.data.aspect == pytest.approx(WIDTH / HEIGHT, abs=1e-4)


def test_ignored_pixels_are_no_samples():
    masks = [np.uint8([[0, 1, IGNORED], [0, 0, IGNORED]]), np.uint8([[0, 0, 0], [IGNORED] * 3])]
    maps = np.float32([[[1, 3, 9], [2, 0, 9]], [[4, 1, 0], [9, 9, 9]]])
    found = metrics.select(metrics.rank_pixels(masks, maps), np.ones(2, bool))
    assert (found.good, found.anomalous) == (6, 1)
    assert metrics.auroc(found) == pytest.approx(5 / 6)
