import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxad.augment import boxes, color
from jaxad.augment.boxes import Box, RotatedBox
from jaxad.augment.cutpaste import cutpaste
from jaxad.augment.cutpaste.cutpaste import Patch, Scar
from jaxad.augment.cutpaste.options import CutPasteOptions
from tests.augment.quick import quick_jit
from tests.refusals import refuses

DRAWS = 10_000
DEFAULTS = CutPasteOptions()


def picture(height=48, width=40, seed=0):
    return np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)


@functools.cache
def draw(sample, shape=(256, 256, 3), options=DEFAULTS):
    """10,000 draws as NumPy arrays."""
    keys = jax.random.split(jax.random.key(0), DRAWS)
    run = quick_jit(jax.vmap(lambda key: sample(key, shape, options=options)))
    return jax.tree.map(np.asarray, run(keys))


def int_box(*values):
    return Box(*map(jnp.int32, values))


def uniform(values, low, high):
    """Whether continuous values fill a range evenly."""
    assert low <= values.min() and values.max() <= high
    return stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3


def even(values, categories):
    """Whether whole numbers take every category equally often."""
    found, counts = np.unique(values, return_counts=True)
    return found.tolist() == list(categories) and stats.chisquare(counts).pvalue > 1e-3


# --- pasting, against loops ---


def paste_loop(image, source_top, source_left, top, left, height, width):
    """Every pixel of the patch in turn is copied to its new place."""
    result = image.copy()
    for row in range(height):
        for column in range(width):
            result[top + row, left + column] = image[source_top + row, source_left + column]
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "box"),
    [
        ((0, 0), (36, 28, 12, 12)),  # from one corner to the other
        ((36, 28), (0, 0, 12, 12)),
        ((5, 9), (7, 3, 20, 16)),  # overlapping
        ((11, 4), (11, 4, 6, 9)),  # in place
        ((47, 39), (0, 20, 1, 1)),
        ((24, 0), (3, 16, 24, 24)),  # as large as the window
    ],
)
def test_paste_copies_every_pixel_to_its_place(source, box):
    image = picture()
    drawn = Patch(*map(jnp.int32, source), int_box(*box), None)
    expected = paste_loop(image, *source, *box)
    for window in ((24, 24), (30, 40), (48, 40)):
        np.testing.assert_array_equal(cutpaste.paste_patch(image, drawn, window=window), expected)


def turn(image, bar, source_top, source_left):
    """The rotated scar by geometry in float64: each pixel's centre, turned back into the upright scar.

    Returns the picture and the pixels whose centre lies too close to the edge of a source pixel to tell.
    """
    top, left, length, width, degrees = bar
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    height = math.ceil(abs(cosine) * length + abs(sine) * width - 0.01)
    across = math.ceil(abs(sine) * length + abs(cosine) * width - 0.01)
    result, unsure = image.copy(), np.zeros(image.shape[:2], bool)
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            x, y = column + 0.5 - (left + across / 2), (top + height / 2) - (row + 0.5)  # y upwards
            # Counter-clockwise by the angle brought it here, clockwise brings it back.
            back_x, back_y = cosine * x + sine * y, cosine * y - sine * x
            from_left, from_top = back_x + width / 2, length / 2 - back_y
            unsure[row, column] = min(abs(v - round(v)) for v in (from_left, from_top)) < 0.01
            if 0 <= from_left < width and 0 <= from_top < length:
                result[row, column] = image[source_top + int(from_top), source_left + int(from_left)]
    return result, unsure


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [-45.0, -30.5, -7.0, 0.0, 12.3, 29.0, 44.9, 90.0, 140.0])
@pytest.mark.parametrize(("length", "width"), [(25, 2), (10, 16), (17, 7)])
def test_scar_comes_from_the_nearest_pixel_of_the_source(degrees, length, width):
    image = picture(56, 60)
    bar = (3, 9, length, width, degrees)
    drawn = Scar(jnp.int32(20), jnp.int32(31), RotatedBox(*map(jnp.int32, bar[:4]), jnp.float32(degrees)), None)
    made = np.asarray(cutpaste.paste_scar(image, drawn, window=31))
    expected, unsure = turn(image, bar, 20, 31)
    sure = ~unsure if degrees % 90 else np.ones_like(unsure)
    np.testing.assert_array_equal(made[sure], expected[sure])
    assert unsure.mean() < 0.1 or degrees % 90 == 0
    changed = (made != image).any(axis=2)
    np.testing.assert_array_equal(changed, boxes.rotated_box_mask(drawn.box, changed.shape))
    assert abs(changed.sum() - length * width) <= (length + width) / 2  # its area
    height, across = (int(v) for v in boxes.rotated_extent(drawn.box))
    assert not changed[: bar[0]].any() and not changed[bar[0] + height :].any()
    assert not changed[:, : bar[1]].any() and not changed[:, bar[1] + across :].any()


