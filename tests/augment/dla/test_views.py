import colorsys
import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from scipy import ndimage, stats

from jaxad.augment import color
from jaxad.augment.dla import views
from jaxad.augment.dla.views import Crop, View, ViewOptions
from jaxad.runtime import devices
from tests.augment.quick import quick_jit
from tests.refusals import refuses

COUNT = 64
OPTIONS = ViewOptions(
    area=(0.3, 0.8), aspect=(0.75, 1.3333), flip=0.4, jitter=0.4, hue=0.1, jitter_probability=0.7, grey=0.3, blur=0.5,
    sigma=(4.0, 8.0),
)  # fmt: skip
STILL = View(Crop(0.0, 0.0, 40.0, 40.0), False, 0.0, False, color.Jitter(np.ones(3), 0.0, np.arange(4)), False)
crop_matrix = quick_jit(views.crop_matrix, static_argnames="size")
blur_matrix = quick_jit(views.blur_matrix, static_argnames="size")
# Most of these tests' time is compilation: the same number of views of the same size everywhere.
make_views = quick_jit(jax.vmap(views.view))


def picture(height=40, width=40):
    return np.random.default_rng(0).random((height, width, 3)).astype(np.float32)


def keys(count=COUNT):
    return jax.random.split(jax.random.key(0), count)


def make(image, **changes):
    """Views of an image, or one of each of COUNT images; what differs between them has an axis more than in STILL."""

    def each(still, drawn):
        dtype = jnp.asarray(still).dtype  # float32 and int32, not NumPy's
        return np.broadcast_to(np.asarray(drawn, dtype), (COUNT, *np.shape(still)))

    images = np.broadcast_to(image, (COUNT, *image.shape[-3:]))
    return np.asarray(make_views(images, jax.tree.map(each, STILL, STILL._replace(**changes))))


@functools.cache
def draws(options, shape=(100, 100), count=4000):
    return jax.tree.map(np.asarray, quick_jit(sampler(options, shape))(keys(count)))


def sampler(options, shape):
    return jax.vmap(lambda key: views.sample_view(key, shape, options=options))


@functools.cache
def pairs():
    """Two views of one image for each of some keys."""
    image = picture()
    return jax.vmap(lambda key: views.random_view_pair(key, image, options=OPTIONS))


compiled_pairs = functools.cache(lambda: quick_jit(pairs()))


def uniform(values, low, high):
    """Whether draws are uniform between two bounds: all inside, and a Kolmogorov-Smirnov test."""
    assert values.min() >= low - 1e-4 and values.max() <= high + 1e-4
    return stats.kstest(np.float64(values), "uniform", (low, high - low)).pvalue > 1e-3


# The matrices


@pytest.mark.parametrize(("start", "length"), [(0, 40), (0, 31), (9, 31), (3, 20), (17, 2), (39, 1)])
def test_crop_is_what_opencv_makes_of_the_part_cut_out(start, length):
    image = picture()
    matrix = np.asarray(crop_matrix(start, length, size=40))
    expected = cv2.resize(image[start : start + length], (40, 40), interpolation=cv2.INTER_LINEAR)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(np.einsum("ij,jkc->ikc", matrix, image), expected, rtol=0, atol=1e-5)


def test_crop_by_hand():
    half = [[0, 1, 0, 0], [0, 0.75, 0.25, 0], [0, 0.25, 0.75, 0], [0, 0, 1, 0]]
    np.testing.assert_array_equal(crop_matrix(1, 2, size=4), half)
    shifted = [[0.5, 0.5, 0, 0], [0, 0.875, 0.125, 0], [0, 0.125, 0.875, 0], [0, 0, 0.5, 0.5]]
    np.testing.assert_array_equal(crop_matrix(0.5, 3, size=4), shifted)
    np.testing.assert_array_equal(crop_matrix(0, 224, size=224), np.eye(224))


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0, 7.5])
def test_blur_is_scipys_with_the_weights_inside_normalised(sigma):
    line = picture()[:, 0, 0].astype(np.float64)
    blur = functools.partial(ndimage.gaussian_filter1d, sigma=sigma, mode="constant", cval=0, truncate=40)
    matrix = np.asarray(blur_matrix(sigma, size=40))
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix @ line, blur(line) / blur(np.ones(40)), rtol=0, atol=1e-6)


