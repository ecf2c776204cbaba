"""Synthetic defects: where they lie, how large they are, and what they depend on."""

import math

import numpy as np
import pytest
from scipy import ndimage

from jaxad.augment import synthetic_defects as defects
from jaxad.data.geometry import IGNORED, Geometry
from jaxad.data.roi import Roi

SIDE = 64
KINDS = ("blend", "patch", "scar")


def texture(count: int, *, side: int = SIDE, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Smooth random images, uint8 (count, side, side, channels)."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, side, side, channels))
    return ndimage.uniform_filter(noise, (0, 3, 3, 0)).astype(np.uint8)


@pytest.fixture(scope="module")
def good():
    return texture(5)


@pytest.fixture(scope="module")
def others():
    return texture(3, seed=1)


@pytest.fixture(scope="module")
def made(good, others):
    return defects.make(good, others)


def of_kind(made, kind):
    return np.flatnonzero(np.array(made.kinds) == kind)


def assert_same(found, expected, rows=slice(None)):
    for name in ("images", "masks", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name)[rows], err_msg=name)
    assert found.kinds == list(np.array(expected.kinds)[rows])


def test_the_good_images_come_first_and_each_has_one_defect_of_every_kind(made, good):
    assert made.kinds == ["good"] * 5 + [kind for kind in KINDS for _ in range(5)]
    assert made.labels.tolist() == [0] * 5 + [1] * 15
    assert made.images.shape == (20, SIDE, SIDE, 3) and made.images.dtype == np.uint8
    assert made.masks.shape == (20, SIDE, SIDE) and made.masks.dtype == np.uint8
    np.testing.assert_array_equal(made.images[:5], good)
    assert not made.masks[:5].any()


@pytest.mark.parametrize("kind", KINDS)
def test_masks_mark_what_was_changed(made, good, kind):
    for original, i in zip(good, of_kind(made, kind), strict=True):
        image, mask = made.images[i], made.masks[i]
        difference = np.abs(image.astype(float) - original).mean(axis=2)
        assert set(np.unique(mask)) == {0, 1}
        np.testing.assert_array_equal(image[mask == 0], original[mask == 0])
        assert (difference[mask == 1] > 1).all() and difference[mask == 1].mean() >= 4
        assert mask.mean() >= 0.0005


@pytest.mark.parametrize(
    ("kind", "longest", "largest"), [("blend", 0.35, 0.1225), ("patch", 0.25, 0.0625), ("scar", 0.26, 0.016)]
)
def test_defects_are_small_to_medium(kind, longest, largest):
    made = defects.make(texture(30, seed=2), texture(3, seed=3))
    areas = []
    for mask in made.masks[of_kind(made, kind)]:
        rows, columns = np.nonzero(mask)
        assert max(np.ptp(rows), np.ptp(columns)) < longest * SIDE
        areas.append(mask.mean())
    assert 0 < min(areas) < max(areas) <= largest
    assert np.ptp(areas) > largest / 3


def test_defects_of_different_images_lie_at_different_places(made):
    for kind in KINDS:
        masks = made.masks[of_kind(made, kind)]
        assert len({mask.tobytes() for mask in masks}) == len(masks)


def test_the_same_images_give_the_same_set(made, good, others):
    np.random.seed(7)  # no global state takes part
    assert_same(defects.make(good.copy(), list(others)), made)


def test_images_do_not_depend_on_those_after_them(made, good, others):
    changed = good.copy()
    changed[3:] = 255 - changed[3:]
    first = np.concatenate([kind * 5 + np.arange(3) for kind in range(4)])
    assert_same(defects.make(good[:3], others), made, first)
    np.testing.assert_array_equal(defects.make(changed, others).images[first], made.images[first])


def test_one_image_is_enough(good, others):
    assert defects.make(good[:1], others[:1]).kinds == ["good", *KINDS]


def test_grey_images_are_colour_images_with_one_channel(good, others):
    grey, grey_others = good[..., :1], others[..., :1]
    found = defects.make(grey, grey_others)
    colour = defects.make(np.repeat(grey, 3, axis=3), np.repeat(grey_others, 3, axis=3))
    assert found.images.shape == (20, SIDE, SIDE, 1)
    np.testing.assert_array_equal(found.masks, colour.masks)
    np.testing.assert_array_equal(np.repeat(found.images, 3, axis=3), colour.images)


@pytest.mark.parametrize(("side", "fewest"), [(48, 6), (32, 3)])
def test_small_images(side, fewest):
    kinds = defects.make(texture(6, side=side), texture(2, side=side, seed=1)).kinds
    assert [kinds.count(kind) for kind in ("good", "patch", "scar")] == [6, 6, 6]
    assert fewest <= kinds.count("blend") <= 6  # at 32 nearly all patches are too narrow for OpenCV's blending


