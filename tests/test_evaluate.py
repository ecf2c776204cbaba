"""``python -m jaxad.evaluate``: results.json, scores.csv and report.html of a test set, also of an incomplete one."""

import csv
import json
import re
import shutil
import weakref

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

import jaxad
from jaxad import data, evaluate, methods, metrics, report
from jaxad.data import pipeline
from jaxad.data.geometry import Geometry
from jaxad.data.image import read_image
from jaxad.data.mask import read_mask
from jaxad.detector import Detector
from tests import tiny
from tests.commands import train
from tests.parts import NSA, SIZE, baseline, command, refusal, write, write_parts

pytestmark = pytest.mark.medium


HELD = {"data__holdout": 0.3, "threshold__cross_fit_below": 0}  # of few images too


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of an evaluated baseline and what training printed."""
    folder = tmp_path_factory.mktemp("evaluated")
    write_parts(folder / "sets", train=20)
    assert command(train.main, *baseline(folder / "sets", folder / "work", **HELD)) == 0
    return folder


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


@pytest.mark.medium
def test_results_hold_every_metric_and_where_they_come_from(run):
    found = results(run / "work")
    assert set(found["image"]) == {"auroc", "ap", "f1_max"}
    assert set(found["pixel"]) == {"auroc", "ap", "f1_max", "aupro", "aupro_005", "aupimo"}
    assert found["pixel"]["aupimo"] is None  # two good images of 32 x 32 pixels
    assert found["reasons"]["pixel.aupimo"].startswith("1e-05 of the 2,048 pixels")
    values = [value for level in ("image", "pixel") for name, value in found[level].items() if name != "aupimo"]
    assert all(0 < value < 1 + 1e-9 for value in values)
    assert set(found["by_defect"]) == {"spot"} and set(found["by_defect"]["spot"]["pixel"]) == set(found["pixel"])
    assert (found["experiment"], found["category"], found["seed"]) == ("baseline_mean", "nut", 0)
    assert found["config"]["data"]["size"] == SIZE and found["config"]["evaluate"]["pro_limit"] == 0.3
    assert found["command"].startswith("python -m jaxad.train --config ") and "baseline_mean.py:nut" in found["command"]
    assert {"python", "jax", "jaxlib", "flax", "numpy", "opencv-python-headless"} <= set(found["versions"])
    assert "simulated devices" in found["device"] and len(found["date"]) == len("2026-01-01")
    assert found["commit"] is None or len(found["commit"].rstrip("+")) == 12
    assert found["wall_time_s"]["train"] > 0 and found["wall_time_s"]["evaluate"] > 0


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
        computed = {name: value for name, value in expected[level].items() if value is not None}
        assert {name: found[level][name] for name in computed} == pytest.approx(computed, rel=1e-6)
    flat = np.stack(scores.masks).ravel(), scores.maps.ravel()
    assert found["pixel"]["auroc"] == pytest.approx(roc_auc_score(*flat), rel=1e-6)


def test_scores_csv(run):
    with open(run / "work" / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["test/good/000", "test/good/001", *(f"test/spot/00{i}" for i in range(3))]
    assert [row["label"] for row in rows] == ["0", "0", "1", "1", "1"]
    assert [row["defect"] for row in rows] == ["good", "good", "spot", "spot", "spot"]
    assert [row["aupimo"] for row in rows] == [""] * 5  # n/a
    scores = evaluate.score_test_set(jaxad.load(run / "work")).image_scores
    np.testing.assert_allclose([float(row["score"]) for row in rows], scores, rtol=1e-6)


def test_aupimo_of_each_image_is_in_scores_csv(run, tmp_path):
    shutil.copytree(run / "sets", tmp_path / "sets")
    for path in (tmp_path / "sets" / "nut" / "ground_truth" / "spot").iterdir():
        write(path, np.roll(read_mask(path) * 255, 4, axis=1))  # half beside the spot, so that not all is found
    assert command(train.main, *baseline(tmp_path / "sets", tmp_path / "work", data__size=256)) == 0
    with open(tmp_path / "work" / "scores.csv", newline="") as file:
        values = [row["aupimo"] for row in csv.DictReader(file)]
    assert values[:2] == ["", ""]
    overlaps = [float(value) for value in values[2:]]
    scores = evaluate.score_test_set(jaxad.load(tmp_path / "work"))
    ranking = metrics.rank_pixels(scores.masks, scores.maps)
    np.testing.assert_allclose(overlaps, metrics.aupimo(ranking, scores.labels == 0)[2:], rtol=1e-6)
    found = results(tmp_path / "work")
    assert found["pixel"]["aupimo"] == pytest.approx(np.mean(overlaps)) and 0 < min(overlaps) < 1
    assert "by_image" not in found and "pixel.aupimo" not in found["reasons"]
    assert ">AUPIMO</th>" in (tmp_path / "work" / "report.html").read_text()


def test_seg_f1_is_that_of_all_test_pixels(run):
    detector, found = jaxad.load(run / "work"), results(run / "work")["pixel_threshold"]
    scores = evaluate.score_test_set(detector)
    called = scores.maps > np.float32(detector.pixel_threshold)
    assert found["value"] == detector.pixel_threshold
    assert found["seg_f1"] == pytest.approx(f1_score(np.stack(scores.masks).ravel(), called.ravel()), abs=1e-6)
    assert found["seg_f1"] > 0.3
    assert found["false_alarm_rate"] == called[scores.labels == 0].any((1, 2)).mean()
    page = (run / "work" / "report.html").read_text()
    assert f"SegF1 of {100 * found['seg_f1']:.2f} %" in page and "id=threshold" in page


def test_the_threshold_and_what_it_does(run):
    found = results(run / "work")["threshold"]
    assert found["value"] == jaxad.load(run / "work").threshold
    assert found["detection_rate"] == 1.0 and found["false_alarm_rate"] in (0.0, 0.5, 1.0)


def test_the_report_is_there_and_loads_nothing(run):
    text = (run / "work" / "report.html").read_text()
    assert text.startswith("<!doctype html>") and "baseline_mean" in text
    assert "http://" not in text.replace("http://www.w3.org", "") and not re.search(r"<script[^>]* src", text)


def test_the_report_shows_terms_of_maps(run, tmp_path, monkeypatch):
    found, drawn, asked = jaxad.load(run / "work"), [], []
    scores = evaluate.score_test_set(found)
    assert evaluate.example_terms(found, scores) is None

    def map_terms(images):
        asked.append(images)
        return {"red": images[..., 0]}

    monkeypatch.setattr(found, "map_terms", map_terms)
    monkeypatch.setattr(evaluate.html_report, "write_html", lambda path, **given: drawn.append(given["terms"]))
    monkeypatch.setattr(evaluate.html_report, "pick_examples", lambda scores: [("a", "", [3, 0]), ("b", "", [2])])
    shutil.copytree(run / "work", tmp_path / "work")
    evaluate.evaluate(found, tmp_path / "work")
    (images,), (made,) = asked, drawn
    np.testing.assert_array_equal(images, scores.images[[3, 0, 2]])
    assert list(made) == ["red"] and list(made["red"]) == [3, 0, 2]
    for i, image in made["red"].items():
        np.testing.assert_array_equal(image, scores.images[i, ..., 0])


@pytest.mark.medium
def test_results_are_there_once_the_evaluation_is_complete(run, tmp_path, monkeypatch):
    shutil.copytree(run / "work", tmp_path / "work")
    (tmp_path / "work" / "results.json").unlink()

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluate.html_report, "write_html", killed)
        assert command(evaluate.main, "--workdir", tmp_path / "work") == 130
    assert not (tmp_path / "work" / "results.json").exists()
    assert command(evaluate.main, "--workdir", tmp_path / "work") == 0
    assert results(tmp_path / "work")["image"] == results(run / "work")["image"]


@pytest.mark.medium
def test_training_prints_the_summary(run, tmp_path, capsys):
    shutil.copytree(run / "work", tmp_path / "work")
    capsys.readouterr()
    assert command(evaluate.main, "--workdir", tmp_path / "work") == 0
    test_set, summary, report = capsys.readouterr().out.splitlines()
    found = results(tmp_path / "work")
    assert test_set == evaluate.test_images(found)
    assert summary == (
        f"image AUROC {100 * found['image']['auroc']:.2f}, pixel AUROC {100 * found['pixel']['auroc']:.2f}, "
        f"AU-PRO {100 * found['pixel']['aupro']:.2f}"
    )
    assert report == f"report: {tmp_path / 'work' / 'report.html'}"


@pytest.mark.medium
def test_the_reduction_can_be_changed(run, tmp_path):
    shutil.copytree(run / "work", tmp_path / "work")
    assert command(evaluate.main, "--workdir", tmp_path / "work", "--config.score.reduction=mean") == 0
    found, before = results(tmp_path / "work"), results(run / "work")
    assert found["config"]["score"]["reduction"] == "mean" and found["pixel"] == before["pixel"]
    assert found["threshold"]["value"] is None and "config.score" in found["threshold"]["reason"]


@pytest.mark.medium
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


@pytest.mark.medium
def test_the_rule_of_masks_can_be_changed_and_stands_in_the_results(run, tmp_path):
    # The spot is 6 of 48 rows and 6 of 40 columns. It covers 4 of 32 rows, 4 of 32 columns and 0.8 of a fifth.
    shutil.copytree(run / "work", tmp_path / "work")
    seen = {}
    for rule, marked in (("any", 20), ("half", 20), ("all", 16)):
        found = jaxad.load(tmp_path / "work", {"evaluate.mask_rule": rule})
        masks = evaluate.score_test_set(found).masks
        assert [mask.sum() for mask in masks if mask.any()] == [marked] * 3
        assert command(evaluate.main, "--workdir", tmp_path / "work", f"--config.evaluate.mask_rule={rule}") == 0
        seen[rule] = results(tmp_path / "work")
        assert seen[rule]["config"]["evaluate"]["mask_rule"] == rule
        assert seen[rule]["threshold"] == results(run / "work")["threshold"]  # no image's score depends on it
    assert seen["any"]["pixel"] == seen["half"]["pixel"] != seen["all"]["pixel"]


def test_what_was_evaluated_on_is_told():
    counts = {"good": 8, "defective": 9, "with_mask": 7}
    found = {"counts": counts, "by_defect": {"bent": {"images": 2}, "ok": {"images": 7}}}
    assert evaluate.test_images(found) == "test images: 8 good, 9 defective (bent 2, ok 7), 7 of them with masks"
    found = {"counts": {"good": 8, "defective": 0, "with_mask": 0}, "by_defect": {}}
    assert evaluate.test_images(found) == "test images: 8 good, 0 defective"


@pytest.mark.medium
def test_defects_that_vanish_by_the_rule_of_masks_are_told(run, tmp_path, capsys):
    shutil.copytree(run / "work", tmp_path / "work")
    shutil.copytree(run / "sets", tmp_path / "sets")
    thin = sorted((tmp_path / "sets" / "nut" / "ground_truth").glob("*/*"))[0]
    mask = np.zeros_like(read_mask(thin))
    mask[10, 5:9] = 255  # a line of less than a pixel
    write(thin, mask)
    for rule, told in (("any", False), ("all", True)):
        flags = f"--config.evaluate.mask_rule={rule}", f"--config.data.root={tmp_path / 'sets'}"
        assert command(evaluate.main, "--workdir", tmp_path / "work", *flags) == 0
        assert ("no pixel of 1 defective image is marked" in capsys.readouterr().out) == told


def trained(folder):
    """Fits and evaluates the baseline to what is left of the parts in a folder; returns results."""
    assert command(train.main, *baseline(folder / "sets", folder / "work")) == 0
    return results(folder / "work")


@pytest.mark.medium
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


@pytest.mark.medium
def test_without_masks(tmp_path, capsys):
    write_parts(tmp_path / "sets")
    shutil.rmtree(tmp_path / "sets" / "nut" / "ground_truth")
    found = trained(tmp_path)
    assert found["image"]["auroc"] == 1.0 and set(found["pixel"].values()) == {None}
    reason = "no ground-truth masks for the anomalous test images"
    assert found["reasons"]["pixel.auroc"] == reason
    assert f"image AUROC 100.00, pixel AUROC n/a ({reason}), AU-PRO n/a ({reason})" in capsys.readouterr().out
    assert (tmp_path / "work" / "report.html").is_file()


@pytest.mark.medium
def test_without_good_test_images(tmp_path):
    write_parts(tmp_path / "sets")
    shutil.rmtree(tmp_path / "sets" / "nut" / "test" / "good")
    found = trained(tmp_path)
    assert found["image"]["auroc"] is None and found["reasons"]["image.auroc"] == "no good test images"
    assert found["pixel"]["auroc"] > 0.9  # defective images have good pixels, too


@pytest.mark.medium
def test_without_test_images_training_says_what_to_do(tmp_path, capsys):
    write_parts(tmp_path / "sets")
    for part in ("test", "ground_truth"):
        shutil.rmtree(tmp_path / "sets" / "nut" / part)
    workdir = tmp_path / "work"
    assert command(train.main, *baseline(tmp_path / "sets", workdir, data__holdout=0.3)) == 0
    figures = json.loads((workdir / "synthetic.json").read_text())
    image, pixel = (f"{100 * figures[f'synthetic_{level}_auroc']:.2f}" for level in ("image", "pixel"))
    printed = capsys.readouterr().out
    assert f"synthetic defects in held-out good images: image AUROC {image}, pixel AUROC {pixel}\n" in printed
    assert f"there are no test images; score images with: python -m jaxad.predict --workdir {workdir}" in printed
    assert jaxad.load(workdir).density and not (workdir / "results.json").exists()
    assert command(evaluate.main, "--workdir", workdir) == 2
    assert "there are no test images; set config.data.test" in capsys.readouterr().err


@pytest.mark.slow
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
    held, _, tested = seen  # between them the synthetic defects
    assert (held, tested) == ((2, 32, 32, 3), (5, 32, 32, 3))


@pytest.mark.medium
def test_another_test_folder(tmp_path, run):
    shutil.copytree(run / "work", tmp_path / "work")
    shutil.copytree(run / "sets" / "nut" / "test" / "good", tmp_path / "other" / "good")
    assert command(evaluate.main, "--workdir", tmp_path / "work", f"--config.data.test={tmp_path / 'other'}") == 0
    found = results(tmp_path / "work")
    assert found["counts"]["good"] == 2 and found["counts"]["defective"] == 0
    assert found["threshold"]["detection_rate"] is None


@pytest.fixture(scope="module")
def members(run):
    """The workdirs of three baselines, each with other images held out."""
    for seed in (1, 2):
        assert command(train.main, *baseline(run / "sets", run / f"seed{seed}", seed=seed, **HELD)) == 0
    return [run / "work", run / "seed1", run / "seed2"]


@pytest.fixture(scope="module")
def ensemble(members, run):
    """The directory of their ensemble."""
    assert command(evaluate.main, "--workdir", *members, "--output", run / "together") == 0
    return run / "together"


def by_hand(workdirs):
    """Image scores and maps of an ensemble, from detector.json and the members' own scores."""
    image, maps = [], []
    for workdir in workdirs:
        fitted, scores = (
            json.loads((workdir / "detector.json").read_text())["values"],
            evaluate.score_test_set(jaxad.load(workdir)),
        )
        (mean, std), (low, high) = fitted["good_scores"], fitted["heat_range"]
        image.append((scores.image_scores - mean) / std)
        maps.append((scores.maps - low) / (high - low))
    return np.mean(image, axis=0), np.mean(maps, axis=0), scores


