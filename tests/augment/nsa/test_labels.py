import functools

import cv2
import jax
import numpy as np
import pytest

from jaxad.augment.nsa import host_labels, labels
from tests.augment.quick import quick_jit
from tests.shared import SHARED, needs_shared

KINDS = ("binary", "continuous", "logistic")
LOGISTIC = {"steepness": 1 / 6, "midpoint": 15.0}
BOXES = [(10, 40, 12, 50), (0, 25, 0, 30), (30, 60, 40, 72), (0, 60, 0, 72), (5, 16, 3, 9), (0, 0, 0, 0)]


def options(kind, **logistic):
    return logistic if kind == "logistic" else {}


@functools.cache
def batched(kind, **logistic):
    return quick_jit(jax.vmap(functools.partial(getattr(labels, kind), **options(kind, **logistic))))


def check_against_host(kind, images, **logistic):
    """Every bit of a batch is the host's."""
    found = np.asarray(batched(kind, **logistic)(*images))
    assert found.dtype == np.float32
    host = getattr(host_labels, kind)
    for result, *one in zip(found, *images, strict=True):
        np.testing.assert_array_equal(result, host(*one, **options(kind, **logistic)))
    return found


@pytest.mark.medium
@needs_shared("golden", "nsa_labels.npz")
@pytest.mark.parametrize(
    ("kind", "name"), [("binary", "binary"), ("continuous", "intensity"), ("logistic", "logistic")]
)
def test_golden_labels(kind, name):
    with np.load(SHARED / "golden" / "nsa_labels.npz", allow_pickle=False) as golden:
        found = check_against_host(
            kind, [golden[key] for key in ("dest", "blended", "mask")], steepness=1 / 12, midpoint=24.0
        )
        np.testing.assert_allclose(found, golden[name], rtol=0, atol=1e-4)


def changed_boxes(channels):
    """Pairs of images that differ in one box each, and most of the box as the label mask."""
    rng = np.random.default_rng(channels)
    original = rng.integers(0, 256, (len(BOXES), 60, 72, channels), dtype=np.uint8)
    blended, mask = original.copy(), np.zeros((len(BOXES), 60, 72), np.uint8)
    for index, (top, bottom, left, right) in enumerate(BOXES):
        area = blended[index, top:bottom, left:right]
        area[:] = rng.integers(0, 256, area.shape)
        mask[index, top:bottom, left:right] = rng.random(area.shape[:2]) < 0.8
    return original, blended, mask


@pytest.mark.medium
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_labels_equal_the_host_also_at_the_image_border(kind, channels):
    found = check_against_host(kind, changed_boxes(channels), **LOGISTIC)
    assert all(one.any() for one in found[:4]) and not found[-1].any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_slight_changes_equal_the_host(kind, channels):
    # Around the threshold of one grey level, where `binary` is decided.
    rng = np.random.default_rng(channels)
    original = rng.integers(4, 250, (6, 60, 72, channels), dtype=np.uint8)
    change = rng.integers(-3, 4, original.shape)
    mask = (rng.random((6, 60, 72)) < 0.9).astype(np.uint8)
    found = check_against_host(kind, (original, (original + change).astype(np.uint8), mask), **LOGISTIC)
    assert 0.1 < (found > 0).mean() <= 1


@pytest.mark.medium
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("tolerance", [0.0, 1.0, 2.5])
def test_what_counts_as_a_change_is_equation_13(channels, tolerance):
    """Against OpenCV's median of what NumPy compares; at 0, as the equation is printed, every difference counts."""
    rng = np.random.default_rng(channels)
    original = rng.integers(9, 240, (60, 72, channels), dtype=np.uint8)
    blended = (original + rng.integers(-6, 7, original.shape) * (rng.random((60, 72, 1)) < 0.8)).astype(np.uint8)
    mask = (rng.random((60, 72)) < 0.95).astype(np.uint8)
    difference = np.abs(np.int32(original) - blended).mean(-1)
    expected = cv2.medianBlur(((difference > tolerance) & (mask > 0)).astype(np.uint8), 5)
    changed = (original != blended).any(-1)
    assert tolerance or (expected == cv2.medianBlur((changed & (mask > 0)).astype(np.uint8), 5)).all()
    np.testing.assert_array_equal(labels.binary(original, blended, mask, tolerance=tolerance), expected)
    for label in (
        labels.continuous(original, blended, mask, tolerance=tolerance),
        labels.logistic(original, blended, mask, tolerance=tolerance, **LOGISTIC),
    ):
        assert np.asarray(label).any()


