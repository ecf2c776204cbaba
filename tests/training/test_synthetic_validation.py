"""The score without labels: the set of synthetic defects, its figures against scikit-learn, and where they are kept."""

import json
import math
import shutil

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

import jaxad
from jaxad import data, evaluate
from jaxad.data import pipeline
from jaxad.methods.method import Scores
from jaxad.training import synthetic_validation as defects
from tests.commands import train
from tests.parts import baseline, command, refusal, write_parts
from tests.refusals import refuses

SIDE = 64
KINDS = ("blend", "patch", "scar")
NAMES = {
    f"synthetic_{level}_auroc{suffix}" for level in ("image", "pixel") for suffix in ("", "_blend", "_patch", "_scar")
}


def texture(count: int, *, side: int = SIDE, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Smooth random images, uint8 (count, side, side, channels)."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, side, side, channels))
    return ndimage.uniform_filter(noise, (0, 3, 3, 0)).astype(np.uint8)


@pytest.fixture(scope="module")
def good():
    return texture(5)


@pytest.fixture(scope="module")
def others():
    return texture(3, seed=1)


@pytest.fixture(scope="module")
def made(good, others):
    return defects.make(good, others)


def of_kind(made, kind):
    return np.flatnonzero(np.array(made.kinds) == kind)


def assert_same(found, expected, rows=slice(None)):
    for name in ("images", "masks", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name)[rows], err_msg=name)
    assert found.kinds == list(np.array(expected.kinds)[rows])


def test_the_good_images_come_first_and_each_has_one_defect_of_every_kind(made, good):
    assert made.kinds == ["good"] * 5 + [kind for kind in KINDS for _ in range(5)]
    assert made.labels.tolist() == [0] * 5 + [1] * 15
    assert made.images.shape == (20, SIDE, SIDE, 3) and made.images.dtype == np.uint8
    assert made.masks.shape == (20, SIDE, SIDE) and made.masks.dtype == np.uint8
    np.testing.assert_array_equal(made.images[:5], good)
    assert not made.masks[:5].any()


@pytest.mark.parametrize("kind", KINDS)
def test_masks_mark_what_was_changed(made, good, kind):
    for original, i in zip(good, of_kind(made, kind), strict=True):
        image, mask = made.images[i], made.masks[i]
        difference = np.abs(image.astype(float) - original).mean(axis=2)
        assert set(np.unique(mask)) == {0, 1}
        np.testing.assert_array_equal(image[mask == 0], original[mask == 0])
        assert (difference[mask == 1] > 1).all() and difference[mask == 1].mean() >= 4
        assert mask.mean() >= 0.0005


@pytest.mark.parametrize(
    ("kind", "longest", "largest"), [("blend", 0.35, 0.1225), ("patch", 0.25, 0.0625), ("scar", 0.26, 0.016)]
)
def test_defects_are_small_to_medium(kind, longest, largest):
    made = defects.make(texture(30, seed=2), texture(3, seed=3))
    areas = []
    for mask in made.masks[of_kind(made, kind)]:
        rows, columns = np.nonzero(mask)
        assert max(np.ptp(rows), np.ptp(columns)) < longest * SIDE
        areas.append(mask.mean())
    assert 0 < min(areas) < max(areas) <= largest
    assert np.ptp(areas) > largest / 3


def test_defects_of_different_images_lie_at_different_places(made):
    for kind in KINDS:
        masks = made.masks[of_kind(made, kind)]
        assert len({mask.tobytes() for mask in masks}) == len(masks)


def test_the_same_images_give_the_same_set(made, good, others):
    np.random.seed(7)  # no global state takes part
    assert_same(defects.make(good.copy(), list(others)), made)


def test_images_do_not_depend_on_those_after_them(made, good, others):
    changed = good.copy()
    changed[3:] = 255 - changed[3:]
    first = np.concatenate([kind * 5 + np.arange(3) for kind in range(4)])
    assert_same(defects.make(good[:3], others), made, first)
    np.testing.assert_array_equal(defects.make(changed, others).images[first], made.images[first])


def test_one_image_is_enough(good, others):
    assert defects.make(good[:1], others[:1]).kinds == ["good", *KINDS]


def test_grey_images_are_colour_images_with_one_channel(good, others):
    grey, grey_others = good[..., :1], others[..., :1]
    found = defects.make(grey, grey_others)
    colour = defects.make(np.repeat(grey, 3, axis=3), np.repeat(grey_others, 3, axis=3))
    assert found.images.shape == (20, SIDE, SIDE, 1)
    np.testing.assert_array_equal(found.masks, colour.masks)
    np.testing.assert_array_equal(np.repeat(found.images, 3, axis=3), colour.images)