@pytest.mark.slow
def test_good_scores_are_those_of_the_held_out_images(members):
    found = jaxad.load(members[1])
    train_set = data.load(found.config).train
    held = pipeline.split_holdout(train_set.ids, holdout=0.3, seed=1)[1]
    records = [Geometry((SIZE, SIZE)).record(train_set[int(number)]) for number in held]
    image = found.score(np.stack([record.image for record in records])).image.tolist()
    mean = sum(image) / 6
    std = (sum((score - mean) ** 2 for score in image) / 6) ** 0.5
    assert len(image) == 6 and found.good_scores == pytest.approx((mean, std), rel=1e-6)


@pytest.mark.slow
def test_an_ensemble_is_the_mean_of_normalised_scores(members, tmp_path, monkeypatch):
    image, maps, scores = by_hand(members)
    drawn = []
    monkeypatch.setattr(evaluate.html_report, "write_html", lambda path, *, scores, **rest: drawn.append(scores))
    evaluate.evaluate_ensemble(members, tmp_path / "out")
    (made,) = drawn
    assert made.ids == scores.ids and made.maps.dtype == np.float32
    np.testing.assert_array_equal(made.images, scores.images)
    np.testing.assert_allclose(made.image_scores, image, rtol=1e-6)
    np.testing.assert_allclose(made.maps, maps, rtol=1e-5, atol=1e-5)
    # The scale matters: a plain mean of the members' scores would be another one.
    alone = [evaluate.score_test_set(jaxad.load(workdir)).image_scores for workdir in members]
    assert np.abs(np.mean(alone, axis=0) - image).min() > 0.1
    with open(tmp_path / "out" / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], float(row["score"])) for row in rows] == list(zip(made.ids, made.image_scores, strict=True))


