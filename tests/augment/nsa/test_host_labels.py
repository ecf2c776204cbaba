import time

import cv2
import numpy as np
import pytest
from scipy import ndimage

from jaxad.augment.nsa import host_labels
from tests.shared import SHARED, needs_shared

DISK = np.add.outer(np.arange(-5, 6) ** 2, np.arange(-5, 6) ** 2) <= 25


@pytest.fixture(autouse=True)
def one_opencv_thread():
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


@pytest.fixture(scope="module")
def golden():
    with np.load(SHARED / "golden" / "nsa_labels.npz", allow_pickle=False) as archive:
        return dict(archive)


@needs_shared("golden", "nsa_labels.npz")
def test_golden_labels(golden):
    for index in range(10):
        images = golden["dest"][index], golden["blended"][index], golden["mask"][index]
        np.testing.assert_array_equal(host_labels.binary(*images), golden["binary"][index])
        continuous = host_labels.continuous(*images)
        np.testing.assert_allclose(continuous, golden["intensity"][index], rtol=0, atol=1e-4)
        logistic = host_labels.logistic(*images, steepness=1 / 12, midpoint=24.0)
        np.testing.assert_allclose(logistic, golden["logistic"][index], rtol=0, atol=1e-4)
        assert continuous.dtype == logistic.dtype == np.float32


def literal_labels(original, blended, mask, *, steepness, midpoint):
    """The definition, step by step with scipy's medians."""
    difference = np.abs(original.astype(float) - blended).mean(axis=2)
    binary = ndimage.median_filter((difference * mask > 1).astype(np.uint8), 5, mode="nearest")
    continuous = ndimage.median_filter(difference * binary, footprint=DISK, mode="nearest")
    return binary, continuous, binary / (1 + np.exp(-steepness * (continuous - midpoint)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("box", [(10, 40, 12, 50), (0, 25, 0, 30), (30, 60, 40, 72), (0, 60, 0, 72), (5, 16, 3, 9)])
def test_labels_equal_their_definition_also_at_the_image_border(channels, box):
    rng = np.random.default_rng(sum(box) + channels)
    original = rng.integers(0, 256, (60, 72, channels), dtype=np.uint8)
    blended = original.copy()
    top, bottom, left, right = box
    area = blended[top:bottom, left:right]
    area[:] = rng.integers(0, 256, area.shape)
    mask = np.zeros((60, 72), np.uint8)
    mask[top:bottom, left:right] = rng.random((bottom - top, right - left)) < 0.8
    binary, continuous, logistic = literal_labels(original, blended, mask, steepness=1 / 6, midpoint=15.0)
    np.testing.assert_array_equal(host_labels.binary(original, blended, mask), binary)
    np.testing.assert_allclose(host_labels.continuous(original, blended, mask), continuous, rtol=0, atol=1e-4)
    found = host_labels.logistic(original, blended, mask, steepness=1 / 6, midpoint=15.0)
    np.testing.assert_allclose(found, logistic, rtol=0, atol=1e-5)


def test_labels_of_a_uniform_change_by_hand():
    original = np.full((40, 40, 3), 100, np.uint8)
    blended = original.copy()
    blended[10:30, 10:30] += np.uint8(15)
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 10:30] = 1
    assert host_labels.binary(original, blended, mask)[20, 20] == 1
    assert host_labels.continuous(original, blended, mask)[20, 20] == 15
    logistic = host_labels.logistic(original, blended, mask, steepness=1 / 6, midpoint=15.0)
    assert logistic[20, 20] == 0.5
    assert logistic[5, 5] == 0


def test_an_extreme_logistic_neither_overflows_nor_leaves_its_range():
    original, blended = np.zeros((40, 40, 3), np.uint8), np.full((40, 40, 3), 10, np.uint8)
    mask = np.ones((40, 40), np.uint8)
    for midpoint, value in ((250.0, 0.0), (0.0, 1.0)):
        found = host_labels.logistic(original, blended, mask, steepness=100.0, midpoint=midpoint)
        np.testing.assert_array_equal(found, value)


def test_a_change_of_one_level_on_average_is_none():
    original = np.full((40, 40, 3), 100, np.uint8)
    blended = original + np.uint8(1)
    mask = np.ones((40, 40), np.uint8)
    assert not host_labels.binary(original, blended, mask).any()
    blended[..., 0] += np.uint8(1)  # now 4/3 on average
    assert host_labels.binary(original, blended, mask).all()


def test_change_outside_the_label_mask_is_not_labelled():
    original = np.zeros((40, 40, 3), np.uint8)
    blended = np.full((40, 40, 3), 200, np.uint8)
    mask = np.zeros((40, 40), np.uint8)
    assert not host_labels.logistic(original, blended, mask, steepness=1.0, midpoint=3.0).any()
    assert not host_labels.continuous(original, blended, mask).any()


@pytest.mark.parametrize(("height", "width", "largest"), [(11, 11, 765), (12, 40, 765), (50, 33, 255), (30, 30, 3)])
def test_disk_median_equals_scipy(height, width, largest):
    values = np.random.default_rng(height).integers(0, largest + 1, (height, width)).astype(np.uint16)
    reference = ndimage.median_filter(values, footprint=DISK)[5:-5, 5:-5]
    np.testing.assert_array_equal(host_labels.disk_median(values), reference)


def test_disk_median_of_a_half_plane_by_hand():
    values = np.zeros((21, 21), np.uint16)
    values[:, :10] = 700
    # A centre in column 9 has columns 4 to 9 of the bright half in its disk: (81 + 11) / 2 = 46 of 81 pixels.
    assert host_labels.disk_median(values)[0].tolist() == [700] * 5 + [0] * 6


@pytest.mark.parametrize("side", [5, 7])
def test_majority_is_the_median_of_a_mask(side):
    mask = (np.random.default_rng(side).random((40, 31)) < 0.5).astype(np.uint8)
    np.testing.assert_array_equal(host_labels.majority(mask, side), cv2.medianBlur(mask, side))


def fastest(function, repetitions: int) -> float:
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def test_disk_median_is_several_times_faster_than_a_general_one():
    values = np.random.default_rng(0).integers(0, 766, (110, 110)).astype(np.uint16)
    ours = fastest(lambda: host_labels.disk_median(values), 15)
    general = fastest(lambda: ndimage.median_filter(values, footprint=DISK), 5)
    assert general > 2.5 * ours
