"""The score without labels: its figures against scikit-learn, and where they are kept."""

import json
import shutil

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import jaxad
from jaxad import data, evaluate
from jaxad.augment import synthetic_defects
from jaxad.data import pipeline
from jaxad.data.geometry import Geometry
from jaxad.methods.method import Scores
from jaxad.training import synthetic_validation
from tests.augment.test_synthetic_defects import KINDS, texture
from tests.commands import train
from tests.parts import baseline, command, refusal, write_parts
from tests.refusals import refuses

NAMES = {
    f"synthetic_{level}_auroc{suffix}" for level in ("image", "pixel") for suffix in ("", "_blend", "_patch", "_scar")
}


@pytest.fixture(scope="module")
def made():
    return synthetic_defects.make(texture(5), texture(3, seed=1))


def test_images_without_a_visible_defect_have_no_figures():
    black = np.zeros((2, 64, 64, 3), np.uint8)
    flat = Scores(np.zeros(2, np.float32), np.zeros((2, 64, 64), np.float32))
    assert synthetic_validation.measure(flat, synthetic_defects.make(black, black)) == {}


def test_a_perfect_map_gives_1_and_a_constant_one_a_half(made):
    maps = made.masks.astype(np.float32)
    assert synthetic_validation.measure(Scores(maps.max((1, 2)), maps), made) == dict.fromkeys(NAMES, 1.0)
    flat = np.zeros_like(maps)
    assert synthetic_validation.measure(Scores(flat[:, 0, 0], flat), made) == dict.fromkeys(NAMES, 0.5)
    assert synthetic_validation.measure(Scores(-maps.max((1, 2)), -maps), made) == dict.fromkeys(NAMES, 0.0)


def test_figures_are_those_of_scikit_learn(made):
    rng = np.random.default_rng(0)
    maps = (rng.normal(size=made.masks.shape) + made.masks).astype(np.float32)
    image = (rng.normal(size=len(maps)) + made.labels).astype(np.float32)
    found = synthetic_validation.measure(Scores(image, maps), made)
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
        synthetic_validation.measure(Scores(np.zeros(len(maps), np.float32), maps), made)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with data and the workdir of a baseline that held images out, and the figures written there."""
    folder = tmp_path_factory.mktemp("synthetic")
    write_parts(folder / "sets", train=20)
    assert command(train.main, *baseline(folder / "sets", folder / "work", data__holdout=0.3)) == 0
    detector = jaxad.load(folder / "work")
    source = data.load(detector.config).train
    fitted, held = pipeline.split_holdout(source.ids, holdout=0.3, seed=0)
    images = [np.stack([Geometry((32, 32)).record(source[int(i)]).image for i in part]) for part in (held, fitted)]
    made = synthetic_defects.make(*images)
    figures = synthetic_validation.measure(detector.score(made.images), made)
    synthetic_validation.write(folder / "work", figures)
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