@pytest.mark.medium
def test_quarter_turn_of_a_scar_is_exact_and_counter_clockwise():
    image = picture()
    drawn = Scar(jnp.int32(20), jnp.int32(5), RotatedBox(*map(jnp.int32, (2, 4, 12, 5)), jnp.float32(90)), None)
    made = cutpaste.paste_scar(image, drawn, window=13)
    np.testing.assert_array_equal(made[2:7, 4:16], np.rot90(image[20:32, 5:10]))


@pytest.mark.medium
def test_jitter_changes_the_patch_by_its_own_mean_and_nothing_else():
    image = picture()
    jitter = color.Jitter(jnp.array([1.2, 0.7, 0.8]), jnp.float32(0.1), jnp.array([2, 1, 3, 0]))
    cut = quick_jit(color.color_jitter)(image[8:28, 3:18], jitter)
    drawn = Patch(jnp.int32(8), jnp.int32(3), int_box(25, 20, 20, 15), jitter)
    made = np.array(quick_jit(functools.partial(cutpaste.paste_patch, window=(30, 22)))(image, drawn))
    np.testing.assert_allclose(made[25:45, 20:35], cut, atol=2e-6)
    made[25:45, 20:35] = image[25:45, 20:35]
    np.testing.assert_array_equal(made, image)
    bar = RotatedBox(*map(jnp.int32, (25, 20, 20, 15)), jnp.float32(0))
    drawn = Scar(jnp.int32(8), jnp.int32(3), bar, jitter)
    made = np.array(quick_jit(functools.partial(cutpaste.paste_scar, window=26))(image, drawn))
    np.testing.assert_allclose(made[25:45, 20:35], cut, atol=2e-6)
    made[25:45, 20:35] = image[25:45, 20:35]
    np.testing.assert_array_equal(made, image)


# --- what is drawn ---


@pytest.mark.slow
@pytest.mark.parametrize("largest", [0.1, 0.15, 0.2, 0.3])  # Appendix A.3
def test_area_and_aspect_of_patches(largest):
    box = draw(boxes.sample_box, options=CutPasteOptions(area=(0.02, largest)))
    height, width = box.height.astype(np.float64), box.width.astype(np.float64)
    area = height * width / 256**2
    # Sides are rounded to whole pixels, which moves an area of 2 % by up to 3.3 %.
    assert area.min() > 0.02 * 0.965 and area.max() < largest * 1.02
    assert stats.kstest(area, stats.uniform(0.02, largest - 0.02).cdf).statistic < 0.02
    aspect = height / width
    assert aspect.min() > 0.3 * 0.965 and aspect.max() < 3.3 * 1.035
    halves = stats.uniform(0.3, 0.7), stats.uniform(1, 2.3)
    assert stats.kstest(aspect, lambda x: (halves[0].cdf(x) + halves[1].cdf(x)) / 2).statistic < 0.025
    assert np.abs(np.corrcoef(area, aspect)[0, 1]) < 0.04


def test_patches_lie_anywhere_in_the_image_and_come_from_anywhere():
    patch = draw(cutpaste.sample_patch, (256, 200, 3), CutPasteOptions(jitter=0.1))
    box = patch.box
    places = ((patch.source_top, box.height, 256), (box.top, box.height, 256))
    places += ((patch.source_left, box.width, 200), (box.left, box.width, 200))
    shares = []
    for start, size, side in places:
        assert start.min() >= 0 and (start + size).max() == side  # the last place is reached
        spread = np.random.default_rng(0).random(DRAWS)  # whole numbers made continuous
        shares.append((start + spread) / (side - size + 1))
        assert uniform(shares[-1], 0, 1)
    assert np.abs(np.corrcoef(shares) - np.eye(4)).max() < 0.05


