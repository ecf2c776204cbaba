"""The papers' layout: statistics against hand-derived and independent values, cells, averages, notes, errors."""

import json
import math
import statistics

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jaxad import report
from jaxad.data.folder import OBJECTS, TEXTURES
from jaxad.reporting import published, tables
from tests.refusals import refuses

SIZES = published.test_set_sizes()


class Drawn:
    """A generator that draws the given counts, good images' last, as `bootstrap_auroc` asks for them."""

    def __init__(self, *counts):
        self.counts = list(counts)

    def multinomial(self, n, shares, size):
        drawn = self.counts.pop(0)
        assert drawn.shape == (size, len(shares)) and (drawn.sum(1) == n).all()
        return drawn


def test_a_replicate_is_the_auroc_of_the_images_that_were_drawn():
    rng = np.random.default_rng(0)
    labels, scores = np.array([0, 1, 1, 0, 0, 1, 0]), rng.integers(0, 4, 7).astype(float)
    defective = np.array([[1, 1, 1], [3, 0, 0], [0, 2, 1]])
    good = np.array([[1, 1, 1, 1], [0, 4, 0, 0], [2, 0, 1, 1]])
    found = tables.bootstrap_auroc(Drawn(defective, good), labels, scores, replicates=3)
    for value, v, w in zip(found, defective, good, strict=True):
        counts = np.empty(7, int)
        counts[labels == 1], counts[labels == 0] = v, w
        assert value == pytest.approx(roc_auc_score(labels.repeat(counts), scores.repeat(counts)))
    assert found[0] == pytest.approx(roc_auc_score(labels, scores))


def test_the_bootstrap_spreads_as_an_explicit_one_does():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], (30, 20))
    scores = rng.normal(labels, 1)
    found = tables.bootstrap_auroc(np.random.default_rng(2), labels, scores, replicates=4000)
    explicit = []
    for _ in range(300):
        chosen = np.concatenate([rng.integers(0, 30, 30), rng.integers(30, 50, 20)])
        explicit.append(roc_auc_score(labels[chosen], scores[chosen]))
    assert found.mean() == pytest.approx(np.mean(explicit), abs=0.01)
    assert found.std() == pytest.approx(np.std(explicit), rel=0.15)
    assert found.mean() == pytest.approx(roc_auc_score(labels, scores), abs=0.005)
    np.testing.assert_array_equal(
        found, tables.bootstrap_auroc(np.random.default_rng(2), labels, scores, replicates=4000))


def test_intervals_hold_the_true_auroc_about_as_often_as_they_say():
    rng, truth, labels = np.random.default_rng(3), statistics.NormalDist().cdf(1 / math.sqrt(2)), np.repeat([0, 1], 40)
    held = []
    for _ in range(200):
        replicates = tables.bootstrap_auroc(rng, labels, rng.normal(labels, 1), replicates=300)
        low, high = tables.interval(replicates)
        held.append(low <= truth <= high)
    assert 0.89 < np.mean(held) < 0.985  # 0.95 with a standard error of 0.015


def test_the_bootstrap_of_separated_and_of_equal_scores():
    labels = np.repeat([0, 1], (5, 7))
    rng = np.random.default_rng(0)
    assert (tables.bootstrap_auroc(rng, labels, labels * 1.0) == 1).all()
    assert (tables.bootstrap_auroc(rng, labels, np.zeros(12)) == 0.5).all()
    assert tables.interval(np.arange(1001) / 1000) == pytest.approx((0.025, 0.975))
    assert tables.interval(np.arange(1001) / 1000, level=0.5) == pytest.approx((0.25, 0.75))


def measured(*values, seeds=None, replicates=None):
    return tables.Measured(tuple(range(len(values))) if seeds is None else seeds, np.array(values), replicates)