def test_blur_by_hand():
    near, far = np.exp(-0.5), np.exp(-2)
    weights = np.array([[1, near, far], [near, 1, near], [far, near, 1]])
    expected = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(blur_matrix(1.0, size=3), expected, rtol=1e-6)
    for sigma in (0.0, 1e-6, 0.05):
        np.testing.assert_array_equal(blur_matrix(sigma, size=3), np.eye(3))


def test_resampling_is_one_matrix_for_each_axis():
    rng = np.random.default_rng(0)
    image, rows, columns = (rng.random(shape).astype(np.float32) for shape in ((5, 7, 3), (4, 5), (6, 7)))
    made = np.asarray(views.resample(image, rows, columns))
    expected = np.stack([rows @ image[..., channel] @ columns.T for channel in range(3)], axis=-1)
    np.testing.assert_allclose(made, expected, rtol=1e-6)


# What is drawn


@pytest.mark.medium
def test_areas_and_places_are_uniform_and_inside():
    crop = draws(OPTIONS).crop
    assert uniform(crop.height * crop.width / 1e4, 0.3, 0.8)
    assert crop.height.min() >= 1 and crop.width.min() >= 1
    shares = []
    for start, length in ((crop.top, crop.height), (crop.left, crop.width)):
        assert start.min() >= 0 and (start + length).max() <= 100 + 1e-4
        loose = length < 99
        shares.append(start / np.where(loose, 100 - length, np.nan))
        assert loose.mean() > 0.8 and uniform(shares[-1][loose], 0, 1)
    both = np.isfinite(shares).all(axis=0)
    assert abs(np.corrcoef(np.array(shares)[:, both])[0, 1]) < 0.07  # four standard deviations


def test_aspects_are_log_uniform_where_all_of_them_fit():
    crop = draws(OPTIONS._replace(area=(0.2, 0.5), aspect=(0.5, 2.0))).crop
    aspect = np.log2(crop.width / crop.height)
    assert uniform(aspect, -1, 1)
    assert abs(np.corrcoef(crop.height * crop.width, aspect)[0, 1]) < 0.07


@pytest.mark.medium
def test_aspects_of_large_areas_are_those_that_fit():
    crop = draws(OPTIONS._replace(area=(0.9, 0.9))).crop
    np.testing.assert_allclose(crop.height * crop.width, 9000, rtol=1e-5)
    assert uniform(np.log(crop.width / crop.height), np.log(0.9), -np.log(0.9))
    whole = draws(OPTIONS._replace(area=(1.0, 1.0))).crop
    for drawn, expected in zip(whole, (0, 0, 100, 100), strict=True):
        np.testing.assert_allclose(drawn, expected, atol=1e-4)


@pytest.mark.medium
def test_crops_of_images_that_are_not_square():
    crop = draws(OPTIONS._replace(area=(0.1, 0.2)), shape=(50, 200)).crop
    assert uniform(crop.height * crop.width / 1e4, 0.1, 0.2)
    assert uniform(np.log(crop.width / crop.height), np.log(0.75), np.log(1.3333))
    assert crop.left.max() > 150 and (crop.left + crop.width).max() <= 200 + 1e-4
    wide = draws(OPTIONS._replace(area=(0.8, 0.8)), shape=(50, 200)).crop  # no aspect fits: the nearest that does
    np.testing.assert_allclose(wide.height, 50, rtol=1e-5)
    np.testing.assert_allclose(wide.width, 160, rtol=1e-5)


def test_every_change_is_as_likely_as_asked_for_and_of_its_own():
    drawn = draws(OPTIONS)
    happens = np.stack([drawn.flip, drawn.jittered, drawn.grey, drawn.sigma > 0])
    np.testing.assert_allclose(happens.mean(axis=1), (0.4, 0.7, 0.3, 0.5), atol=0.032)  # four standard deviations
    others = [drawn.crop.height * drawn.crop.width, drawn.crop.top, drawn.jitter.factors[:, 0], drawn.jitter.hue]
    related = np.corrcoef([*happens, *others])
    related[4, 5] = related[5, 4] = 0  # the smaller a crop, the more places it has
    assert np.abs(related - np.eye(8)).max() < 0.065


def test_sigma_is_uniform_and_scaled_with_the_shorter_side():
    for shape in ((100, 100), (50, 200)):
        sigma = draws(OPTIONS._replace(area=(0.1, 0.2)), shape=shape).sigma
        scale = shape[0] / 224
        assert uniform(sigma[sigma > 0], 4 * scale, 8 * scale)


def test_jitter_and_hue_have_ranges_of_their_own():
    jitter = draws(OPTIONS).jitter
    assert all(uniform(factor, 0.6, 1.4) for factor in jitter.factors.T)
    assert uniform(jitter.hue, -0.1, 0.1)


