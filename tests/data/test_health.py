"""Measures of images, and copies among images that look alike, against values derived by hand."""

import cv2
import numpy as np
import pytest

from jaxad.data import health
from jaxad.data.demo import source as demo


def grey(image):
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def moved(image, rows, columns):
    """The image moved down and to the right, its edge repeated."""
    return np.pad(image, ((rows, 0), (columns, 0), (0, 0)), mode="edge")[: image.shape[0], : image.shape[1]]


def encoded(image, quality=90):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def halved(image):
    return cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def test_measures_of_a_drawn_image():
    """A quarter is black, a quarter white, and half has the level 100."""
    image = np.full((40, 80, 3), 100, np.uint8)
    image[:, :20], image[:, 60:] = 0, 255
    found = health.measure(image)
    assert (found.height, found.width, found.color) == (40, 80, False)
    assert (found.dark, found.bright) == (0.25, 0.25)
    assert found.brightness == pytest.approx((0 + 100 + 100 + 255) / 4)
    image[0, 0, 2] = 1
    changed = health.measure(image)
    assert changed.color and changed.digest != found.digest


def test_sharpness_is_that_of_a_direct_sum_and_does_not_depend_on_contrast():
    image = np.random.default_rng(0).integers(60, 120, (48, 56)).astype(np.uint8)
    padded = np.pad(image.astype(float), 1, mode="reflect")
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    laplacian = around - 4.0 * image
    span = np.subtract(*np.quantile(image, [0.9, 0.1], method="inverted_cdf").astype(float))
    found = health.measure(np.repeat(image[..., None], 3, axis=2)).sharpness
    assert found == pytest.approx(np.log((laplacian.var() + 1e-3) / (span**2 + 1)), rel=1e-6)
    doubled = health.measure(np.repeat((2 * image)[..., None], 3, axis=2)).sharpness
    assert doubled == pytest.approx(found, abs=0.01)


def test_spreads_by_hand():
    """The median of 1, 2, 3, 4, 100 is 3, and the deviations from it are 2, 1, 0, 1, 97: their median is 1."""
    found = health.spreads([3, 3 + 1.4826, 0.0], [1, 2, 3, 4, 100], least=0.1)
    np.testing.assert_allclose(found, [0, 1, -3 / 1.4826])
    np.testing.assert_allclose(health.spreads([7.0], [5, 5, 5], least=0.5), [4])


@pytest.fixture(scope="module")
def caps():
    """Aligned photographs that look alike: uint8 (128, 128, 3) each."""
    return [record.image for record in demo.load("cap", size=128, train=24).train]


def test_copies_among_images_that_look_alike(caps):
    """Copies are found whatever was done to them; different images of the same object are none."""
    training = [health.thumbnail(grey(image)) for image in caps[:16]]
    others = [health.thumbnail(grey(image)) for image in caps[16:]]
    assert health.copies(others, training) == [] and health.copies(None, training) == []
    made = [caps[3], encoded(caps[4]), moved(caps[5], 1, 0), moved(caps[6], 0, 1), np.uint8(caps[7] * 0.8)]
    found = health.copies([health.thumbnail(grey(image)) for image in made], training)
    assert {(copy.index, copy.other) for copy in found} == {(0, 3), (1, 4), (2, 5), (3, 6), (4, 7)}
    assert found[0].correlation == pytest.approx(1, abs=1e-4)
    [pair] = health.copies(None, [*training, health.thumbnail(grey(encoded(caps[2])))])
    assert (pair.index, pair.other) == (16, 2)


def test_a_copy_of_half_the_size_among_larger_images():
    images = [record.image for record in demo.load("cap", size=256, train=6).train]
    training = [health.thumbnail(grey(image)) for image in images]
    found = health.copies([health.thumbnail(grey(halved(image))) for image in images], training)
    assert {(copy.index, copy.other) for copy in found} == {(number, number) for number in range(6)}


def test_nothing_is_a_copy_where_nothing_is_an_images_own():
    flat = [np.full((64, 64), level, np.float32) for level in (100, 101, 99)]
    assert health.copies([flat[0]], flat) == [] and health.copies(None, flat) == []
    assert health.copies([flat[0]], flat[:1]) == [] and health.copies([], flat) == []


def test_a_blurred_and_an_overexposed_image_are_outliers(caps):
    training = [health.measure(image) for image in caps]
    assert health.outliers(training, training) == {}
    made = [
        cv2.GaussianBlur(caps[0], (0, 0), 2),
        np.uint8(np.clip(caps[1] * 1.7 + 20.0, 0, 255)),
        np.uint8(caps[2] * 0.3),
        caps[3],
    ]
    found = health.outliers([health.measure(image) for image in made], training)
    assert 0 in found["blurred"] and found["bright"] == [1] and found["dark"] == [2]
    assert all(3 not in indices for indices in found.values())


@pytest.mark.parametrize("marked, what", [(0, "empty"), (3, "tiny"), (4, None), (90, None), (91, "full")])
def test_suspicious_masks(marked, what):
    """Of 100 pixels."""
    mask = np.zeros((10, 10), np.uint8)
    mask.flat[:marked] = 1
    assert health.suspicious_mask(mask) == what