def test_averages_are_taken_seed_by_seed():
    # The seeds' averages are .94, .96 and .98: mean .96, deviation .02, over the root of three 1.15 %.
    found = tables.average([measured(0.90, 0.94, 0.98), measured(0.98, 0.98, 0.98)])
    assert tables.ours(found) == "96.0 ± 1.2"
    mixed = [measured(0.90, 0.94, 0.98), measured(0.98, 0.98, seeds=(0, 3))]
    assert tables.ours(tables.average(mixed)) == "96.0 ± n/a"
    assert tables.ours(tables.average([mixed[0], measured(0.98)])) == "96.0 ± n/a"


def test_averages_of_single_runs_have_the_interval_of_the_averaged_replicates():
    one, other = np.linspace(0.90, 0.94, 101), np.linspace(0.96, 1.0, 101)
    found = tables.average([measured(0.92, replicates=one), measured(0.98, seeds=(7,), replicates=other)])
    assert tables.ours(found) == "95.0 [93.1, 96.9]"  # .93 to .97 less 2.5 % at either end
    assert tables.ours(tables.average([measured(0.92, replicates=one), measured(0.98)])) == "95.0 [n/a]"


@pytest.mark.parametrize("values, value, expected", [
    # Ours 98.0 with standard error 0.577; of the difference sqrt(0.577^2 + 0.6^2) = 0.833.
    ((0.97, 0.98, 0.99), (99.6, 0.6), ["99.6 ± 0.6", "-1.6 ± 0.8", "yes"]),
    ((0.97, 0.98, 0.99), (99.7, 0.6), ["99.7 ± 0.6", "-1.7 ± 0.8", "no"]),
    ((0.97, 0.98, 0.99), (96.3, 0.6), ["96.3 ± 0.6", "+1.7 ± 0.8", "no"]),
    ((0.97, 0.98, 0.99), (97.0, None), ["97.0", "+1.0", "n/a"]),
    ((0.98,), (97.0, 0.6), ["97.0 ± 0.6", "+1.0", "n/a"]),
    ((1.0, 1.0), (100.0, 0.0), ["100.0 ± 0.0", "+0.0 ± 0.0", "yes"]),
    ((0.9799, 0.9799), (98.0, 0.1), ["98.0 ± 0.1", "+0.0 ± 0.1", "yes"]),
    ((0.98, 0.98), None, ["–", "–", "–"]),
])
def test_comparison_with_a_published_number(values, value, expected):
    assert tables.compare(measured(*values), value and published.Value(*value)) == expected


def test_comparison_where_we_have_no_number():
    assert tables.compare(None, published.Value(97.0, 0.6)) == ["97.0 ± 0.6", "n/a", "n/a"]
    assert tables.ours(None) == "n/a"


def write(folder, *, experiment="nsa_logistic", category="bottle", seed=0, auroc=0.97, counts=None, scores=None,
          command="python -m jaxad.train", **config):
    folder.mkdir(parents=True)
    good, defective = counts or SIZES.get(category, (3, 4))
    (folder / "results.json").write_text(json.dumps({
        "experiment": experiment, "category": category, "seed": seed, "image": {"auroc": auroc},
        "pixel": {"auroc": 0.98, "aupro": None}, "counts": {"good": good, "defective": defective},
        "command": f"{command} --config.seed={seed}", "config": {"seed": seed, **config},
    }))
    if scores is not None:
        rows = [f"{i},{label},x,{score}\n" for i, (label, score) in enumerate(scores)]
        (folder / "scores.csv").write_text("id,label,defect,score\n" + "".join(rows))


def paper(*folders):
    columns = report.by_column(report.group_seeds(report.gather(folders)))
    return {table.title: table for table in tables.paper(columns)}


def rows(table):
    return {row[0]: row[1:] for row in table.rows}


