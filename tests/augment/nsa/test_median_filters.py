import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxad.augment.nsa import host_labels, median_filters
from tests.augment.quick import quick_jit

DISK = np.add.outer(np.arange(-5, 6) ** 2, np.arange(-5, 6) ** 2) <= 25


def random_masks(shape, seed=0):
    return (np.random.default_rng(seed).random(shape) < 0.5).astype(np.uint8)


@pytest.mark.parametrize("side", [5, 7])
def test_majority_is_the_median_of_a_mask_up_to_the_border(side):
    masks = random_masks((4, 40, 31), side)
    found = np.asarray(quick_jit(jax.vmap(lambda mask: median_filters.majority(mask, side)))(masks))
    assert found.dtype == bool
    for mask, one in zip(masks, found, strict=True):
        np.testing.assert_array_equal(one, cv2.medianBlur(mask, side))
        np.testing.assert_array_equal(one, host_labels.majority(mask, side))


def test_majority_of_any_dtype_is_the_same_plain_and_jitted():
    mask = random_masks((20, 24))
    expected = cv2.medianBlur(mask, 5)
    for dtype in (bool, np.uint8, np.float32):
        np.testing.assert_array_equal(median_filters.majority(jnp.asarray(mask.astype(dtype)), 5), expected)


def test_majority_of_a_column_by_hand():
    mask = np.zeros((9, 9), np.uint8)
    mask[:, 0] = 1
    # The border is repeated: a square about column 0 has three columns of ones of five, one about column 1 only two.
    assert median_filters.majority(mask, 5)[4].tolist() == [True] + [False] * 8
    assert median_filters.majority(mask, 7)[4].tolist() == [True] + [False] * 8
    mask[:, 1] = 1
    assert median_filters.majority(mask, 5)[0].tolist() == [True, True] + [False] * 7


@pytest.mark.medium
@pytest.mark.parametrize(("height", "width", "largest"), [(11, 11, 765), (12, 40, 765), (50, 33, 255), (30, 30, 3)])
def test_disk_median_equals_scipy_and_the_host(height, width, largest):
    values = np.random.default_rng(height).integers(0, largest + 1, (5, height, width)).astype(np.uint16)
    found = quick_jit(jax.vmap(lambda v: median_filters.disk_median(v, highest=largest)))(values)
    for one, result in zip(values, np.asarray(found), strict=True):
        np.testing.assert_array_equal(result, ndimage.median_filter(one, footprint=DISK)[5:-5, 5:-5])
        np.testing.assert_array_equal(result, host_labels.disk_median(one))


def test_disk_median_of_an_image_does_not_depend_on_its_batch():
    values = np.random.default_rng(0).integers(0, 766, (3, 24, 30)).astype(np.int32)
    run = functools.partial(median_filters.disk_median, highest=765)
    together, alone = quick_jit(jax.vmap(run))(values), quick_jit(run)
    assert together.dtype == jnp.int16
    for one, expected in zip(values, together, strict=True):
        np.testing.assert_array_equal(alone(one), expected)


def test_disk_median_of_a_half_plane_by_hand():
    values = np.zeros((21, 21), np.uint16)
    values[:, :10] = 700
    # A centre in column 9 has columns 4 to 9 of the bright half in its disk: (81 + 11) / 2 = 46 of 81 pixels.
    assert median_filters.disk_median(values, highest=765)[0].tolist() == [700] * 5 + [0] * 6


def test_disk_median_of_the_extremes_by_hand():
    values = np.full((11, 11), 765, np.uint16)
    assert median_filters.disk_median(values, highest=765).tolist() == [[765]]
    inside = np.argwhere(DISK)
    values[tuple(inside[:41].T)] = 0
    assert median_filters.disk_median(values, highest=765).tolist() == [[0]]
    values[tuple(inside[40])] = 765
    assert median_filters.disk_median(values, highest=765).tolist() == [[765]]


def test_disk_median_neither_sorts_nor_gathers():
    program = str(jax.make_jaxpr(lambda v: median_filters.disk_median(v, highest=765))(np.zeros((30, 30), np.int16)))
    assert program.count(" ge ") == 81
    assert "sort" not in program and "gather" not in program and "while" not in program
