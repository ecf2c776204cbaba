"""What a check of an export passes, against stand-ins for exports that say something else."""

import json

import numpy as np
import pytest

from jaxad import config as configs
from jaxad.detector import Detector
from jaxad.exporting import checking
from tests.exporting.test_methods import detector, pictures, small  # noqa: F401
from tests.parts import BASELINE


class StandIn:
    """An export that says of its detector's scores what `change` makes of them."""

    def __init__(self, found, change=lambda scores: scores, precision="float32"):
        self._found, self._change = found, change
        self.card = {"format": "onnx", "precision": precision, "trained_in": found.config.get("dtype", "float32")}

    def score(self, images, *, batch):
        return self._change(self._found.score(images, batch=batch))


@pytest.fixture(scope="module")
def baseline():
    config = configs.load(f"{BASELINE}:bottle", {"data.size": "32", "score.sigma": "1.0", "score.floor": "10.0"})
    shape = (32, 32, 3)
    return Detector(config, {}, {"mean": np.full(shape, 0.4, np.float32), "std": np.full(shape, 0.1, np.float32)})


@pytest.mark.medium
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("what", ["image", "map"])
def test_what_is_not_finite_is_not_passed(baseline, what, value):
    images = pictures(3, 32)
    assert checking.compare(baseline, StandIn(baseline), [images])["passed"]

    def spoilt(scores):
        values = getattr(scores, what).copy()
        values[(1,) * values.ndim] = value
        return scores._replace(**{what: values})

    made = checking.compare(baseline, StandIn(baseline, spoilt), [images])
    assert made["passed"] is False
    assert made["largest_difference"]["scores" if what == "image" else "maps"] is None
    json.dumps(made, allow_nan=False)
    assert "no finite number" in (told := checking.summary(made | {"with": "images"})) and "FAILED" in told


@pytest.mark.slow
def test_a_detector_of_bfloat16_is_compared_in_float32():
    """An export in float32 that says 1 % more is not passed, and one that says what float32 does is."""
    found = detector("lite:object", dtype="bfloat16")
    exact = checking._in_float32(found)
    assert exact.config.dtype == "float32" != found.config.dtype
    images = pictures(4, 32, seed=7)
    scored = exact.score(images)
    found.heat_range, found.good_scores = (0.0, float(np.ptp(scored.map))), (0.0, float(scored.image.std()))
    made = checking.compare(found, StandIn(exact), [images])
    assert made["passed"] and made["tolerance"] == 1e-4
    assert made["largest_difference_as_trained"]["maps"] > 1e-4 > made["largest_difference"]["maps"]
    assert "as it was trained" in checking.summary(made | {"with": "images"})

    def more(scores):
        return scores._replace(image=scores.image * 1.01, map=scores.map * 1.01)

    assert not checking.compare(found, StandIn(exact, more), [images])["passed"]