def test_all_categories_and_averages_beside_the_papers(tmp_path):
    for number, category in enumerate(reversed(TEXTURES + OBJECTS)):
        for seed, auroc in enumerate((0.94, 0.96, 0.98)):
            write(tmp_path / category / str(seed), category=category, seed=seed, auroc=auroc, epochs=number)
    image, pixel, aupro = paper(tmp_path).values()
    assert image.heads == ["category", "nsa_logistic (3 runs)", "published", "difference", "within 2 s.e."]
    assert [row[0] for row in image.rows] == [*TEXTURES, *OBJECTS, "texture average", "object average", "average"]
    found = rows(image)
    # 2 / sqrt(3) = 1.155; 1.0 / sqrt(5) = 0.447; together 1.238.
    assert found["cable"] == ["96.0 ± 1.2", "94.5 ± 0.4", "+1.5 ± 1.2", "yes"]
    assert found["screw"] == ["96.0 ± 1.2", "90.2 ± 0.6", "+5.8 ± 1.3", "no"]
    assert found["texture average"] == ["96.0 ± 1.2", "98.6 ± 0.1", "-2.6 ± 1.2", "no"]
    assert found["average"] == ["96.0 ± 1.2", "97.2 ± 0.1", "-1.2 ± 1.2", "yes"]
    assert rows(pixel)["wood"] == ["98.0 ± 0.0", "90.7 ± 0.8", "+7.3 ± 0.8", "no"]
    assert rows(aupro)["wood"] == ["n/a", "85.3 ± 1.7", "n/a", "n/a"] and rows(aupro)["average"] == ["–"] * 4
    assert "Schlüter et al., ECCV 2022, Table 1, NSA (logistic)" in "".join(image.notes)
    assert "divided by its root" in "".join(image.notes) and "Table 8" in "".join(aupro.notes)


def test_a_summary_has_all_metrics_beside_the_papers(tmp_path):
    for seed, auroc in enumerate((0.94, 0.96, 0.98)):
        write(tmp_path / f"nsa{seed}", seed=seed, auroc=auroc, epochs=320)
    write(tmp_path / "dla", experiment="dla")
    write(tmp_path / "cap", experiment="dla", category="cap")
    write(tmp_path / "other", category="cable", counts=(1, 2))
    table = report.summary(report.gather([tmp_path]))
    assert table.heads[3:] == ["Image AUROC", "published", "Pixel AUROC", "published", "AU-PRO", "published"]
    assert table.rows == [
        ["dla", "bottle", "–", "97.0", "–", "98.0", "91.8 ± 0.2", "n/a", "–"],
        ["dla", "cap", "–", "97.0", "–", "98.0", "–", "n/a", "–"],
        ["nsa_logistic", "bottle", "320", "96.0 ± 1.2", "97.7 ± 0.1", "98.0 ± 0.0", "98.3 ± 0.0", "n/a", "92.9 ± 0.1"],
        ["nsa_logistic", "cable", "–", "97.0", "–", "98.0", "–", "n/a", "–"],  # another test set
    ]


def test_a_summary_without_a_published_number_has_no_column_for_them(tmp_path):
    write(tmp_path / "cap", category="cap", epochs=64)
    table = report.summary(report.gather([tmp_path]))
    assert table.heads == ["experiment", "category", "epochs", "Image AUROC", "Pixel AUROC", "AU-PRO"]
    assert table.rows == [["nsa_logistic", "cap", "64", "97.0", "98.0", "n/a"]] and table.align == "llrrrr"


def test_published_numbers_have_a_table_of_their_own():
    table = tables.published_table(["nsa_logistic", "nsa_one_patch"], "bottle")
    titles = [f"{name}, {of}" for name in ("Image AUROC", "Pixel AUROC", "AU-PRO") for of in ("bottle", "average")]
    assert table.heads == ["experiment", "source", *titles]
    paper = "Schlüter et al., ECCV 2022"
    assert table.rows[0][:4] == ["nsa_logistic", f"{paper}, Table 1, Table 2, Table 8", "97.7 ± 0.1", "97.2 ± 0.1"]
    assert table.rows[1][1:] == [f"{paper}, Table 7", "97.1 ± 0.2", "95.3 ± 0.2", "97.9 ± 0.0", "94.1 ± 0.4", "–", "–"]
    assert tables.published_table(["scar"], "bottle").heads == ["experiment", "source", *titles[:2]]


