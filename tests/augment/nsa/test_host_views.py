import numpy as np
import pytest
from PIL import Image

from jaxad.augment.nsa import host_views
from tests.refusals import refuses


def numbered(height: int, width: int, channels: int = 3) -> np.ndarray:
    """An image whose pixels tell where they come from: row, column, and a constant."""
    image = np.zeros((height, width, channels), np.uint8)
    image[..., 0] = np.arange(height)[:, None]
    if channels == 3:
        image[..., 1] = np.arange(width)
        image[..., 2] = 77
    return image


def test_rotate_by_a_right_angle_is_exact_and_counter_clockwise():
    image = numbered(31, 31)
    np.testing.assert_array_equal(host_views.rotate(image, 90), np.rot90(image))
    np.testing.assert_array_equal(host_views.rotate(image, 0), image)


def test_rotate_agrees_with_pillow_and_fills_with_black():
    image = np.random.default_rng(0).integers(1, 256, (64, 64, 3), dtype=np.uint8)
    turned = host_views.rotate(image, 5)
    reference = np.asarray(Image.fromarray(image).rotate(5, Image.Resampling.NEAREST))
    # Ties between two nearest pixels are broken differently.
    assert (turned != reference).any(axis=2).mean() < 0.05
    assert (turned[0, 0] == 0).all() and (turned[-1, -1] == 0).all()
    assert (turned[20:44, 20:44] > 0).all()


def test_rotation_of_grey_keeps_the_channel():
    assert host_views.rotate(numbered(20, 24, 1), 3).shape == (20, 24, 1)


def test_crop_takes_the_named_rectangle():
    cut = host_views.crop_at(numbered(20, 24), 3, 5, (8, 6))
    assert cut.shape == (8, 6, 3)
    assert cut[0, 0].tolist() == [3, 5, 77] and cut[-1, -1].tolist() == [10, 10, 77]


def test_crop_center_of_256_starts_at_13():
    assert host_views.crop_center(numbered(256, 256), (230, 230))[0, 0].tolist() == [13, 13, 77]
    assert host_views.crop_center(numbered(256, 256), (224, 224))[0, 0].tolist() == [16, 16, 77]


@pytest.mark.parametrize(("top", "left", "side"), [(0, 0, 21), (13, 0, 8), (0, 17, 8), (-1, 0, 8), (0, -1, 8)])
def test_crop_outside_the_image_is_refused(top, left, side):
    with refuses("view.crop", "20x24"):
        host_views.crop_at(numbered(20, 24), top, left, (side, side))


def test_flip_turns_upside_down():
    assert host_views.flip_vertical(numbered(5, 4))[:, 0, 0].tolist() == [4, 3, 2, 1, 0]


def test_random_view_of_objects_reaches_every_offset_of_the_central_crop():
    rng = np.random.default_rng(0)
    image = numbered(256, 256)
    corners = set()
    for _ in range(600):
        view = host_views.random_view(rng, image, rotation=0, center_crop=(230, 230), crop=(224, 224), flip=False)
        assert view.shape == (224, 224, 3) and view.dtype == np.uint8
        corners.add((int(view[0, 0, 0]), int(view[0, 0, 1])))
    assert corners == {(row, column) for row in range(13, 20) for column in range(13, 20)}


def test_random_view_of_textures_flips_half_of_the_images():
    rng = np.random.default_rng(0)
    image = numbered(264, 264)[..., :2].astype(np.int32)  # more than 256 rows
    image[..., 0] = np.arange(264)[:, None]
    image[..., 1] = np.arange(264)
    drawn = [
        host_views.random_view(rng, image, rotation=0, center_crop=None, crop=(256, 256), flip=True) for _ in range(300)
    ]
    flipped = [view[0, 0, 0] > view[-1, 0, 0] for view in drawn]
    assert 120 < sum(flipped) < 180
    assert {int(view[:, 0, 0].min()) for view in drawn} == set(range(9))
    assert {int(view[0, 0, 1]) for view in drawn} == set(range(9))


def test_random_view_rotates_within_the_range_and_both_ways():
    rng = np.random.default_rng(0)
    image = np.zeros((101, 101, 3), np.uint8)
    image[48:53] = 255  # a horizontal bar; its slope is the angle
    angles = []
    for _ in range(200):
        view = host_views.random_view(rng, image, rotation=5, center_crop=None, crop=(101, 101), flip=False)
        left, right = (np.flatnonzero(view[:, column, 0]).mean() for column in (10, 90))
        angles.append(np.degrees(np.arctan2(left - right, 80)))
    assert -5.5 < min(angles) < -4 and 4 < max(angles) < 5.5


def test_random_view_is_determined_by_the_seed_and_owns_its_memory():
    image = np.random.default_rng(1).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    options = {"rotation": 5, "center_crop": (230, 230), "crop": (224, 224), "flip": True}
    first, second = (host_views.random_view(np.random.default_rng(3), image, **options) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    other = host_views.random_view(np.random.default_rng(4), image, **options)
    assert (first != other).any()
    before = image.copy()
    first[:] = 0
    np.testing.assert_array_equal(image, before)
    assert other.flags.c_contiguous


def test_random_view_larger_than_the_image_is_refused():
    with refuses("view.crop", "224x224"):
        rng = np.random.default_rng(0)
        host_views.random_view(rng, numbered(200, 256), rotation=0, center_crop=None, crop=(224, 224), flip=False)
