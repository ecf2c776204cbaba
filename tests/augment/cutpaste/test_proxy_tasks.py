import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxad.augment.cutpaste import proxy_tasks
from jaxad.augment.cutpaste.cutpaste import random_paste_patch, random_paste_patch_or_scar, random_paste_scar
from jaxad.augment.cutpaste.options import CutPasteOptions
from jaxad.reporting import augmentation_grid
from jaxad.runtime import devices
from tests.augment.quick import quick_jit
from tests.refusals import refuses

STILL = CutPasteOptions(translation=0.0, image_jitter=0.0)
EXACT = CutPasteOptions(jitter=0.0, image_jitter=0.0)  # every pixel is one of the image's


def pictures(count=8, side=48):
    return np.random.default_rng(0).random((count, side, side, 3)).astype(np.float32)


@functools.cache  # most of these tests' time is compilation: the same eight images of the same size everywhere
def compiled(proxy, options):
    return quick_jit(lambda keys, images: proxy_tasks.proxy_batch(keys, images, proxy=proxy, options=options))


def batch(proxy, images, options=STILL):
    keys = jax.random.split(jax.random.key(0), len(images))
    return tuple(map(np.asarray, compiled(proxy, options)(keys, images)))


@pytest.mark.medium
@pytest.mark.parametrize("proxy", proxy_tasks.PROXIES)
def test_every_image_appears_once_in_every_class(proxy):
    images = pictures()
    made, labels = batch(proxy, images)
    count = {"rotation": 4, "cutpaste_3way": 3}.get(proxy, 2)
    assert made.shape == (8 * count, 48, 48, 3) and made.dtype == np.float32
    assert labels.tolist() == [label for label in range(count) for _ in range(8)] and labels.dtype == np.int32
    np.testing.assert_array_equal(made[:8], images)
    assert made.min() >= 0 and made.max() <= 1
    for label in range(1, count):
        changed = (made[8 * label :][:8] != images).any(axis=3)
        assert changed.any(axis=(1, 2)).all()
        assert proxy == "rotation" or changed.mean() < 0.2


def test_rotation_turns_counter_clockwise():
    images = pictures()
    made = batch("rotation", images)[0].reshape(4, 8, 48, 48, 3)
    expected = images
    for turns in range(4):
        np.testing.assert_array_equal(made[turns], expected)
        turned = np.empty_like(expected)
        for row in range(48):
            for column in range(48):
                turned[:, 47 - column, row] = expected[:, row, column]  # the right edge becomes the top
        expected = turned


@pytest.mark.medium
def test_union_draws_both_equally_often():
    image = pictures(1)[0]
    keys = jax.random.split(jax.random.key(0), 120)

    @quick_jit
    def run(keys):
        drawn = jax.vmap(jax.random.split)(keys)[:, 1]
        cases = ((random_paste_patch_or_scar, keys), (random_paste_patch, drawn), (random_paste_scar, drawn))
        return [jax.vmap(lambda key, f=f: f(key, image, options=EXACT))(keys) for f, keys in cases]

    made, *others = map(np.asarray, run(keys))
    is_either = [(made == other).all(axis=(1, 2, 3)) for other in others]
    assert (is_either[0] ^ is_either[1]).all()
    assert 0.35 < is_either[0].mean() < 0.65


@pytest.mark.medium
def test_classes_share_the_view_of_their_image():
    images = pictures()
    views = batch("cutpaste_3way", images, EXACT)[0].reshape(3, 8, 48, 48, 3)
    assert (views[0] != images).any(axis=(1, 2, 3)).sum() >= 6  # of 25 shifts one is none
    for label in (1, 2):
        assert 0 < (views[label] != views[0]).any(axis=3).mean() < 0.2
    turned = batch("rotation", images, CutPasteOptions())[0].reshape(4, 8, 48, 48, 3)
    assert (turned[0] != images).any(axis=(1, 2, 3)).all()
    for turns in (1, 2, 3):
        np.testing.assert_array_equal(turned[turns], np.rot90(turned[0], turns, axes=(1, 2)))