@pytest.mark.medium
def test_the_metrics_of_an_ensemble_are_those_of_its_mean(members, run, tmp_path):
    sets = shutil.copytree(run / "sets", tmp_path / "sets")
    for path in (sets / "nut" / "ground_truth" / "spot").iterdir():
        write(path, np.roll(read_mask(path) * 255, 4, axis=1))  # half beside the spot, so that no score is perfect
    found = evaluate.evaluate_ensemble(members, tmp_path / "out", overrides={"data.root": str(sets)})
    config = jaxad.load(members[0], {"data.root": str(sets)}).config
    masks = [record.mask for record in evaluate.read_test_set(config, None)]
    expected = roc_auc_score(np.stack(masks).ravel(), by_hand(members)[1].ravel())
    assert 0.6 < expected < 0.99 and found["pixel"]["auroc"] == pytest.approx(expected, rel=1e-4)
    assert len({found["pixel"]["auroc"], *(row["pixel"]["auroc"] for row in found["members"])}) == 4


@pytest.mark.medium
def test_an_ensemble_says_what_it_is_made_of(members, ensemble):
    found, alone = results(ensemble), [results(workdir) for workdir in members]
    assert (found["experiment"], found["category"], found["seed"]) == ("baseline_mean, ensemble of 3", "nut", "0, 1, 2")
    assert set(found) == {*alone[0], "members"}
    for row, own, workdir in zip(found["members"], alone, members, strict=True):
        assert (row["workdir"], row["seed"]) == (str(workdir), own["seed"])
        assert row["image"] == own["image"] and row["pixel"] == pytest.approx(own["pixel"])
    assert (
        found["threshold"]["value"] is None and "thresholds hold for their own scores" in found["threshold"]["reason"]
    )
    shared = dict(alone[0]["config"])
    del shared["seed"]
    assert found["config"] == shared and [len(own["trained"]) for own in (found, *alone)] == [3, 1, 1, 1]
    assert "baseline_mean, ensemble of 3" in (ensemble / "report.html").read_text()