@pytest.mark.parametrize(("side", "fewest"), [(48, 6), (32, 3)])
def test_small_images(side, fewest):
    kinds = defects.make(texture(6, side=side), texture(2, side=side, seed=1)).kinds
    assert [kinds.count(kind) for kind in ("good", "patch", "scar")] == [6, 6, 6]
    assert fewest <= kinds.count("blend") <= 6  # at 32 nearly all patches are too narrow for OpenCV's blending


def test_of_many_images_evenly_spaced_ones_are_used():
    many = texture(2 * defects.MOST, side=32)
    used = defects.make(many, many[:2]).images[: defects.MOST]
    numbers = [int(np.flatnonzero((many == image).all((1, 2, 3)))[0]) for image in used]
    assert (numbers[0], numbers[-1]) == (0, 2 * defects.MOST - 1) and set(np.diff(numbers)) == {2, 3}


def test_blank_images_hold_no_defect(good, others):
    black = np.zeros_like(good[:2])
    blank = defects.make(black, black)
    assert blank.kinds == ["good", "good"] and not blank.masks.any()
    flat = Scores(np.zeros(2, np.float32), np.zeros((2, SIDE, SIDE), np.float32))
    assert defects.measure(flat, blank) == {}
    # Something of another image shows in a blank one, its own black does not.
    mixed = defects.make(np.concatenate([good[:1], black[:1]]), others)
    assert mixed.kinds == ["good", "good", "blend", "blend", "patch", "scar"]


def test_no_images_and_no_others_are_refused(good):
    with pytest.raises(ValueError, match="not 0 and 5"):
        defects.make(good[:0], good)
    with pytest.raises(ValueError, match="not 5 and 0"):
        defects.make(good, [])


def coordinates(side: int) -> np.ndarray:
    """An image that says where each of its pixels is: row and column in steps of 5, and 200 to show the brightness."""
    rows, columns = np.mgrid[:side, :side]
    return np.stack([5 * rows, 5 * columns, np.full_like(rows, 200)], 2).astype(np.uint8)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_paste_by_hand(seed, turned):
    image = coordinates(40)
    pasted = defects.paste(np.random.default_rng(seed), image, size=(9, 6), angle=math.pi / 2 if turned else 0.0)
    rows, columns = np.nonzero((pasted != image).any(axis=2))
    factor = pasted[rows[0], columns[0], 2] / 200
    assert 0.9 <= factor <= 1.1 and factor != 1
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == ((6, 9) if turned else (9, 6)) and len(rows) == 54
    source = np.rint(pasted[rows, columns, :2] / (5 * factor)).astype(int)
    # Upright, every pixel comes from the same distance; turned by 90 degrees, rows come from columns.
    aligned = source - np.stack([columns, -rows] if turned else [rows, columns], 1)
    assert (aligned == aligned[0]).all()
    np.testing.assert_array_equal(np.ptp(source, axis=0) + 1, (9, 6))


def test_places_of_pastes_reach_every_border():
    image = coordinates(40)
    hit = np.zeros((40, 40), bool)
    for seed in range(300):
        angle = np.random.default_rng(seed).uniform(0, math.pi)
        hit |= (defects.paste(np.random.default_rng(seed), image, size=(8, 8), angle=angle) != image).any(axis=2)
    assert hit[0].any() and hit[-1].any() and hit[:, 0].any() and hit[:, -1].any() and hit[3:-3, 3:-3].all()


def test_a_perfect_map_gives_1_and_a_constant_one_a_half(made):
    maps = made.masks.astype(np.float32)
    assert defects.measure(Scores(maps.max((1, 2)), maps), made) == dict.fromkeys(NAMES, 1.0)
    flat = np.zeros_like(maps)
    assert defects.measure(Scores(flat[:, 0, 0], flat), made) == dict.fromkeys(NAMES, 0.5)
    assert defects.measure(Scores(-maps.max((1, 2)), -maps), made) == dict.fromkeys(NAMES, 0.0)


def test_figures_are_those_of_scikit_learn(made):
    rng = np.random.default_rng(0)
    maps = (rng.normal(size=made.masks.shape) + made.masks).astype(np.float32)
    image = (rng.normal(size=len(maps)) + made.labels).astype(np.float32)
    found = defects.measure(Scores(image, maps), made)
    assert set(found) == NAMES
    kinds = np.array(made.kinds)
    for kind in ("", *KINDS):
        chosen = np.isin(kinds, ("good", kind)) if kind else np.ones(len(kinds), bool)
        suffix = f"_{kind}" if kind else ""
        expected = roc_auc_score(made.labels[chosen], image[chosen])
        assert found[f"synthetic_image_auroc{suffix}"] == pytest.approx(expected, abs=1e-12)
        expected = roc_auc_score(made.masks[chosen].ravel(), maps[chosen].ravel())
        assert found[f"synthetic_pixel_auroc{suffix}"] == pytest.approx(expected, abs=1e-9)