def test_every_class_has_draws_of_its_own_and_every_key_another_image():
    images = np.broadcast_to(pictures(1), (8, 48, 48, 3))
    made, _ = batch("cutpaste_3way", images)
    for label in (1, 2):
        changed = (made[8 * label :][:8] != images).any(axis=3)
        assert len({mask.tobytes() for mask in changed}) == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("proxy", "options"),
    [("cutpaste_3way", EXACT), ("cutpaste_3way", STILL), ("rotation", CutPasteOptions()), ("confetti", STILL)],
    ids=["exact", "jittered", "views", "confetti"],
)
def test_same_images_on_one_and_on_eight_devices(proxy, options):
    images = pictures()
    keys = jax.random.split(jax.random.key(0), 8)
    mesh = devices.make_mesh()
    assert mesh.size == 8
    spec = PartitionSpec(devices.AXIS)

    def run(keys, images):
        made, _ = proxy_tasks.proxy_batch(keys, images, proxy=proxy, options=options)
        return made.reshape(-1, len(images), *images.shape[1:]).swapaxes(0, 1)

    eight = quick_jit(jax.shard_map(run, mesh=mesh, in_specs=(spec, spec), out_specs=spec))(keys, images)
    one = batch(proxy, images, options)[0].reshape(-1, *images.shape).swapaxes(0, 1)
    np.testing.assert_allclose(eight, one, rtol=0, atol=0 if options == EXACT else 2e-6)


def test_batches_are_built_without_a_transfer():
    images, keys = jax.device_put((pictures(), jax.random.split(jax.random.key(0), 8)))
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
        moved = proxy_tasks.translate(image, jnp.int32(down), jnp.int32(right), reach=4)
        np.testing.assert_array_equal(moved, expected)


def test_translation_is_uniform_over_whole_pixels():
    image = np.zeros((40, 40, 3), np.float32)
    image[20, 20] = 1
    options = CutPasteOptions(translation=0.05)  # 2 pixels
    run = quick_jit(jax.vmap(lambda key: proxy_tasks.random_translate(key, image, options=options)[..., 0].argmax()))
    places = np.asarray(run(jax.random.split(jax.random.key(0), 2500)))
    found, counts = np.unique(places, return_counts=True)
    assert found.tolist() == [40 * row + column for row in range(18, 23) for column in range(18, 23)]
    assert counts.min() > 60 and counts.max() < 145  # 100 expected


def test_bad_input_is_refused():
    with refuses("proxy.task", "cutpaste_3way"):
        proxy_tasks.classes("cutpast")
    with refuses(None, "square"):
        batch("rotation", np.zeros((1, 32, 48, 3), np.float32))
    with refuses("proxy.translation", "1.0"):
        batch("cutpaste", pictures(1), CutPasteOptions(translation=1.0))
    with refuses("proxy.confetti", "-3"):
        batch("confetti", pictures(1), CutPasteOptions(confetti=-3))


def test_a_name_means_one_class_in_every_task():
    for task in proxy_tasks.PROXIES.values():
        assert next(iter(task)) == "normal"
        assert all(augmentation_grid.AUGMENTATIONS[name] is make for name, make in task.items())


@pytest.mark.medium
def test_grid_leaves_out_what_does_not_fit():
    options = CutPasteOptions(area=(0.1, 0.9), side=256)  # patches and scars larger than the images
    picture = augmentation_grid.augmentation_grid(jax.random.key(0), np.uint8(255 * pictures(1, 24)), options=options)
    assert picture.shape[1] == 28 * len(["normal", "three rotations"] + 2 * ["more"] + ["colour jitter", "translation"])


@pytest.mark.slow
def test_grid_has_a_column_for_every_augmentation():
    images = np.uint8(255 * pictures(2, 64))
    picture = augmentation_grid.augmentation_grid(jax.random.key(0), images, options=CutPasteOptions())
    columns = len(augmentation_grid.AUGMENTATIONS)
    assert picture.shape == (14 + 2 * 64 + 3 * 4, columns * 68, 3) and picture.dtype == np.uint8
    cells = picture.reshape(picture.shape[0], columns, 68, 3)
    np.testing.assert_array_equal(cells[18:82, 0, :64], images[0])
    np.testing.assert_array_equal(cells[86:150, 0, :64], images[1])
    turned = list(augmentation_grid.AUGMENTATIONS).index("rotation 90")
    np.testing.assert_array_equal(cells[18:82, turned, :64], np.rot90(images[0]))
    for column in range(1, len(augmentation_grid.AUGMENTATIONS)):
        assert (cells[18:82, column, :64] != images[0]).any()
    assert (cells[:14] < 128).any(axis=(0, 2, 3)).all()  # every column has its name