@pytest.mark.medium
def test_scars_have_the_stated_sizes_and_angles_and_lie_whole_in_the_image():
    scar = draw(cutpaste.sample_scar)
    bar = scar.box
    assert even(bar.width, range(2, 17)) and even(bar.length, range(10, 26))
    assert uniform(bar.angle, -45, 45)
    radians = np.radians(bar.angle.astype(np.float64))
    # Corners of the rotated rectangle, by geometry.
    height, across = (np.asarray(v) for v in boxes.rotated_extent(jax.tree.map(jnp.asarray, bar)))
    exact_height = np.abs(np.cos(radians)) * bar.length + np.abs(np.sin(radians)) * bar.width
    exact_across = np.abs(np.sin(radians)) * bar.length + np.abs(np.cos(radians)) * bar.width
    for start, extent, exact in ((bar.top, height, exact_height), (bar.left, across, exact_across)):
        assert (extent >= exact - 1e-2).all() and (extent < exact + 1.01).all()
        center = start + extent / 2
        assert (center - exact / 2).min() > -1e-2 and (center + exact / 2).max() < 256 + 1e-2
        assert (start + extent).max() == 256 and start.min() == 0
        spread = np.random.default_rng(0).random(DRAWS)
        assert uniform((start + spread) / (256 - extent + 1), 0, 1)
    for start, size in ((scar.source_top, bar.length), (scar.source_left, bar.width)):
        assert (start + size).max() == 256 and start.min() == 0
        assert uniform((start + np.random.default_rng(1).random(DRAWS)) / (256 - size + 1), 0, 1)
    drawn = np.stack([bar.width, bar.length, bar.angle, bar.top, bar.left, scar.source_top, scar.source_left])
    assert np.abs(np.corrcoef(drawn) - np.eye(7)).max() < 0.05


@pytest.mark.medium
def test_every_scar_is_painted_whole():
    """As many pixels are painted in the image as on a canvas with room on every side, and as its area says."""
    bar = draw(boxes.sample_rotated_box, shape=(64, 64, 3), options=CutPasteOptions(side=256))
    moved = bar._replace(top=bar.top + 20, left=bar.left + 20)
    sides = ((64, bar), (104, moved))
    inside, whole = (
        np.asarray(jax.jit(jax.vmap(lambda one, side=side: boxes.rotated_box_mask(one, (side, side)).sum()))(bars))
        for side, bars in sides
    )
    np.testing.assert_array_equal(inside, whole)
    area = bar.length * bar.width
    assert abs(inside.mean() / area.mean() - 1) < 0.01
    assert (np.abs(inside - area) < bar.length + bar.width).all()


@pytest.mark.parametrize(
    ("shape", "side", "widths", "lengths"),
    [
        ((128, 128, 3), 0, range(1, 9), range(5, 14)),  # half the size; 2 / 2 to 16 / 2 and 10 / 2 to 25 / 2
        ((64, 64, 3), 256, range(2, 17), range(10, 26)),  # a crop of an image of 256
        ((32, 32, 3), 0, range(1, 3), range(2, 4)),
    ],
)
def test_scars_are_scaled_with_the_side_of_the_whole_image(shape, side, widths, lengths):
    bar = draw(boxes.sample_rotated_box, shape=shape, options=CutPasteOptions(side=side))
    assert np.unique(bar.width).tolist() == list(widths)
    assert np.unique(bar.length).tolist() == list(lengths)


def test_smallest_scars_mark_a_pixel_whatever_their_angle():
    count = quick_jit(jax.vmap(lambda bar: boxes.rotated_box_mask(bar, (12, 12)).sum()))
    angles = jnp.linspace(-90, 90, 721)
    for length, width in ((2, 1), (3, 1), (2, 2)):
        bar = RotatedBox(*(jnp.full(721, value) for value in (3, 3, length, width)), angles)
        assert count(bar).min() >= 1


# --- the random operations ---

