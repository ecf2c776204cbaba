import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, sparse
from scipy.sparse.linalg import spsolve

from jaxad.augment.nsa import poisson
from tests.shared import SHARED, needs_shared

WINDOW = (106, 108)
FLAGS = {False: cv2.NORMAL_CLONE, True: cv2.MIXED_CLONE}
JITTED = jax.jit(poisson.clone, static_argnames="mixed")


def noise(rng, shape) -> np.ndarray:
    """Random texture of random coarseness, uint8."""
    blurred = ndimage.gaussian_filter(rng.normal(size=shape), (rng.uniform(0.3, 4),) * 2 + (0,))
    return np.clip(128 + 60 * blurred / blurred.std(), 0, 255).astype(np.uint8)


def framed(mask):
    """The mask with its outermost ring zeroed, as OpenCV does first."""
    return np.pad(mask[1:-1, 1:-1], 1)


def opencv(patch, under, mask, mixed):
    """seamlessClone with the patch straight over ``under``."""
    left, top, width, height = cv2.boundingRect(framed(mask))
    centre = (left + width // 2, top + height // 2)
    # OpenCV erodes the mask in place.
    return cv2.seamlessClone(patch, under, mask.copy(), centre, FLAGS[mixed])


def clone(patch, under, mask, mixed, *, at=(0, 0), truncated=False) -> np.ndarray:
    """``poisson.clone`` of uint8 arrays, placed anywhere in the one window that is compiled."""
    part = tuple(slice(start, start + side) for start, side in zip(at, mask.shape, strict=True))
    window = np.zeros((3, *WINDOW, patch.shape[2]), np.float32)
    window[0][part], window[1][part] = patch, under
    window[2][part] = framed(mask)[..., None] / np.float32(255)
    blended = JITTED(window[0], window[1], window[2, ..., 0], mixed=mixed)
    blended = np.array(poisson.truncate(blended) if truncated else blended)
    inside = blended[part].copy()
    blended[part] = 0
    assert (blended == 0).all()  # nothing happens outside
    return inside


def laplacian(image):
    """Of the interior, by shifts."""
    return image[2:, 1:-1] + image[:-2, 1:-1] + image[1:-1, 2:] + image[1:-1, :-2] - 4 * image[1:-1, 1:-1]


def ellipse(height, width) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    return cv2.ellipse(mask, (width // 2, height // 2), (width // 2, height // 2), 0, 0, 360, 255, -1)


def random_case(rng, images, kind, sides=(12, 103)):
    """A patch, what is under it, and a mask: a rectangle, an ellipse, or one with its background cut out."""
    height, width = rng.integers(*sides, 2)

    def crop():
        image = images[rng.integers(len(images))]
        top, left = (rng.integers(s - n + 1) for s, n in zip(image.shape, (height, width), strict=False))
        return np.ascontiguousarray(image[top : top + height, left : left + width])

    patch, under = crop(), crop()
    mask = ellipse(height, width) if kind == "ellipse" else np.full((height, width), 255, np.uint8)
    if kind == "holes":
        brightness = patch.mean(axis=2)
        mask[brightness > np.quantile(brightness, 0.8)] = 0
    return patch, under, mask


def check_against_opencv(images, seed):
    rng = np.random.default_rng(seed)
    differences = []
    for index in range(100):
        patch, under, mask = random_case(rng, images, ("rectangle", "ellipse", "holes")[index % 3])
        mixed = bool(index % 2)
        at = [int(rng.integers(window - side + 1)) for window, side in zip(WINDOW, mask.shape, strict=True)]
        found = clone(patch, under, mask, mixed, at=at, truncated=True)
        left, top, width, height = cv2.boundingRect(framed(mask))
        inner = np.s_[top + 1 : top + height - 1, left + 1 : left + width - 1]
        difference = np.abs(found - opencv(patch, under, mask, mixed))
        assert difference.max() <= 1
        differences.append(difference[inner].ravel())
        found[inner] = under[inner]
        np.testing.assert_array_equal(found, under)  # outside the box and on its border
    assert np.concatenate(differences).mean() < 0.02


@pytest.mark.medium
def test_equals_opencv_on_textures():
    rng = np.random.default_rng(0)
    check_against_opencv([noise(rng, (128, 128, 3)) for _ in range(12)], seed=1)


@needs_shared("data", "mvtec_ad", "bottle")
def test_equals_opencv_on_real_images():
    paths = sorted((SHARED / "data/mvtec_ad/bottle/train/good").iterdir())[::10]
    check_against_opencv([cv2.imread(str(path)) for path in paths], seed=2)


@pytest.mark.parametrize("mixed", [False, True])
def test_grey_masks_equal_opencvs(mixed):
    rng = np.random.default_rng(3)
    images = [noise(rng, (128, 128, 3)) for _ in range(4)]
    differences = []
    for index in range(20):
        patch, under, mask = random_case(rng, images, "ellipse" if index % 4 == 1 else "rectangle", sides=(16, 80))
        if index % 2:  # one factor, as in FPI-Poisson
            mask = np.where(mask > 0, rng.integers(40, 256), 0).astype(np.uint8)
        else:  # every pixel its own
            mask = rng.integers(100 if index % 4 else 0, 256, mask.shape, dtype=np.uint8)
        found = clone(patch, under, mask, mixed, truncated=True)
        differences.append(np.abs(found - opencv(patch, under, mask, mixed)).ravel())
    differences = np.concatenate(differences)
    assert differences.max() <= 1 and differences.mean() < 0.02


def direct_solve(patch, under, mask, mixed):
    """Steps of seamlessClone as published, in float64, with a sparse direct solver for its Poisson equation."""
    mask = framed(mask)
    left, top, width, height = cv2.boundingRect(mask)
    box = np.s_[top : top + height, left : left + width]
    weight = ndimage.minimum_filter(mask, 7)[box][..., None] / 255.0
    result, patch = under.astype(float), np.where(mask[..., None] > 0, patch, 0).astype(float)[box]
    image = result[box]
    guide = []
    for source in (patch, image):
        right = np.diff(source, axis=1, append=source[:, -2:-1])
        down = np.diff(source, axis=0, append=source[-2:-1])
        guide.append(np.stack([right, down]))
    if mixed:
        guide[0] = np.where(np.abs(guide[0][0] - guide[0][1]) > np.abs(guide[1][0] - guide[1][1]), guide[0], guide[1])
    field = weight * guide[0] + (1 - weight) * guide[1]
    divergence = np.diff(field[0], axis=1)[1:-1, :-1] + np.diff(field[1], axis=0)[:-1, 1:-1]
    known = image.copy()
    known[1:-1, 1:-1] = 0
    second = [sparse.diags_array([1.0, -2.0, 1.0], offsets=[-1, 0, 1], shape=(n - 2, n - 2)) for n in (height, width)]
    matrix = sparse.kron(second[0], sparse.eye_array(width - 2)) + sparse.kron(sparse.eye_array(height - 2), second[1])
    right_side = (divergence - laplacian(known)).reshape(-1, patch.shape[2])
    image[1:-1, 1:-1] = spsolve(matrix.tocsc(), right_side).reshape(divergence.shape)
    return result


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("kind", ["rectangle", "ellipse", "holes"])
def test_equals_a_sparse_direct_solve(mixed, kind):
    rng = np.random.default_rng(4)
    for sides in ((104, 105), (9, 104), (9, 104), (9, 104)):  # 104 less the ring: a box of 102
        patch, under, mask = random_case(rng, [noise(rng, (128, 128, 3)) for _ in range(3)], kind, sides=sides)
        np.testing.assert_allclose(
            clone(patch, under, mask, mixed), direct_solve(patch, under, mask, mixed), rtol=0, atol=5e-3
        )


def test_the_largest_contrast_stays_exact():
    """White stripes over black, 102 pixels a side: the worst that grey levels can ask of float32."""
    patch = np.zeros((104, 104, 3), np.uint8)
    patch[:, 52:] = 255
    under, mask = 255 - patch, np.full((104, 104), 255, np.uint8)
    np.testing.assert_allclose(
        clone(patch, under, mask, False), direct_solve(patch, under, mask, False), rtol=0, atol=5e-3
    )


@pytest.mark.medium
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_patch_like_the_image_gives_the_image(mixed, channels):
    under = noise(np.random.default_rng(5), (40, 60, channels)) // 2
    for mask in (np.full((40, 60), 255, np.uint8), np.full((40, 60), 77, np.uint8), ellipse(40, 60)):
        for brightness in (0, 9):  # only gradients count
            np.testing.assert_array_equal(clone(under + brightness, under, mask, mixed), under)


@pytest.mark.parametrize("level", [255, 102])
def test_a_patch_that_fades_into_the_image_is_pasted(level):
    """Its correction is zero at the border, so it solves the equation; a grey level is its opacity."""
    under = np.full((40, 50, 1), 100, np.uint8)
    patch = under.copy()
    patch[12:25, 15:35] = noise(np.random.default_rng(6), (13, 20, 1))
    expected = under + level / 255 * (patch.astype(float) - under)
    found = clone(patch, under, np.full((40, 50), level, np.uint8), False)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def test_constant_gradients_by_hand():
    """A ramp over a flat image bends only where the eroded mask begins and ends."""
    rows, columns = np.mgrid[:20, :24]
    ramp = (3 * rows + 2 * columns).astype(np.uint8)[..., None]
    found = clone(ramp, np.full_like(ramp, 50), np.full((20, 24), 255, np.uint8), False)[..., 0]
    bends = np.zeros((20, 24))
    eroded = np.s_[4:16, 4:20]  # less the ring and three erosions
    bends[eroded][:, 0] += 2
    bends[4:16, 20] -= 2
    bends[eroded][0] += 3
    bends[16, 4:20] -= 3
    np.testing.assert_allclose(laplacian(found[1:-1, 1:-1]), bends[2:-2, 2:-2], atol=1e-3)
    assert (found[[0, 1, -2, -1]] == 50).all() and (found[:, [0, 1, -2, -1]] == 50).all()


def test_a_dot_in_mixed_mode_by_hand():
    """Of its three pixels with a gradient, OpenCV's |gx - gy| is blind to the dot's own, where gx = gy = -60."""
    under = np.full((20, 24, 1), 50, np.uint8)
    patch = under.copy()
    patch[10, 12] += 60
    found = clone(patch, under, np.full((20, 24), 255, np.uint8), True)[..., 0]
    expected = np.zeros((20, 24))
    expected[10, 12], expected[10, 11], expected[9, 12] = -120, 60, 60
    np.testing.assert_allclose(laplacian(found[1:-1, 1:-1]), expected[2:-2, 2:-2], atol=1e-3)


@pytest.mark.parametrize("mixed", [False, True])
def test_masks_without_an_interior_leave_the_image(mixed):
    rng = np.random.default_rng(7)
    patch, under = noise(rng, (30, 40, 3)), noise(rng, (30, 40, 3))
    empty, ring = np.zeros((30, 40), np.uint8), np.full((30, 40), 255, np.uint8)
    ring[1:-1, 1:-1] = 0
    thin = [empty.copy() for _ in range(5)]
    for side, mask in enumerate(thin, start=1):  # interiors of -1 to 3 pixels
        mask[4 : 4 + side, 5 : 5 + side] = 255
    thin.append(empty.copy())
    thin[-1][5:11, 3:35] = 255  # the erosion leaves nothing of six rows
    for mask in (empty, ring, *thin):
        np.testing.assert_array_equal(clone(patch, under, mask, mixed), under)


def test_the_smallest_box_that_changes():
    """Seven pixels a side leave one pixel of the eroded mask."""
    rng = np.random.default_rng(8)
    patch, under = noise(rng, (9, 9, 3)), noise(rng, (9, 9, 3))
    mask = np.full((9, 9), 255, np.uint8)
    found = clone(patch, under, mask, False)
    assert np.abs(found - under).max() > 1
    np.testing.assert_allclose(found, direct_solve(patch, under, mask, False), rtol=0, atol=1e-3)


@pytest.mark.parametrize("mixed", [False, True])
def test_one_channel_is_any_of_three(mixed):
    rng = np.random.default_rng(9)
    patch, under, mask = random_case(rng, [noise(rng, (128, 128, 3))], "ellipse")
    one = clone(patch[..., :1], under[..., :1], mask, mixed)
    np.testing.assert_allclose(one, clone(patch, under, mask, mixed)[..., :1], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("mixed", [False, True])
def test_plain_jitted_and_batched_in_any_window_are_equal(mixed):
    rng = np.random.default_rng(10)
    patch, under = (np.stack([noise(rng, (30, 40, 3)) for _ in range(3)]) for _ in range(2))
    mask = np.stack([ellipse(30, 40), np.full((30, 40), 255, np.uint8), np.zeros((30, 40), np.uint8)])
    mask[1, :9] = 0
    arrays = [jnp.asarray(x, jnp.float32) for x in (patch, under, mask / 255)]
    batched = jax.jit(jax.vmap(lambda *case: poisson.clone(*case, mixed=mixed)))(*arrays)
    assert batched.shape == (3, 30, 40, 3) and batched.dtype == jnp.float32
    for index, case in enumerate(zip(*arrays, strict=True)):
        np.testing.assert_allclose(batched[index], poisson.clone(*case, mixed=mixed), atol=1e-3)
        for at in ((0, 0), (76, 68), (33, 12)):
            moved = clone(patch[index], under[index], mask[index], mixed, at=at)
            np.testing.assert_allclose(batched[index], moved, atol=1e-3)


def test_truncate_by_hand():
    blended = jnp.array([-3.0, 0.0, 0.999, 99.999, 100.0, 254.6, 255.0, 300.0])
    assert poisson.truncate(blended).tolist() == [0, 0, 0, 99, 100, 254, 255, 255]