def test_features_of_another_level_have_a_published_column_of_their_own(tmp_path):
    for level in ("pool", "level7"):
        evaluated = f"python -m jaxad.evaluate --config.score.level={level}"
        write(tmp_path / level, experiment="efficientnet_pretrained", command=evaluated, score={"level": level})
    image, *_ = paper(tmp_path)
    image = paper(tmp_path)[image]
    assert [head for head in image.heads if head.startswith("eff")] == [
        "efficientnet_pretrained, score.level=level7 (1 run)", "efficientnet_pretrained, score.level=pool (1 run)",
    ]  # fmt: skip
    assert rows(image)["bottle"][1::4] == ["100.0", "99.8"]
    assert "Level-7, Pretrain" in "".join(image.notes) and "Pool, Pretrain" in "".join(image.notes)


OTHER_SCORES = [{"standardize": True}, {"channels": "mean"}, {"uncertainty_weight": 0.0}, {"stages": "layer2"}]


@pytest.mark.parametrize("score", OTHER_SCORES, ids=str)
@pytest.mark.parametrize("typed", ["python -m jaxad.train", "python -m jaxad.evaluate --config.score.{}={}"])
@pytest.mark.parametrize("name", ["dla", "dla_static", "dla_global_neg", "dla_global_dense", "dla_global_only"])
def test_no_table_calls_another_score_dla(tmp_path, name, typed, score):
    """Alone in its table, by a command or by a file of the user's own with the paper's name."""
    [(key, value)] = score.items()
    write(tmp_path / "run", experiment=name, score=score, command=typed.format(key, value))
    full, path = f"{name}, score.{key}={value}", [tmp_path]
    flat = report.flat(report.gather(path))
    found = report.summary(report.gather(path))
    assert flat.rows[0][0] == found.rows[0][0] == full and "published" not in found.heads
    for table in paper(*path).values():
        assert table.heads == ["category", f"{full} (1 run)"] and not any("Yoa" in note for note in table.notes)


def test_an_ensemble_by_another_score_is_not_called_dla(tmp_path):
    write(tmp_path / "run", experiment="dla, ensemble of 3", score={"standardize": True})
    assert report.summary(report.gather([tmp_path])).rows[0][0] == "dla, ensemble of 3, score.standardize=True"


def test_the_same_stages_in_another_order_are_the_papers_score():
    values = {"score.stages": " layer3,layer1, layer2"}
    assert published.other_score("dla", values) == []
    assert published.other_score("dla", {"score.stages": "layer1,layer2"}) == ["score.stages=layer1,layer2"]


def test_the_papers_score_has_its_name_and_its_number(tmp_path):
    printed = {"stages": "layer1,layer2,layer3", "channels": "sum", "standardize": False}
    write(tmp_path / "dla", experiment="dla", score=printed | {"regression_weight": 1.0, "uncertainty_weight": 0.1})
    write(tmp_path / "untrained", experiment="dla_untrained", score=printed | {"uncertainty_weight": 0.0})
    write(tmp_path / "ours", experiment="dla_standardized", score={"channels": "mean", "standardize": True})
    found = {row[0]: row[6] for row in report.summary(report.gather([tmp_path])).rows}
    assert found == {"dla": "91.8 ± 0.2", "dla_standardized": "–", "dla_untrained": "–"}