TRANSFORMS = {"cutpaste": cutpaste.random_paste_patch, "cutpaste_scar": cutpaste.random_paste_scar}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("jitter", [0.0, 0.1])
def test_same_images_plain_vmapped_and_jitted(name, jitter):
    options = CutPasteOptions(jitter=jitter)
    images = np.stack([picture(64, 64, seed) for seed in range(4)])
    keys = jax.random.split(jax.random.key(3), 4)

    def one(key, image):
        return TRANSFORMS[name](key, image, options=options)

    made = np.asarray(jax.jit(jax.vmap(one))(keys, images))
    alone = quick_jit(one)
    atol = 2e-6 if jitter else 0
    for index in range(4):
        np.testing.assert_allclose(made[index], alone(keys[index], images[index]), rtol=0, atol=atol)
    np.testing.assert_allclose(made[0], one(keys[0], images[0]), rtol=0, atol=atol)
    changed = (made != images).any(axis=3)
    assert changed.any(axis=(1, 2)).all()
    assert made.min() >= 0 and made.max() <= 1
    if name == "cutpaste":
        inside = boxes.box_mask(cutpaste.sample_patch(keys[0], (64, 64, 3), options=options).box, (64, 64))
    else:
        inside = boxes.rotated_box_mask(cutpaste.sample_scar(keys[0], (64, 64, 3), options=options).box, (64, 64))
    assert not (changed[0] & ~inside).any()  # bit-identical outside
    assert changed[0].sum() > 0.9 * inside.sum()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_without_jitter_only_pixels_of_the_image_appear(name):
    image = np.arange(64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3) / (64 * 64 * 3)
    made = TRANSFORMS[name](jax.random.key(5), image, options=CutPasteOptions(jitter=0.0))
    assert {tuple(p) for p in np.asarray(made).reshape(-1, 3)} <= {tuple(p) for p in image.reshape(-1, 3)}


@pytest.mark.medium
@pytest.mark.parametrize("jitter", [0.0, 0.1, 0.2, 0.3])  # Appendix A.3
def test_jitter_strength_reaches_the_draws(jitter):
    drawn = cutpaste.sample_patch(jax.random.key(0), (64, 64, 3), options=CutPasteOptions(jitter=jitter)).jitter
    if jitter:
        many = draw(cutpaste.sample_patch, (256, 200, 3), CutPasteOptions(jitter=jitter)).jitter
        assert np.abs(many.factors - 1).max() == pytest.approx(jitter, rel=0.01)
        assert np.abs(many.hue).max() == pytest.approx(jitter, rel=0.01)
    else:
        assert drawn is None


# --- bad input ---


@pytest.mark.parametrize(
    ("shape", "options", "about", "word"),
    [
        ((256, 256, 3), {"area": (0.02, 0.4)}, "proxy.area", "294x296"),
        ((256, 64, 3), {"area": (0.02, 0.4)}, "proxy.area", "256x64"),
        ((256, 256, 3), {"area": (0.2, 0.1)}, "proxy.area", "(0.2, 0.1)"),
        ((256, 256, 3), {"aspect": (1.2, 3.0)}, "proxy.area", "config.proxy.aspect"),
        ((256, 256, 3), {"jitter": 0.7}, "proxy.jitter", "0.7"),
    ],
)
def test_patches_that_cannot_be_drawn_are_refused(shape, options, about, word):
    with refuses(about, word):
        cutpaste.random_paste_patch(jax.random.key(0), jnp.zeros(shape), options=CutPasteOptions(**options))


@pytest.mark.parametrize(
    ("shape", "options", "about", "word"),
    [
        ((24, 24, 3), {"side": 256}, "proxy.scar_length", "24x24"),
        ((256, 256, 3), {"scar_width": (0, 4)}, "proxy.scar_width", "(0, 4)"),
        ((256, 256, 3), {"scar_length": (9, 4)}, "proxy.scar_width", "(9, 4)"),
        ((256, 256, 3), {"scar_angle": -1.0}, "proxy.scar_width", "-1.0"),
        ((256, 256, 3), {"scar_width": (2.5, 16)}, "proxy.scar_width", "whole"),
        ((256, 256, 3), {"side": -5}, "proxy.scar_width", "-5"),
    ],
)
def test_scars_that_cannot_be_drawn_are_refused(shape, options, about, word):
    with refuses(about, word):
        cutpaste.random_paste_scar(jax.random.key(0), jnp.zeros(shape), options=CutPasteOptions(**options))
