import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxad.augment.nsa import host_views, views
from jaxad.errors import UserError
from tests.augment.quick import quick_jit
from tests.refusals import refuses

HEIGHT, WIDTH = 60, 72
CENTER, CROP = (48, 50), (40, 42)


def noise(channels=3, height=HEIGHT, width=WIDTH):
    """An image without black, which is what lies outside."""
    return np.random.default_rng(channels).integers(1, 256, (height, width, channels), dtype=np.uint8)


def numbered(height=HEIGHT, width=WIDTH):
    """An image whose pixels tell where they come from: row, column, and a constant."""
    return np.stack([*np.mgrid[:height, :width], np.full((height, width), 77)], axis=-1).astype(np.uint8)


def host_view(image, degrees, flip, top, left, *, center_crop, crop):
    """The host's functions in their order."""
    if degrees is not None:
        image = host_views.rotate(image, degrees)
    if center_crop:
        image = host_views.crop_center(image, center_crop)
    if flip:
        image = host_views.flip_vertical(image)
    return host_views.crop_at(image, top, left, crop)


@functools.cache
def compiled(center_crop, crop):
    return quick_jit(functools.partial(views.view, center_crop=center_crop, crop=crop))


# --- without rotation: every pixel is the host's ---


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("center_crop", "places"), [(None, [(0, 0), (20, 30), (7, 11)]), (CENTER, [(0, 0), (8, 8), (3, 5)])]
)
def test_views_without_rotation_equal_the_host(channels, center_crop, places):
    image = noise(channels)
    for top, left in places:
        for flip in (False, True):
            found = compiled(center_crop, CROP)(image, None, flip, top, left)
            expected = host_view(image, None, flip, top, left, center_crop=center_crop, crop=CROP)
            assert found.dtype == jnp.uint8
            np.testing.assert_array_equal(found, expected)


def test_a_view_by_hand():
    image = numbered(10, 12)
    # The central six rows are 2 to 7, the columns 3 to 8.
    view = views.view(image, None, False, 1, 2, center_crop=(6, 6), crop=(4, 4))
    assert view[0, 0].tolist() == [3, 5, 77] and view[-1, -1].tolist() == [6, 8, 77]
    view = views.view(image, None, True, 1, 2, center_crop=(6, 6), crop=(4, 4))
    assert view[0, 0].tolist() == [6, 5, 77] and view[-1, -1].tolist() == [3, 8, 77]


def test_an_odd_margin_is_halved_as_on_the_host():
    image = numbered(61, 73)  # margins 6.5 and 12.5, which Python rounds to even
    for degrees in (None, 0.0):
        found = compiled(CENTER, CROP)(image, degrees, False, 4, 4)
        np.testing.assert_array_equal(found, host_view(image, None, False, 4, 4, center_crop=CENTER, crop=CROP))


# --- with rotation ---


def test_rotation_by_a_right_angle_is_exact_and_counter_clockwise():
    image = numbered(41, 41)
    turn = compiled(None, (41, 41))
    for quarters in range(4):
        np.testing.assert_array_equal(turn(image, 90.0 * quarters, False, 0, 0), np.rot90(image, quarters))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("center_crop", [None, CENTER])
def test_rotation_by_nothing_equals_the_host(channels, center_crop):
    for flip in (False, True):
        found = compiled(center_crop, CROP)(noise(channels), 0.0, flip, 2, 5)
        expected = host_view(noise(channels), None, flip, 2, 5, center_crop=center_crop, crop=CROP)
        np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module")
def turned():
    """Views of rotated images, on the host and on the device: int (60, 224, 224, 3)."""
    rng = np.random.default_rng(0)
    degrees = np.concatenate([rng.uniform(-5, 5, 40), rng.uniform(-180, 180, 20)]).astype(np.float32)
    flip, (top, left) = rng.random(60) < 0.5, rng.integers(0, 7, (2, 60))
    image = numbered(256, 256)
    run = quick_jit(
        jax.vmap(functools.partial(views.view, center_crop=(230, 230), crop=(224, 224)), in_axes=(None, 0, 0, 0, 0))
    )
    host = [
        host_view(image, float(degrees[i]), flip[i], top[i], left[i], center_crop=(230, 230), crop=(224, 224))
        for i in range(60)
    ]
    return np.stack(host).astype(int), np.asarray(run(image, degrees, flip, top, left)).astype(int)


def test_rotated_views_are_the_hosts_but_for_a_few_neighbours(turned):
    host, found = turned
    differs = (host != found).any(axis=-1)
    assert differs.mean(axis=(1, 2)).max() < 1e-3  # measured: 4e-4 at most, 2e-4 on average
    both = (host[..., 2] == 77) & (found[..., 2] == 77)
    assert np.abs(host - found)[both].max() <= 1


def test_what_lies_outside_a_rotated_image_is_black(turned):
    host, found = turned
    black = found[..., 2] == 0
    assert black.any() and (found[black] == 0).all()
    assert (black != (host[..., 2] == 0)).mean() < 1e-4


def test_rotated_images_are_nearest_neighbours_in_floating_point():
    image = numbered(256, 256).astype(int)
    down, right = np.mgrid[:256, :256] - 127.5
    for degrees in (-4.9, 0.3, 3.0, 77.0):
        cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        row, column = np.rint([cosine * down + sine * right + 127.5, cosine * right - sine * down + 127.5]).astype(int)
        inside = (row >= 0) & (row < 256) & (column >= 0) & (column < 256)
        expected = np.where(inside[..., None], image[row % 256, column % 256], 0)
        found = np.asarray(compiled(None, (256, 256))(image.astype(np.uint8), degrees, False, 0, 0))
        assert (found != expected).any(axis=-1).mean() < 1e-3


