"""Metrics by sample, where an image shows one of several views of a part."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from jaxad import metrics
from tests.test_metrics import make_scores, random_case


def test_by_hand():
    groups = ["a", "b", "", "a", "b", ""]
    labels, scores = metrics.by_sample(groups, np.array([0, 0, 1, 1, 0, 0]), np.array([4.0, -2, 3, 1, -5, 0]))
    assert labels.tolist() == [1, 0, 1, 0] and scores.tolist() == [4, -2, 3, 0]
    labels, scores = metrics.by_sample([], np.zeros(0, int), np.zeros(0))
    assert labels.tolist() == scores.tolist() == []


def test_in_an_evaluation():
    """Views 0 to 2 of each part; the defects of defective parts are seen in some views alone."""
    masks, maps = random_case(11, n=18)  # every third one good
    masks[:9] = 0
    groups = [f"part {number // 3}" for number in range(18)]
    scores = make_scores(masks, maps, groups=groups)
    found = metrics.evaluate(scores)
    labels = scores.labels.reshape(6, 3).max(axis=1)
    of_samples = labels, scores.image_scores.reshape(6, 3).max(axis=1)
    assert set(found["sample"]) == set(metrics.IMAGE_METRICS)
    assert found["sample"]["auroc"] == pytest.approx(roc_auc_score(*of_samples))
    assert found["sample"]["ap"] == pytest.approx(average_precision_score(*of_samples))
    assert found["counts"] == {
        "good": 12, "defective": 6, "with_mask": 6, "good_samples": 3, "defective_samples": 3,
    }  # fmt: skip
    alone = metrics.evaluate(scores._replace(groups=[str(number) for number in range(18)]))
    assert alone["sample"] == alone["image"] == found["image"]
    assert "sample" not in metrics.evaluate(scores._replace(groups=None))


def test_what_cannot_be_computed_says_why():
    masks, maps = random_case(12)
    found = metrics.evaluate(make_scores(masks, maps, groups=["one"] * 6))
    assert found["sample"] == dict.fromkeys(metrics.IMAGE_METRICS)
    assert found["reasons"]["sample.auroc"] == "no good test images"
