"""The HTML report, its figures, and the Markdown tables."""

import base64
import json
import re
import subprocess
import sys
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from sklearn.manifold import TSNE

from jaxad import metrics, report
from jaxad.reporting import charts, html_report, published, sample_grid
from tests.parts import refusal
from tests.refusals import refuses

ROOT = Path(report.__file__).parents[1]


def small_test_set(*, good=4, crack=5, hole=3, masks=True):
    rng = np.random.default_rng(0)
    defects = ["good"] * good + ["crack"] * crack + ["hole"] * hole
    n = len(defects)
    truth = np.zeros((n, 48, 64), np.uint8)
    truth[good:, 10:20, 12:30] = 1
    maps = (rng.random(truth.shape) + truth).astype(np.float32)
    return metrics.TestScores(
        ids=[f"test/{defect}/{i:03d}" for i, defect in enumerate(defects)],
        labels=np.array([0] * good + [1] * (n - good)), defects=defects,
        images=rng.integers(0, 256, (n, 48, 64, 3), np.uint8),
        masks=[mask if masks or i < good else None for i, mask in enumerate(truth)],
        image_scores=maps.mean((1, 2)), maps=maps)


def full_results(scores, **changes):
    provenance = {
        "experiment": "nsa_logistic", "category": "bottle", "seed": 3, "commit": "abc123", "device": "2 CPU cores",
        "date": "2026-11-22", "command": "python -m jaxad.train --config experiments/nsa_logistic.py:bottle",
        "versions": {"jax": "0.10.2", "jaxad": None}, "wall_time_s": {"train": 1234.5, "evaluate": 8.2},
        "config": {"experiment": "nsa_logistic", "epochs": 320, "seed": 3},
    }
    return metrics.evaluate(scores) | provenance | changes


