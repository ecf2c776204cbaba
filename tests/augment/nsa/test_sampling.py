"""The sampler on the device against the host's, piece by piece, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxad.augment.boxes import Box
from jaxad.augment.nsa import host, sampling
from jaxad.augment.nsa.settings import Synthesis, settings
from tests.augment.quick import quick_jit

SHAPE = (96, 128)  # not square, so that rows and columns cannot be mistaken for each other
OBJECT = settings("bottle").synthesis


@pytest.mark.medium
def test_object_share_is_the_hosts():
    rng = np.random.default_rng(0)
    mask = (rng.random(SHAPE) < 0.6).astype(np.uint8)
    top, left = rng.integers(0, 60, 300), rng.integers(0, 60, 300)
    height, width = rng.integers(1, 37, 300), rng.integers(1, 69, 300)
    boxes = Box(*map(jnp.asarray, (top, left, height, width)))
    found = sampling.object_share(sampling.area_table(jnp.asarray(mask)), boxes)
    expected = [
        host.object_share(mask[t : t + h, x : x + w]) for t, x, h, w in zip(top, left, height, width, strict=True)
    ]
    np.testing.assert_array_equal(found, np.float32(expected))
    whole = sampling.object_share(sampling.area_table(jnp.asarray(mask)), Box(0, 0, *SHAPE))
    assert whole == np.float32(mask.mean())


@pytest.mark.parametrize("window", [(38, 51), (20, 32), (7, 33), (38, 1)])
def test_packed_overlap_is_exactly_the_hosts(window):
    rng = np.random.default_rng(1)
    under = rng.random(SHAPE) < 0.5
    patch = np.zeros(window, bool)
    height, width = window[0] - 3, max(window[1] - 2, 1)
    patch[:height, :width] = rng.random((height, width)) < 0.5
    top = np.array([0, SHAPE[0] - height, *rng.integers(0, SHAPE[0] - height, 100)])
    left = np.array([SHAPE[1] - width, 0, *rng.integers(0, SHAPE[1] - width, 100)])

    @quick_jit
    def count(under, patch, top, left):
        windows, words = sampling.bit_windows(under, window), sampling.pack(patch)
        return jax.vmap(lambda t, x: sampling.overlap_count(words, windows, t, x))(top, left)

    found = count(under, patch, top, left)
    small_patch = patch[:height, :width].astype(np.uint8)
    expected = [
        host.object_overlap(small_patch, under[t : t + height, x : x + width].astype(np.uint8)) * small_patch.sum()
        for t, x in zip(top, left, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)  # whole numbers


@pytest.mark.parametrize(
    ("height", "width", "scale", "size"),
    [
        (100, 50, 0.8, (80, 40)),
        (100, 50, 1.3, (90, 45)),  # 130 is cut to the *half*-height's bound, 0.4 x 224
        (100, 180, 1.0, (50, 90)),  # the height follows when the width is cut
        (14, 14, 0.4, (7, 7)),
        (180, 14, 1.0, (90, 7)),
        (33, 21, 0.7, (22, 14)),  # 23.1 x 14.7, and the height again from the whole width
    ],
)
def test_resized_size_by_hand(height, width, scale, size):
    chosen = Synthesis(scale=(scale, scale))
    assert sampling.sample_size(jax.random.key(0), Box(0, 0, height, width), (224, 224), settings=chosen) == size


def test_resized_sizes_are_the_hosts_but_for_a_pixel_of_rounding():
    rng = np.random.default_rng(3)
    height, width = rng.integers(14, 180, (2, 2000))
    chosen = Synthesis(scale=(0.7, 0.7))
    found = jax.vmap(
        lambda h, w: sampling.sample_size(jax.random.key(0), Box(0, 0, h, w), (224, 224), settings=chosen)
    )
    bounds = {"half_height": chosen.half_height, "half_width": chosen.half_width}
    expected = [
        host.resized_size(host.Box(0, h, 0, w), 0.7, (224, 224), **bounds) for h, w in zip(height, width, strict=True)
    ]
    difference = np.stack(found(height, width), axis=1) - expected
    assert np.abs(difference[:, 1]).max() <= 1  # the width; the height follows it
    assert difference.any(axis=1).mean() < 0.02 and np.abs(difference.mean(axis=0)).max() < 0.02


@pytest.mark.medium
def test_the_first_of_199_proposals_counts_and_no_place_is_none():
    table = sampling.area_table(jnp.ones(SHAPE, bool))
    draw = quick_jit(lambda k, t, s: sampling.sample_source(k, SHAPE, t, settings=s), static_argnums=2)
    box, found = draw(jax.random.key(0), table, OBJECT)
    alone, _ = draw(jax.random.key(0), None, OBJECT)
    assert found and (box.height, box.width) == (alone.height, alone.width)
    assert not draw(jax.random.key(0), table, OBJECT._replace(object_fraction=1.0))[
        1
    ]  # a share equal to the bound is not enough
    assert not draw(jax.random.key(0), table * 0, OBJECT._replace(object_fraction=0.0))[1]
    assert draw(jax.random.key(0), table, OBJECT._replace(object_fraction=0.99))[1]


@pytest.mark.medium
@pytest.mark.parametrize("category", ["bottle", "tile", "screw"])
def test_full_size_bounds_are_equation_9(category):
    """Sizes of many patches against the equation in float64, with the factor that the program's clipping has drawn."""
    chosen = settings(category).synthesis._replace(size_bounds="full")
    shape, keys = (200, 300), jax.random.split(jax.random.key(5), 3000)
    boxes, found = jax.vmap(lambda key: sampling.sample_source(key, shape, None, settings=chosen))(keys)
    assert found.all()
    sizes = jax.vmap(lambda key, box: sampling.sample_size(key, box, shape, settings=chosen))(keys, boxes)
    drawn = np.clip(1 + 0.5 * np.float64(jax.vmap(jax.random.normal)(keys)), *chosen.scale)
    h, w = (np.float64(side) for side in boxes[2:])
    (h_min, h_max), (w_min, w_max) = (
        2 * np.round(np.multiply(bounds, side))
        for bounds, side in zip((chosen.half_height, chosen.half_width), shape, strict=True)
    )
    s = np.maximum(np.maximum(w_min / w, h_min / h), np.minimum(np.minimum(drawn, w_max / w), h_max / h))
    for size, side, least, most in zip(sizes, (h, w), (h_min, w_min), (h_max, w_max), strict=True):
        assert np.abs(size - s * side).max() <= 0.5 + 1e-3
        assert size.min() >= least and size.max() <= most
    half = jax.vmap(lambda key, box: sampling.sample_size(key, box, shape, settings=settings(category).synthesis))
    assert sizes[0].max() > half(keys, boxes)[0].max()
    assert (np.array(sampling.window(shape, settings=chosen)) == [h_max, w_max]).all()


