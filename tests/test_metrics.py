"""Metrics against scikit-learn, brute-force AU-PRO and AUPIMO, golden values and numbers worked out by hand."""

import itertools
import time

import cv2
import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from jaxad import metrics
from tests.refusals import refuses
from tests.shared import SHARED, needs_shared


def pixel_thresholds(masks, maps):
    masks, maps = np.asarray(masks), np.asarray(maps, np.float32)
    return metrics.select(metrics.rank_pixels(masks, maps), np.ones(len(maps), bool))


def image_thresholds(labels, scores):
    return metrics.select(metrics.rank_images(np.asarray(labels), np.asarray(scores)), np.ones(len(labels), bool))


def brute_force_aupro(masks, maps, limit):
    """Walks through every distinct score and averages the covered fractions of the components one by one."""
    components = [ndimage.label(mask, structure=np.ones((3, 3))) for mask in masks]
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        above = maps >= threshold
        overlaps = [above[i][labelled == j].mean() for i, (labelled, count) in enumerate(components)
                    for j in range(1, count + 1)]
        points.append((above[masks == 0].mean(), np.mean(overlaps)))
    fpr, pro = np.array(points).T
    end = np.interp(limit, fpr, pro)
    inside = fpr <= limit
    return np.trapezoid(np.append(pro[inside], end), np.append(fpr[inside], limit)) / limit


def brute_force_aupimo(masks, maps, good, bounds):
    """Walks through every distinct score and integrates the curve of each image step by step."""
    points = [(0.0, np.zeros(len(maps)))]
    for threshold in np.unique(maps)[::-1]:
        above = maps >= threshold
        rate = np.mean([above[i].mean() for i in np.flatnonzero(good)])
        points.append((rate, np.array([found[mask > 0].mean() if mask.any() else np.nan
                                       for found, mask in zip(above, masks, strict=True)])))
    area = np.zeros(len(maps))
    for (rate, overlap), (next_rate, next_overlap) in itertools.pairwise(points):
        start, end = np.clip([rate, next_rate], *bounds)
        if rate == 0:  # nothing between no false positive and the first one
            at_start = at_end = overlap
        elif rate == next_rate:
            continue
        else:
            slope = (next_overlap - overlap) / np.log(next_rate / rate)
            at_start, at_end = overlap + slope * np.log(start / rate), overlap + slope * np.log(end / rate)
        area += (at_start + at_end) / 2 * np.log(end / start)
    return area / np.log(bounds[1] / bounds[0])


def f1_max_reference(labels, scores):
    precision, recall, _ = precision_recall_curve(labels, scores)
    return max(2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True) if p + r > 0)