class Page(HTMLParser):
    """Collects tags and sources, and checks that every opened element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.tags, self.texts = [], [], set(), []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in ("img", "meta", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(self.texts)


def write(tmp_path, scores, *, history=(), samples_png=None, features=None, terms=None, **changes):
    path = tmp_path / "report.html"
    results = full_results(scores, **changes)
    pictures = {"samples_png": samples_png, "features": features, "terms": terms}
    html_report.write_html(path, results=results, scores=scores, history=history, **pictures)
    return Page(path.read_text(encoding="utf-8")), results


@pytest.mark.medium
def test_the_heading_calls_no_other_score_dla(tmp_path):
    for standardize, heading in ((False, "dla · bottle"), (True, "dla, score.standardize=True · bottle")):
        changes = {"experiment": "dla", "config": {"score": {"standardize": standardize}}}
        written, _ = write(tmp_path, small_test_set(), **changes)
        assert heading in written.texts


@pytest.mark.medium
def test_report_is_one_file_whose_pictures_all_decode(tmp_path):
    picture = tmp_path / "picture.png"
    cv2.imwrite(str(picture), np.zeros((8, 8, 3), np.uint8))
    history = [{"step": 10 * i, "loss": 1 / (i + 1)} for i in range(60)]
    features = {"good": np.eye(4), "defective": 2 * np.eye(4)}
    written, _ = write(tmp_path, small_test_set(), history=history, samples_png=picture, features=features)
    assert not written.tags & {"link", "iframe"}
    kinds = {"jpeg": 0, "png": 0, "svg+xml": 0}
    for source in written.sources:
        kind, data = re.fullmatch(r"data:image/([a-z+]+);base64,(.+)", source).groups()
        data = base64.b64decode(data)
        kinds[kind] += 1
        if kind == "svg+xml":
            assert ElementTree.fromstring(data).tag.endswith("svg")
        else:
            assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is not None
    # Two score charts, pixel scores, ROC, overlap, features, loss; 4 good (2 tiles), 8 defective (3 tiles), the scale.
    assert kinds == {"svg+xml": 7, "png": 1, "jpeg": 4 * 2 + 8 * 3 + 1}


def test_report_shows_every_metric_and_where_it_comes_from(tmp_path):
    written, results = write(tmp_path, small_test_set())
    for values in (results, *results["by_defect"].values()):
        for number in (*values["image"].values(), *values["pixel"].values()):
            assert ("n/a" if number is None else f"{100 * number:.2f}") in written.texts
    assert results["pixel"]["aupimo"] is None  # of so few good pixels
    assert {"AU-PRO(0.3)", "AU-PRO(0.05)", "AUPIMO"} <= set(written.texts)
    wall_time = "train 1,234 s, evaluate 8 s"
    for fact in ("abc123", "2 CPU cores", "2026-11-22", results["command"], "jax 0.10.2", wall_time):
        assert fact in written.texts
    assert '"epochs": 320' in written.text
    assert "Training loss" not in written.texts and "What the network is taught" not in written.texts


def test_report_says_why_a_metric_is_missing(tmp_path):
    written, _ = write(tmp_path, small_test_set(masks=False))
    assert written.texts.count("n/a") == 2 + 3 * 6  # two cards; three rows of six pixel-level metrics
    assert " n/a: no ground-truth masks for the anomalous test images" in written.texts
    assert "Per-region overlap" not in written.texts and "ROC curves" in written.texts
    written, _ = write(tmp_path, small_test_set(crack=0, hole=0))
    assert " n/a: no anomalous test images" in written.texts and "ROC curves" not in written.texts


@pytest.mark.medium
def test_report_shows_what_the_threshold_does(tmp_path):
    written, _ = write(tmp_path, small_test_set(),
                    threshold={"value": 0.5, "false_alarm_rate": 0.25, "detection_rate": 0.875})
    assert "threshold 0.5 calls 25.0 % of the good images and 87.5 % of the defective images defective." in written.text
    written, _ = write(tmp_path, small_test_set(), threshold={"value": None, "reason": "nothing held out"})
    assert "Decision threshold: n/a (nothing held out)." in written.text


def test_names_are_escaped(tmp_path):
    scores = small_test_set()
    defects = [defect.replace("hole", "<i>&") for defect in scores.defects]
    scores = scores._replace(ids=[f"<b>{i}" for i in scores.ids], defects=defects)
    written, _ = write(tmp_path, scores)
    assert "<b>test/good/000" in written.texts and "<i>&" in written.texts and not written.tags & {"i"}


@pytest.mark.medium
def test_constant_scores_make_a_report_without_warnings(tmp_path):
    scores = small_test_set()
    scores = scores._replace(maps=np.zeros_like(scores.maps), image_scores=np.zeros_like(scores.image_scores))
    history = [{"step": 1, "loss": 0.0}, {"step": 2, "loss": float("nan")}, {"step": 3}]
    written, _ = write(tmp_path, scores, history=history)
    assert "Training loss" in written.texts


def test_report_that_cannot_be_written_names_the_path(tmp_path):
    scores = small_test_set()
    with refuses(tmp_path, "directory"):
        html_report.write_html(tmp_path, results=full_results(scores), scores=scores, history=[])


def test_examples_put_false_alarms_and_misses_first():
    scores = small_test_set(good=3, crack=4, hole=3)
    scores = scores._replace(image_scores=np.array([0.1, 0.9, 0.5, 0.2, 0.8, 0.6, 1.0, 0.3, 0.4, 0.7]))
    groups = {title.split(",")[0]: indices for title, _, indices in html_report.pick_examples(scores, count=3)}
    assert list(groups) == ["False alarms", "Misses", "Typical", "Best"]
    assert groups["False alarms"] == [1, 2, 0]
    assert groups["Misses"] == [3, 7, 8]
    assert groups["Typical"] == [4]  # the medians of good (2) and hole (8) are shown above already
    assert groups["Best"] == [6]


@pytest.mark.medium
def test_examples_show_the_terms_of_their_maps(tmp_path):
    scores = small_test_set()
    plain, _ = write(tmp_path, scores)
    assert {"score", "ground truth", "regression error"}.isdisjoint(plain.texts)
    assert "Image, ground truth outline, heatmap. All heatmaps share one colour scale." in plain.texts
    shown = [i for _, _, indices in html_report.pick_examples(scores) for i in indices]
    rng = np.random.default_rng(1)
    terms = {
        "regression error": {i: 9 - scores.maps[i] for i in shown},
        "<uncertainty>": {i: 1 + 999 * rng.random((48, 64)) ** 9 for i in shown},  # over orders of magnitude
    }
    made, _ = write(tmp_path, scores, terms=terms)
    for name in ("image", "ground truth"):
        assert made.texts.count(name) == len(shown)
    for name, maps in (("score", dict(enumerate(scores.maps))), *terms.items()):
        assert made.texts.count(name) == len(shown) + 1  # above its colour scale, too
        low, high = (f"{limit:.3g}" for limit in charts.colour_limits(np.stack(list(maps.values()))))
        place = made.texts.index(name)
        assert made.texts[place + 1] == low and made.texts[place + 2].split(" (")[0] == high
        assert ("(logarithmic)" in made.texts[place + 2]) is (name == "<uncertainty>")
    assert len(made.sources) == len(plain.sources) + 2 * len(shown) + 2
    assert len(set(made.sources) - set(plain.sources)) == 2 * len(shown)  # no term is drawn as another one


def test_overlay_of_a_low_map_is_nearly_grey_and_of_a_high_one_red():
    image = np.full((4, 5, 3), 100, np.uint8)
    map_ = np.zeros((4, 5), np.float32)
    map_[0, 0], map_[1, 1] = 1.0, 7.0
    drawn = charts.overlay(image, map_, low=0.0, high=1.0)
    assert drawn.dtype == np.uint8 and drawn.shape == image.shape
    low, high = charts.heat(np.array([[0.0, 1.0]]), low=0.0, high=1.0)[0].astype(float)
    np.testing.assert_array_equal(drawn[3, 3], np.round(0.85 * 100 + 0.15 * low))
    np.testing.assert_array_equal(drawn[0, 0], np.round(0.25 * 100 + 0.75 * high))
    np.testing.assert_array_equal(drawn[1, 1], drawn[0, 0])  # above the scale's end is the scale's end
    assert high[0] > 2 * high[2] and (image == 100).all()
    with pytest.raises(ValueError, match=r"\(4, 5\), its map \(5, 4\)"):
        charts.overlay(image, map_.T, low=0.0, high=1.0)


def test_overlay_of_a_large_image_takes_little_memory_and_is_that_of_its_parts():
    rng = np.random.default_rng(4)
    image, map_ = rng.integers(0, 256, (2000, 1500, 1), np.uint8), rng.random((2000, 1500), np.float32)
    map_[500:900, :9] = np.nan
    tracemalloc.start()
    drawn = charts.overlay(image, map_, low=0.1, high=0.9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert drawn.nbytes <= peak < 4 * drawn.nbytes
    for rows in (slice(0, 7), slice(800, 1000), slice(1999, 2000)):
        np.testing.assert_array_equal(charts.overlay(image[rows], map_[rows], low=0.1, high=0.9), drawn[rows])


def test_outline_surrounds_the_mask_without_covering_it():
    image, mask = np.zeros((128, 128, 3), np.uint8), np.zeros((128, 128), np.uint8)
    mask[40:60, 40:60] = 1
    drawn = charts.outline(image, mask, (255, 0, 0)).any(-1)
    assert not drawn[mask == 1].any() and drawn.sum() == 4 * 20  # one pixel wide, corners open
    assert drawn[39, 40:60].all() and drawn[40:60, 60].all() and not image.any()
    map_ = np.zeros((128, 128), np.float32)
    white = charts.overlay(image, map_, low=0, high=1, mask=mask) == 255
    np.testing.assert_array_equal(white.all(-1), drawn)


def test_grey_images_are_drawn_as_their_rgb_version():
    rng = np.random.default_rng(3)
    grey, map_, mask = rng.integers(0, 256, (32, 24, 1), np.uint8), rng.random((32, 24)), rng.random((32, 24)) > 0.9
    rgb = np.concatenate([grey] * 3, axis=2)
    for one, other in (
        (charts.outline(grey, mask), charts.outline(rgb, mask)),
        *((charts.overlay(x, map_, low=0, high=1, mask=mask) for x in (grey, rgb)),),
        *((sample_grid.label_grid(x[None], map_[None]) for x in (grey, rgb)),),
    ):
        np.testing.assert_array_equal(one, other)
        assert one.shape[2] == 3


def test_colour_limits_ignore_one_extreme_image():
    maps = np.random.default_rng(0).random((300, 16, 16)).astype(np.float32)
    maps[0] = 1e6
    low, high = charts.colour_limits(maps)
    assert low == pytest.approx(0.5, abs=0.02) and 0.9 < high < 1


@pytest.mark.medium
def test_scores_of_far_outliers_are_drawn_on_a_logarithmic_axis():
    scores, labels = np.array([1.0, 1.5, 2.0, 3.0, 1e6]), np.array([0, 0, 0, 1, 1])
    for draw in (charts.score_histogram, lambda labels, *rest: charts.score_strips(list("aaabb"), *rest)):
        assert b"mathdefault{10^" in draw(labels, scores, 2.5)
        assert b"mathdefault{10^" not in draw(labels, np.log(scores) - 1, 2.5)  # one is negative
        assert b"mathdefault{10^" not in draw(labels, scores.clip(max=150), 2.5)
        assert b"mathdefault{10^" not in draw(labels, scores / 1e7, 2.5e-7)  # probabilities, say


def test_heatmaps_of_far_outliers_are_logarithmic():
    levels = charts.heat(np.array([[1.0, 10.0, 1e2, 1e3, 1e4]]), low=1.0, high=1e4)
    np.testing.assert_array_equal(levels, charts.heat(np.linspace(0, 1, 5)[None], low=0.0, high=1.0))
    np.testing.assert_array_equal(charts.heat(np.array([[0.0, -3.0]]), low=1.0, high=1e4)[0], levels[0, [0, 0]])
    masks, maps = [np.eye(8)], np.geomspace(0.5, 1e5, 64).reshape(1, 8, 8)
    assert b"mathdefault{10^{4}}" in charts.pixel_histogram(masks, maps)


@pytest.mark.slow
def test_embedding_keeps_kinds_that_differ_apart(monkeypatch):
    rng, drawn = np.random.default_rng(0), []
    fit = TSNE.fit_transform
    monkeypatch.setattr(TSNE, "fit_transform", lambda self, x: drawn.append(fit(self, x)) or drawn[-1])
    kinds = {"good": 0, "defective": 30, "CutPaste": -30}
    features = {kind: rng.normal(place, 1, (401 if place else 12, 8)) for kind, place in kinds.items()}
    svg = charts.tsne_chart(features)
    assert svg == charts.tsne_chart(features)
    for name in ("good (12)", "defective (134)", "CutPaste (134)"):  # of 401 every third
        assert f"<!-- {name} -->".encode() in svg
    groups = np.split(drawn[0], [12, 146])
    centres = np.stack([group.mean(0) for group in groups])
    for number, group in enumerate(groups):
        assert (np.linalg.norm(group[:, None] - centres, axis=-1).argmin(1) == number).all()
    assert charts.tsne_chart({"good": np.eye(4), "defective": np.empty((0, 4))}) is None


@pytest.mark.medium
def test_no_window_system_is_touched():
    code = ("import sys, numpy as np; from jaxad import report; from jaxad.reporting import charts;"
            "charts.loss_chart(np.arange(9.), np.ones(9));"
            "sys.exit('matplotlib.pyplot' in sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def write_results(folder, *, seed=0, auroc=0.97, aupro=0.9, epochs=320, **changes):
    folder.mkdir(parents=True)
    results = {
        "experiment": "nsa_logistic", "category": "bottle", "seed": seed, "image": {"auroc": auroc},
        "pixel": {"auroc": 0.98, "aupro": aupro}, "commit": "abc123", "device": "2 CPU cores", "date": "2026-11-22",
        "command": f"python -m jaxad.train --config.seed={seed}", "config": {"seed": seed, "epochs": epochs},
    } | changes
    (folder / "results.json").write_text(json.dumps(results))


def rows(table):
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


def test_table_has_mean_and_standard_error_over_seeds(tmp_path):
    for seed, auroc in enumerate((0.97, 0.98, 0.99)):
        write_results(tmp_path / f"runs/nsa/seed{seed}", seed=seed, auroc=auroc, commit=f"c{min(seed, 1)}")
    write_results(tmp_path / "runs/short", epochs=10, aupro=None)
    write_results(tmp_path / "base", experiment="baseline_mean", config={"seed": 0}, command="a '|' b")
    table = report.markdown(report.gather([tmp_path / "runs", tmp_path / "base", tmp_path / "runs/nsa"]))
    baseline, short, long = rows(table)
    # The standard deviation of .97, .98, .99 is .01; over the root of 3 it is .58 %.
    assert long == ["nsa_logistic, epochs=320", "bottle", "3", "98.0 ± 0.6", "98.0 ± 0.0", "90.0 ± 0.0", "320",
                    "2 CPU cores", "2026-11-22", "c0, c1", "`python -m jaxad.train --config.seed=0`"]
    assert [short[0], *short[2:7]] == ["nsa_logistic", "1", "97.0", "98.0", "n/a", "10"]
    assert baseline[0] == "baseline_mean" and baseline[6] == "–" and baseline[-1] == r"`a '\|' b`"


def test_the_same_seed_twice_is_refused(tmp_path):
    write_results(tmp_path / "a")
    write_results(tmp_path / "b")
    with refuses(tmp_path / "b/results.json", "seed 0"):
        report.markdown(report.gather([tmp_path]))


def test_readme_table_is_replaced_between_the_markers(tmp_path, capsys):
    write_results(tmp_path / "w")
    readme, output = tmp_path / "README.md", tmp_path / "table.md"
    readme.write_text("before\n<!-- results:start -->\nold\n<!-- results:end -->\nafter\n")
    for _ in range(2):  # the second time changes nothing more
        report.main([str(tmp_path / "w"), "--readme", str(readme), "--output", str(output)])
    table = output.read_text()
    assert readme.read_text() == f"before\n<!-- results:start -->\n{table}<!-- results:end -->\nafter\n"
    assert capsys.readouterr().out == ""
    report.main([str(tmp_path / "w")])
    assert capsys.readouterr().out == table


def test_flags_that_would_be_ignored_and_a_readme_that_is_no_text(tmp_path, capsys):
    write_results(tmp_path / "w")
    (tmp_path / "README.md").write_bytes("Größe".encode("latin-1"))
    for flags, words in (
        (["--section", "x"], "--section names a part of a README; add --readme README.md, or leave it out"),
        (["--html", ""], "the value given for html is empty; write one, or leave it out"),
        ([""], "the value given for workdirs is empty; write one, or leave it out"),
        (["--readme", str(tmp_path / "README.md")], f"{tmp_path / 'README.md'} is no text in UTF-8; give the README"),
    ):
        assert refusal(capsys, report.main, tmp_path / "w", *flags).startswith(words)


def test_only_the_named_section_is_replaced(tmp_path):
    write_results(tmp_path / "w")
    readme = tmp_path / "README.md"
    other = "<!-- results:start -->\nother\n<!-- results:end -->\n"
    readme.write_text(f"{other}<!-- proxies:start -->\n<!-- proxies:end -->\n")
    report.main([str(tmp_path / "w"), "--readme", str(readme), "--section", "proxies"])
    text = readme.read_text()
    assert text.startswith(f"{other}<!-- proxies:start -->\n| experiment ") and text.count("nsa_logistic") == 1


@pytest.mark.parametrize("content, word", [
    (None, "results.json"),
    ("{", "read"),
    ("3", "read"),
    ('{"experiment": "x"}', "'category'"),
    ('{"experiment": 1, "category": 2, "seed": 3, "config": 4, "image": 5, "pixel": 6}', "read"),
    ('{"experiment": 1, "category": 2, "seed": 3, "config": 4, "image": {"auroc": 1},'
     '"pixel": {"auroc": 1, "aupro": 1}}', "read"),
    ('{"experiment": 1, "category": 2, "seed": 3, "config": {}, "image": {}, "pixel": {}}', "'image.auroc'"),
])
def test_bad_results_name_the_file(tmp_path, content, word):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with refuses(tmp_path if content is None else tmp_path / "results.json", word):
        report.gather([tmp_path])


@pytest.mark.parametrize("content", ["nothing", "<!-- results:end --><!-- results:start -->", None])
def test_readme_without_markers_is_refused_and_left_alone(tmp_path, content):
    write_results(tmp_path / "w")
    readme = tmp_path / "README.md"
    if content is not None:
        readme.write_text(content)
    with refuses(readme, "README.md"):
        report.main([str(tmp_path / "w"), "--readme", str(readme)])
    assert readme.exists() == (content is not None) and (content is None or readme.read_text() == content)


def test_commands_in_a_table_hold_no_path_of_this_machine(tmp_path):
    command = "python -m jaxad.train --config /home/me/experiments/e.py:bottle --workdir '/home/me/my w'"
    command += " '--config.data.root=/my data/mvtec' --config.epochs=9"
    command += " --coordinator 10.0.0.7:1234 --processes=2 --process_id 0"
    command += " --config.model.weights=/home/me/b4.safetensors"
    write_results(tmp_path / "w", command=command)
    table = report.markdown(report.gather([tmp_path / "w"]))
    shown = "python -m jaxad.train --config experiments/e.py:bottle --config.data.root=DIR --config.epochs=9"
    assert f"`{shown} --config.model.weights=b4.safetensors`" in table


def test_files_of_weights_are_told_apart_by_their_names(tmp_path):
    for name, source in (("a", "/home/me/one.safetensors"), ("b", "hf:timm/resnet18.tv_in1k"), ("c", "two/x.bin")):
        write_results(tmp_path / name, config={"model": {"weights": source}})
    rows = report.markdown(report.gather([tmp_path])).splitlines()[2:]
    names = [row.split(" | ")[0].removeprefix("| ") for row in rows]
    sources = ("hf:timm/resnet18.tv_in1k", "x.bin")
    assert sorted(names)[1:] == [f"{min(names)}, model.weights={source}" for source in sources]


def test_of_runs_that_change_as_many_settings_the_nearest_to_all_has_the_plain_name(tmp_path):
    """Two variants of one run, whose command says its dtype and theirs do not."""
    base = {"synthesis": {"tolerance": 1.0, "object_test": "source"}}
    for name, typed, config in (
        ("c", "--config.dtype=bfloat16", base),
        ("a", "--config.synthesis.tolerance=0", {"synthesis": base["synthesis"] | {"tolerance": 0.0}}),
        ("b", "--config.synthesis.object_test=destination", {"synthesis": base["synthesis"] | {"object_test": "d"}}),
    ):
        write_results(tmp_path / name, config=config, command=f"python -m jaxad.train {typed}")
    found = [row[0] for row in rows(report.markdown(report.gather([tmp_path])))]
    name = min(found, key=len)
    assert sorted(found) == [name, f"{name}, synthesis.object_test=d", f"{name}, synthesis.tolerance=0.0"]


def test_older_runs_are_told_apart_by_what_their_configs_lack(tmp_path):
    for name, config in (("new", {"score": {"standardize": False, "top": 0.01}}), ("old", {"score": {"top": 0.01}})):
        write_results(tmp_path / name, experiment="dla", config=config, command=f"python -m jaxad.train --seed={name}")
    found = report.markdown(report.gather([tmp_path])).splitlines()[2:]
    assert sorted(row.split(" | ")[0] for row in found) == ["| dla", "| dla, without score.standardize"]


def test_what_an_older_config_need_not_say_is_no_difference(tmp_path):
    """Seeds of two versions of jaxad are one row."""
    for seed, more in ((0, {}), (1, {"white_level": 0, "max_megapixels": 1000})):
        config = {"experiment": "nsa_logistic", "epochs": 320, "seed": seed, "data": {"root": "a", **more}}
        write_results(tmp_path / str(seed), seed=seed, config=config)
    assert [row[2] for row in rows(report.markdown(report.gather([tmp_path])))] == ["2"]


def test_an_ensembles_command_names_no_folder(tmp_path):
    command = "python -m jaxad.evaluate --workdir=/a/0 --workdir=/a/1 --output=/a/both --config.data.root=/d"
    write_results(tmp_path / "w", evaluated={"command": command})
    table = report.markdown(report.gather([tmp_path / "w"]))
    assert "`python -m jaxad.evaluate --workdir W... --output OUT --config.data.root=DIR`" in table
    assert "/a" not in table


@pytest.mark.medium
def test_command_prints_one_sentence_and_exits_with_2(tmp_path):
    command = [sys.executable, "-m", "jaxad.report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr and done.stderr.count("\n") == 1


PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_the_readme_fits_a_few_screens():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 200


def test_links_and_paths_of_the_documentation_lead_to_files():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES):
        text = page.read_text()
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
        for path in re.findall(r"`((?:jaxad|experiments|results|tests|docs|tpu_scripts)/[\w./]+)`", text):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_functions_of_the_architecture_are_where_it_says():
    text = (ROOT / "docs/architecture.md").read_text()
    for name, path in re.findall(r"`(\w+)`(?: there)? in\s`(jaxad/[\w/]+\.py)`", text):
        code = (ROOT / path).read_text()
        assert re.search(rf"(def|class) {name}\b|^{name} = ", code, re.MULTILINE), f"{path}: {name}"
    assert len(re.findall(r"(?m)^## .*\?$", text)) == 14
    for walk in re.split(r"(?m)^## .*\?$", text)[1:]:
        assert 2 <= len(re.findall(r"(?m)^\d\. ", walk)) <= 5


def test_every_page_has_its_place_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    assert set(re.findall(r"[\w]+\.md", text)) == {page.name for page in PAGES}


def test_sections_of_a_readme_have_tables_of_their_own(tmp_path):
    readme = tmp_path / "README.md"
    names = ("first", "second", "third")
    readme.write_text("a\n" + "b\n".join(f"<!-- {name}:start -->\n<!-- {name}:end -->\n" for name in names) + "c\n")
    for seed, auroc in enumerate((0.951, 0.962, 0.98)):
        for category in ("bottle", "cable"):
            write_results(tmp_path / f"w/{category}{seed}", seed=seed, auroc=auroc, category=category,
                          counts=dict(zip(("good", "defective"), published.test_set_sizes()[category], strict=True)))
        write_results(tmp_path / f"w/short{seed}", seed=seed, auroc=auroc, aupro=None, epochs=10,
                      command="python -m jaxad.train --config e.py:bottle --config.note='a|b' --config.epochs=10")
    write_results(tmp_path / "w/base", experiment="baseline_mean", config={"seed": 0})

    def make():
        report.main([str(tmp_path / "w"), "--readme", str(readme), "--section", "first"])
        report.main([str(tmp_path / "w/base"), "--readme", str(readme), "--section", "second"])
        report.main([str(tmp_path / "w"), "--readme", str(readme), "--section", "third", "--layout", "paper"])
        return readme.read_text()

    text = make()
    assert make() == text and text.startswith("a\n<!-- first") and text.endswith("third:end -->\nc\n")
    # The plain name is that of the runs whose commands change nothing, though the others' configs sort before theirs.
    assert all(f"| {name} | bottle | 3 |" in text for name in ("nsa_logistic", "nsa_logistic, epochs=10"))


def test_papers_layout_is_printed_and_written_as_a_page(tmp_path, capsys):
    for seed in range(2):
        write_results(tmp_path / f"w/{seed}", seed=seed, counts={"good": 20, "defective": 63})
    write_results(tmp_path / "w/other", experiment="a<b", config={"seed": 0})
    page_file = tmp_path / "tables.html"
    report.main([str(tmp_path / "w"), "--layout", "paper", "--html", str(page_file)])
    assert capsys.readouterr().out == ""
    made = Page(page_file.read_text())
    assert made.sources == [] and {"table", "th", "td"} <= made.tags
    for text in ("Image AUROC, %", "Pixel AUROC, %", "AU-PRO, %", "nsa_logistic (2 runs)", "a<b (1 run)", "97.7 ± 0.1"):
        assert text in made.text
    report.main([str(tmp_path / "w"), "--layout", "paper"])
    head = "**Image AUROC, %**\n\n| category | a<b (1 run) | nsa_logistic (2 runs) | published |"
    assert capsys.readouterr().out.startswith(head)
    report.main([str(tmp_path / "w"), "--html", str(page_file)])
    assert "python -m jaxad.train --config.seed=0" in Page(page_file.read_text()).text


def test_papers_layout_is_not_for_benchmarks():
    with refuses("b.json", "--layout"):
        report.main(["b.json", "--layout", "paper"])
