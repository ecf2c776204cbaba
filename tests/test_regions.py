"""What is judged of an image, and the score map at other sizes."""

import numpy as np
import pytest

from jaxad import config as configs
from jaxad import figures, regions
from tests.test_experiments import CASES


@pytest.mark.parametrize("shape", [(64, 64), (64, 300), (37, 29)])
def test_a_hot_pixel_survives_shrinking_and_keeps_its_place(shape):
    map = np.zeros((256, 256), np.float32)
    map[129, 202] = 7
    small = regions.at_size(map, shape)
    assert small.shape == shape and small.max() == pytest.approx(7, rel=0.3 if shape[1] > 256 else 1e-6)
    place = (int(129.5 * shape[0] / 256), int(202.5 * shape[1] / 256))
    assert regions.peak(map, 0, shape) == place
    assert small[place] == small.max()


def test_what_is_outside_is_nan_and_enters_nothing():
    map = np.zeros((32, 32), np.float32)
    map[0, 0], map[20, 10] = 100, 1
    map[4:28, 4:28] += 2
    marked = regions.outside_nan(map, 24)
    for shape in ((32, 32), (64, 96), (16, 40)):
        top, left, bottom, right = regions.judged(32, 24, shape)
        full = regions.at_size(regions.smooth(marked, 1.0), shape)
        assert np.isfinite(full[top:bottom, left:right]).all() and np.isnan(full).sum() == full.size - (
            (bottom - top) * (right - left)
        )
        assert np.nanmin(full) > 1.99 and np.nanmax(full) < 3.01
    assert regions.judged(32, 24, (64, 96)) == (8, 12, 56, 84)
    assert regions.peak(map, 24, (64, 96)) == (41, 31)


def test_what_is_not_judged_is_dark():
    image = np.full((32, 32, 3), 100, np.uint8)
    drawn = figures.overlay(image, regions.outside_nan(np.zeros((32, 32), np.float32), 24), low=0, high=1)
    assert (drawn[:4] == 50).all() and not (drawn[4:28, 4:28] == 50).all(-1).any()


@pytest.mark.parametrize("file, category", CASES, ids=[f"{file.stem}:{category}" for file, category in CASES])
def test_what_is_judged_was_trained_on(file, category):
    config = configs.load(f"{file}:{category}")
    judged = (config.evaluate.crop or config.score.size) / config.score.size
    trained = (config.get("view", {}).get("center_crop", 0) or config.data.size) / config.data.size
    assert judged <= trained
