import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxad import parallel
from jaxad.augment import grid, proxies
from jaxad.augment.cutpaste import cutpaste, cutpaste_scar
from jaxad.augment.regions import Options
from jaxad.errors import UserError

STILL = Options(translation=0.0, image_jitter=0.0)


def pictures(count=8, side=48):
    return np.random.default_rng(0).random((count, side, side, 3)).astype(np.float32)


@functools.cache
def compiled(proxy, options):
    return jax.jit(lambda keys, images: proxies.proxy_batch(keys, images, proxy=proxy, options=options))


def batch(proxy, images, options=STILL):
    keys = jax.random.split(jax.random.key(0), len(images))
    return tuple(map(np.asarray, compiled(proxy, options)(keys, images)))


@pytest.mark.parametrize("proxy", proxies.PROXIES)
def test_every_image_appears_once_in_every_class(proxy):
    images = pictures(4)
    made, labels = batch(proxy, images)
    count = {"rotation": 4, "cutpaste_3way": 3}.get(proxy, 2)
    assert made.shape == (4 * count, 48, 48, 3) and made.dtype == np.float32
    assert labels.tolist() == [label for label in range(count) for _ in range(4)] and labels.dtype == np.int32
    np.testing.assert_array_equal(made[:4], images)
    assert made.min() >= 0 and made.max() <= 1
    for label in range(1, count):
        changed = (made[4 * label :][:4] != images).any(axis=3)
        assert changed.any(axis=(1, 2)).all()
        assert proxy == "rotation" or changed.mean() < 0.2


def test_rotation_turns_counter_clockwise():
    images = pictures(2)
    made = batch("rotation", images)[0].reshape(4, 2, 48, 48, 3)
    for turns in range(4):
        np.testing.assert_array_equal(made[turns], np.rot90(images, turns, axes=(1, 2)))


def test_union_draws_both_equally_often():
    image = pictures(1)[0]
    keys = jax.random.split(jax.random.key(0), 120)

    def run(function, keys):
        return np.asarray(jax.jit(jax.vmap(lambda key: function(key, image, options=STILL)))(keys))

    made, drawn = run(proxies.union, keys), jax.vmap(jax.random.split)(keys)[:, 1]
    is_either = [np.isclose(made, run(f, drawn), atol=2e-6).all(axis=(1, 2, 3)) for f in (cutpaste, cutpaste_scar)]
    assert (is_either[0] ^ is_either[1]).all()
    assert 0.35 < is_either[0].mean() < 0.65


def test_classes_share_the_view_of_their_image():
    images = pictures(3)
    made, _ = batch("cutpaste_3way", images, Options(jitter=0.0))
    views = made.reshape(3, 3, 48, 48, 3)
    assert (views[0] != images).any(axis=(1, 2, 3)).all()
    for label in (1, 2):
        assert 0 < (views[label] != views[0]).any(axis=3).mean() < 0.2


def test_every_class_has_draws_of_its_own_and_every_key_another_image():
    images = np.broadcast_to(pictures(1), (4, 48, 48, 3))
    made, _ = batch("cutpaste_3way", images)
    for label in (1, 2):
        changed = (made[4 * label :][:4] != images).any(axis=3)
        assert len({mask.tobytes() for mask in changed}) == 4


@pytest.mark.parametrize(
    ("proxy", "options"),
    [("cutpaste_3way", STILL._replace(jitter=0.0)), ("cutpaste_3way", Options()), ("confetti", STILL)],
    ids=["exact", "jittered", "confetti"],
)
def test_same_images_on_one_and_on_eight_devices(proxy, options):
    images = pictures()
    keys = jax.random.split(jax.random.key(0), 8)
    mesh = parallel.make_mesh()
    assert mesh.size == 8
    spec = PartitionSpec(parallel.AXIS)

    def run(keys, images):
        made, _ = proxies.proxy_batch(keys, images, proxy=proxy, options=options)
        return made.reshape(-1, len(images), *images.shape[1:]).swapaxes(0, 1)

    eight = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(spec, spec), out_specs=spec))(keys, images)
    one = jax.jit(run)(keys, images)
    if options.jitter:
        np.testing.assert_allclose(eight, one, atol=2e-6)
    else:
        np.testing.assert_array_equal(eight, one)


def test_batches_are_built_without_a_transfer():
    images, keys = jax.device_put((pictures(2), jax.random.split(jax.random.key(0), 2)))
    with jax.transfer_guard("disallow"):
        jax.block_until_ready(compiled("cutpaste_3way", STILL)(keys, images))


def test_translation_mirrors_at_the_border():
    image = pictures(1, 12)[0]
    for down, right in ((3, -2), (0, 4), (-4, -4), (0, 0)):
        expected = np.empty_like(image)
        for row in range(12):
            for column in range(12):
                source = [11 - abs(11 - abs(place)) for place in (row - down, column - right)]
                expected[row, column] = image[tuple(source)]
        moved = proxies.translate(image, jnp.int32(down), jnp.int32(right), reach=4)
        np.testing.assert_array_equal(moved, expected)


def test_translation_is_uniform_over_whole_pixels():
    image = np.zeros((40, 40, 3), np.float32)
    image[20, 20] = 1
    options = Options(translation=0.05)  # 2 pixels
    run = jax.jit(jax.vmap(lambda key: proxies.translation(key, image, options=options)[..., 0].argmax()))
    places = np.asarray(run(jax.random.split(jax.random.key(0), 2500)))
    found, counts = np.unique(places, return_counts=True)
    assert found.tolist() == [40 * row + column for row in range(18, 23) for column in range(18, 23)]
    assert counts.min() > 60 and counts.max() < 145  # 100 expected


def test_bad_input_is_refused():
    with pytest.raises(UserError, match=r"config.proxy.task.*cutpaste_3way.*not 'cutpast'"):
        proxies.classes("cutpast")
    with pytest.raises(UserError, match="square images, not 32x48"):
        batch("rotation", np.zeros((1, 32, 48, 3), np.float32))
    with pytest.raises(UserError, match=r"config.proxy.translation"):
        batch("cutpaste", pictures(1), Options(translation=1.0))


def test_grid_has_a_column_for_every_augmentation():
    images = np.uint8(255 * pictures(2, 64))
    picture = grid.augmentation_grid(jax.random.key(0), images, options=Options())
    assert picture.shape == (14 + 2 * 64 + 3 * 4, len(grid.AUGMENTATIONS) * 68, 3) and picture.dtype == np.uint8
    cells = picture.reshape(picture.shape[0], len(grid.AUGMENTATIONS), 68, 3)
    np.testing.assert_array_equal(cells[18:82, 0, :64], images[0])
    np.testing.assert_array_equal(cells[86:150, 0, :64], images[1])
    turned = list(grid.AUGMENTATIONS).index("rotation 90")
    np.testing.assert_array_equal(cells[18:82, turned, :64], np.rot90(images[0]))
    for column in range(1, len(grid.AUGMENTATIONS)):
        assert (cells[18:82, column, :64] != images[0]).any()
    assert (cells[:14] < 128).any(axis=(0, 2, 3)).all()  # every column has its name
