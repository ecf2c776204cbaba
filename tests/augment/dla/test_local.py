import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from scipy import stats

from jaxad.augment import color
from jaxad.augment.boxes import Box
from jaxad.augment.dla import local
from jaxad.augment.dla.local import LOCAL, LocalOptions
from jaxad.runtime import devices
from tests.augment.quick import quick_jit
from tests.augment.test_color import reference
from tests.refusals import refuses

DRAWS = 5_000
DEFAULTS = LocalOptions()
MODES = ("dynamic", "static", *LOCAL)
# What is moved or kept is compared to the bit, what is computed up to the rounding of a different compilation.
ATOL = {"rotation": 0, "permutation": 0}
BOXES = ((9, 5, 20, 20), (12, 7, 17, 24), (0, 0, 25, 12), (30, 11, 18, 29), (0, 0, 40, 40), (3, 2, 2, 3))


def picture(height=48, width=40, seed=0):
    return np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)


PICTURES = np.stack([picture(48, 48, seed) for seed in range(8)])
KEYS = jax.random.split(jax.random.key(0), 8)


def int_box(*values):
    return Box(*map(jnp.int32, values))


def cut(image, box):
    """The pixels of a rectangle of an image."""
    top, left, height, width = (int(value) for value in box)
    return image[..., top : top + height, left : left + width, :]


def without(image, box):
    """The image with the rectangle blanked, to compare what lies outside."""
    image = np.array(image)
    cut(image, box)[:] = -1
    return image


def in_all_modes(key, image):
    """One program for every mode: they share what they draw, and compilation is most of these tests' time."""
    return {mode: local.random_local_augmentation(key, image, options=DEFAULTS._replace(mode=mode)) for mode in MODES}


compiled = quick_jit(jax.vmap(in_all_modes))


def augment(mode):
    return lambda keys, images: compiled(keys, images)[mode]


@functools.cache
def on_eight_devices():
    mesh, spec = devices.make_mesh(), PartitionSpec(devices.AXIS)
    assert mesh.size == 8
    run = jax.shard_map(jax.vmap(in_all_modes), mesh=mesh, in_specs=(spec, spec), out_specs=spec)
    return quick_jit(run)(KEYS, PICTURES)


# --- the augmentations, against loops ---


def turn(image, box, degrees):
    """The rectangle turned by geometry in float64, and the pixels whose source is too close to an edge to tell."""
    top, left, height, width = box
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    pad = 30
    whole = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    result, unsure = image.copy(), np.zeros(image.shape[:2], bool)
    for row in range(top, top + height):
        for column in range(left, left + width):
            x, y = column + 0.5 - (left + width / 2), (top + height / 2) - (row + 0.5)  # y upwards
            # Counter-clockwise by the angle brought it here, clockwise brings it back.
            back_x, back_y = cosine * x + sine * y, cosine * y - sine * x
            source = (top + height / 2) - back_y, (left + width / 2) + back_x
            unsure[row, column] = min(abs(v - round(v)) for v in source) < 0.01
            result[row, column] = whole[math.floor(source[0]) + pad, math.floor(source[1]) + pad]
    return result, unsure


@pytest.mark.parametrize("degrees", [-180.0, -101.5, -45.0, -7.0, 0.0, 12.3, 63.0, 90.0, 140.0])
def test_rotation_takes_the_nearest_pixel_and_mirrors_at_the_border(degrees):
    image = picture()
    rotate = quick_jit(local.rotate)
    for box in BOXES:
        expected, unsure = turn(image, box, degrees)
        made = np.asarray(rotate(image, int_box(*box), degrees))
        # Half turns lead from centre to centre. A quarter turn of an odd by an even side leads to the edges.
        assert unsure.mean() < 0.1 or degrees == 90
        np.testing.assert_array_equal(made[~unsure], expected[~unsure])
        np.testing.assert_array_equal(without(made, box), without(image, box))


def test_quarter_turns_are_exact_and_counter_clockwise():
    image, box = picture(), (9, 5, 20, 20)
    for turns in (0, 1, 2, -1):
        expected = np.rot90(cut(image, box), turns)
        np.testing.assert_array_equal(cut(local.rotate(image, int_box(*box), 90.0 * turns), box), expected)
    box = (12, 7, 17, 24)
    expected = cut(image, box)[::-1, ::-1]
    np.testing.assert_array_equal(cut(local.rotate(image, int_box(*box), 180.0), box), expected)


def test_corners_of_a_rotated_rectangle_show_the_image_and_no_black():
    made = local.rotate(0.5 + picture() / 2, int_box(0, 0, 40, 40), 45.0)
    assert made.min() >= 0.5


