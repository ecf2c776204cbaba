"""Shapes of synthetic anomalies: their areas and outlines, and that the whole of each lies in the image."""

import itertools
import math

import cv2
import numpy as np
import pytest
from scipy.optimize import brentq

from jaxad.synthetic_anomalies import shapes
from tests.refusals import refuses

SIDE = 256
GLYPHS = np.zeros((2, 8, 8))
GLYPHS[0, 1:7, 3:5] = 16  # a bar of 6 x 2
GLYPHS[1, :4, :4] = 8  # a square of 4 x 4, its ink half as strong


def digit(rng, side, *, size):
    return shapes.digit(rng, side, GLYPHS, size=size)


EACH = {"square": shapes.square, "ellipse": shapes.ellipse, "heart": shapes.heart, "digit": digit}
each_shape = pytest.mark.parametrize("name", EACH)


def masks(name, share, *, side=SIDE, count=20):
    return [EACH[name](np.random.default_rng(seed), side, size=(share, share)) for seed in range(count)]


def touching(mask):
    """Whether the four sides of the image are touched."""
    return mask[0].any(), mask[-1].any(), mask[:, 0].any(), mask[:, -1].any()


def moments(mask):
    """Area, and the two main standard deviations of the pixels' places, the larger first."""
    places = np.argwhere(mask)
    return len(places), np.sqrt(np.linalg.eigvalsh(np.cov(places.T)))[::-1]


@each_shape
@pytest.mark.parametrize("side", [32, SIDE])
def test_a_seed_makes_one_mask_and_other_seeds_others(name, side):
    made = masks(name, 0.3, side=side)
    assert all(mask.shape == (side, side) and mask.dtype == bool and mask.any() for mask in made)
    for one, again in zip(made, masks(name, 0.3, side=side), strict=True):
        np.testing.assert_array_equal(one, again)
    assert not any((one == other).all() for one, other in itertools.combinations(made, 2))


def test_a_square_has_its_area_and_its_corners():
    """Turned by any angle; a uniform square of side s has a standard deviation of s / sqrt(12) along every axis."""
    boxes = set()
    for mask in masks("square", 0.25):
        area, deviations = moments(mask)
        assert area == pytest.approx(64**2, rel=0.04)
        np.testing.assert_allclose(deviations, 64 / math.sqrt(12), rtol=0.03)
        (_, (height, width), _), = [cv2.minAreaRect(np.argwhere(mask).astype(np.float32))]
        assert height == pytest.approx(64, abs=1.5) and width == pytest.approx(64, abs=1.5)
        boxes.add(int(mask.any(0).sum()))
    assert min(boxes) < 70 and max(boxes) > 80  # from 64 when upright to 90.5 at 45 degrees


def test_an_ellipse_has_its_axes():
    """Its longer axis is the size; a uniform ellipse has a standard deviation of a quarter of each axis."""
    ratios = []
    for mask in masks("ellipse", 0.25):
        area, (longer, shorter) = moments(mask)
        assert 4 * longer == pytest.approx(64, rel=0.02)
        assert area == pytest.approx(math.pi / 4 * 64 * 4 * shorter, rel=0.01)
        ratios.append(shorter / longer)
    assert 0.49 < min(ratios) < 0.65 and 0.85 < max(ratios) <= 1


def test_a_heart_has_the_area_of_its_curve():
    """The area from the curve's radius at every angle, and a box of 2.277 by 2.236 that the size is the longer of."""
    angles = np.linspace(0, 2 * math.pi, 2000, endpoint=False)

    def radius(angle):
        x, y = math.cos(angle), math.sin(angle)
        return brentq(lambda r: r * r - 1 - r ** (5 / 3) * np.cbrt(x * x) * y, 0.3, 2)

    area = math.pi * np.mean([radius(angle) ** 2 for angle in angles])
    assert area == pytest.approx(3.66, abs=0.01)
    for mask in masks("heart", 0.25):
        assert mask.sum() == pytest.approx(area * (64 / 2.28) ** 2, rel=0.006)
        assert 60 < max(mask.any(0).sum(), mask.any(1).sum()) < 70


def test_hearts_are_upright_as_their_formula_is(monkeypatch):
    monkeypatch.setattr(math, "cos", lambda angle: 1.0)
    monkeypatch.setattr(math, "sin", lambda angle: 0.0)
    (mask,) = masks("heart", 0.25, count=1)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    np.testing.assert_array_equal(cut, cut[:, ::-1])  # the same left and right
    assert cut[-1].sum() < 5 and not cut[0, cut.shape[1] // 2]  # one point below, two lobes above
    assert cut.shape[1] == pytest.approx(64, abs=1) and cut.shape[0] == pytest.approx(63, abs=1.5)


def test_digits_are_upright_and_enlarged_smoothly():
    found = set()
    for mask in masks("digit", 0.25):
        height, width = mask.any(1).sum(), mask.any(0).sum()
        assert height == pytest.approx(64, abs=5)
        kind = "bar" if width < 40 else "square"
        assert width == pytest.approx({"bar": 64 / 3, "square": 64}[kind], abs=5)
        assert mask.sum() > 0.8 * height * width
        corners = np.argwhere(mask).min(0)
        assert not mask[tuple(corners)]  # rounded, not a pixel of the 8 x 8 repeated
        found.add(kind)
    assert found == {"bar", "square"}


@pytest.mark.parametrize("share", [0.001, 0.05])
@each_shape
def test_the_smallest_have_two_pixels_a_side(name, share):
    for mask in masks(name, share, side=32):
        assert 1 <= mask.sum() <= 12 and max(mask.any(0).sum(), mask.any(1).sum()) <= 4


@each_shape
def test_all_of_it_lies_in_the_image(name):
    """The largest shapes have the area of the others, so nothing of them is cut off, wherever they are."""
    small, large = (np.array([mask.sum() for mask in masks(name, share, side=128)]) for share in (0.35, 0.7))
    np.testing.assert_allclose(large / small, 4, rtol=0.08)


@each_shape
def test_places_reach_every_side(name):
    made = [EACH[name](np.random.default_rng(seed), 32, size=(0.3, 0.7)) for seed in range(150)]
    assert np.any([touching(mask) for mask in made], axis=0).all()


@each_shape
def test_sizes_lie_between_their_bounds(name):
    made = [EACH[name](np.random.default_rng(seed), SIDE, size=(0.1, 0.2)) for seed in range(40)]
    longest = [max(cv2.minAreaRect(np.argwhere(mask).astype(np.float32))[1]) for mask in made]
    assert 20 < min(longest) < 36 and 42 < max(longest) < 58  # 25.6 to 51.2, a heart or a digit a little off


@each_shape
def test_other_bounds_are_refused(name):
    for size in ((0, 0.2), (0.3, 0.2), (0.1, 0.75), (-0.1, 0.2)):
        with refuses("size", str(size)):
            EACH[name](np.random.default_rng(0), SIDE, size=size)
