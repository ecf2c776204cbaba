import cv2
import numpy as np
import pytest

from jaxad import config as configs
from jaxad.data.geometry import OUTSIDE, Geometry, aspect_of, scored, trained
from jaxad.data.record import Record
from jaxad.data.roi import Roi
from jaxad.metrics import IGNORED
from tests.parts import NSA


def gradient(height, width):
    """An image that tells every pixel's place: its share of the rows, and of the columns."""
    rows, columns = np.indices((height, width))
    shares = rows / (height - 1), columns / (width - 1), np.zeros((height, width))
    return np.round(255 * np.stack(shares, axis=-1)).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "resize", "shape", "source", "target"),
    [
        ((64, 64), "squeeze", (30, 90), (0, 0, 30, 90), (0, 0, 64, 64)),
        ((64, 64), "pad", (30, 90), (0, 0, 30, 90), (21, 0, 42, 64)),  # 64 / 90 of 30 rows are 21
        ((64, 64), "pad", (90, 30), (0, 0, 90, 30), (0, 21, 64, 42)),
        ((64, 64), "pad", (64, 64), (0, 0, 64, 64), (0, 0, 64, 64)),
        ((64, 64), "crop", (30, 90), (0, 30, 30, 60), (0, 0, 64, 64)),
        ((64, 96), "crop", (90, 30), (35, 0, 55, 30), (0, 0, 64, 96)),
        ((64, 96), "keep", (400, 600), (0, 0, 400, 600), (0, 0, 64, 96)),
        ((64, 96), "keep", (480, 640), (0, 0, 480, 640), (0, 0, 64, 96)),  # 85 of 96 columns: near enough
        ((64, 96), "keep", (400, 400), (0, 0, 400, 400), (0, 16, 64, 80)),
        ((64, 96), "keep", (100, 600), (0, 0, 100, 600), (24, 0, 40, 96)),
        ((64, 64), "pad", (1, 900), (0, 0, 1, 900), (31, 0, 32, 64)),
    ],
)
def test_placements_by_hand(size, resize, shape, source, target):
    assert Geometry(size, resize).placement(shape) == (source, target)


@pytest.mark.parametrize("resize", configs.RESIZES)
@pytest.mark.parametrize("shape", [(30, 90), (90, 30), (64, 64), (200, 201)])
def test_every_pixel_goes_where_its_placement_says(resize, shape):
    geometry, image = Geometry((64, 96), resize), gradient(*shape)
    framed, (source, target) = geometry.image(image), geometry.placement(shape)
    assert framed.shape == (64, 96, 3) and framed.dtype == np.uint8
    for axis in (0, 1):
        middle = (np.arange(target[axis], target[axis + 2]) + 0.5 - target[axis]) / (target[axis + 2] - target[axis])
        expected = (source[axis] + middle * (source[axis + 2] - source[axis]) - 0.5) / (shape[axis] - 1)
        lines = framed[target[0] : target[2], target[1] : target[3], axis].mean(axis=1 - axis) / 255
        inner = slice(2, -2)  # at the border Lanczos has fewer pixels
        np.testing.assert_allclose(lines[inner], expected[inner], atol=0.01)


def test_the_rest_of_a_frame_is_the_mirror_image():
    image = np.random.default_rng(0).integers(0, 256, (10, 32, 1)).astype(np.uint8)
    framed = Geometry((64, 32), "pad").image(image)
    assert framed.shape == (64, 32, 1)
    top = (64 - 10) // 2
    np.testing.assert_array_equal(framed[top : top + 10], image)
    np.testing.assert_array_equal(framed[top - 1], image[1])
    np.testing.assert_array_equal(framed[top + 10], image[-2])
    assert framed.max() > 0 and len(np.unique(framed[:5])) > 20  # mirrored again and again, as far as it takes


def test_what_is_filled_is_marked_in_the_mask_and_named_by_the_box():
    mask = np.zeros((30, 90), np.uint8)
    mask[10:20, 30:60] = 1
    record = Record(gradient(30, 90), 1, mask, "test/cut/0", "cut")
    framed = Geometry((64, 64), "pad").record(record)
    assert framed.box == (21, 0, 42, 64)
    inside = Geometry((64, 64), "pad").valid([framed.box])[0]
    assert inside.sum() == 21 * 64 and ((framed.mask == IGNORED) == ~inside).all()
    assert set(np.unique(framed.mask[inside])) == {0, 1}
    assert Geometry((64, 64)).record(record).box is None
    good = record._replace(label=0, mask=None)
    assert ((Geometry((64, 64), "pad").record(good).mask == IGNORED) == ~inside).all()
    assert Geometry((64, 64), "pad").record(record._replace(mask=None)).mask is None


