"""Large images in tiles: trained on, scored and joined, with every kind of density."""

import numpy as np
import pytest

import jaxad
from jaxad.methods.method import Scores
from tests.test_aspect_ratio import TRAINED, load, surface

pytestmark = pytest.mark.medium

SHAPE, TILED = (64, 256), {"data.size": 64, "data.tile": 32, "data.tile_overlap": 0.25, "data.holdout": 0.25}
SLOW = ("cutpaste_patch", "dla", "nsa")  # to compile for eight devices
METHODS = {
    "baseline_mean:object": {"score.sigma": 1.0},
    "lite:texture": {"density.channels": 8},
    "nsa_logistic:texture": {"view.crop": 32, "dtype": "float32", **TRAINED},
    "cutpaste_patch:texture": {**TRAINED, "steps_per_epoch": 1, "patch.crop": 24, "patch.size": 16, "patch.stride": 8},
    "dla:object": {**TRAINED, "score.passes": 2},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * name.startswith(SLOW)) for name in METHODS]
)
def test_every_method_works_in_tiles(name, tmp_path):
    images = [surface(number, shape=SHAPE) for number in range(12)]
    config = load(*name.split(":"), TILED | METHODS[name])
    found = jaxad.train(config, images, tmp_path)
    assert found.region.size == SHAPE and len(found.tiling.corners()) == 3 * 11
    spotted = surface(50, shape=SHAPE, spot=(30, 200))
    predictions = jaxad.load(tmp_path).predict([spotted, surface(51, shape=SHAPE), surface(52, shape=(128, 512))])
    assert [one.map.shape for one in predictions] == [SHAPE, SHAPE, (128, 512)]
    assert all(np.isfinite(one.map).all() and np.isfinite(one.score) for one in predictions)
    alone = found.predict(spotted)[0]
    np.testing.assert_allclose(alone.map, predictions[0].map, atol=1e-5 * np.abs(alone.map).max())
    if name.startswith(("baseline", "lite")):
        assert predictions[0].score > 2 * predictions[1].score
        assert np.abs(np.subtract(predictions[0].peak, (30, 200))).max() <= 16


def test_each_tile_has_its_own_density_where_that_depends_on_the_position():
    images = [surface(number, shape=SHAPE) for number in range(8)]
    found = jaxad.train(load("baseline_mean", "object", TILED | {"score.sigma": 1.0}), images)
    # Both are fitted to the same images: in tiles, none is cross-fitted.
    options = {"data.size": 64, "score.sigma": 1.0, "data.holdout": 0.25, "threshold.cross_fit_below": 0}
    whole = jaxad.train(load("baseline_mean", "object", options), images)
    far = np.ones(SHAPE, bool)
    for top, left in found.tiling.corners():  # the blur sees less where a tile ends
        far[max(top - 4, 0) : top + 4], far[:, max(left - 4, 0) : left + 4] = False, False
        far[top + 28 : top + 36], far[:, left + 28 : left + 36] = False, False
    # Across the seams of several tiles, and inside one. The score is that of the highest tile, which is one at whose
    # border the first spot lies, where the blur has fewer pixels.
    for spot, exact in (((24, 120), 0.1), ((16, 100), 0.02)):
        spotted = surface(50, shape=SHAPE, spot=spot)
        tiled, plain = found.predict(spotted)[0], whole.predict(spotted)[0]
        assert far.any() and np.abs(tiled.map - plain.map)[far].max() < 1e-3 * plain.map.max()
        np.testing.assert_allclose(tiled.map, plain.map, atol=0.02 * plain.map.max())
        assert tiled.map.max() <= tiled.score == pytest.approx(plain.score, rel=exact)


def test_a_defect_that_is_lost_in_the_whole_image_is_found_in_a_tile():
    shape = (64, 512)

    def image(number, spot=None):
        made = surface(number, shape=shape)
        if spot:
            made[spot[0] : spot[0] + 4, spot[1] : spot[1] + 4] += 60
        return made

    good = [image(number) for number in range(16)]
    tests = [image(100 + number, (30, 60 * number + 20) if number < 8 else None) for number in range(16)]

    def gap(**changes):
        options = {"score.sigma": 1.0, "data.holdout": 0.25, "score.reduction": "mean"}
        found = jaxad.train(load("baseline_mean", "object", options | changes), good)
        scores = np.array([one.score for one in found.predict(tests)])
        return scores[:8].min() - scores[8:].max()

    assert gap(**{"data.size": 64}) < 0 < gap(**{"data.size": 64, "data.tile": 32})


def test_tiles_that_cannot_be_are_refused():
    for values, words in (
        ({"data.tile": 128, "data.size": 64}, r"data.tile is 128, but a tile has .* at most config.data.size=64"),
        ({"data.tile": 16, "data.size": 64}, "at least 32 pixels a side"),
        ({"data.tile": 32, "data.tile_overlap": 0.6}, r"tile_overlap must lie in \[0, 0.5\]"),
    ):
        with pytest.raises(jaxad.UserError, match=words):
            jaxad.train(load("baseline_mean", "object", values), [surface(1)] * 4)
    with pytest.raises(jaxad.UserError, match=r"tile_overlap has no effect while config.data.tile is 0"):
        load("baseline_mean", "object", {"data.tile_overlap": 0.2})


@pytest.mark.slow
def test_a_small_defect_of_a_very_large_image_needs_tiles():
    """Twelve pixels in images of 4096 x 512, with features of published weights."""
    shape = (512, 4096)
    rng = np.random.default_rng(0)

    def image(number, defect=False):
        made = surface(number, shape=shape)
        if defect:
            top, left = rng.integers(12, shape[0] - 24), rng.integers(12, shape[1] - 24)
            made[top : top + 12, left : left + 12] //= 2
        return made

    good = [image(number) for number in range(10)]
    tests = [image(100 + number, number % 2 == 1) for number in range(20)]

    def auroc(changes):
        options = {"data.holdout": 0.2, "density.name": "nearest_neighbor", "density.patches": 20_000}
        options |= {"density.bank": 0.05}
        found = jaxad.train(load("lite", "texture", options | changes), good)
        scores = np.array([one.score for one in found.predict(tests)])
        return (scores[1::2, None] > scores[::2]).mean()

    assert auroc({"data.size": 512, "data.tile": 256}) >= 0.95
    assert auroc({"data.resize": "squeeze"}) < 0.95


def test_no_images_have_no_scores_and_maps_that_are_not_finite_are_told():
    found = jaxad.train(
        load("baseline_mean", "object", TILED | {"score.sigma": 1.0}), [surface(n, shape=SHAPE) for n in range(8)]
    )
    empty = found.score(np.zeros((0, *SHAPE, 3), np.uint8))
    assert empty.image.shape == (0,) and empty.map.shape == (0, *SHAPE)
    spoiled = Scores(np.zeros(2, np.float32), np.full((2, *SHAPE), np.nan, np.float32))
    with pytest.raises(jaxad.UserError, match="map is not finite"):
        found.fit_thresholds(spoiled, cross_fitted=False)
    with pytest.raises(jaxad.UserError, match=r"density.name=auto compares scorers of whole images"):
        jaxad.train(load("lite", "auto", TILED), [surface(1, shape=SHAPE)] * 8)
