"""``python -m jaxad.evaluate``: results.json, scores.csv and report.html of a test set, also of an incomplete one."""

import csv
import json
import shutil

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import jaxad
from jaxad import data, evaluate, methods, metrics, train
from jaxad.data.image import read_mask
from jaxad.detector import Detector
from tests import tiny
from tests.parts import NSA, SIZE, baseline, command, write, write_parts


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of an evaluated baseline and what training printed."""
    folder = tmp_path_factory.mktemp("evaluated")
    write_parts(folder / "sets", train=20)
    assert command(train.main, *baseline(folder / "sets", folder / "work", data__holdout=0.3)) == 0
    return folder


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


def test_results_hold_every_metric_and_where_they_come_from(run):
    found = results(run / "work")
    assert set(found["image"]) == {"auroc", "ap", "f1_max"}
    assert set(found["pixel"]) == {"auroc", "ap", "f1_max", "aupro"}
    assert all(0 < value < 1 + 1e-9 for level in ("image", "pixel") for value in found[level].values())
    assert set(found["by_defect"]) == {"spot"} and set(found["by_defect"]["spot"]["pixel"]) == set(found["pixel"])
    assert (found["experiment"], found["category"], found["seed"]) == ("baseline_mean", "nut", 0)
    assert found["config"]["data"]["size"] == SIZE and found["config"]["evaluate"]["pro_limit"] == 0.3
    assert found["command"].startswith("python -m jaxad.train --config ") and "baseline_mean.py:nut" in found["command"]
    assert {"python", "jax", "jaxlib", "flax", "numpy", "opencv-python-headless"} <= set(found["versions"])
    assert "simulated devices" in found["device"] and len(found["date"]) == len("2026-01-01")
    assert found["commit"] is None or len(found["commit"].rstrip("+")) == 12
    assert found["wall_time_s"]["train"] is None and found["wall_time_s"]["evaluate"] > 0


def test_spots_are_found(run):
    found = results(run / "work")
    assert found["image"]["auroc"] == 1.0 and found["pixel"]["auroc"] > 0.95 and found["pixel"]["aupro"] > 0.8


def test_metrics_are_those_of_the_scores(run):
    detector = jaxad.load(run / "work")
    test = data.load(detector.config).test
    scores = evaluate.score_test_set(detector)
    assert scores.ids == list(test.ids) and scores.defects == list(test.defects)
    np.testing.assert_array_equal(scores.labels, test.labels)
    assert scores.images.shape == (5, SIZE, SIZE, 3) and scores.maps.shape == (5, SIZE, SIZE)
    assert all(mask.shape == (SIZE, SIZE) for mask in scores.masks)
    expected = metrics.evaluate(scores, pro_limit=0.3)
    found = results(run / "work")
    for level in ("image", "pixel"):
        assert found[level] == pytest.approx(expected[level], rel=1e-6)
    flat = np.stack(scores.masks).ravel(), scores.maps.ravel()
    assert found["pixel"]["auroc"] == pytest.approx(roc_auc_score(*flat), rel=1e-6)


def test_scores_csv(run):
    with open(run / "work" / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["test/good/000", "test/good/001", *(f"test/spot/00{i}" for i in range(3))]
    assert [row["label"] for row in rows] == ["0", "0", "1", "1", "1"]
    assert [row["defect"] for row in rows] == ["good", "good", "spot", "spot", "spot"]
    scores = evaluate.score_test_set(jaxad.load(run / "work")).image_scores
    np.testing.assert_allclose([float(row["score"]) for row in rows], scores, rtol=1e-6)


def test_the_threshold_and_what_it_does(run):
    found = results(run / "work")["threshold"]
    assert found["value"] == jaxad.load(run / "work").threshold
    assert found["detection_rate"] == 1.0 and found["false_alarm_rate"] in (0.0, 0.5, 1.0)


def test_the_report_is_there_and_loads_nothing(run):
    text = (run / "work" / "report.html").read_text()
    assert text.startswith("<!doctype html>") and "baseline_mean" in text
    assert "http://" not in text.replace("http://www.w3.org", "") and "<script" not in text


def test_training_prints_the_summary(run, tmp_path, capsys):
    shutil.copytree(run / "work", tmp_path / "work")
    capsys.readouterr()
    assert command(evaluate.main, "--workdir", tmp_path / "work") == 0
    summary, report = capsys.readouterr().out.splitlines()
    found = results(tmp_path / "work")
    assert summary == (
        f"image AUROC {100 * found['image']['auroc']:.2f}, pixel AUROC {100 * found['pixel']['auroc']:.2f}, "
        f"AU-PRO {100 * found['pixel']['aupro']:.2f}"
    )
    assert report == f"report: {tmp_path / 'work' / 'report.html'}"


def test_the_reduction_can_be_changed(run, tmp_path):
    shutil.copytree(run / "work", tmp_path / "work")
    assert command(evaluate.main, "--workdir", tmp_path / "work", "--config.score.reduction=mean") == 0
    found, before = results(tmp_path / "work"), results(run / "work")
    assert found["config"]["score"]["reduction"] == "mean" and found["pixel"] == before["pixel"]
    assert found["threshold"]["value"] is None and "config.score" in found["threshold"]["reason"]


def test_the_limit_of_aupro_can_be_changed(run, tmp_path):
    shutil.copytree(run / "work", tmp_path / "work")
    shutil.copytree(run / "sets", tmp_path / "sets")
    for path in (tmp_path / "sets" / "nut" / "ground_truth" / "spot").iterdir():
        write(path, np.roll(read_mask(path) * 255, 4, axis=1))  # half beside the spot, so that it is found late
    aupro = {}
    for limit in (0.05, 0.3):
        overrides = f"--config.evaluate.pro_limit={limit}", f"--config.data.root={tmp_path / 'sets'}"
        assert command(evaluate.main, "--workdir", tmp_path / "work", *overrides) == 0
        found = results(tmp_path / "work")
        assert found["pro_limit"] == limit
        aupro[limit] = found["pixel"]["aupro"]
    assert 0 < aupro[0.05] < aupro[0.3] < 1


def trained(folder):
    """Fits and evaluates the baseline to what is left of the parts in a folder; returns results."""
    assert command(train.main, *baseline(folder / "sets", folder / "work")) == 0
    return results(folder / "work")


def test_without_anomalies(tmp_path, capsys):
    write_parts(tmp_path / "sets")
    for part in ("test/spot", "ground_truth"):
        shutil.rmtree(tmp_path / "sets" / "nut" / part)
    found = trained(tmp_path)
    assert set(found["image"].values()) == set(found["pixel"].values()) == {None} and found["by_defect"] == {}
    assert found["reasons"]["image.auroc"] == found["reasons"]["pixel.aupro"] == "no anomalous test images"
    printed = capsys.readouterr().out
    assert "image AUROC n/a (no anomalous test images), pixel AUROC n/a (" in printed
    assert (tmp_path / "work" / "report.html").is_file()


def test_without_masks(tmp_path, capsys):
    write_parts(tmp_path / "sets")
    shutil.rmtree(tmp_path / "sets" / "nut" / "ground_truth")
    found = trained(tmp_path)
    assert found["image"]["auroc"] == 1.0 and set(found["pixel"].values()) == {None}
    reason = "no ground-truth masks for the anomalous test images"
    assert found["reasons"]["pixel.auroc"] == reason
    assert f"image AUROC 100.00, pixel AUROC n/a ({reason}), AU-PRO n/a ({reason})" in capsys.readouterr().out
    assert (tmp_path / "work" / "report.html").is_file()


def test_without_good_test_images(tmp_path):
    write_parts(tmp_path / "sets")
    shutil.rmtree(tmp_path / "sets" / "nut" / "test" / "good")
    found = trained(tmp_path)
    assert found["image"]["auroc"] is None and found["reasons"]["image.auroc"] == "no good test images"
    assert found["pixel"]["auroc"] > 0.9  # defective images have good pixels, too


def test_without_test_images_training_says_what_to_do(tmp_path, capsys):
    write_parts(tmp_path / "sets")
    for part in ("test", "ground_truth"):
        shutil.rmtree(tmp_path / "sets" / "nut" / part)
    workdir = tmp_path / "work"
    assert command(train.main, *baseline(tmp_path / "sets", workdir)) == 0
    assert f"there are no test images; score images with: python -m jaxad.predict --workdir {workdir}" in (
        capsys.readouterr().out
    )
    assert jaxad.load(workdir).density and not (workdir / "results.json").exists()
    assert command(evaluate.main, "--workdir", workdir) == 2
    assert "there are no test images; set config.data.test" in capsys.readouterr().err


def test_textures_are_trained_on_larger_images_than_they_are_scored_on(tmp_path, monkeypatch):
    # Held-out images, which fit the threshold, and test images are both seen at the size of scoring.
    monkeypatch.setitem(methods.METHODS, "tiny", tiny.create)
    score, seen = Detector.score, []

    def spy(self, images, **options):
        seen.append(images.shape)
        return score(self, images, **options)

    monkeypatch.setattr(Detector, "score", spy)
    write_parts(tmp_path / "sets")
    given = {"method": "tiny", "data.root": tmp_path / "sets" / "nut", "data.size": 40, "view.crop": 32, "epochs": 1}
    given |= {"batch": 8, "data.holdout": 0.3}
    flags = [f"--config.{key}={value}" for key, value in given.items()]
    assert command(train.main, "--config", f"{NSA}:texture", "--workdir", tmp_path / "work", *flags) == 0
    assert seen == [(2, 32, 32, 3), (5, 32, 32, 3)]


def test_another_test_folder(tmp_path, run):
    shutil.copytree(run / "work", tmp_path / "work")
    shutil.copytree(run / "sets" / "nut" / "test" / "good", tmp_path / "other" / "good")
    assert command(evaluate.main, "--workdir", tmp_path / "work", f"--config.data.test={tmp_path / 'other'}") == 0
    found = results(tmp_path / "work")
    assert found["counts"]["good"] == 2 and found["counts"]["defective"] == 0
    assert found["threshold"]["detection_rate"] is None
