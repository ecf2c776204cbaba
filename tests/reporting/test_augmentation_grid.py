"""The picture of views and local augmentations; that of all proxy tasks is tested beside these."""

import functools

import cv2
import jax
import numpy as np
import pytest

from jaxad.augment.dla.local import LOCAL, LocalOptions, random_local_augmentation
from jaxad.augment.dla.views import ViewOptions, random_view_pair
from jaxad.reporting import augmentation_grid
from tests.augment.quick import quick_jit

COUNT, HEIGHT, WIDTH = 6, 64, 72
GAP, BELOW, LABEL = 4, 16, 14


def pictures(count=COUNT):
    return np.random.default_rng(3).integers(0, 256, (count, HEIGHT, WIDTH, 3), np.uint8)


def cells(picture, rows):
    """The tiles (rows, columns, HEIGHT, WIDTH, 3) of a picture, and the labels above them."""
    height, width = LABEL + HEIGHT + BELOW, WIDTH + GAP
    assert picture.dtype == np.uint8 and picture.shape[0] == rows * height and picture.shape[1] % width == 0
    split = picture.reshape(rows, height, -1, width, 3).swapaxes(1, 2)
    assert (split[:, :, -BELOW:] == 255).all() and (split[:, :, :, -GAP:] == 255).all()
    return split[:, :, LABEL : LABEL + HEIGHT, :WIDTH], split[:, :, :LABEL, :WIDTH]


@pytest.fixture
def names(monkeypatch):
    """The labels, in the order in which they are drawn."""
    drawn, label = [], augmentation_grid._label
    monkeypatch.setattr(augmentation_grid, "_label", lambda name, width: drawn.append(name) or label(name, width))
    return drawn


@functools.cache
def alone(augment, options):
    """An augmentation of one image."""
    return quick_jit(functools.partial(augment, options=options))


def expected(images, local):
    """Views and local augmentation of each image, with the keys of the picture."""

    def make(key, image):
        views, negative = jax.random.split(key)
        pair = alone(random_view_pair, ViewOptions())(views, image)
        return pair, alone(random_local_augmentation, local)(negative, image)

    keys = jax.random.split(jax.random.key(5), len(images))
    return [make(key, image) for key, image in zip(keys, np.float32(images) / 255, strict=True)]


def same(tile, image):
    """A tile is an image in [0, 1], up to the rounding of a level."""
    np.testing.assert_allclose(tile, 255 * np.asarray(image), atol=1)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "view"), [("dynamic", ViewOptions()), ("static", None), ("permutation", None)])
def test_every_tile_is_what_its_label_says(names, mode, view):
    images, local = pictures(), LocalOptions(mode=mode)
    made = augmentation_grid.local_grid(jax.random.key(5), images, view=view, local=local)
    tiles, labels = cells(made, rows=COUNT)
    kinds = list(LOCAL) if mode != "permutation" else ["permutation"]
    first = ["image", "view", "view'"] if view else ["image"]
    assert tiles.shape[1] == len(first) + len(kinds) + 1 and len(names) == tiles.shape[0] * tiles.shape[1]
    assert (labels < 128).any(axis=(2, 3, 4)).all()  # each tile has its own
    for row, (views, found) in enumerate(expected(images, local)):
        own = names[row * tiles.shape[1] :][: tiles.shape[1]]
        assert own[: len(first)] == first and own[-1] == "negative sample"
        weights = zip(kinds, found.weights, strict=True)
        assert own[len(first) : -1] == [f"{name} {weight:.2f}" for name, weight in weights]
        for tile, image in zip(tiles[row, 1:], (*(views if view else ()), *found.made, found.image), strict=True):
            same(tile, image)
    if mode == "dynamic":
        shares = [float(name.split()[1]) for name in names[3:7]]
        assert sum(shares) == pytest.approx(1, abs=0.03) and len(set(shares)) > 1
    else:
        assert all(name.endswith(" 1.00") for name in own[len(first) : -1])


@pytest.mark.slow
def test_the_frame_lies_around_the_rectangle():
    images = pictures()
    # compiled above
    made = augmentation_grid.local_grid(jax.random.key(5), images, view=ViewOptions(), local=LocalOptions())
    tiles, _ = cells(made, rows=COUNT)
    for tile, image, (_, found) in zip(tiles[:, 0], images, expected(images, LocalOptions()), strict=True):
        inside, (top, left, height, width) = np.zeros((HEIGHT, WIDTH), np.uint8), map(int, found.box)
        inside[top : top + height, left : left + width] = 1
        line = cv2.dilate(inside, np.ones((3, 3), np.uint8)) > inside
        np.testing.assert_array_equal(tile[~line], image[~line])
        assert line.any() and (tile[line] == (0, 230, 118)).all()


@pytest.mark.medium
def test_what_the_objective_does_not_use_is_left_out(names):
    images = pictures(1)
    tiles, _ = cells(augmentation_grid.local_grid(jax.random.key(5), images, view=ViewOptions(), local=None), rows=1)
    assert names == ["image", "view", "view'"]
    np.testing.assert_array_equal(tiles[0, 0], images[0])  # no rectangle without a local augmentation
    names.clear()
    cells(augmentation_grid.local_grid(jax.random.key(5), images, view=None, local=LocalOptions(mode="grey")), rows=1)
    assert names == ["image", "grey 1.00", "negative sample"]
