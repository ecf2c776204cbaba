import colorsys

import jax
import jax.numpy as jnp
import matplotlib.colors
import numpy as np
import pytest
from scipy import stats

from jaxad.augment import color
from tests.refusals import refuses


def picture(height=9, width=7, seed=0):
    """Random colours, with greys, primary colours, black and white among them."""
    image = np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)
    image[0, :7] = [(0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)]
    return image


def on_image(adjust):
    """An operation on colour planes as one on images."""
    return lambda image, *args: jnp.stack(adjust(tuple(image[..., i] for i in range(3)), *args), axis=-1)


BRIGHTNESS, SATURATION, HUE = map(on_image, (color.adjust_brightness, color.adjust_saturation, color.adjust_hue))


def contrast(image, factor, inside=None):
    return on_image(color.adjust_contrast)(image, factor, inside_or_all(image, inside))


def grey(pixel):
    return 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]


def loop(image, pixel_function):
    """A function of one pixel, applied pixel by pixel in float64."""
    pixels = image.astype(np.float64)
    return np.array([[pixel_function(pixel) for pixel in row] for row in pixels])


def reference(image, operation, amount, inside=None):
    """The four operations from their definitions: blends with black, the mean grey, the own grey; a hue shift."""
    if operation == 3:
        return loop(image, lambda p: colorsys.hsv_to_rgb((colorsys.rgb_to_hsv(*p)[0] + amount) % 1, *hs(p)))
    chosen = [p for row, kept in zip(image, inside_or_all(image, inside), strict=True) for p in row[kept]]
    mean = np.mean([grey(p.astype(np.float64)) for p in chosen])
    other = (lambda p: 0.0, lambda p: mean, grey)[operation]
    return loop(image, lambda p: np.clip(amount * p + (1 - amount) * other(p), 0, 1))


def hs(pixel):
    return colorsys.rgb_to_hsv(*pixel)[1:]


def inside_or_all(image, inside):
    return np.ones(image.shape[:2], bool) if inside is None else inside


@pytest.mark.slow
def test_values_by_hand():
    orange = jnp.array([[[0.8, 0.4, 0.2]]])
    np.testing.assert_allclose(BRIGHTNESS(orange, 1.5)[0, 0], [1.0, 0.6, 0.3], atol=1e-6)
    own_grey = 0.299 * 0.8 + 0.587 * 0.4 + 0.114 * 0.2
    np.testing.assert_allclose(SATURATION(orange, 0)[0, 0], [own_grey] * 3, atol=1e-6)
    pair = jnp.array([[[0.2] * 3, [0.6] * 3]])  # mean grey 0.4
    np.testing.assert_allclose(contrast(pair, 0.5)[0, :, 0], [0.3, 0.5], atol=1e-6)
    np.testing.assert_allclose(HUE(orange, 1 / 3)[0, 0], [0.2, 0.8, 0.4], atol=1e-6)
    np.testing.assert_allclose(HUE(orange, -1 / 3)[0, 0], [0.4, 0.2, 0.8], atol=1e-6)
    np.testing.assert_allclose(HUE(orange, 1 / 2)[0, 0], [0.2, 0.6, 0.8], atol=1e-6)


@pytest.mark.medium
@pytest.mark.parametrize("turns", [-0.5, -0.1, 0.0, 0.03, 0.1, 0.3, 0.5])
def test_hue_agrees_with_matplotlib_s_hsv(turns):
    image = picture(40, 40)
    hsv = matplotlib.colors.rgb_to_hsv(image.astype(np.float64))
    hsv[..., 0] = (hsv[..., 0] + turns) % 1
    for adjust in (HUE, jax.jit(HUE)):
        np.testing.assert_allclose(adjust(image, turns), matplotlib.colors.hsv_to_rgb(hsv), atol=2e-6)


@pytest.mark.parametrize("amount", [0.7, 0.9, 1.0, 1.1, 1.3])
def test_brightness_contrast_and_saturation_agree_with_a_loop(amount):
    image = picture()
    for operation, adjust in enumerate((BRIGHTNESS, contrast, SATURATION)):
        np.testing.assert_allclose(adjust(image, amount), reference(image, operation, amount), atol=1e-6)