def test_columns_beside_each_other_and_averages_over_what_is_there(tmp_path):
    for category in ("bottle", "cable", "wood"):
        write(tmp_path / category, category=category, counts=SIZES[category])
    write(tmp_path / "base", experiment="baseline_mean", auroc=0.6)
    write(tmp_path / "cap", experiment="baseline_mean", category="cap", auroc=0.5)
    write(tmp_path / "union", experiment="cutpaste_union")
    image = paper(tmp_path)["Image AUROC, %"]
    assert image.heads == ["category", "baseline_mean (1 run)", "cutpaste_union (1 run)", "nsa_logistic (1 run)",
                           "published", "difference", "within 2 s.e."]
    assert [row[0] for row in image.rows] == ["wood", "bottle", "cable", "object average", "average", "cap"]
    found = rows(image)
    assert found["bottle"] == ["60.0 [n/a]", "97.0 [n/a]", "97.0 [n/a]", "97.7 ± 0.1", "-0.7", "n/a"]
    assert found["cap"] == ["50.0 [n/a]", "–", "–", "–", "–", "–"]
    assert found["object average"][0] == "60.0 [n/a] (1 of 10)"
    assert found["object average"][2:] == ["97.0 [n/a] (2 of 10)", "96.1 ± 0.2", "+0.9", "n/a"]
    assert found["average"][2:] == ["97.0 [n/a] (3 of 15)", "96.6 ± 0.3", "+0.4", "n/a"]


def test_seeds_are_counted_where_categories_have_different_ones(tmp_path):
    for seed in range(3):
        write(tmp_path / f"bottle{seed}", seed=seed)
    write(tmp_path / "cable", category="cable")
    image = paper(tmp_path)["Image AUROC, %"]
    assert image.heads[1] == "nsa_logistic (1 to 3 runs)"
    assert [row[1] for row in image.rows] == [
        "97.0 ± 0.0 (n = 3)", "97.0 [n/a] (n = 1)", "97.0 ± n/a (2 of 10)", "97.0 ± n/a (2 of 15)"]
    assert [note for note in image.notes if note.startswith("± n/a")]
    assert [note for note in image.notes if "Table" in note] == [
        "Published beside nsa_logistic: Schlüter et al., ECCV 2022, Table 1, NSA (logistic); the printed ± is the "
        "standard deviation over 5 runs, here divided by its root."]


def test_chest_xrays_and_averages_alone_are_compared(tmp_path):
    for seed, auroc in enumerate((0.92, 0.94)):
        write(tmp_path / f"x{seed}", category="chest_xray_male", seed=seed, auroc=auroc)
        for category in TEXTURES:
            write(tmp_path / f"{category}{seed}", experiment="cutpaste_union", category=category, seed=seed,
                  auroc=auroc)
    image = paper(tmp_path)["Image AUROC, %"]
    found = rows(image)
    # 94.0 ± 0.6 / sqrt(5) = 0.27 and ours 93.0 ± 1.0: 1.035 together.
    assert found["chest_xray_male"][4:] == ["93.0 ± 1.0", "94.0 ± 0.3", "-1.0 ± 1.0", "yes"]
    assert found["carpet"][:4] == ["93.0 ± 1.0", "–", "–", "–"]
    assert found["texture average"][:4] == ["93.0 ± 1.0", "97.3 ± 0.3", "-4.3 ± 1.0", "no"]
    assert found["average"][:4] == ["93.0 ± 1.0 (5 of 15)", "–", "–", "–"]
    assert any("Table 3, NSA (logistic)" in note for note in image.notes)
    assert not any("Table 1," in note for note in image.notes)


def test_another_test_set_of_the_same_name_is_not_compared(tmp_path):
    write(tmp_path / "bottle")
    write(tmp_path / "cable")
    write(tmp_path / "tile", category="tile", counts=(100, 40), auroc=0.6)
    (tmp_path / "cable/results.json").write_text(
        (tmp_path / "cable/results.json").read_text().replace('"bottle"', '"cable"'))
    image = paper(tmp_path)["Image AUROC, %"]
    assert [row[0] for row in image.rows] == ["bottle", "cable (another test set)", "tile (another test set)"]
    assert rows(image)["tile (another test set)"] == ["60.0 [n/a]", "–", "–", "–"]
    assert any("as many good and defective images" in note for note in image.notes)


