import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxad.augment.boxes import Box, RotatedBox, box_mask, rotated_box_mask
from jaxad.augment.cutpaste import cutout
from jaxad.augment.cutpaste.options import CutPasteOptions
from tests.augment.quick import quick_jit

FUNCTIONS = (
    cutout.random_cutout_grey,
    cutout.random_cutout_mean,
    cutout.random_cutout_color,
    cutout.random_scar,
    cutout.random_confetti,
)
OPTIONS = CutPasteOptions()
KEYS = jax.random.split(jax.random.key(0), 200)
PICTURES = np.random.default_rng(0).random((200, 64, 64, 3)).astype(np.float32)


@functools.cache
def compiled(function):
    return quick_jit(jax.vmap(lambda key, image: function(key, image, options=OPTIONS)))


def many(function, images=PICTURES):
    """The images, each after a draw of its own, and which of their pixels were changed."""
    made = np.asarray(compiled(function)(KEYS, images))
    return made, (made != images).any(axis=3)


def test_cutout_and_confetti_change_their_box_and_nothing_else():
    image, box = PICTURES[0, :12, :12], Box(3, 2, 5, 9)
    filled = image.copy()
    shifted = image.copy()
    color, offset = np.float32([0.1, 0.6, 0.9]), np.float32([-0.4, 0.2, 0.5])
    for row in range(3, 8):
        for column in range(2, 11):
            filled[row, column] = color
            shifted[row, column] = np.clip(image[row, column] + offset, 0, 1)
    np.testing.assert_array_equal(cutout.cutout_color(image, box, color), filled)
    np.testing.assert_array_equal(cutout.scar(image, RotatedBox(*box, angle=0.0), color), filled)
    np.testing.assert_array_equal(cutout.confetti(image, box, offset), shifted)


@pytest.mark.medium
def test_masks_of_a_box_and_of_an_upright_bar_are_rectangles():
    expected = np.zeros((20, 16), bool)
    expected[4:11, 9:14] = True
    np.testing.assert_array_equal(box_mask(Box(4, 9, 7, 5), (20, 16)), expected)
    upright = RotatedBox(*map(jnp.int32, (4, 9, 7, 5)), jnp.float32(0))
    np.testing.assert_array_equal(rotated_box_mask(upright, (20, 16)), expected)


@pytest.mark.medium
@pytest.mark.parametrize("function", FUNCTIONS[:3] + FUNCTIONS[4:], ids=lambda f: f.__name__)
def test_patches_are_rectangles_of_cutpaste_s_sizes(function):
    _, changed = many(function)
    areas = []
    for mask in changed:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert mask.sum() == len(rows) * len(columns)
        areas.append(mask.mean())
    assert stats.kstest(areas, stats.uniform(0.02, 0.13).cdf).statistic < 0.13


def test_fillings():
    means = PICTURES.mean((1, 2), np.float64, keepdims=True)
    for function, expected in ((cutout.random_cutout_grey, 0.5), (cutout.random_cutout_mean, means)):
        made, changed = many(function)
        expected = np.broadcast_to(expected, PICTURES.shape)
        np.testing.assert_allclose(made[changed], expected[changed], atol=2e-6)
    for function in (cutout.random_cutout_color, cutout.random_scar):
        made, changed = many(function)
        colors = np.array([one[mask][0] for one, mask in zip(made, changed, strict=True)])
        assert (made == colors[:, None, None])[changed].all()
        for channel in colors.T:
            assert stats.kstest(channel, stats.uniform(0, 1).cdf).pvalue > 1e-3
        assert np.abs(np.corrcoef(colors.T) - np.eye(3)).max() < 0.3


def test_confetti_shifts_the_colour_and_keeps_the_structure():
    images = 0.5 + 0.01 * PICTURES  # far from the bounds of [0, 1] where the shift is small
    made, changed = many(cutout.random_confetti, images)
    offsets = []
    for image, one, mask in zip(images, made, changed, strict=True):
        difference = (one - image)[mask]
        if one[mask].min() > 0 and one[mask].max() < 1:  # nothing was clipped
            np.testing.assert_allclose(difference, np.broadcast_to(difference[0], difference.shape), atol=1e-6)
            offsets.append(difference[0])
    assert len(offsets) > 150
    assert np.abs(offsets).max() <= 0.5 and np.abs(offsets).max() > 0.45
    assert abs(np.mean(offsets)) < 0.06


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_same_images_plain_vmapped_and_jitted(function):
    made, changed = many(function)
    for index in (0, 7):
        plain = function(KEYS[index], PICTURES[index], options=OPTIONS)
        np.testing.assert_allclose(made[index], plain, atol=1e-6)
    assert (changed.mean(axis=(1, 2)) < 0.2).all()