def random_case(seed, *, n=6, size=24, levels=0):
    """n images, every third one good; `levels` > 0 rounds the scores to that many steps per unit, for ties."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, size, size), np.uint8)
    for i in range(n):
        for _ in range(3 if i % 3 else 0):
            y, x = rng.integers(0, size - 6, 2)
            masks[i, y : y + rng.integers(1, 6), x : x + rng.integers(1, 6)] = 1
    maps = (rng.normal(size=masks.shape) + 1.2 * masks).astype(np.float32)
    return masks, (np.round(maps * levels) / np.float32(levels)).astype(np.float32) if levels else maps


def make_scores(masks, maps, *, defects=None, **changes):
    n = len(maps)
    labels = np.array([0 if mask is None else int(mask.any()) for mask in masks])
    defects = defects or ["crack" if label else "good" for label in labels]
    fields = dict(ids=[f"test/{i:03d}" for i in range(n)], labels=labels, defects=defects, masks=list(masks),
                  images=np.zeros((*maps.shape, 3), np.uint8), image_scores=maps.max((1, 2)), maps=maps)
    return metrics.TestScores(**(fields | changes))


@needs_shared("golden", "metrics.npz")
@pytest.mark.parametrize("case", range(4))
def test_golden_values(case):
    golden = np.load(SHARED / "golden" / "metrics.npz", allow_pickle=False)
    thresholds = pixel_thresholds(golden[f"mask{case}"], golden[f"score{case}"])
    np.testing.assert_allclose(metrics.aupro(thresholds, limit=0.3), golden[f"aupro{case}"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(metrics.auroc(thresholds), golden[f"pixel_auroc{case}"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(metrics.average_precision(thresholds), golden[f"pixel_ap{case}"], rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("levels", [0, 1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_pixel_metrics_agree_with_references(seed, levels):
    masks, maps = random_case(seed, levels=levels)
    thresholds = pixel_thresholds(masks, maps)
    flat = masks.ravel(), maps.ravel()
    np.testing.assert_allclose(metrics.auroc(thresholds), roc_auc_score(*flat), atol=1e-12)
    np.testing.assert_allclose(metrics.average_precision(thresholds), average_precision_score(*flat), atol=1e-12)
    np.testing.assert_allclose(metrics.f1_max(thresholds), f1_max_reference(*flat), atol=1e-12)
    for limit in (0.05, 0.3, 1.0):
        np.testing.assert_allclose(metrics.aupro(thresholds, limit=limit), brute_force_aupro(masks, maps, limit),
                                   atol=1e-12)


@pytest.mark.parametrize("levels", [0, 1, 3, 10])
@pytest.mark.parametrize("bounds", [(1e-2, 1e-1), (2e-3, 1.0), (0.03, 0.031)])
def test_aupimo_agrees_with_a_reference(levels, bounds):
    masks, maps = random_case(levels, size=20, levels=levels)  # images 0 and 3 are good
    masks[4] = 0  # of a defective image: neither a good one, nor one that has an overlap
    good = np.isin(np.arange(6), (0, 3))
    found = metrics.aupimo(metrics.rank_pixels(masks, maps), good, bounds=bounds)
    assert np.isnan(found).tolist() == [True, False, False, True, True, False]
    np.testing.assert_allclose(found, brute_force_aupimo(masks, maps, good, bounds), atol=1e-12)


@pytest.mark.parametrize("bounds, expected", [
    ((1e-2, 1e-1), [(0.01 + 0.1) / 2, (0.1 + 1) / 2]),
    ((1e-1, 1.0), [(0.1 + 1) / 2, 1.0]),
    ((1e-3, 1e-1), [(0.001 + 2 * 0.01 + 0.1) / 4, (0.01 + 2 * 0.1 + 1) / 4]),
])  # fmt: skip
def test_aupimo_by_hand(bounds, expected):
    # Of 10,000 pixels 1 scores 4, 10 at least 3, 100 at least 2 and so on: the rates are powers of ten, and between
    # them an overlap is straight in the logarithm. In the second image all pixels are anomalous, in the third the
    # highest tenth, so that its overlap is ten times as large, at most 1.
    order = np.arange(10_000).reshape(100, 100)
    scores = 4 - np.searchsorted([1, 10, 100, 1000], order, "right").astype(np.float32)
    masks = np.stack([order < 0, order >= 0, order < 1000]).astype(np.uint8)
    found = metrics.aupimo(metrics.rank_pixels(masks, np.stack([scores] * 3)), np.array([1, 0, 0], bool), bounds=bounds)
    np.testing.assert_allclose(found, [np.nan, *expected], atol=1e-12)


def test_aupimo_at_its_ends():
    masks, maps = np.zeros((2, 2, 10, 10))
    masks[1, :5] = 1
    good = np.array([True, False])

    def area(maps):
        return metrics.aupimo(metrics.rank_pixels(masks, maps.astype(np.float32)), good, bounds=(0.1, 0.5))[1]

    assert area(maps) == 0.0  # constant scores: whatever finds the defect calls every good pixel defective
    assert area(masks) == 1.0
    assert area(-masks) == 0.0
    # A good pixel in five scores highest, so no threshold above 0.2 has a smaller rate than that, but for 0.
    maps[0, :2] = 2
    assert area(maps + masks) == pytest.approx(np.log(0.5 / 0.2) / np.log(0.5 / 0.1))
    # Pixels beside the defect are no false positives of a good image.
    maps = masks.copy()
    maps[1, 5:] = 2
    assert area(maps) == 1.0


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
def test_image_metrics_agree_with_references(dtype):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 60)
    scores = np.round(3 * (rng.normal(size=60) + labels)).astype(dtype)
    thresholds = image_thresholds(labels, scores)
    np.testing.assert_allclose(metrics.auroc(thresholds), roc_auc_score(labels, scores), atol=1e-12)
    expected = average_precision_score(labels, scores)
    np.testing.assert_allclose(metrics.average_precision(thresholds), expected, atol=1e-12)
    np.testing.assert_allclose(metrics.f1_max(thresholds), f1_max_reference(labels, scores), atol=1e-12)


def test_image_metrics_by_hand():
    # Descending: 1 (anomalous), then a tie of both kinds at 0.5, then good. Of the 2 x 2 pairs 3 are won and 1 is tied.
    thresholds = image_thresholds([0, 1, 1, 0], [0.5, 0.5, 1.0, 0.0])
    assert metrics.auroc(thresholds) == 3.5 / 4
    assert metrics.average_precision(thresholds) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert metrics.f1_max(thresholds) == pytest.approx(2 * 2 / (3 + 2))


def test_scores_closer_than_float32_stay_apart_for_images():
    assert metrics.auroc(image_thresholds([0, 1], [1.0, 1.0 + 1e-12])) == 1.0


def test_negative_scores_and_both_zeros():
    # 0.0 and -0.0 tie; negative scores sort below them.
    maps = np.array([[[-3.0, -2.0, -0.0, 0.0]]], np.float32)
    assert metrics.auroc(pixel_thresholds([[[0, 1, 0, 1]]], maps)) == pytest.approx((1 + 0 + 1 + 0.5) / 4)


def test_aupro_by_hand():
    # Components of 1 and 2 pixels; good pixels: 4. Score order: small region (PRO 1/2), a good pixel (FPR 1/4), half
    # of the large region (PRO 3/4), a good pixel (FPR 1/2) tied with its other half (PRO 1), the rest.
    maps = np.array([[[6.0, 5.0, 4.0, 3.0, 3.0, 2.0, 1.0]]], np.float32)
    masks = np.array([[[1, 0, 1, 1, 0, 0, 0]]])
    fpr, pro = metrics.pro_curve(pixel_thresholds(masks, maps), limit=0.3)
    at_limit = 0.75 + 0.25 * (0.3 - 0.25) / 0.25
    assert (fpr[-1], pro[-1]) == (0.3, pytest.approx(at_limit))
    area = 0.25 * 0.5 + 0.05 * (0.75 + at_limit) / 2
    assert metrics.aupro(pixel_thresholds(masks, maps), limit=0.3) == pytest.approx(area / 0.3)


def test_components_are_8_connected():
    # Joined by a corner, three pixels are one region: two of three found is an overlap of 2/3, not of (1/2 + 1) / 2.
    masks = np.array([[[1, 1, 0], [0, 0, 1]]])
    maps = np.array([[[9, 0, 1], [1, 1, 9]]], np.float32)
    assert pixel_thresholds(masks, maps).overlap == pytest.approx([2 / 3, 1.0])


def test_constant_scores_are_chance():
    masks, maps = random_case(0)
    thresholds = pixel_thresholds(masks, np.zeros_like(maps))
    assert metrics.auroc(thresholds) == 0.5
    assert metrics.aupro(thresholds, limit=0.3) == pytest.approx(0.15)
    assert metrics.average_precision(thresholds) == pytest.approx(masks.mean())


def test_curves_run_from_corner_to_corner():
    thresholds = pixel_thresholds(*random_case(2, levels=4))
    for fpr, rise in (metrics.roc_curve(thresholds), metrics.pro_curve(thresholds)):
        assert (fpr[0], rise[0]) == (0, 0) and (fpr[-1], rise[-1]) == (1, pytest.approx(1))
        assert (np.diff(fpr) >= 0).all() and (np.diff(rise) >= -1e-12).all()


@pytest.mark.medium
def test_evaluate_by_defect_takes_good_images_and_that_type_alone():
    masks, maps = random_case(4, n=9)
    defects = ["good", "crack", "hole"] * 3
    result = metrics.evaluate(make_scores(masks, maps, defects=defects), pro_limit=0.2)
    assert set(result["by_defect"]) == {"crack", "hole"}
    assert all(name.endswith("pixel.aupimo") for name in result["reasons"])
    assert result["counts"] == {"good": 3, "defective": 6, "with_mask": 6}
    for defect in ("crack", "hole"):
        chosen = [d in ("good", defect) for d in defects]
        own, thresholds = result["by_defect"][defect], pixel_thresholds(masks[chosen], maps[chosen])
        assert own["images"] == 3
        assert own["pixel"]["auroc"] == pytest.approx(roc_auc_score(masks[chosen].ravel(), maps[chosen].ravel()))
        assert own["pixel"]["ap"] == pytest.approx(metrics.average_precision(thresholds))
        assert own["pixel"]["aupro"] == pytest.approx(brute_force_aupro(masks[chosen], maps[chosen], 0.2))
        assert own["pixel"]["aupro_005"] == pytest.approx(brute_force_aupro(masks[chosen], maps[chosen], 0.05))
        assert own["image"]["auroc"] == pytest.approx(
            roc_auc_score(masks[chosen].any((1, 2)), maps[chosen].max((1, 2))))
    assert result["pixel"]["aupro"] == pytest.approx(brute_force_aupro(masks, maps, 0.2))


def test_evaluate_gives_aupimo_of_images_and_its_means():
    masks, maps = random_case(10, n=7, size=256)  # images 0, 3 and 6 are good
    maps += 2 * masks  # found at the false positive rates that it looks at
    defects = ["good", "crack", "crack", "good", "hole", "hole", "good"]
    scores = make_scores(masks, maps, defects=defects)
    labels = scores.labels.copy()
    masks[5] = 0
    unknown = [masks[0], masks[1], None, None, *masks[4:]]  # 2 is defective, 3 good
    result = metrics.evaluate(scores._replace(masks=unknown, labels=labels))
    known = np.arange(7) != 2
    expected = metrics.aupimo(metrics.rank_pixels(masks[known], maps[known]), labels[known] == 0)[[1, 3]]
    assert (expected > 0.1).all() and (expected < 0.9).all()
    assert result["by_image"]["aupimo"] == [None, expected[0], None, None, expected[1], None, None]
    assert result["pixel"]["aupimo"] == pytest.approx(expected.mean())
    for defect, value in zip(("crack", "hole"), expected, strict=True):
        assert result["by_defect"][defect]["pixel"]["aupimo"] == pytest.approx(value)
    assert result["reasons"] == {}


def test_aupimo_needs_a_good_pixel_at_its_lowest_rate():
    masks, maps = np.zeros((3, 250, 200), np.uint8), np.zeros((3, 250, 200), np.float32)
    masks[2, :9, :9] = 1
    defects = ["good", "good", "crack"]
    assert metrics.evaluate(make_scores(masks, maps, defects=defects))["pixel"]["aupimo"] == 0  # of 100,000 pixels
    fewer = metrics.evaluate(make_scores(masks[:, 1:], maps[:, 1:], defects=defects))
    reason = "1e-05 of the 99,600 pixels of the good test images is less than one pixel"
    assert fewer["pixel"]["aupimo"] is None and fewer["by_image"] == {"aupimo": [None] * 3}
    assert fewer["reasons"] == {"pixel.aupimo": reason, "by_defect.crack.pixel.aupimo": reason}
    alone = metrics.evaluate(make_scores(masks[2:], maps[2:], defects=["crack"]))
    assert alone["pixel"]["aupro"] is not None and alone["reasons"]["pixel.aupimo"] == "no good test images"
    ranking = metrics.rank_pixels(masks[:, 1:], maps[:, 1:])
    with pytest.raises(ValueError, match="99600 pixels"):
        metrics.aupimo(ranking, np.array([1, 1, 0], bool))
    for bounds in ((0.0, 0.1), (0.1, 0.1), (0.1, 1.1)):
        with pytest.raises(ValueError, match="ascend in"):
            metrics.aupimo(ranking, np.array([1, 1, 0], bool), bounds=bounds)


def test_image_without_mask_is_left_out_of_pixel_metrics_only():
    masks, maps = random_case(5)
    unknown = [None if i in (0, 1) else mask for i, mask in enumerate(masks)]  # 0 is good, 1 defective
    scores = make_scores(masks, maps)._replace(masks=unknown)
    result = metrics.evaluate(scores)
    kept = np.arange(len(maps)) != 1
    assert result["pixel"]["auroc"] == pytest.approx(roc_auc_score(masks[kept].ravel(), maps[kept].ravel()))
    assert result["image"]["auroc"] == pytest.approx(roc_auc_score(scores.labels, scores.image_scores))
    assert result["counts"]["with_mask"] == 3


@pytest.mark.parametrize("chosen, masks_known, image_reason, pixel_reason", [
    ([], True, "no test images", "no test images"),
    ([0, 3], True, "no anomalous test images", "no anomalous test images"),
    ([1, 2], True, "no good test images", ""),
    ([0, 1, 2], False, "", "no ground-truth masks for the anomalous test images"),
])
def test_what_cannot_be_computed_says_why(chosen, masks_known, image_reason, pixel_reason):
    masks, maps = random_case(6)
    scores = make_scores(masks, maps)
    picked = scores._replace(
        ids=[scores.ids[i] for i in chosen], labels=scores.labels[chosen], defects=[scores.defects[i] for i in chosen],
        masks=[masks[i] if masks_known else None for i in chosen], image_scores=scores.image_scores[chosen],
        maps=maps[chosen])
    result = metrics.evaluate(picked)
    for level, names, reason in (("image", metrics.IMAGE_METRICS, image_reason),
                                 ("pixel", metrics.PIXEL_METRICS, pixel_reason)):
        for name in names:
            if name == "aupimo" and not reason:  # these images are too small for it
                continue
            assert (result[level][name] is None) == bool(reason)
            assert result["reasons"].get(f"{level}.{name}", "") == reason
    if not masks_known:
        assert result["reasons"]["by_defect.crack.pixel.aupro"] == pixel_reason


def test_empty_masks_of_defective_images_say_why():
    masks, maps = random_case(7)
    result = metrics.evaluate(make_scores(masks, maps)._replace(masks=list(np.zeros_like(masks))))
    assert result["reasons"]["pixel.aupro"] == "the ground-truth masks mark no anomalous pixel"


@pytest.mark.parametrize("where", ["image_scores", "maps"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_name_the_image(where, value):
    scores = make_scores(*random_case(8))
    getattr(scores, where)[2] = value
    with refuses(None, "test/002"):
        metrics.evaluate(scores)


def test_wrong_arguments_are_refused():
    masks, maps = random_case(9)
    with pytest.raises(ValueError, match="float32"):
        metrics.rank_pixels(masks, maps.astype(np.float64))
    with pytest.raises(ValueError, match="mask 0"):
        metrics.rank_pixels(masks[:, 1:], maps)
    with pytest.raises(ValueError, match="map 5 is not finite"):
        metrics.rank_pixels(masks, np.where(np.arange(6)[:, None, None] == 5, np.float32(np.nan), maps))
    with pytest.raises(ValueError, match="0 or 1"):
        image_thresholds([0, 2], [0.0, 1.0])
    with pytest.raises(ValueError, match="finite"):
        image_thresholds([0, 1], [0.0, np.nan])
    with pytest.raises(ValueError, match="equally long"):
        metrics.rank_images(np.zeros(2, int), np.zeros(3))
    for metric in (metrics.auroc, metrics.average_precision, metrics.f1_max, metrics.aupro):
        with pytest.raises(ValueError, match="need good and anomalous"):
            metric(pixel_thresholds(np.zeros_like(masks), maps))
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        metrics.evaluate(make_scores(masks, maps), pro_limit=0.0)
    with pytest.raises(ValueError, match="'test/001' is labelled good"):
        metrics.evaluate(make_scores(masks, maps, labels=np.zeros(6, int)))


@pytest.mark.medium
def test_150_images_take_less_than_8_cpu_seconds():
    rng = np.random.default_rng(0)
    masks = np.zeros((150, 256, 256), np.uint8)
    for i in range(50, 150):
        for x, y in rng.integers(0, 256, (3, 2)).tolist():
            cv2.circle(masks[i], (x, y), 20, 1, -1)
    maps = np.stack([cv2.GaussianBlur(rng.normal(size=(256, 256)) + 0.3 * mask, (0, 0), 3) for mask in masks])
    defects = ["good"] * 50 + [f"type {i % 8}" for i in range(100)]
    one_by_one = [[(mask, 0.5), (np.tril(mask), 1.0)] if mask.any() else None for mask in masks]
    more = {"groups": [f"part {i // 5}" for i in range(150)], "single_defects": one_by_one}
    scores = make_scores(masks, maps.astype(np.float32), defects=defects, **more)
    seconds = []
    while len(seconds) < 3 and min(seconds, default=8) >= 8:  # the machine may be busy: the best of three counts
        start = time.process_time()
        result = metrics.evaluate(scores)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 8
    assert len(result["by_defect"]) == 8 and result["pixel"]["aupro"] > 0.8
    assert result["reasons"] == {}  # all metrics were computed
    assert result["pixel"]["auspro_1"] > 0.8 and result["sample"]["auroc"] is not None