def test_changed_values_make_columns_of_their_own(tmp_path):
    typed = "python -m jaxad.train --config e.py:{} --config.data.root=/my/data --workdir /w --config.epochs {}"
    for category, own in (("bottle", 7), ("wood", 9)):
        for epochs in (10, 20):
            write(tmp_path / f"{category}{epochs}", category=category, command=typed.format(category, epochs),
                  epochs=epochs, own=own)
    write(tmp_path / "default", category="wood", command="python -m jaxad.train --config e.py:wood", epochs=320, own=9)
    write(tmp_path / "older", category="wood", command="python -m jaxad.train --config e.py:wood", epochs=320, own=8)
    write(tmp_path / "oldest", category="wood", command="python -m jaxad.train --config e.py:wood", epochs=320)
    columns = report.by_column(report.group_seeds(report.gather([tmp_path])))
    assert {title: [group[0]["category"] for group in groups] for title, groups in columns.items()} == {
        "nsa_logistic, epochs=10": ["bottle", "wood"], "nsa_logistic, epochs=20": ["bottle", "wood"],
        "nsa_logistic": ["wood"], "nsa_logistic, own=9": ["wood"], "nsa_logistic, without own": ["wood"],
    }


def test_two_runs_with_one_place_in_the_table_are_refused(tmp_path):
    write(tmp_path / "a", epochs=1, note="older")
    write(tmp_path / "b", epochs=2, note="older")
    write(tmp_path / "c", epochs=2, note="newer", command="python -m jaxad.train --config.epochs=2")
    with refuses(tmp_path / "b/results.json", "epochs=2"):
        paper(tmp_path)


SCORES = [(0, 0.1), (0, 0.2), (0, 0.5), (0, 0.3), (1, 0.4), (1, 0.9), (1, 0.5), (1, 0.25)]


def test_one_run_has_the_bootstraps_interval_of_its_scores(tmp_path):
    labels, scores = np.array(SCORES).T
    auroc = roc_auc_score(labels, scores)
    write(tmp_path / "w", auroc=auroc, scores=SCORES)
    image, pixel, _ = paper(tmp_path).values()
    rng = np.random.default_rng([0, *b"bottle"])
    low, high = np.quantile(tables.bootstrap_auroc(rng, labels, scores), (0.025, 0.975))
    assert 0 < low < auroc < high <= 1
    assert rows(image)["bottle"][0] == f"{100 * auroc:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    assert rows(pixel)["bottle"][0] == "98.0 [n/a]"
    assert "95 % bootstrap" in "".join(image.notes) and "no pixel's score is kept" in "".join(pixel.notes)


@pytest.mark.parametrize("content, word", [
    ("", "read"),
    ("id,label,defect,score\n", "read"),
    ("id,label\n0,1\n", "read"),
    ("id,label,defect,score\n0,0,x,0.1\n1,1,x,a\n", "read"),
    ("id,label,defect,score\n0,0,x,0.1\n1,0,x,0.2\n", "two"),
    ("id,label,defect,score\n0,0,x,0.1\n1,1,x,0.2\n", "two"),
])
def test_scores_that_do_not_belong_to_the_results_are_refused(tmp_path, content, word):
    write(tmp_path / "w", auroc=0.9)
    (tmp_path / "w/scores.csv").write_text(content)
    with refuses(tmp_path / "w/scores.csv", word):
        paper(tmp_path)


def test_markdown_escapes_and_html_is_safe():
    table = tables.Table(["a", "b|c"], [["<x>", "`y < 1`"]], "lr", title="T", notes=["n & m"])
    assert tables.markdown([table, table._replace(title="", notes=[])]) == (
        "**T**\n\n| a | b\\|c |\n|---|---:|\n| <x> | `y < 1` |\n\nn & m\n\n"
        "| a | b\\|c |\n|---|---:|\n| <x> | `y < 1` |\n")
    text = tables.page([table])
    assert "<td>&lt;x&gt;</td><td class=number><code>y &lt; 1</code></td>" in text
    assert "<h2>T</h2>" in text and "n &amp; m" in text and "src=" not in text