def test_boxes_that_fill_their_frames_need_no_mask():
    assert Geometry((4, 6)).valid([(0, 0, 4, 6)] * 3) is None and Geometry((4, 6)).valid(None) is None
    inside = Geometry((4, 6)).valid([(0, 0, 4, 6), (1, 2, 3, 6)])
    assert inside.shape == (2, 4, 6) and inside[0].all() and inside[1].sum() == 8 and inside[1, 1:3, 2:].all()


@pytest.mark.parametrize(
    ("aspect", "whole", "view"),
    [(0.0, (256, 256), (224, 224)), (4 / 3, (256, 352), (224, 320)), (0.25, (1024, 256), (992, 224)),
     (1.05, (256, 256), (224, 224))],
)  # fmt: skip
def test_frames_have_the_aspect_ratio_and_multiples_of_the_stride(aspect, whole, view):
    config = configs.load(f"{NSA}:object")
    with config.unlocked():
        config.data.aspect = aspect
    assert trained(config).size == scored(config).size == whole
    assert configs.inner(whole, config.data.size, config.view.crop) == view


TRIANGLE = Roi((((0.25, 0.5), (0.75, 0.5), (0.25, 1.0)),))  # the right angle at the upper left


def test_the_frame_shows_the_box_of_the_region_and_grey_outside_of_it():
    image = np.full((40, 80, 3), 200, np.uint8)
    geometry = Geometry((32, 64), "squeeze", TRIANGLE)
    assert geometry.fills and geometry.placement((40, 80)) == ((20, 20, 40, 60), (0, 0, 32, 64))
    record = geometry.record(Record(image, 0, None, "train/good/0", "good"))
    assert record.box == (0, 0, 32, 64)
    valid = geometry.valid([record.box])[0]
    rows, columns = np.indices((32, 64)) + 0.5
    expected = rows / 32 + columns / 64 < 1
    np.testing.assert_array_equal(valid, expected)
    np.testing.assert_array_equal(geometry.valid(None)[0], expected)
    np.testing.assert_array_equal(record.mask, np.where(expected, 0, IGNORED))
    far = np.abs(rows / 32 + columns / 64 - 1) > 0.25
    assert (record.image[expected & far] == 200).all() and (record.image[~expected & far] == OUTSIDE).all()


@pytest.mark.parametrize("resize", configs.RESIZES)
@pytest.mark.parametrize("shape", [(40, 80), (160, 80), (64, 64), (34, 201)])
def test_nothing_outside_the_region_changes_a_frame(resize, shape):
    geometry, rng = Geometry((32, 64), resize, TRIANGLE), np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    mask = rng.integers(0, 2, shape).astype(np.uint8)
    rows, columns = np.indices(shape) + 0.5
    down, right = rows / shape[0], columns / shape[1]
    inside = (down > 0.5) & (right > 0.25) & ((down - 0.5) / 0.5 + (right - 0.25) / 0.5 < 1)
    other = np.where(inside[..., None], image, 255 - image), np.where(inside, mask, 1 - mask)
    np.testing.assert_array_equal(geometry.image(other[0]), geometry.image(image))
    np.testing.assert_array_equal(geometry.mask(other[1]), geometry.mask(mask))
    valid = geometry.valid([geometry.box(shape)])[0]
    assert ((geometry.mask(mask) == IGNORED) == ~valid).all() and valid.any()
    # Inside the region of the frame, and only there, the image itself is seen.
    black = np.where(inside[..., None], np.uint8(0), image)
    changed = np.abs(geometry.image(image).astype(int) - geometry.image(black)).max(axis=-1) > 64
    box = geometry.box(shape)
    near = cv2.dilate(valid.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    target = np.zeros((32, 64), bool)
    target[max(box[0], 0) : box[2], max(box[1], 0) : box[3]] = True  # beside it lies its mirror image
    assert changed[valid].mean() > 0.5 and not (changed & ~near & target).any()


def test_what_a_crop_cuts_off_lies_beyond_the_frame():
    geometry = Geometry((32, 32), "crop", Roi((((0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (0.5, 1.0)),)))
    assert geometry.placement((40, 160)) == ((0, 100, 40, 140), (0, 0, 32, 32))  # the middle of the right half
    assert geometry.box((40, 160)) == (0, -16, 32, 48)
    assert geometry.valid([geometry.box((40, 160))]) is None and geometry.judged((40, 160)) is None


def test_the_aspect_ratio_is_that_of_the_box_of_the_region():
    assert aspect_of([Record(np.zeros((40, 80, 3), np.uint8), 0, None, "", "good")], TRIANGLE) == 2.0
    wide = Roi((((0.0, 0.0), (1.0, 0.0), (1.0, 0.25)),))
    assert aspect_of([Record(np.zeros((40, 80, 3), np.uint8), 0, None, "", "good")] * 3, wide) == 8.0
