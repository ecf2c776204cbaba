"""Decisions by the fitted thresholds against scikit-learn's figures and by hand."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from jaxad.data.geometry import Geometry
from jaxad.metrics import TestScores
from jaxad.scoring.decisions import image_decisions, pixel_decisions
from jaxad.scoring.region import Region


def scored(maps, masks, labels, image_scores=None):
    maps, labels = np.asarray(maps, np.float32), np.array(labels)
    return TestScores(
        ids=[str(number) for number in range(len(maps))],
        labels=labels,
        defects=["spot" if label else "good" for label in labels],
        images=np.zeros((*maps.shape, 3), np.uint8),
        masks=masks,
        image_scores=np.asarray(maps.max((1, 2)) if image_scores is None else image_scores, np.float32),
        maps=maps,
    )


@pytest.mark.parametrize("level", [-0.5, 0.3, 1.2])
@pytest.mark.parametrize("crop", [0, 24])
def test_seg_f1_is_that_of_scikit_learn(level, crop):
    rng, size = np.random.default_rng(0), 32
    labels = [0, 0, 1, 1, 1]
    masks = [None, np.zeros((size, size), np.uint8), *(np.uint8(rng.random((3, size, size)) < 0.2))]
    region = Region(Geometry((size, size)), (size - crop) // 2 if crop else 0)
    maps = rng.normal(size=(5, size, size))
    found = pixel_decisions(scored(maps, masks, labels), level, region)
    truth = np.stack([np.zeros((size, size), np.uint8) if mask is None else mask for mask in masks])
    called = np.float32(maps) > level
    outside = np.ones((size, size), bool)
    region.inside(outside)[...] = False
    called[:, outside] = False
    given = truth.ravel(), called.ravel()
    for name, function in (("seg_f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert found[name] == pytest.approx(function(*given), abs=1e-6), name
    assert "reason" not in found


def test_decisions_by_hand():
    maps = np.zeros((3, 4, 4))
    maps[0, 0, 0] = maps[0, 3, 3] = 2  # two regions in a good image
    maps[2, 1, 1:4] = 2
    mask = np.zeros((4, 4), np.uint8)
    mask[1, :2] = 1
    test = scored(maps, [None, None, mask], [0, 0, 1])
    found = pixel_decisions(test, 1.0, Region(Geometry((4, 4))))
    assert found == {
        "seg_f1": pytest.approx(2 * 1 / (2 + 5)), "precision": 1 / 5, "recall": 1 / 2,
        "false_alarm_rate": 0.5, "regions_per_good_image": 1.0,
    }  # fmt: skip
    assert image_decisions(test, 1.0) == {"false_alarm_rate": 0.5, "detection_rate": 1.0}
    above = pixel_decisions(test, 9.0, Region(Geometry((4, 4))))
    assert above["precision"] is None and above["seg_f1"] == above["recall"] == above["false_alarm_rate"] == 0


def test_what_cannot_be_measured_has_a_reason():
    maps = np.zeros((2, 4, 4))
    good = pixel_decisions(scored(maps, [None, None], [0, 0]), 1.0, Region(Geometry((4, 4))))
    assert good["seg_f1"] is None and good["reason"] == "no anomalous test images" and good["false_alarm_rate"] == 0
    unknown = pixel_decisions(scored(maps, [None, None], [0, 1]), 1.0, Region(Geometry((4, 4))))
    assert unknown["seg_f1"] is None and "mask" in unknown["reason"]
    bad = scored(maps, [np.ones((4, 4), np.uint8)] * 2, [1, 1])
    assert pixel_decisions(bad, 1.0, Region(Geometry((4, 4))))["false_alarm_rate"] is None
    assert image_decisions(bad, 1.0)["false_alarm_rate"] is None
