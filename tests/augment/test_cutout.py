import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxad.augment import cutout
from jaxad.augment.regions import Bar, Box, Options, bar_mask, box_mask

FUNCTIONS = (cutout.cutout_grey, cutout.cutout_mean, cutout.cutout_random, cutout.scar, cutout.confetti)
OPTIONS = Options()


def picture(side=64, seed=0):
    return np.random.default_rng(seed).random((side, side, 3)).astype(np.float32)


def many(function, image, count=200):
    """The image after `count` draws, and which pixels were changed by each."""
    run = jax.jit(jax.vmap(lambda key: function(key, image, options=OPTIONS)))
    made = np.asarray(run(jax.random.split(jax.random.key(0), count)))
    return made, (made != image).any(axis=3)


def test_fill_and_shift_touch_what_is_inside_and_nothing_else():
    image = picture(12)
    inside = np.zeros((12, 12), bool)
    inside[3:8, 2:11] = True
    filled = image.copy()
    shifted = image.copy()
    colour, offset = np.float32([0.1, 0.6, 0.9]), np.float32([-0.4, 0.2, 0.5])
    for row in range(3, 8):
        for column in range(2, 11):
            filled[row, column] = colour
            shifted[row, column] = np.clip(image[row, column] + offset, 0, 1)
    np.testing.assert_array_equal(cutout.fill(image, inside, colour), filled)
    np.testing.assert_array_equal(cutout.shift_colour(image, inside, offset), shifted)


def test_masks_of_a_box_and_of_an_upright_bar_are_rectangles():
    expected = np.zeros((20, 16), bool)
    expected[4:11, 9:14] = True
    np.testing.assert_array_equal(box_mask(Box(4, 9, 7, 5), (20, 16)), expected)
    upright = Bar(*map(jnp.int32, (4, 9, 7, 5)), jnp.float32(0))
    np.testing.assert_array_equal(bar_mask(upright, (20, 16)), expected)


@pytest.mark.parametrize("function", FUNCTIONS[:3] + FUNCTIONS[4:], ids=lambda f: f.__name__)
def test_patches_are_rectangles_of_cutpaste_s_sizes(function):
    _, changed = many(function, picture())
    areas = []
    for mask in changed:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert mask.sum() == len(rows) * len(columns)
        areas.append(mask.mean())
    assert stats.kstest(areas, stats.uniform(0.02, 0.13).cdf).statistic < 0.13


def test_fillings():
    image = picture()
    for function, expected in ((cutout.cutout_grey, np.full(3, 0.5)), (cutout.cutout_mean, image.mean((0, 1)))):
        made, changed = many(function, image, 20)
        for one, mask in zip(made, changed, strict=True):
            np.testing.assert_allclose(one[mask], np.broadcast_to(expected, (mask.sum(), 3)), atol=1e-6)
    for function in (cutout.cutout_random, cutout.scar):
        made, changed = many(function, image)
        colours = np.array([one[mask][0] for one, mask in zip(made, changed, strict=True)])
        for one, mask, colour in zip(made, changed, colours, strict=True):
            assert (one[mask] == colour).all()
        for channel in colours.T:
            assert stats.kstest(channel, stats.uniform(0, 1).cdf).pvalue > 1e-3
        assert np.abs(np.corrcoef(colours.T) - np.eye(3)).max() < 0.3


def test_confetti_shifts_the_colour_and_keeps_the_structure():
    image = 0.5 + 0.0 * picture() + 0.01 * picture(seed=1)  # far from the bounds of [0, 1] where the shift is small
    made, changed = many(cutout.confetti, image)
    offsets = []
    for one, mask in zip(made, changed, strict=True):
        difference = (one - image)[mask]
        if one[mask].min() > 0 and one[mask].max() < 1:  # nothing was clipped
            np.testing.assert_allclose(difference, np.broadcast_to(difference[0], difference.shape), atol=1e-6)
            offsets.append(difference[0])
    assert len(offsets) > 150
    assert np.abs(offsets).max() <= 0.5 and np.abs(offsets).max() > 0.45
    assert abs(np.mean(offsets)) < 0.06


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_same_images_plain_vmapped_and_jitted(function):
    images = np.stack([picture(64, seed) for seed in range(3)])
    keys = jax.random.split(jax.random.key(7), 3)

    def one(key, image):
        return function(key, image, options=OPTIONS)

    plain = np.stack([one(key, image) for key, image in zip(keys, images, strict=True)])
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(keys, images), plain, atol=1e-6)
    assert ((plain != images).any(axis=3).mean(axis=(1, 2)) < 0.2).all()