def test_scores_that_are_not_finite_are_refused(made):
    maps = made.masks.astype(np.float32)
    maps[11, 0, 0] = np.nan
    with refuses(None, "number 11"):
        defects.measure(Scores(np.zeros(len(maps), np.float32), maps), made)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with data and the workdir of a baseline that held images out, and the figures written there."""
    folder = tmp_path_factory.mktemp("synthetic")
    write_parts(folder / "sets", train=20)
    assert command(train.main, *baseline(folder / "sets", folder / "work", data__holdout=0.3)) == 0
    detector = jaxad.load(folder / "work")
    source = data.load(detector.config).train
    fitted, held = pipeline.split_holdout(len(source), holdout=0.3, seed=0)
    images = [np.stack([pipeline.resized(source[int(i)], 32).image for i in part]) for part in (held, fitted)]
    made = defects.make(*images)
    figures = defects.measure(detector.score(made.images), made)
    defects.write(folder / "work", figures)
    return folder, figures


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


@pytest.mark.medium
def test_results_and_report_hold_the_figures(run):
    folder, figures = run
    assert NAMES - set(figures) <= {"synthetic_image_auroc_blend", "synthetic_pixel_auroc_blend"}  # too faint to count
    assert all(0 <= value <= 1 for value in figures.values()) and figures["synthetic_pixel_auroc"] > 0.7
    assert command(evaluate.main, "--workdir", folder / "work") == 0
    assert results(folder / "work")["synthetic"] == figures
    shown = f"image AUROC {100 * figures['synthetic_image_auroc']:.2f} %, pixel AUROC "
    assert f"Synthetic defects in held-out good images: {shown}" in (folder / "work" / "report.html").read_text()


@pytest.mark.medium
def test_figures_at_another_white_level_are_not_shown(copy):
    assert command(evaluate.main, "--workdir", copy, "--config.data.white_level=4095") == 0
    found = results(copy)["synthetic"]
    assert found["synthetic_image_auroc"] is None
    assert "the white level is not what it was measured with" in found["reason"]


@pytest.mark.medium
def test_the_report_draws_what_was_measured_while_training(copy):
    assert "Synthetic defects while training" not in (copy / "report.html").read_text()
    row = {"epoch": 1.0, "synthetic_image_auroc": 0.7, "synthetic_pixel_auroc": 0.6, "seconds": 1.0}
    (copy / "metrics.jsonl").write_text("".join(json.dumps({"step": step, **row}) + "\n" for step in (10, 20)))
    assert command(evaluate.main, "--workdir", copy) == 0
    assert "Synthetic defects while training" in (copy / "report.html").read_text()


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run[0] / "work", tmp_path / "work")


@pytest.mark.medium
@pytest.mark.parametrize(
    ("content", "flags", "reason"),
    [
        (None, (), "no synthetic.json"),
        ("{}", (), "no synthetic defect could be seen"),
        ('{"synthetic_image_auroc": 1.0}', ("--config.score.sigma=2.0",), "config.score, config.evaluate.crop or "),
    ],
)
def test_what_cannot_be_said_is_none_with_the_reason(copy, content, flags, reason):
    path = copy / "synthetic.json"
    path.unlink() if content is None else path.write_text(content)
    assert command(evaluate.main, "--workdir", copy, *flags) == 0
    found = results(copy)["synthetic"]
    assert found["synthetic_image_auroc"] is None and found["synthetic_pixel_auroc"] is None
    assert reason in found["reason"]
    assert f"Synthetic defects in held-out good images: n/a ({found['reason']})." in (copy / "report.html").read_text()


@pytest.mark.medium
@pytest.mark.parametrize("content", ["{", "[]", '{"synthetic_image_auroc": "high"}', '{"synthetic_image_auroc": null}'])
def test_a_damaged_file_is_named(copy, capsys, content):
    (copy / "synthetic.json").write_text(content)
    assert "synthetic.json is damaged" in refusal(capsys, evaluate.main, "--workdir", copy)


@pytest.mark.medium
def test_an_ensemble_has_no_figures_of_its_own(run, copy, tmp_path):
    assert command(evaluate.main, "--workdir", run[0] / "work", copy, "--output", tmp_path / "both") == 0
    found = results(tmp_path / "both")["synthetic"]
    assert found["synthetic_image_auroc"] is None and "each member" in found["reason"]