@pytest.mark.medium
def test_a_probability_of_one_is_always_and_of_zero_never():
    never, always = (OPTIONS._replace(flip=p, jitter_probability=p, grey=p, blur=p) for p in (0.0, 1.0))
    for options, expected in ((never, False), (always, True)):
        drawn = draws(options)
        for happens in (drawn.flip, drawn.jittered, drawn.grey, drawn.sigma > 0):
            assert (happens == expected).all()


# The views


def test_view_without_any_change_is_the_image():
    made = make(picture())
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, np.broadcast_to(picture(), made.shape), rtol=0, atol=1e-6)


def test_view_shows_the_crop():
    image = picture()
    tops, heights = np.arange(COUNT) % 11, 29 - np.arange(COUNT) % 3
    lefts, widths = np.arange(COUNT) % 7, 33 - np.arange(COUNT) % 5
    made = make(image, crop=Crop(tops, lefts, heights, widths))
    for view, top, left, height, width in zip(made, tops, lefts, heights, widths, strict=True):
        part = image[top : top + height, left : left + width]
        expected = cv2.resize(part, (40, 40), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(view, expected, rtol=0, atol=1e-5)


def test_mirror_image():
    flip = np.arange(COUNT) % 2 == 1
    for view, mirrored in zip(make(picture(), flip=flip), flip, strict=True):
        np.testing.assert_allclose(view, picture()[:, ::-1] if mirrored else picture(), rtol=0, atol=1e-6)


def test_grey_is_opencvs():
    made = make(picture(), grey=True)
    expected = cv2.cvtColor(picture(), cv2.COLOR_RGB2GRAY)[..., None]
    np.testing.assert_allclose(made, np.broadcast_to(expected, made.shape), rtol=0, atol=1e-5)


def test_blur_is_scipys():
    image, sigmas = picture(), np.linspace(0.2, 3, COUNT)
    for view, sigma in zip(make(image, sigma=sigmas), sigmas, strict=True):
        blur = functools.partial(ndimage.gaussian_filter, sigma=(sigma, sigma, 0), mode="constant", cval=0, truncate=40)
        expected = blur(image.astype(np.float64)) / blur(np.ones(image.shape))
        np.testing.assert_allclose(view, expected, rtol=0, atol=2e-6)


def test_jitter_only_where_drawn():
    image = 0.4 + 0.1 * picture()  # nothing is clipped
    jittered, turns = np.arange(COUNT) % 2 == 1, np.linspace(-0.1, 0.1, COUNT)
    made = make(image, jittered=jittered, jitter=STILL.jitter._replace(factors=[1.2, 1, 1], hue=turns))
    hue, saturation, value = np.array([colorsys.rgb_to_hsv(*pixel) for pixel in image[0].tolist()]).T
    for view, changed, turn in zip(made, jittered, turns, strict=True):
        expected = (hue + turn) % 1, saturation, 1.2 * value
        rows = zip(*(expected if changed else (hue, saturation, value)), strict=True)
        np.testing.assert_allclose(view[0], [colorsys.hsv_to_rgb(*pixel) for pixel in rows], rtol=0, atol=1e-5)


def test_crop_and_mirror_image_come_before_blur_then_jitter_then_grey():
    drawn = jax.tree.map(lambda x: x[:COUNT], draws(OPTIONS, (40, 40)))._asdict()
    made = make(picture(), **drawn)
    assert {(np.ptp(view, axis=2) > 1e-4).any() for view in made} == {True, False}  # some are grey
    expected = picture()
    for stage in (("crop", "flip"), ("sigma",), ("jittered", "jitter"), ("grey",)):
        expected = make(expected, **{name: drawn[name] for name in stage})
    np.testing.assert_allclose(made, expected, rtol=0, atol=2e-5)


def test_white_stays_white_and_black_black():
    drawn = jax.tree.map(lambda x: x[:COUNT], draws(OPTIONS, (40, 40)))
    for value in (0.0, 1.0):
        image = np.full((40, 40, 3), value, np.float32)
        made = make(image, **drawn._replace(jittered=False)._asdict())
        np.testing.assert_allclose(made, value, rtol=0, atol=1e-6)
        assert made.min() >= 0 and made.max() <= 1


@pytest.mark.slow
def test_views_of_an_image_are_two_draws():
    made = np.asarray(compiled_pairs()(keys(COUNT // 2)))
    assert made.shape == (COUNT // 2, 2, 40, 40, 3) and made.dtype == np.float32
    assert made.min() >= 0 and made.max() <= 1
    assert np.abs(made[:, 0] - made[:, 1]).mean(axis=(1, 2, 3)).min() > 0.01
    drawn = quick_jit(sampler(OPTIONS, (40, 40)))(jax.vmap(jax.random.split)(keys(COUNT // 2)).reshape(-1))
    expected = make(picture(), **drawn._asdict()).reshape(made.shape)
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5)


def test_views_are_made_without_a_transfer():
    drawn, run = jax.device_put(keys(COUNT // 2)), compiled_pairs()
    with jax.transfer_guard("disallow"):
        jax.block_until_ready(run(drawn))


@pytest.mark.slow
def test_plain_and_compiled_views_are_the_same():
    key, image = keys()[3], jnp.asarray(picture())
    plain = OPTIONS._replace(jitter=0.0, hue=0.0)  # whose jitter is compiled anyway
    view = views.random_view(key, image, options=plain)
    drawn = jax.tree.map(lambda x: x[3], draws(OPTIONS, (40, 40)))._replace(jittered=False)
    assert drawn.sigma > 0 and drawn.crop.height < 38
    np.testing.assert_allclose(view, make(picture(), **drawn._asdict())[0], rtol=0, atol=1e-5)


@pytest.mark.medium
def test_same_views_on_one_and_on_eight_devices():
    mesh, spec = devices.make_mesh(), PartitionSpec(devices.AXIS)
    assert mesh.size == 8
    eight = quick_jit(jax.shard_map(pairs(), mesh=mesh, in_specs=spec, out_specs=spec))(keys(COUNT // 2))
    np.testing.assert_allclose(eight, compiled_pairs()(keys(COUNT // 2)), rtol=0, atol=1e-5)


@pytest.mark.medium
def test_image_that_is_not_square_without_colour_jitter():
    image = picture(24, 40)
    options = ViewOptions(area=(0.6, 0.6), aspect=(2.0, 3.0), flip=1.0, jitter=0.0, hue=0.0, grey=0.0, blur=0.0)
    made = quick_jit(lambda key: views.random_view(key, image, options=options))(jax.random.key(0))
    drawn = quick_jit(lambda key: views.sample_view(key, image.shape, options=options))(jax.random.key(0))
    assert drawn.jitter is None
    crop = drawn.crop
    rows, columns = crop_matrix(crop.top, crop.height, size=24), crop_matrix(crop.left, crop.width, size=40)
    expected = np.einsum("ij,jkc,lk->ilc", rows, image, columns)[:, ::-1]
    assert crop.width > 2 * crop.height - 1e-3
    np.testing.assert_allclose(made, expected, rtol=0, atol=2e-6)


# What is refused


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"area": (0.0, 1.0)}, "(0.0, 1.0)"),
        ({"area": (0.6, 1.2)}, "(0.6, 1.2)"),
        ({"area": (0.9, 0.6)}, "(0.9, 0.6)"),
        ({"aspect": (0.0, 1.0)}, "(0.0, 1.0)"),
        ({"aspect": (1.0, float("inf"))}, "(1.0, inf)"),
        ({"aspect": (float("nan"), 1.0)}, "(nan, 1.0)"),
        ({"sigma": (-0.1, 2.0)}, "(-0.1, 2.0)"),
        ({"sigma": (2.0, 1.0)}, "(2.0, 1.0)"),
        ({"flip": 1.5}, "[0, 1]"),
        ({"jitter": -0.1}, "[0, 1]"),
        ({"hue": 0.6}, "[0, 0.5]"),
        ({"jitter_probability": 2}, "[0, 1]"),
        ({"grey": float("nan")}, "[0, 1]"),
        ({"blur": -1}, "[0, 1]"),
    ],
    ids=str,
)
def test_bad_options_are_refused(change, word):
    options = ViewOptions(**change)
    for draw in (views.sample_crop, views.sample_view):
        with refuses(f"view.{next(iter(change))}", word):
            draw(jax.random.key(0), (8, 8), options=options)


def test_bounds_of_the_ranges_are_allowed():
    views.check_options(
        ViewOptions(area=(0.01, 0.01), aspect=(1, 1), flip=0, jitter=0, hue=0, grey=0, blur=0, sigma=(0, 0))
    )
    views.check_options(
        ViewOptions(area=(1, 1), flip=1, jitter=1, hue=0.5, jitter_probability=1, grey=1, blur=1)
    )