def test_an_ensemble_has_a_row_beside_its_members(members, ensemble):
    lines = report.markdown(report.gather([*members, ensemble])).splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[:3] for row in rows] == [["baseline_mean", "nut", "3"], ["baseline_mean, ensemble of 3", "nut", "1"]]
    assert rows[1][4] == f"{100 * results(ensemble)['pixel']['auroc']:.1f}"
    assert rows[1][-1].endswith("then `python -m jaxad.evaluate --workdir W... --output OUT`")


@pytest.mark.medium
def test_the_kept_command_makes_the_ensemble_again(members, ensemble, capsys):
    before = results(ensemble)
    words = before["evaluated"]["command"].split()
    assert words[:3] == ["python", "-m", "jaxad.evaluate"]
    capsys.readouterr()
    assert command(evaluate.main, *words[3:]) == 0
    printed = capsys.readouterr().out.splitlines()
    for line, workdir in zip(printed, members, strict=False):
        assert line == f"{workdir}: {evaluate.summary(results(workdir))}"
    assert printed[3:] == [f"ensemble of 3: {evaluate.summary(before)}", f"report: {ensemble / 'report.html'}"]
    assert {key: results(ensemble)[key] for key in ("image", "pixel")} == {
        key: before[key] for key in ("image", "pixel")
    }


