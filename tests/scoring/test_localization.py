"""Patch grids, dense features, receptive-field upsampling and GradCAM."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import ndimage

from jaxad.models.layers import conv
from jaxad.models.resnet import ResNet
from jaxad.runtime import devices
from jaxad.scoring import localization
from tests.refusals import refuses

RNG = np.random.default_rng(0)


# Grid and dense features


@pytest.mark.parametrize(
    ("size", "patch", "stride", "grid"),
    [
        ((256, 256), 32, 4, (57, 57)),  # CutPaste, Appendix A.5
        ((256, 256), 64, 4, (49, 49)),
        ((24, 40), 8, 8, (3, 5)),
        ((8, 8), 8, 3, (1, 1)),
    ],
)
def test_grid_size(size, patch, stride, grid):
    assert localization.grid_size(size, patch=patch, stride=stride) == grid


@pytest.mark.parametrize(
    ("size", "patch", "stride", "word"),
    [
        ((64, 64), 65, 4, "64 x 64"),
        ((64, 32), 48, 4, "64 x 32"),
        ((256, 256), 32, 5, "252 of 256"),
        ((32, 34), 8, 4, "32 of 34"),
        ((64, 64), 8, 14, "gaps"),
        ((64, 64), 0, 4, "least"),
        ((64, 64), 8, 0, "least"),
    ],
)
def test_impossible_grids_are_told_in_one_sentence(size, patch, stride, word):
    with refuses(None, word):
        localization.grid_size(size, patch=patch, stride=stride)
    with refuses(None, word):
        localization.dense_features(lambda x: x, jnp.zeros((1, *size, 3)), patch=patch, stride=stride, chunk=4)


@pytest.mark.parametrize("chunk", [1, 7, 20, 1000])
def test_patches_are_not_scrambled(chunk):
    images = np.arange(2 * 20 * 28 * 3, dtype=np.float32).reshape(2, 20, 28, 3)  # every value occurs once
    extract = functools.partial(localization.dense_features, lambda x: x, patch=8, stride=4, chunk=chunk)
    patches = jax.jit(extract)(images)
    assert patches.shape == (2, 4, 6, 8, 8, 3)
    for n, i, j in np.ndindex(2, 4, 6):
        np.testing.assert_array_equal(patches[n, i, j], images[n, 4 * i : 4 * i + 8, 4 * j : 4 * j + 8])


def test_dense_features_equal_a_loop_over_patches():
    images = RNG.random((1, 16, 20, 3), np.float32)
    kernel = RNG.standard_normal((3, 3, 3, 5)).astype(np.float32)

    def apply(patches):  # zero padding at each patch's own border: neighbours must not be seen
        return jax.nn.relu(conv(patches, jnp.asarray(kernel), padding=(1, 1))).mean(axis=(1, 2))

    features = localization.dense_features(apply, images, patch=8, stride=4, chunk=5)
    assert features.shape == (1, 3, 4, 5)
    for i, j in np.ndindex(3, 4):
        alone = apply(images[:, 4 * i : 4 * i + 8, 4 * j : 4 * j + 8])
        np.testing.assert_allclose(features[0, i, j], alone[0], rtol=1e-5, atol=1e-6)


def test_dense_features_stream():
    images = jax.ShapeDtypeStruct((1, 128, 128, 3), jnp.float32)
    all_patches = 49**2 * 32 * 32 * 3 * 4

    def temporary(chunk):
        extract = functools.partial(
            localization.dense_features,
            lambda x: jnp.sort(x, axis=1).mean(axis=(1, 2)),
            patch=32,
            stride=2,
            chunk=chunk,
        )
        return jax.jit(extract).lower(images).compile().memory_analysis().temp_size_in_bytes

    assert temporary(2401) >= all_patches  # the yardstick measures what it should
    assert temporary(49) < all_patches / 8


def test_devices_compute_the_patches_of_their_own_images():
    mesh = devices.make_mesh()
    images = devices.split(np.random.default_rng(0).random((mesh.size, 16, 16, 3), np.float32), mesh)
    kernel = np.random.default_rng(1).random((8 * 8 * 3, 5), np.float32)

    def apply(patches):
        return patches.reshape(len(patches), -1) @ kernel

    run = functools.partial(localization.dense_features, apply, patch=8, stride=4, chunk=3 * mesh.size)
    compiled = jax.jit(run).lower(images).compile()
    text = compiled.as_text()
    assert not any(name in text for name in ("all-reduce", "all-gather", "all-to-all", "collective-permute"))
    assert compiled(images).sharding.spec[0] == devices.AXIS
    np.testing.assert_allclose(compiled(images), run(np.asarray(images)), rtol=1e-5)


def test_a_chunk_holds_at_least_one_patch():
    with refuses(None, "least"):
        localization.dense_features(lambda x: x, jnp.zeros((1, 8, 8, 3)), patch=4, stride=4, chunk=0)


# Receptive-field upsampling


def test_kernel_by_hand():
    # Even: sampled at -1, 0, 1, the centre twice. Deviation log10(0.45 * 4 + 1) + 0.25 = 0.69716.
    side = math.exp(-0.5 / (math.log10(2.8) + 0.25) ** 2)
    expected = np.array([side, 1, 1, side]) / (2 + 2 * side)
    np.testing.assert_allclose(localization.receptive_field_kernel(4), expected, rtol=1e-12)
    # From 32 on the deviation is 10; the outermost pixels are 15 from the doubled centre.
    kernel = localization.receptive_field_kernel(32)
    np.testing.assert_allclose(kernel[[0, 31]] / kernel[[15, 16]], math.exp(-0.5 * 1.5**2), rtol=1e-12)
    # Odd, with a deviation of 1.
    expected = np.array([math.exp(-0.5), 1, math.exp(-0.5)]) / (1 + 2 * math.exp(-0.5))
    np.testing.assert_allclose(localization.receptive_field_kernel(3, deviation=1.0), expected, rtol=1e-12)
    for patch in (1, 2, 31, 32, 33, 64):
        assert math.isclose(localization.receptive_field_kernel(patch).sum(), 1)
    # The two branches of the rule: 31 is below 32.
    kernel = localization.receptive_field_kernel(31)
    deviation = math.log10(0.45 * 31 + 1) + 0.25
    assert math.isclose(kernel[0] / kernel[15], math.exp(-0.5 * (15 / deviation) ** 2))


CASES = [((256, 256), 32, 4, None), ((40, 56), 16, 8, None), ((33, 21), 9, 3, None), ((24, 24), 8, 2, 3.0)]


@pytest.mark.medium
@pytest.mark.parametrize(("size", "patch", "stride", "deviation"), CASES)
def test_upsampling_equals_a_transposed_convolution(size, patch, stride, deviation):
    grid = localization.grid_size(size, patch=patch, stride=stride)
    maps = RNG.random((2, *grid), np.float32)
    options = {"patch": patch, "stride": stride, "size": size, "deviation": deviation}
    upsample = functools.partial(localization.receptive_field_upsample, **options)
    upsampled = upsample(maps)
    assert upsampled.shape == (2, *size)
    line = stride * localization.receptive_field_kernel(patch, deviation=deviation)
    kernel = jnp.asarray(np.outer(line, line), jnp.float32)[:, :, None, None]
    numbers = ("NHWC", "HWIO", "NHWC")
    expected = lax.conv_transpose(maps[..., None], kernel, (stride,) * 2, "VALID", dimension_numbers=numbers)[..., 0]
    np.testing.assert_allclose(upsampled, expected, rtol=2e-5)
    by_loop = np.zeros((2, *size))
    for i, j in np.ndindex(*grid):
        box = np.s_[:, stride * i : stride * i + patch, stride * j : stride * j + patch]
        by_loop[box] += maps[:, i, j, None, None] * np.outer(line, line)
    np.testing.assert_allclose(upsampled, by_loop, rtol=2e-5)
    np.testing.assert_allclose(jax.jit(upsample)(maps), upsampled, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(upsample)(maps[None])[0], upsampled, rtol=1e-6)


def centre_of_mass(image):
    y, x = np.indices(image.shape)
    return (image * y).sum() / image.sum(), (image * x).sum() / image.sum()


def test_an_impulse_in_the_grid_lands_on_its_patch():
    maps = np.zeros((1, 9, 9), np.float32)
    maps[0, 2, 5] = 1
    upsampled = np.asarray(localization.receptive_field_upsample(maps, patch=32, stride=4, size=(64, 64))[0])
    rows, columns = np.nonzero(upsampled)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 39, 20, 51)
    np.testing.assert_allclose(centre_of_mass(upsampled), (8 + 15.5, 20 + 15.5), atol=1e-4)


@pytest.mark.parametrize(("width", "expected"), [(1, [1.5, 0.5, -0.5, -1.5]), (4, [0, 1, 0, -1]), (8, [0, 1, 0, -1])])
def test_an_impulse_in_the_image_lands_on_its_pixels(width, expected):
    # At stride 4 the patches that see a defect share a centre fixed by its phase: one as wide as the stride is found to
    # within a pixel, a single pixel to within 1.5, and both to within nothing on average.
    options = {"patch": 32, "stride": 4}

    @jax.jit
    def heat(image):
        scores = localization.dense_features(lambda x: x.max(axis=(1, 2, 3)), image, **options, chunk=625)
        return localization.receptive_field_upsample(scores, **options, size=(128, 128))[0]

    for phase, shift in enumerate(expected):
        image = np.zeros((1, 128, 128, 1), np.float32)
        image[0, 64 + phase : 64 + phase + width, 60 + phase : 60 + phase + width] = 1
        found = np.subtract(centre_of_mass(np.asarray(heat(image))), centre_of_mass(image[0, :, :, 0]))
        np.testing.assert_allclose(found, (shift, shift), atol=1e-3)


def test_a_constant_grid_keeps_its_value_inside():
    maps = jnp.full((1, 57, 57), 3.0)
    upsampled = np.asarray(localization.receptive_field_upsample(maps, patch=32, stride=4, size=(256, 256))[0])
    np.testing.assert_allclose(upsampled[28:228, 28:228], 3.0, rtol=0.01)
    assert upsampled.max() == upsampled[28:228, 28:228].max()


def test_upsampling_checks_its_arguments():
    with refuses(None, "positive"):
        localization.receptive_field_upsample(jnp.zeros((1, 3, 3)), patch=4, stride=2, size=(8, 8), deviation=0.0)
    with pytest.raises(ValueError, match=r"\(4, 4\) do not fit the grid of \(3, 3\)"):
        localization.receptive_field_upsample(jnp.zeros((1, 4, 4)), patch=4, stride=2, size=(8, 8))
    with refuses(None, "9 of 10"):
        localization.receptive_field_upsample(jnp.zeros((1, 3, 3)), patch=3, stride=3, size=(9, 10))


# GradCAM


def test_gradcam_by_hand():
    activations = np.zeros((1, 2, 2, 2), np.float32)
    activations[0, :, :, 0] = [[1, 2], [3, 4]]
    activations[0, :, :, 1] = [[4, 0], [1, 2]]
    gradients = np.zeros((1, 2, 2, 2), np.float32)
    gradients[0, :, :, 0] = [[4, 0], [0, 4]]  # alpha = 2
    gradients[0, :, :, 1] = [[-1, -1], [-1, -1]]  # alpha = -1
    expected = [[[0, 4], [5, 6]]]  # 2 A0 - A1, the negative -2 cut
    np.testing.assert_array_equal(localization.gradcam(activations, gradients), expected)


def test_gradcam_of_a_linear_classifier():
    # d(mean over 12 positions . w)/dA = w / 12 everywhere, so the map is relu(A . w) / 12.
    activations = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)
    weights = RNG.standard_normal(5).astype(np.float32)
    maps = localization.gradcam_maps(lambda a: a.mean(axis=(1, 2)) @ weights, activations, size=(3, 4))
    np.testing.assert_allclose(maps, np.maximum(activations @ weights, 0) / 12, rtol=1e-4, atol=1e-6)


def test_gradcam_of_a_gaussian_score():
    # The gradient of (f - mu)' P (f - mu) is 2 P (f - mu), f the mean over 6 positions; each image has its own.
    activations = RNG.random((3, 2, 3, 4), np.float32)
    mean = RNG.random(4, np.float32)
    factor = RNG.standard_normal((4, 4))
    precision = (factor @ factor.T).astype(np.float32)

    def head(a):
        distance = a.mean(axis=(1, 2)) - mean
        return jnp.einsum("bi,ij,bj->b", distance, precision, distance)

    alpha = 2 * (activations.mean(axis=(1, 2)) - mean) @ precision / 6
    expected = np.maximum(np.einsum("bk,bhwk->bhw", alpha, activations), 0)
    run = jax.jit(functools.partial(localization.gradcam_maps, head, size=(2, 3)))
    np.testing.assert_allclose(run(activations), expected, rtol=1e-4, atol=1e-6)


def total(activations):
    return activations.sum(axis=(1, 2, 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cells", "size", "stride"),
    [
        ((8, 8), (256, 256), 32),
        ((4, 6), (64, 96), 16),
        ((8, 3), (230, 70), 32),
        ((1, 2), (9, 17), 16),
        ((5, 5), (5, 5), 1),
    ],
)
def test_gradcam_lays_cell_i_on_pixel_stride_times_i(cells, size, stride):
    activations = RNG.random((2, *cells, 1), np.float32)
    maps = localization.gradcam_maps(total, activations, size=size)
    expected = activations[..., 0]
    for axis in (1, 2):  # np.interp holds the last value
        pixels, places = np.arange(size[axis - 1]), stride * np.arange(cells[axis - 1])
        expected = np.apply_along_axis(lambda line, p=pixels, c=places: np.interp(p, c, line), axis, expected)
    np.testing.assert_allclose(maps, expected, rtol=1e-5)
    np.testing.assert_allclose(maps[:, ::stride, ::stride], activations[..., 0], rtol=1e-6)


def test_gradcam_of_an_impulse_is_centred_on_its_pixel():
    activations = np.zeros((1, 8, 8, 1), np.float32)
    activations[0, 2, 5] = 1
    found = np.asarray(localization.gradcam_maps(total, activations, size=(256, 256))[0])
    assert np.unravel_index(found.argmax(), found.shape) == (64, 160)
    np.testing.assert_allclose(centre_of_mass(found), (64, 160), atol=1e-3)
    assert np.flatnonzero(found.any(axis=0))[[0, -1]].tolist() == [129, 191]


@pytest.mark.slow
def test_cells_of_a_residual_network_are_centred_where_gradcam_lays_them():
    """The pixels that a cell answers to, by its gradient, lie around the peak of that cell's own map."""
    # With one block a stage, a cell of the last sees 195 x 195 pixels: that of an inner one is cut off nowhere.
    rng = np.random.default_rng(0)
    model = ResNet((1, 1, 1, 1))
    images = jnp.asarray(rng.standard_normal((1, 256, 256, 3)), jnp.float32)
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)

    def parameter(leaf):
        fan_in = math.prod(leaf.shape[:-1])
        return rng.standard_normal(leaf.shape, np.float32) / math.sqrt(fan_in) if fan_in > 1 else np.ones(leaf.shape)

    variables = jax.tree.map(parameter, shapes)

    @jax.jit
    def sensitivity(impulses):
        def answer(images):
            stages = model.apply(variables, images, train=False)
            return sum(jnp.abs(stages[name] * impulse).sum() for name, impulse in impulses.items())

        return jnp.abs(jax.grad(answer)(images)).sum(axis=(0, 3))

    strides = {"layer2": 8, "layer4": 32}
    for stage, cell in (("layer2", 15), ("layer4", 4), ("layer4", 3)):
        impulses = {name: np.zeros((1, 256 // s, 256 // s, 1), np.float32) for name, s in strides.items()}
        impulses[stage][0, cell, cell] = 1
        peak = localization.gradcam_maps(total, impulses[stage], size=(256, 256))[0]
        np.testing.assert_allclose(centre_of_mass(np.asarray(peak)), [strides[stage] * cell] * 2, atol=1e-3)
        seen = np.asarray(sensitivity(impulses))
        np.testing.assert_allclose(centre_of_mass(seen), centre_of_mass(np.asarray(peak)), atol=1.5)


def test_gradcam_needs_a_stage_of_the_input():
    with pytest.raises(ValueError, match=r"no stride .* makes \(8, 7\) cells of \(256, 256\) pixels"):
        localization.gradcam_maps(total, jnp.ones((1, 8, 7, 1)), size=(256, 256))


@pytest.mark.parametrize("shape", [(2, 512), (2, 1, 1, 512)])
def test_gradcam_needs_a_spatial_stage(shape):
    with refuses(None, "earlier"):
        localization.gradcam_maps(lambda a: a.reshape(2, -1).sum(axis=1), jnp.ones(shape), size=(32, 32))


@pytest.mark.medium
@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["plain", "jitted"])
def test_blur_is_scipys(sigma, transform):
    maps = np.random.default_rng(1).normal(size=(2, 20, 33)).astype(np.float32)
    expected = [ndimage.gaussian_filter(m.astype(np.float64), sigma, mode="reflect", truncate=4) for m in maps]
    blurred = transform(lambda x: localization.gaussian_blur(x, sigma=sigma))(maps)
    np.testing.assert_allclose(blurred, expected, rtol=0, atol=2e-6)


def test_blur_of_a_point_by_hand():
    # With sigma 0.5 the kernel is cut at 2 pixels: 1, exp(-2), exp(-8) to both sides.
    point = np.zeros((1, 9, 9), np.float32)
    point[0, 4, 4] = 1
    weights = np.exp([-8.0, -2.0, 0.0, -2.0, -8.0])
    weights /= weights.sum()
    blurred = np.asarray(localization.gaussian_blur(point, sigma=0.5))[0]
    np.testing.assert_allclose(blurred[2:7, 2:7], np.outer(weights, weights), rtol=1e-6)
    assert not blurred[:2].any() and not blurred[:, 7:].any()


def resampled(values, **options):
    """Features of one row, (cells,), at the positions of another stage."""
    found = localization.resample_stage(
        jnp.asarray(values, jnp.float32)[None, :, None, None],
        first=(options.pop("first"), 0),
        to_first=(options.pop("to_first"), 0),
        onto=(options.pop("onto"), 1),
        **options,
    )
    return np.asarray(found)[0, :, 0, 0]


def test_a_coarse_stage_is_interpolated_at_the_pixels_of_a_fine_one():
    """Cells on the pixels 15, 31 and 47, asked for at 7, 15, 23, ..., and held before the first one."""
    found = resampled([1.0, 3.0, 7.0], stride=16, first=15, onto=6, to_stride=8, to_first=7)
    np.testing.assert_allclose(found, [1, 1, 2, 3, 5, 7], rtol=1e-6)


def test_a_fine_stage_is_averaged_around_the_pixels_of_a_coarse_one():
    """Cells on the pixels 3, 7, 11, ...: a cell on pixel 7 takes 1/4, 1/2 and 1/4 of those on 3, 7 and 11."""
    found = resampled([0.0, 0, 0, 8, 0, 0, 0, 0], stride=4, first=3, onto=4, to_stride=8, to_first=7)
    np.testing.assert_allclose(found, [0, 4, 0, 0], rtol=1e-6)
    found = resampled([0.0, 0, 8, 0, 0, 0, 0, 0], stride=4, first=3, onto=4, to_stride=8, to_first=7)
    np.testing.assert_allclose(found, [2, 2, 0, 0], rtol=1e-6)


def test_a_stage_at_its_own_positions_is_itself():
    stage = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype(np.float32)
    found = localization.resample_stage(stage, stride=8, first=(7, 3), onto=(5, 7), to_stride=8, to_first=(7, 3))
    np.testing.assert_allclose(found, stage, rtol=1e-6)
