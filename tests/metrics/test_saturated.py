"""AU-sPRO against a slow reference from its definition, and numbers worked out by hand."""

import json

import numpy as np
import pytest
from scipy import ndimage

from jaxad import metrics
from tests.test_metrics import make_scores, pixel_thresholds, random_case


def reference(maps, defects, limit):
    """Walks through every distinct score and averages what is counted of the defects one by one."""
    bad = np.zeros(maps.shape, bool)
    for i, own in enumerate(defects):
        for mask, _ in own:
            bad[i] |= mask > 0
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        above = maps >= threshold
        covered = [
            min((above[i] & (mask > 0)).sum() / (share * (mask > 0).sum()), 1)
            for i, own in enumerate(defects)
            for mask, share in own
        ]
        points.append((above[~bad].mean(), np.mean(covered)))
    fpr, spro = np.array(points).T
    inside = fpr <= limit
    end = np.interp(limit, fpr, spro)
    return np.trapezoid(np.append(spro[inside], end), np.append(fpr[inside], limit)) / limit


def case(seed, *, levels=0, size=20):
    """Six images with the union of their defects as masks: two upon each other, one of which in scattered pixels."""
    masks, maps = random_case(seed, levels=levels, size=size)
    rng = np.random.default_rng(seed)
    defects = [[] for _ in maps]
    for i in (1, 2, 4, 5):
        scattered = 255 * (rng.random(masks[i].shape) < 0.1).astype(np.uint8)
        defects[i] = [(masks[i].copy(), 0.3), (scattered, rng.uniform(0.001, 1))]
        masks[i] |= scattered > 0
    return masks, maps, defects


def selected(masks, maps, defects, chosen=None):
    maps = np.asarray(maps, np.float32)
    chosen = np.ones(len(maps), bool) if chosen is None else chosen
    return metrics.select_saturated(metrics.rank_pixels(masks, maps), maps, defects, chosen)


@pytest.mark.parametrize("levels", [0, 1, 3, 10])
@pytest.mark.parametrize("limit", [0.01, 0.05, 0.3, 1.0])
def test_agrees_with_a_reference(levels, limit):
    masks, maps, defects = case(levels, levels=levels)
    found = metrics.aupro(selected(masks, maps, defects), limit=limit)
    np.testing.assert_allclose(found, reference(maps, defects, limit), atol=1e-12)


def test_by_hand():
    # Scores 6 and 5 are the defect of two pixels, of which one is enough; 5, 4 and 2 that of 3 pixels, of which it
    # shares the first with the other, and of which 2.5 are enough. Good pixels score 3 and 1.
    maps = [[[6, 5, 4, 3, 2, 1]]]
    first, second = (np.array([[1, 1, 0, 0, 0, 0]]), 1 / 2), (np.array([[0, 1, 1, 0, 1, 0]]), 2.5 / 3)
    thresholds = selected([np.array([[1, 1, 1, 0, 1, 0]])], maps, [[first, second]])
    assert (thresholds.good, thresholds.anomalous) == (2, 5) and thresholds.tp.tolist() == [1, 3, 4, 5]
    assert thresholds.fp.tolist() == thresholds.fp_above.tolist() == [0, 0, 0, 1]
    np.testing.assert_allclose(thresholds.overlap, [0.5, 0.5 + 0.2, 0.5 + 0.4, 1.0])
    # Up to the rate 1/2 the curve is flat at 0.9, and from there on at 1.
    assert metrics.aupro(thresholds, limit=0.5) == pytest.approx(0.9)
    assert metrics.aupro(thresholds, limit=1.0) == pytest.approx(0.95)


def test_a_saturation_of_everything_is_the_overlap_of_regions():
    masks, maps = random_case(3, levels=3)
    defects = []
    for mask in masks:
        labelled, count = ndimage.label(mask, structure=np.ones((3, 3)))
        defects.append([(labelled == j, 1.0) for j in range(1, count + 1)])
    for made, expected in zip(selected(masks, maps, defects), pixel_thresholds(masks, maps), strict=True):
        np.testing.assert_allclose(made, expected, atol=1e-12)