@pytest.mark.medium
def test_the_destination_is_tested_as_in_equation_11():
    """A patch with little object of its own may go to where the destination shows enough of it, and only there."""
    chosen = OBJECT._replace(object_test="destination", overlap=0.0)
    under = np.zeros(SHAPE, bool)
    under[:, 70:] = True
    patch = np.zeros((20, 20), bool)
    patch[:3] = True
    size, window = (jnp.int32(20), jnp.int32(20)), (20, 20)
    tests = sampling.bit_windows(jnp.asarray(under), window), sampling.area_table(jnp.asarray(under))

    def place(key, chosen):
        return sampling.sample_destination(key, size, SHAPE, jnp.asarray(patch), *tests, settings=chosen)

    keys = jax.random.split(jax.random.key(0), 300)
    boxes, found = jax.vmap(lambda key: place(key, chosen))(keys)
    shares = [under[t : t + 20, x : x + 20].mean() for t, x in zip(boxes.top, boxes.left, strict=True)]
    assert found.all() and min(shares) > chosen.object_fraction
    assert min(boxes.left) == 65  # 15 of its 20 columns are object: 0.75 of the patch
    assert not jax.vmap(lambda key: place(key, OBJECT._replace(overlap=0.0)))(keys)[1].any()  # its own share is 0.15


@pytest.mark.medium
def test_the_only_place_is_found():
    """An image one pixel larger than twice the half-size has one centre; a patch as large as it may be, one place."""
    chosen = Synthesis(half_height=(0.48, 0.48), half_width=(0.48, 0.48), resized=False)
    box, _ = sampling.sample_source(jax.random.key(1), (33, 33), None, settings=chosen)
    assert tuple(map(int, box)) == (0, 0, 32, 32)
    box, _ = sampling.sample_destination(
        jax.random.key(2), (jnp.int32(31), jnp.int32(30)), (33, 33), None, None, None, settings=chosen
    )
    assert tuple(map(int, box)) == (1, 1, 31, 30)


@pytest.mark.medium
def test_destinations_keep_a_margin_of_one_pixel():
    anywhere = (None, None, None)
    place = jax.vmap(
        lambda k, size: sampling.sample_destination(k, size, (224, 224), *anywhere, settings=OBJECT)[0], (0, None)
    )
    odd = place(jax.random.split(jax.random.key(0), 4000), (151, 91))
    even = place(jax.random.split(jax.random.key(0), 4000), (150, 90))
    for box, last in ((odd, (72, 132)), (even, (72, 132))):
        assert (box.top.min(), box.left.min(), box.top.max(), box.left.max()) == (1, 1, *last)


def test_ablation_c_takes_the_boxes_of_cutpaste():
    chosen = Synthesis(shape="cutpaste", resized=False, patches=1)
    draw = quick_jit(jax.vmap(lambda k: sampling.sample_source(k, SHAPE, None, settings=chosen)[0]))
    top, left, height, width = map(np.asarray, draw(jax.random.split(jax.random.key(0), 2000)))
    area, aspect = height * width / min(SHAPE) ** 2, height / width
    assert 0.018 < area.min() < 0.023 and 0.145 < area.max() < 0.155 and abs(area.mean() - 0.085) < 0.003
    assert 0.27 < aspect.min() < 0.32 and 3.1 < aspect.max() < 3.6
    assert 0.45 < (aspect < 1).mean() < 0.55
    assert min(top.min(), left.min()) == 0 and (top + height).max() == 96 and (left + width).max() == 128