@pytest.mark.medium
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("steepness", "midpoint"), [(1 / 2, 4.0), (1.0, 3.0), (1 / 12, 24.0)])
def test_every_possible_difference_has_the_hosts_logistic_label(channels, steepness, midpoint):
    check_against_host("logistic", every_difference(channels), steepness=steepness, midpoint=midpoint)


@pytest.mark.medium
@pytest.mark.parametrize("channels", [1, 3])
def test_every_possible_difference_has_the_hosts_continuous_label(channels):
    check_against_host("continuous", every_difference(channels))


def every_difference(channels):
    """Pairs of images of one colour each, one pair for each sum of differences, and their label masks."""
    sums = np.arange(2, 255 * channels + 1)
    changes = np.stack([np.clip(sums - 255 * channel, 0, 255) for channel in range(channels)], axis=-1)
    blended = np.broadcast_to(changes[:, None, None], (len(sums), 3, 3, channels)).astype(np.uint8)
    mask = np.ones((len(sums), 3, 3), np.uint8)
    return np.zeros_like(blended), blended, mask


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_one_image_do_not_depend_on_the_batch(kind):
    images = [x[1] for x in changed_boxes(3)]
    alone = getattr(labels, kind)(*images, **options(kind, **LOGISTIC))
    np.testing.assert_array_equal(alone, batched(kind, **LOGISTIC)(*changed_boxes(3))[1])


@pytest.mark.medium
def test_labels_of_a_uniform_change_by_hand():
    original = np.full((1, 60, 72, 3), 100, np.uint8)
    blended = original.copy()
    blended[:, 10:30, 10:30] += np.uint8(15)
    mask = np.zeros((1, 60, 72), np.uint8)
    mask[:, 10:30, 10:30] = 1
    binary, continuous, logistic = (batched(kind, **LOGISTIC)(original, blended, mask)[0] for kind in KINDS)
    assert binary[20, 20] == 1 and binary[10, 20] == 1 and binary[9, 20] == 0
    assert continuous[20, 20] == 15 and continuous[5, 5] == 0
    assert logistic[20, 20] == 0.5 and logistic[5, 5] == 0


@pytest.mark.medium
def test_an_extreme_logistic_neither_overflows_nor_leaves_its_range():
    original, blended = np.zeros((1, 20, 20, 3), np.uint8), np.full((1, 20, 20, 3), 10, np.uint8)
    mask = np.ones((1, 20, 20), np.uint8)
    for midpoint, value in ((250.0, 0.0), (0.0, 1.0)):
        found = batched("logistic", steepness=100.0, midpoint=midpoint)(original, blended, mask)
        np.testing.assert_array_equal(found, value)


def test_a_change_of_one_level_on_average_is_none():
    original = np.full((1, 60, 72, 3), 100, np.uint8)
    blended = original + np.uint8(1)
    mask = np.ones((1, 60, 72), np.uint8)
    assert not batched("binary", **LOGISTIC)(original, blended, mask).any()
    blended[..., 0] += np.uint8(1)  # now 4/3 on average
    assert batched("binary", **LOGISTIC)(original, blended, mask).all()


def test_change_outside_the_label_mask_is_not_labelled():
    original = np.zeros((1, 60, 72, 3), np.uint8)
    blended = np.full((1, 60, 72, 3), 200, np.uint8)
    for kind in KINDS:
        assert not batched(kind, **LOGISTIC)(original, blended, np.zeros((1, 60, 72), np.uint8)).any()