@pytest.mark.medium
def test_overrides_hold_for_all_members(members, tmp_path):
    flags = ["--workdir", *members, "--output", tmp_path / "out", "--config.evaluate.pro_limit=0.05"]
    assert command(evaluate.main, *flags) == 0
    found = results(tmp_path / "out")
    assert found["pro_limit"] == 0.05 and "--config.evaluate.pro_limit=0.05" in found["evaluated"]["command"]
    assert all(row["config"]["evaluate"]["pro_limit"] == 0.05 for row in found["members"])


def test_an_ensemble_at_another_white_level_is_refused(members, tmp_path, capsys):
    """Its members' scores are normalised by what they gave at the trained one."""
    flags = ["--workdir", *members, "--output", tmp_path / "out", "--config.data.white_level=4095"]
    told = refusal(capsys, evaluate.main, *flags)
    assert told.startswith("config.data.white_level=4095 cannot be set for an ensemble")


@pytest.mark.medium
def test_maps_of_members_are_let_go(members, tmp_path, monkeypatch):
    score, seen, alive = evaluate.score_records, [], []

    def spy(found, records):
        alive.append(sum(reference() is not None for reference in seen))
        scores = score(found, records)
        seen.append(weakref.ref(scores.maps))
        return scores

    monkeypatch.setattr(evaluate, "score_records", spy)
    evaluate.evaluate_ensemble(members, tmp_path / "out")
    assert alive == [0, 0, 0]