def test_only_a_rotated_view_gathers_and_only_its_own_pixels():
    program = jax.make_jaxpr(functools.partial(views.view, center_crop=CENTER, crop=CROP))
    assert "gather" not in str(program(noise(), None, True, 0, 0))
    gathers = [eqn for eqn in program(noise(), 3.0, True, 0, 0).eqns if eqn.primitive.name == "gather"]
    assert [eqn.outvars[0].aval.shape for eqn in gathers] == [(*CROP, 3)]


# --- random views ---

OPTIONS = {"rotation": 5.0, "center_crop": None, "crop": (40, 40), "flip": True}
DRAWS = 2000


@functools.cache
def random_views(rotation, center_crop, crop, flip, draws=DRAWS):
    keys = jax.random.split(jax.random.key(0), draws)
    options = {"rotation": rotation, "center_crop": center_crop, "crop": crop, "flip": flip}
    run = quick_jit(jax.vmap(lambda key: views.random_view(key, jnp.asarray(numbered()), **options)))
    return np.asarray(run(keys))


def made_by_host(rotation, center_crop, crop, flip, draws=DRAWS):
    rng = np.random.default_rng(1)
    options = {"rotation": rotation, "center_crop": center_crop, "crop": crop, "flip": flip}
    return np.stack([host_views.random_view(rng, numbered(), **options) for _ in range(draws)])


def even(values, low, high):
    """Whether whole numbers take every value from low to high equally often."""
    found, counts = np.unique(values, return_counts=True)
    return found.tolist() == list(range(low, high + 1)) and stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.medium
@pytest.mark.parametrize("center_crop", [None, CENTER])
def test_crops_of_random_views_are_uniform_and_independent(center_crop):
    corners = random_views(0.0, center_crop, CROP, False)[:, 0, 0, :2].astype(int)
    margins = (8, 8) if center_crop else (HEIGHT - CROP[0], WIDTH - CROP[1])
    first = ((HEIGHT - CENTER[0]) // 2, (WIDTH - CENTER[1]) // 2) if center_crop else (0, 0)
    for axis in (0, 1):
        assert even(corners[:, axis], first[axis], first[axis] + margins[axis])
    table = np.histogram2d(*(corners - first).T, bins=4)[0]
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_half_of_the_views_are_upside_down_wherever_the_crop_lies():
    drawn = random_views(0.0, None, CROP, True)
    upside_down = drawn[:, 0, 0, 0] > drawn[:, -1, 0, 0]
    assert stats.binomtest(int(upside_down.sum()), DRAWS).pvalue > 1e-3
    for half in (upside_down, ~upside_down):
        assert even(drawn[half][..., 0].min(axis=(1, 2)), 0, HEIGHT - CROP[0])


def angles(drawn):
    """Angle of every view in degrees: how its pixels' sources change from row to row."""
    down = np.arange(drawn.shape[1]) - (drawn.shape[1] - 1) / 2
    row, column = (drawn[..., channel].astype(float).mean(axis=2) @ down for channel in (0, 1))
    return np.degrees(np.arctan2(-column, row))


def test_angles_of_random_views_are_uniform_as_on_the_host():
    # The centre of 30 pixels shows no black at any angle.
    options = (60.0, (30, 30), (28, 28), False)
    found, host = (angles(make(*options)) for make in (random_views, made_by_host))
    assert stats.ks_2samp(found, host).pvalue > 1e-3
    assert stats.kstest(found, stats.uniform(-60, 120).cdf).pvalue > 1e-3
    assert -61 < found.min() < -59 and 59 < found.max() < 61


@pytest.mark.medium
def test_random_views_show_every_pixel_as_often_as_the_host():
    drawn, host = (make(5.0, None, CROP, True).astype(float) for make in (random_views, made_by_host))
    for row, column in ((0, 0), (20, 20), (39, 10)):
        for channel in (0, 1):
            pair = (x[:, row, column, channel] for x in (drawn, host))
            assert stats.ks_2samp(*pair).pvalue > 1e-3


def test_a_random_view_is_determined_by_its_key_alone():
    together = random_views(*OPTIONS.values())
    keys = jax.random.split(jax.random.key(0), DRAWS)
    alone = quick_jit(functools.partial(views.random_view, **OPTIONS))
    for index in (0, 7):
        np.testing.assert_array_equal(alone(keys[index], numbered()), together[index])
    assert (together[0] != together[1]).any()
    assert together.dtype == np.uint8 and together.shape == (DRAWS, 40, 40, 3)


@pytest.mark.parametrize("rotation", [0.0, 5.0])
@pytest.mark.parametrize(("center_crop", "crop"), [(None, (61, 61)), ((50, 50), (51, 51)), ((61, 61), (40, 40))])
def test_crops_that_do_not_fit_are_refused_in_the_hosts_words(rotation, center_crop, crop):
    options = {"rotation": rotation, "center_crop": center_crop, "crop": crop, "flip": False}
    with refuses("view.crop", "fit") as host:
        host_views.random_view(np.random.default_rng(0), noise(), **options)
    with pytest.raises(UserError) as device:
        jax.jit(functools.partial(views.random_view, **options))(jax.random.key(0), noise())
    assert str(device.value) == str(host.value)