def test_contrast_takes_the_mean_of_what_is_inside():
    image, inside = picture(), np.zeros((9, 7), bool)
    inside[2:5, 1:4] = True
    expected = reference(image, 1, 0.5, inside)
    np.testing.assert_allclose(contrast(image, 0.5, inside), expected, atol=1e-6)
    assert not np.allclose(expected, reference(image, 1, 0.5))


def test_jitter_applies_the_four_in_the_drawn_order():
    image, inside = picture(12, 10), np.zeros((12, 10), bool)
    inside[3:11, 2:9] = True
    amounts = (1.25, 0.7, 1.3, 0.2)
    results = []
    run = jax.jit(color.color_jitter)
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1), (1, 3, 0, 2)):
        expected = image
        for operation in order:
            expected = reference(expected, operation, amounts[operation], inside)
        drawn = color.Jitter(jnp.array(amounts[:3]), jnp.float32(amounts[3]), jnp.array(order))
        results.append(run(image, drawn, inside))
        np.testing.assert_allclose(results[-1], expected, atol=5e-6)
    assert all(np.abs(results[0] - other).max() > 0.01 for other in results[1:])  # the order matters


@pytest.mark.slow
def test_jitter_is_the_same_plain_vmapped_and_jitted():
    images = np.stack([picture(16, 16, seed) for seed in range(4)])
    keys = jax.random.split(jax.random.key(0), 4)

    def one(key, image):
        return color.random_color_jitter(key, image, strength=0.3, hue=0.3)

    made = np.asarray(jax.jit(jax.vmap(one))(keys, images))
    np.testing.assert_allclose(made, jax.vmap(one)(keys, images), atol=2e-6)
    np.testing.assert_allclose(made[3], one(keys[3], images[3]), atol=2e-6)
    assert np.abs(made - images).max(axis=(1, 2, 3)).min() > 0.02
    assert made.min() >= 0 and made.max() <= 1


@pytest.mark.medium
def test_draws_are_uniform_and_every_order_is_as_likely():
    keys = jax.random.split(jax.random.key(1), 10_000)
    drawn = jax.jit(jax.vmap(lambda key: color.sample_jitter(key, strength=0.1, hue=0.05)))(keys)
    for values, low, high in (*((drawn.factors[:, i], 0.9, 1.1) for i in range(3)), (drawn.hue, -0.05, 0.05)):
        assert low <= values.min() and values.max() <= high
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(np.column_stack([drawn.factors, drawn.hue]).T) - np.eye(4)).max() < 0.05
    orders, counts = np.unique(np.asarray(drawn.order), axis=0, return_counts=True)
    assert len(orders) == 24 and (np.sort(orders, axis=1) == np.arange(4)).all()
    assert stats.chisquare(counts).pvalue > 1e-3


def test_strength_of_nothing_returns_the_image_itself():
    image = picture()
    np.testing.assert_array_equal(color.random_color_jitter(jax.random.key(0), image, strength=0.0, hue=0.0), image)


def test_hue_alone_is_jittered_where_the_strength_is_nothing():
    image = picture(12, 10)
    made = color.random_color_jitter(jax.random.key(0), image, strength=0.0, hue=0.3)
    assert np.abs(made - image).max() > 0.05
    # Brightness, contrast and saturation do nothing: each pixel keeps its largest and its smallest value.
    for extreme in (np.max, np.min):
        np.testing.assert_allclose(extreme(made, 2), extreme(image, 2), atol=2e-6)
    drawn = color.sample_jitter(jax.random.key(0), strength=0.4, hue=0.0)
    assert drawn.hue == 0 and (drawn.factors != 1).all()


@pytest.mark.parametrize("value", [-0.1, 0.6])
def test_strength_out_of_range_is_refused(value):
    for name, setting in (("strength", "the strength of"), ("hue", "the hue of")):
        amounts = {"strength": 0.1, "hue": 0.1, name: value}
        with refuses(None, setting):
            color.random_color_jitter(jax.random.key(0), picture(), **amounts)
