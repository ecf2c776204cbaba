import cv2
import numpy as np
import pytest

from jaxad.data import roi
from jaxad.data.roi import Roi
from jaxad.errors import UserError

SQUARE = ((0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75))
HOLE = ((0.375, 0.375), (0.625, 0.375), (0.625, 0.625), (0.375, 0.625))


def test_a_square_with_a_hole_by_hand():
    region = Roi((SQUARE, HOLE))
    expected = np.zeros((8, 8), bool)
    expected[2:6, 2:6], expected[3:5, 3:5] = True, False
    np.testing.assert_array_equal(region.in_image((8, 8), (0, 0, 8, 8)), expected)
    assert region.bounds == (0.25, 0.25, 0.75, 0.75) and region.box((8, 8)) == (2, 2, 6, 6)
    np.testing.assert_array_equal(region.in_image((8, 8), (2, 2, 6, 6)), expected[2:6, 2:6])
    # Its own box is the frame's columns 1 to 4 in twice the height.
    framed = region.in_frame((0, 1, 8, 5), (8, 6))
    assert framed.sum() == 4 * 8 - 2 * 4 and not framed[:, [0, 5]].any() and not framed[2:6, 2:4].any()


def test_boxes_hold_the_region_whatever_is_rounded():
    region = roi.read(roi.to_text(Roi((SQUARE,)).polygons))
    for shape in ((33, 47), (1, 1), (3, 200), (5000, 7001)):
        top, left, bottom, right = region.box(shape)
        assert 0 <= top < bottom <= shape[0] and 0 <= left < right <= shape[1]
        inside = region.in_image(shape, (0, 0, *shape))
        rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        if min(shape) > 30:
            assert (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) == pytest.approx((top, bottom, left, right),
                                                                                         abs=1)  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_pixels_are_inside_as_opencv_finds_their_centers(seed):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    radii = rng.uniform(0.1, 0.45, 9)
    corners = np.stack([0.5 + radii * np.cos(angles), 0.5 + radii * np.sin(angles)], axis=1)
    region, shape = Roi((tuple(map(tuple, corners)),)), (37, 61)
    inside = region.in_image(shape, (0, 0, *shape))
    scaled = (corners * (shape[1], shape[0])).astype(np.float32)
    for row in range(shape[0]):
        for column in range(shape[1]):
            distance = cv2.pointPolygonTest(scaled, (column + 0.5, row + 0.5), True)
            assert abs(distance) < 1e-3 or inside[row, column] == (distance > 0)
    part = region.in_image(shape, (5, 7, 30, 50))
    np.testing.assert_array_equal(part, inside[5:30, 7:50])


def test_something_is_left_where_no_center_lies_inside():
    thin = Roi((((0.5, 0.0), (0.51, 0.0), (0.5, 1.0)),))
    assert thin.in_image((4, 4), (0, 0, 4, 4)).all() and thin.in_frame((0, 0, 1, 1), (4, 4)).any()


def test_text_goes_there_and_back():
    text = roi.to_text([SQUARE, HOLE], "part.png")
    assert text == (
        "part.png = 0.25,0.25 0.75,0.25 0.75,0.75 0.25,0.75; 0.375,0.375 0.625,0.375 0.625,0.625 0.375,0.625"
    )
    assert roi.read(text) == Roi((SQUARE, HOLE)) and roi.origin_of(text) == "part.png" and roi.is_found(text)
    plain = roi.to_text([SQUARE])
    assert roi.read(plain) == Roi((SQUARE,)) and roi.origin_of(plain) == "" and not roi.is_found(plain)
    assert roi.read("") is None and roi.numbers_of("auto") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.1,0.1 0.9,0.9", "a polygon of 2 corners, where 3 are the fewest; write"),
        ("0,0 1,0 1,1; 0,0", "a polygon of 1 corners"),
        ("0,0 1,0 1,1;", "a polygon of 0 corners"),
        ("0,0 1,0 1", "no pair of numbers: '0,0 1,0 1'"),
        ("0,0 1,0 1,1,1", "no pair of numbers"),
        ("0,0 1,0 1,-", "no pair of numbers"),
        ("0,0 -0.1,0 1,1", "a corner outside the image, with a number below 0"),
        ("p" * 5000, "must be auto"),
        ("part.png", r"must be auto, polygons .* or the path of a mask file, not 'part.png', which is no file"),
    ],
)
def test_what_is_no_region_is_refused(text, words):
    with pytest.raises(UserError, match=words) as raised:
        roi.check(text)
    assert raised.value.about == "data.roi"


def test_what_takes_the_images_is_taken_and_cannot_be_read_yet(tmp_path):
    (tmp_path / "part.png").touch()
    for text in ("auto", "10,10 20,10 20,20", str(tmp_path / "part.png")):
        roi.check(text)
        with pytest.raises(UserError, match="depends on the training images; give a polygon in shares"):
            roi.read(text)