@pytest.mark.parametrize("parts", [2, 3])
def test_permutation_exchanges_equal_parts(parts):
    image = picture()
    permute = quick_jit(functools.partial(local.permute, parts=parts))
    rng = np.random.default_rng(1)
    for box in [box for box in BOXES if min(box[2:]) >= parts]:
        top, left, height, width = box
        order = rng.permutation(parts**2)
        expected = image.copy()
        for row in range(height // parts * parts):
            for column in range(width // parts * parts):
                part = row // (height // parts) * parts + column // (width // parts)
                down, right = divmod(order[part], parts)
                source_row = top + down * (height // parts) + row % (height // parts)
                source_column = left + right * (width // parts) + column % (width // parts)
                expected[top + row, left + column] = image[source_row, source_column]
        np.testing.assert_array_equal(permute(image, int_box(*box), order), expected)


@pytest.mark.slow
def test_permutation_by_hand():
    image = np.zeros((5, 6, 3), np.float32)
    image[1:, 1:] = np.arange(20).reshape(4, 5)[..., None]
    made = local.permute(image, int_box(1, 1, 4, 5), jnp.array([3, 0, 1, 2]), parts=2)
    # Parts of 2 x 2: [0 1; 5 6], [2 3; 7 8], [10 11; 15 16], [12 13; 17 18]. The last column is left over.
    expected = [[12, 13, 0, 1, 4], [17, 18, 5, 6, 9], [2, 3, 10, 11, 14], [7, 8, 15, 16, 19]]
    np.testing.assert_array_equal(made[1:, 1:, 1], expected)
    assert not made[0].any() and not made[:, 0].any()


def test_grey_is_the_luma():
    image, box = picture(), (12, 7, 17, 24)
    expected = image.astype(np.float64)
    for row in range(12, 29):
        for column in range(7, 31):
            red, green, blue = expected[row, column]
            expected[row, column] = 0.299 * red + 0.587 * green + 0.114 * blue
    made = local.grey(image, int_box(*box))
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(without(made, box), without(image, box))


def test_jitter_changes_the_rectangle_by_its_own_mean():
    image, box = picture(), (12, 7, 17, 24)
    amounts, order = (1.35, 0.7, 1.3, 0.09), (2, 1, 3, 0)
    drawn = color.Jitter(jnp.array(amounts[:3]), jnp.float32(amounts[3]), jnp.array(order))
    expected = image.copy()
    inside = cut(image, box)
    for operation in order:
        inside = reference(inside, operation, amounts[operation])
    cut(expected, box)[:] = inside
    made = quick_jit(local.jitter)(image, int_box(*box), drawn)
    np.testing.assert_allclose(made, expected, rtol=0, atol=5e-6)
    np.testing.assert_array_equal(without(made, box), without(image, box))


# --- weights and sums ---


@pytest.mark.parametrize("compile_", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_weights_by_hand(compile_):
    weigh = compile_(local.dynamic_weights)
    image = np.zeros((2, 2, 3), np.float32)
    made = np.zeros((4, 2, 2, 3), np.float32)
    np.testing.assert_array_equal(weigh(image, made), [0.25] * 4)  # a flat region: 0 / 0 in the paper
    np.testing.assert_array_equal(weigh(image + 0.5, made[:3] + 0.5), np.float32([1 / 3] * 3))
    made[1, 0, 1, 2] = 1e-3
    np.testing.assert_array_equal(weigh(image, made), [0, 1, 0, 0])
    made[0, 1, 0, 0] = 0.5  # squared and summed: 0.25
    made[1] = -0.25  # 12 x 0.0625 = 0.75
    made[3, 0, 0, :2] = -0.5, 0.5  # 0.5
    np.testing.assert_allclose(weigh(image, made), [0.25 / 1.5, 0.75 / 1.5, 0, 0.5 / 1.5], rtol=1e-6)


def test_weighted_and_plain_sums_by_hand():
    image = np.full((3, 3, 3), 0.5, np.float32)
    made = np.stack([image] * 3)
    made[:, 1, 1] = [[0.7, 0.5, 0.1], [0.9, 0.4, 0.1], [0.8, 0.5, 0.0]]  # augmentation, channel
    box = int_box(1, 1, 1, 1)
    dynamic = np.array(local.combine(image, box, made, jnp.array([0.5, 0.25, 0.25])))
    static = np.array(local.combine_static(image, box, made))
    np.testing.assert_allclose(dynamic[1, 1], [0.775, 0.475, 0.075], atol=1e-6)
    np.testing.assert_allclose(static[1, 1], [1, 0.4, 0], atol=1e-6)  # 0.5 + 0.2 + 0.4 + 0.3, 0.5 - 0.1, 0.5 - 1.3
    for result in (dynamic, static):
        result[1, 1] = 0.5
        np.testing.assert_array_equal(result, image)


def test_outside_of_the_rectangle_is_the_image_whatever_the_augmentations_hold_there():
    image, made, box = picture(), np.stack([picture(seed=1), picture(seed=2)]), (12, 7, 17, 24)
    for result in (
        local.combine(image, int_box(*box), made, jnp.array([0.3, 0.7])),
        local.combine_static(image, int_box(*box), made),
    ):
        np.testing.assert_array_equal(without(result, box), without(image, box))
        assert (cut(result, box) != cut(image, box)).mean() > 0.9


# --- what is drawn ---


def even(values, categories):
    """Whether whole numbers take every category equally often."""
    found, counts = np.unique(values, return_counts=True)
    return found.tolist() == list(categories) and stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((224, 224, 3), range(50, 129)),
        ((128, 128, 3), range(29, 74)),  # 50 and 128 times 128 / 224 are 28.6 and 73.1
        ((128, 160, 3), range(29, 74)),  # the shorter side counts
        ((448, 448, 3), range(100, 257)),
    ],
    ids=str,
)
def test_sizes_and_places_of_regions_are_uniform_and_independent(shape, sizes):
    keys = jax.random.split(jax.random.key(0), DRAWS)
    box = jax.vmap(lambda key: local.sample_region(key, shape, options=DEFAULTS))(keys)
    assert all(value.dtype == jnp.int32 for value in box)
    box = Box(*map(np.asarray, box))
    assert even(box.height, sizes) and even(box.width, sizes)
    shares = [(box.height - sizes[0]) / len(sizes), (box.width - sizes[0]) / len(sizes)]
    for start, size, side in ((box.top, box.height, shape[0]), (box.left, box.width, shape[1])):
        assert start.min() == 0 and (start + size).max() == side
        spread = np.random.default_rng(0).random(DRAWS)  # whole numbers made continuous
        shares.append((start + spread) / (side - size + 1))
        assert stats.kstest(shares[-1], stats.uniform(0, 1).cdf).pvalue > 1e-3
    for first in range(4):
        for second in range(first):
            table = np.histogram2d(shares[first], shares[second], bins=5)[0]
            assert stats.chi2_contingency(table).pvalue > 1e-3


def drawn(monkeypatch, function, sampler, options):
    """What a sampler hands to the deterministic function, many times, as NumPy arrays."""
    monkeypatch.setattr(local, function, lambda image, box, drawn, **_: drawn)
    keys = jax.random.split(jax.random.key(2), DRAWS)
    image, box = picture(), int_box(*BOXES[0])
    return jax.tree.map(np.asarray, jax.vmap(lambda key: sampler(key, image, box, options=options))(keys))


@pytest.mark.medium
def test_angles_orders_and_colours_fill_their_ranges(monkeypatch):
    options = LocalOptions(angle=30.0, jitter=0.3, hue=0.05)
    angles = drawn(monkeypatch, "rotate", local.random_rotate, options)
    orders = drawn(monkeypatch, "permute", local.random_permute, options)
    jitter = drawn(monkeypatch, "jitter", local.random_jitter, options)
    ranges = [(angles, -30, 30), (jitter.hue, -0.05, 0.05), *((factor, 0.7, 1.3) for factor in jitter.factors.T)]
    for values, low, high in ranges:
        assert low <= values.min() and values.max() <= high
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    found, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(found) == 24 and (np.sort(found, axis=1) == np.arange(4)).all()
    assert stats.chisquare(counts).pvalue > 1e-3


# --- the whole ---


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_mode_changes_one_rectangle_and_nothing_else(mode):
    made = jax.tree.map(np.asarray, augment(mode)(KEYS, PICTURES))
    all_of_them = augment("dynamic")(KEYS, PICTURES)
    assert made.image.min() >= 0 and made.image.max() <= 1
    assert made.made.shape == (8, 4 if mode in ("dynamic", "static") else 1, 48, 48, 3)
    for index, image in enumerate(PICTURES):
        one = jax.tree.map(lambda value, index=index: value[index], made)
        for result in (one.image, *one.made):
            np.testing.assert_array_equal(without(result, one.box), without(image, one.box))
        alone, inside = cut(one.made, one.box).astype(np.float64), cut(image, one.box).astype(np.float64)
        if mode == "dynamic":
            change = ((one.made.astype(np.float64) - image) ** 2).mean((1, 2, 3))
            np.testing.assert_allclose(one.weights, change / change.sum(), rtol=1e-5)
            expected = np.tensordot(one.weights, alone, 1)
        elif mode == "static":
            np.testing.assert_array_equal(one.weights, [1, 1, 1, 1])
            expected = np.clip(inside + (alone - inside).sum(0), 0, 1)
        else:
            np.testing.assert_array_equal(one.image, one.made[0])
            np.testing.assert_array_equal(one.weights, [1])
            expected = alone[0]
            # The same key draws the same in every mode.
            same = all_of_them.made[index, list(LOCAL).index(mode)]
            np.testing.assert_allclose(one.image, same, rtol=0, atol=ATOL.get(mode, 2e-6))
        np.testing.assert_allclose(cut(one.image, one.box), expected, rtol=0, atol=2e-6)
        assert (cut(one.image, one.box) != cut(image, one.box)).mean() > 0.5 or mode == "permutation"


def test_a_flat_black_image_stays_itself_with_equal_weights():
    made = augment("dynamic")(KEYS, np.zeros_like(PICTURES))
    np.testing.assert_array_equal(made.weights, np.full((8, 4), 0.25))
    np.testing.assert_array_equal(made.image, np.zeros_like(PICTURES))


def test_weights_follow_the_region():
    flat = np.broadcast_to(np.float32([0.8, 0.3, 0.2]), PICTURES.shape)
    weights = np.asarray(augment("dynamic")(KEYS, flat).weights)
    np.testing.assert_array_equal(weights[:, [0, 2]], 0)  # nothing to turn or to exchange
    assert (weights[:, [1, 3]] > 0).all()
    structure = np.repeat(PICTURES[..., :1], 3, axis=3)
    weights = np.asarray(augment("dynamic")(KEYS, structure).weights)
    np.testing.assert_allclose(weights[:, 3], 0, atol=1e-9)  # nothing to make grey
    assert (weights[:, 0] > 0.2).all()


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_same_images_plain_vmapped_jitted_and_on_eight_devices(mode):
    options = DEFAULTS._replace(mode=mode)
    atol = ATOL.get(mode, 2e-6)
    batch = augment(mode)(KEYS, PICTURES)
    plain = local.random_local_augmentation(KEYS[3], PICTURES[3], options=options)
    eight = on_eight_devices()[mode]
    for name in local.Local._fields[:3]:
        np.testing.assert_allclose(getattr(batch, name)[3], getattr(plain, name), rtol=0, atol=atol)
        np.testing.assert_allclose(getattr(eight, name), getattr(batch, name), rtol=0, atol=atol)
    np.testing.assert_array_equal(np.stack(eight.box), np.stack(batch.box))
    np.testing.assert_array_equal(np.stack(plain.box), np.stack(batch.box)[:, 3])


def test_moved_pixels_are_the_same_to_the_bit_within_the_sum():
    batch = augment("dynamic")(KEYS, PICTURES).made
    for name in ("rotation", "permutation"):
        np.testing.assert_array_equal(batch[:, list(LOCAL).index(name)], augment(name)(KEYS, PICTURES).image)


@pytest.mark.slow
def test_a_new_augmentation_is_one_line_of_the_table(monkeypatch):
    monkeypatch.setitem(LOCAL, "black", lambda key, image, box, *, options: local.grey(0 * image, box))
    made = local.random_local_augmentation(KEYS[0], PICTURES[0], options=DEFAULTS)
    assert made.made.shape[0] == 5 and not made.made[4].any()
    alone = local.random_local_augmentation(KEYS[0], PICTURES[0], options=DEFAULTS._replace(mode="black"))
    assert not alone.image.any()


# --- bad input ---


@pytest.mark.parametrize(
    ("shape", "options", "word"),
    [
        ((224, 224), {"size": (50, 225)}, "225x225"),
        ((96, 64), {"size": (50, 448)}, "96x64"),
        ((224, 224), {"size": (0, 128)}, "(0, 128)"),
        ((224, 224), {"size": (60, 50)}, "(60, 50)"),
        ((224, 224), {"size": (50, 100.5)}, "whole"),
        ((224, 224), {"angle": 0.0}, "180"),
        ((224, 224), {"angle": 181.0}, "181.0"),
        ((224, 224), {"angle": math.nan}, "nan"),
        ((224, 224), {"jitter": 1.1}, "1.1"),
        ((224, 224), {"hue": -0.1}, "-0.1"),
        ((224, 224), {"parts": 1}, "50"),
        ((112, 112), {"parts": 26}, "25"),
        ((224, 224), {"parts": 2.5}, "whole"),
        ((224, 224), {"mode": "cutout"}, "dynamic, static, rotation, jitter, permutation, grey"),
    ],
)
def test_options_that_do_not_fit_are_refused(shape, options, word):
    with refuses(f"local.{next(iter(options))}", word):
        local.random_local_augmentation(jax.random.key(0), jnp.zeros((*shape, 3)), options=LocalOptions(**options))
