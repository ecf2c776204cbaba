import numpy as np
import pytest

from jaxad import config as configs
from jaxad.data.geometry import Geometry, is_inside, scored, trained
from jaxad.data.record import Record
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
    inside = is_inside([framed.box], (64, 64))[0]
    assert inside.sum() == 21 * 64 and ((framed.mask == IGNORED) == ~inside).all()
    assert set(np.unique(framed.mask[inside])) == {0, 1}
    assert Geometry((64, 64)).record(record).box is None
    good = record._replace(label=0, mask=None)
    assert ((Geometry((64, 64), "pad").record(good).mask == IGNORED) == ~inside).all()
    assert Geometry((64, 64), "pad").record(record._replace(mask=None)).mask is None


def test_boxes_that_fill_their_frames_need_no_mask():
    assert is_inside([(0, 0, 4, 6)] * 3, (4, 6)) is None
    inside = is_inside([(0, 0, 4, 6), (1, 2, 3, 6)], (4, 6))
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