@pytest.mark.slow
def test_a_test_set_that_members_share_is_read_once(members, run, tmp_path, monkeypatch):
    read, roots = evaluate.read_test_set, []
    def reading(config, white_level):
        roots.append(config.data.root)
        return read(config, white_level)

    monkeypatch.setattr(evaluate, "read_test_set", reading)
    evaluate.evaluate_ensemble(members, tmp_path / "out")
    assert roots == [str(run / "sets")]
    sets, other = shutil.copytree(run / "sets", tmp_path / "sets"), shutil.copytree(members[1], tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["data"]["root"] = str(sets)
    (other / "config.json").write_text(json.dumps(config))
    evaluate.evaluate_ensemble([members[0], other, members[2]], tmp_path / "out")
    assert roots[1:] == [str(run / "sets"), str(sets)]


@pytest.mark.slow
def test_different_methods_can_be_members(run, tmp_path, monkeypatch):
    monkeypatch.setitem(methods.METHODS, "tiny", tiny.create)
    given = {"method": "tiny", "data.root": run / "sets" / "nut", "data.size": SIZE, "epochs": 1, "batch": 8}
    given |= {"view.crop": SIZE, "view.center_crop": 0, "evaluate.crop": 0}
    flags = [f"--config.{key}={value}" for key, value in given.items()]
    workdirs = [tmp_path / "a", tmp_path / "b"]
    for seed, workdir in enumerate(workdirs):
        seeded = [*flags, f"--config.seed={seed}"]
        assert command(train.main, "--config", f"{NSA}:object", "--workdir", workdir, *seeded) == 0
    found = evaluate.evaluate_ensemble(workdirs, tmp_path / "same")
    seconds = [results(workdir)["wall_time_s"]["train"] for workdir in workdirs]
    assert found["wall_time_s"]["train"] == pytest.approx(sum(seconds)) and min(seconds) > 0
    assert found["experiment"] == "nsa_logistic, ensemble of 2" and found["config"]["epochs"] == 1
    mixed = evaluate.evaluate_ensemble([workdirs[0], run / "work"], tmp_path / "mixed")
    assert mixed["experiment"] == "nsa_logistic + baseline_mean, ensemble of 2" and "epochs" not in mixed["config"]
    expected = seconds[0] + results(run / "work")["wall_time_s"]["train"]
    assert mixed["wall_time_s"]["train"] == pytest.approx(expected)
    expected = by_hand([workdirs[0], run / "work"])[0]
    with open(tmp_path / "mixed" / "scores.csv", newline="") as file:
        # Scores of a network are divided by their small range among good images, and so is their rounding.
        np.testing.assert_allclose([float(row["score"]) for row in csv.DictReader(file)], expected, rtol=1e-3)


def test_what_is_no_ensemble(members, ensemble, tmp_path, capsys):
    def refused(*arguments):
        return refusal(capsys, evaluate.main, "--workdir", *arguments)

    first, second, _ = members
    output = ("--output", tmp_path / "out")
    assert refused(first, second) == "the results of an ensemble belong into none of its workdirs; add --output DIR"
    assert refused(first, *output) == (
        "the results of one workdir are written into it; --output is for several workdirs"
    )
    assert refused(first, second, first.parent / "." / first.name, *output) == (
        f"{first} is given twice; the members of an ensemble are different workdirs"
    )
    assert refused(first, second, "--output", first) == (
        f"{first} is the workdir of a training; choose another --output for the ensemble"
    )
    assert "config.score.reduction cannot be changed for an ensemble" in refused(
        first, second, *output, "--config.score.reduction=mean"
    )
    assert refused(first, ensemble, *output).startswith(f"{ensemble} is no workdir")
    (tmp_path / "file").write_text("")
    assert "choose another --output" in refused(first, second, "--output", tmp_path / "file" / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key, value", [
    ("score.size", 48), ("evaluate.crop", 16), ("evaluate.pro_limit", 0.1), ("evaluate.mask_rule", "all"),
])  # fmt: skip
def test_members_that_are_scored_differently(members, tmp_path, capsys, key, value):
    other = shutil.copytree(members[1], tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    node, leaf = key.split(".")
    before, config[node][leaf] = config[node][leaf], value
    (other / "config.json").write_text(json.dumps(config))
    message = refusal(capsys, evaluate.main, "--workdir", members[0], other, "--output", tmp_path / "out")
    assert all(str(part) in message for part in (members[0], other, f"config.{key} is {before}", value))


def test_members_with_other_test_images(members, run, tmp_path, capsys):
    test = run / "sets" / "nut" / "test"

    def refused(change):
        """The sentence for a member that was trained where the test set is changed."""
        sets = shutil.copytree(run / "sets", tmp_path / "sets", dirs_exist_ok=True)
        other = shutil.copytree(members[1], tmp_path / "other", dirs_exist_ok=True)
        config = json.loads((members[1] / "config.json").read_text())
        config["data"]["root"] = str(sets)
        (other / "config.json").write_text(json.dumps(config))
        change(sets / "nut")
        message = refusal(capsys, evaluate.main, "--workdir", members[0], other, "--output", tmp_path / "out")
        shutil.rmtree(sets)
        return message.removeprefix(f"{members[0]} and {other} cannot be one ensemble: ")

    assert refused(lambda nut: (nut / "test/good/001.png").unlink()) == "the one has 5 test images, the other 4"
    assert refused(lambda nut: (nut / "test/good/001.png").rename(nut / "test/good/007.png")) == (
        "test image 'test/good/001' of the one is 'test/good/007' in the other"
    )
    other_image = 255 - read_image(test / "good/001.png", min_side=1)
    same = "or its mask is not the same in both"
    assert refused(lambda nut: write(nut / "test/good/001.png", other_image)) == f"test image 'test/good/001' {same}"
    other_mask = np.roll(read_mask(run / "sets/nut/ground_truth/spot/002_mask.png") * 255, 4, axis=1)
    assert refused(lambda nut: write(nut / "ground_truth/spot/002_mask.png", other_mask)) == (
        f"test image 'test/spot/002' {same}"
    )