def test_of_many_images_evenly_spaced_ones_are_used():
    many = texture(2 * defects.MOST, side=32)
    used = defects.make(many, many[:2]).images[: defects.MOST]
    numbers = [int(np.flatnonzero((many == image).all((1, 2, 3)))[0]) for image in used]
    assert (numbers[0], numbers[-1]) == (0, 2 * defects.MOST - 1) and set(np.diff(numbers)) == {2, 3}


def test_blank_images_hold_no_defect(good, others):
    black = np.zeros_like(good[:2])
    blank = defects.make(black, black)
    assert blank.kinds == ["good", "good"] and not blank.masks.any()
    # Something of another image shows in a blank one, its own black does not.
    mixed = defects.make(np.concatenate([good[:1], black[:1]]), others)
    assert mixed.kinds == ["good", "good", "blend", "blend", "patch", "scar"]


def test_no_images_and_no_others_are_refused(good):
    with pytest.raises(ValueError, match="not 0 and 5"):
        defects.make(good[:0], good)
    with pytest.raises(ValueError, match="not 5 and 0"):
        defects.make(good, [])


def coordinates(side: int) -> np.ndarray:
    """An image that says where each of its pixels is: row and column in steps of 5, and 200 to show the brightness."""
    rows, columns = np.mgrid[:side, :side]
    return np.stack([5 * rows, 5 * columns, np.full_like(rows, 200)], 2).astype(np.uint8)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_paste_by_hand(seed, turned):
    image = coordinates(40)
    pasted = defects.random_paste(np.random.default_rng(seed), image, size=(9, 6), angle=math.pi / 2 if turned else 0.0)
    rows, columns = np.nonzero((pasted != image).any(axis=2))
    factor = pasted[rows[0], columns[0], 2] / 200
    assert 0.9 <= factor <= 1.1 and factor != 1
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == ((6, 9) if turned else (9, 6)) and len(rows) == 54
    source = np.rint(pasted[rows, columns, :2] / (5 * factor)).astype(int)
    # Upright, every pixel comes from the same distance; turned by 90 degrees, rows come from columns.
    aligned = source - np.stack([columns, -rows] if turned else [rows, columns], 1)
    assert (aligned == aligned[0]).all()
    np.testing.assert_array_equal(np.ptp(source, axis=0) + 1, (9, 6))


def test_places_of_pastes_reach_every_border():
    image = coordinates(40)
    hit = np.zeros((40, 40), bool)
    for seed in range(300):
        angle = np.random.default_rng(seed).uniform(0, math.pi)
        hit |= (defects.random_paste(np.random.default_rng(seed), image, size=(8, 8), angle=angle) != image).any(axis=2)
    assert hit[0].any() and hit[-1].any() and hit[:, 0].any() and hit[:, -1].any() and hit[3:-3, 3:-3].all()


def test_defects_lie_in_the_region_of_interest():
    """A ring at the border of the image, so that most defects lie outside of it or in part."""
    whole, hole = (tuple((x, y) for x, y in ((a, a), (b, a), (b, b), (a, b))) for a, b in ((0.0, 1.0), (0.2, 0.8)))
    good = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3)).astype(np.uint8)
    geometry, boxes = Geometry((64, 64), "squeeze", Roi((whole, hole))), np.tile((0, 0, 64, 64), (6, 1))
    valid = geometry.valid(boxes)[0]
    assert 0.6 < valid.mean() < 0.68
    made = defects.make(good, good[::-1], boxes=boxes, geometry=geometry)
    assert (made.labels == 1).sum() == 18 and made.boxes.shape == (24, 4)
    assert ((made.masks == IGNORED) == ~valid).all()
    for image, mask, label, source in zip(made.images, made.masks, made.labels, made.sources, strict=True):
        changed = (image != good[source]).any(axis=-1)
        assert not changed[~valid].any() and (mask[valid] == changed[valid]).all()
        assert changed.sum() >= label * 0.0005 * 64 * 64
    # Where the region is all of the image, defects are what they are without one.
    same = defects.make(good, good[::-1], boxes=boxes, geometry=Geometry((64, 64), "squeeze", Roi((whole,))))
    np.testing.assert_array_equal(same.images, defects.make(good, good[::-1]).images)
    assert same.boxes is None


def test_a_thin_image_in_a_frame_has_no_defects():
    good = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    made = defects.make(good, good, boxes=np.array([(28, 0, 36, 64), (0, 0, 64, 64)]))
    assert made.sources[made.labels == 1].tolist() == [1] * int(made.labels.sum()) and made.labels.any()


def test_of_very_large_images_fewer_take_part(monkeypatch):
    good = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 1)).astype(np.uint8)
    assert (defects.make(good, good).labels == 0).sum() == 9
    monkeypatch.setattr(defects, "_PIXELS", 5 * 64 * 64)
    assert (defects.make(good, good).labels == 0).sum() == 5