def test_a_small_saturation_is_reached_by_one_pixel():
    masks = [np.ones((1, 3), np.uint8), np.zeros((1, 3), np.uint8)]
    maps = [[[3, 1, 1]], [[2, 2, 2]]]
    assert metrics.aupro(selected(masks, maps, [[(masks[0], 0.01)], None]), limit=0.05) == 1.0
    assert metrics.aupro(selected(masks, maps, [[(masks[0], 1.0)], None]), limit=0.05) < 0.4


def test_a_defect_that_has_vanished_is_left_out():
    masks, maps, defects = case(1)
    expected = selected(masks, maps, defects)
    defects[1].append((np.zeros_like(masks[1]), 0.5))
    for made, before in zip(selected(masks, maps, defects), expected, strict=True):
        np.testing.assert_array_equal(made, before)


def test_what_cannot_be_counted_is_refused():
    masks, maps = np.zeros((1, 2, 2), np.uint8), np.zeros((1, 2, 2), np.float32)
    masks[0, 0, 0] = 1
    ranking, chosen = metrics.rank_pixels(masks, maps), np.ones(1, bool)
    for own in ((masks[0], 0), (masks[0], 1.5), (masks[0], np.nan), (masks[0, :1], 1)):
        with pytest.raises(ValueError, match="a defect of image 0"):
            metrics.select_saturated(ranking, maps, [[own]], chosen)
    for wrong, defects in ((maps, []), (maps.astype(float), [[]])):
        with pytest.raises(ValueError, match="in float32"):
            metrics.select_saturated(ranking, wrong, defects, chosen)
    with pytest.raises(ValueError, match="need good and anomalous"):
        metrics.aupro(metrics.select_saturated(ranking, maps, [[]], chosen))


def test_in_an_evaluation_by_type_and_over_types():
    """A type's curve has the good pixels of its own images and of all good ones, as in the authors' program."""
    masks, maps, defects = case(5)
    types = ["good", "logical", "logical", "good", "structural", "structural"]
    scores = make_scores(masks, maps, defects=types, single_defects=[own or None for own in defects])
    found = metrics.evaluate(scores)
    assert set(found["pixel"]) == {*metrics.PIXEL_METRICS, *metrics.SPRO_LIMITS}
    for name, limit in metrics.SPRO_LIMITS.items():
        assert found["pixel"][name] == pytest.approx(reference(maps, defects, limit))
        each = []
        for kind in ("logical", "structural"):
            own = [i for i, one in enumerate(types) if one in (kind, "good")]
            each.append(reference(maps[own], [defects[i] for i in own], limit))
            assert found["by_defect"][kind]["pixel"][name] == pytest.approx(each[-1])
        assert found["over_types"]["pixel"][name] == pytest.approx(np.mean(each))
    both = [found["by_defect"][kind]["image"]["auroc"] for kind in ("logical", "structural")]
    assert found["over_types"]["image"] == {"auroc": pytest.approx(np.mean(both))}
    assert {reason for reason in found["reasons"] if "auspro" in reason} == set()
    json.dumps(found)


def test_in_an_evaluation_that_cannot_have_it():
    masks, maps, defects = case(6)
    vanished = [[(0 * mask, share) for mask, share in own] for own in defects]
    found = metrics.evaluate(make_scores(masks, maps, single_defects=vanished))
    assert found["pixel"]["auspro_005"] is None is found["over_types"]["pixel"]["auspro_005"]
    assert found["reasons"]["pixel.auspro_005"] == "no pixel of any defect is left at this size"
    assert found["reasons"]["by_defect.crack.pixel.auspro_1"]
    good = metrics.evaluate(make_scores(masks[[0, 3]], maps[[0, 3]], single_defects=[None, None]))
    assert good["reasons"]["pixel.auspro_005"] == "no anomalous test images"
    assert good["over_types"] == {"image": {"auroc": None}, "pixel": dict.fromkeys(metrics.SPRO_LIMITS)}
    unknown = make_scores(masks, maps, single_defects=defects)._replace(masks=[masks[0], None, *masks[2:]])
    known = [0, 2, 3, 4, 5]
    assert metrics.evaluate(unknown)["pixel"]["auspro_03"] == pytest.approx(
        reference(maps[known], [defects[i] for i in known], 0.3)
    )
