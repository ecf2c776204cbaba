"""``python -m jaxad.synthetic_anomalies``: the sets of CutPaste's Table 6, the command on a workdir, and its table."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_image

from jaxad import benchmark, report
from jaxad import config as configs
from jaxad import detector as detectors
from jaxad.data.record import Record
from jaxad.errors import UserError
from jaxad.metrics import IGNORED
from jaxad.reporting import published
from jaxad.runtime import disk
from jaxad.synthetic_anomalies import __main__ as anomalies
from jaxad.synthetic_anomalies import shapes
from tests.commands import train
from tests.data.test_tfds import classes, needs_tfds, picture  # noqa: F401  a fixture
from tests.parts import ROOT, SIZE, baseline, command, part, refusal, write, write_parts
from tests.refusals import refuses
from tests.shared import SHARED, needs_shared

EXPERIMENT = f"{ROOT}/experiments/synthetic_anomalies.py"
SIDE = 48


def settings_of(**overrides):
    return configs.load(EXPERIMENT, overrides, required=anomalies.SETTINGS)


@pytest.fixture(scope="module")
def given():
    return anomalies.source(settings_of())


def records(count, *, side=SIDE, channels=3):
    """Good images of noise, another one for each number."""
    made = []
    for number in range(count):
        image = np.random.default_rng(number).integers(0, 256, (side, side, channels)).astype(np.uint8)
        made.append(Record(image, 0, np.zeros((side, side), np.uint8), f"test/good/{number:03d}", "good"))
    return made


def by_column(made, count):
    names = list(anomalies.COLUMNS)
    assert [record.defect for record in made] == [name for name in names for _ in range(count)]
    return {name: made[number * count : (number + 1) * count] for number, name in enumerate(names)}


# The sets


@pytest.mark.parametrize("channels", [3, 1])
def test_masks_are_exact(given, channels):
    """Nothing changes outside a mask, and inside it are one colour or the pixels of one photo."""
    good = records(6, channels=channels)
    for name, found in by_column(anomalies.make(good, given, seed=0), 6).items():
        colours = []
        for record, before in zip(found, good, strict=True):
            assert (record.label, record.id, record.defect) == (1, f"{name}/{before.id}", name)
            assert record.image.dtype == record.mask.dtype == np.uint8 and record.image.shape == before.image.shape
            assert set(np.unique(record.mask)) == {0, 1} and record.mask.shape == before.image.shape[:2]
            inside = record.mask == 1
            np.testing.assert_array_equal(record.image[~inside], before.image[~inside])
            assert (record.image[inside] != before.image[inside]).any(-1).mean() > 0.9
            colours.append({tuple(colour) for colour in record.image[inside]})
        if name.endswith("+"):
            assert max(map(len, colours)) > 8
        else:
            assert {len(each) for each in colours} == {1} and len(set.union(*colours)) == 6


def test_the_same_images_give_the_same_sets_each_of_its_own_image_alone(given):
    good = records(5)
    made, again = (by_column(anomalies.make(good, given, seed=3), 5) for _ in range(2))
    fewer = by_column(anomalies.make(good[:2], given, seed=3), 2)
    other = by_column(anomalies.make(good, given, seed=4), 5)
    for name in anomalies.COLUMNS:
        for number, record in enumerate(made[name]):
            np.testing.assert_array_equal(record.image, again[name][number].image)
            np.testing.assert_array_equal(record.mask, again[name][number].mask)
            assert not np.array_equal(record.mask, other[name][number].mask)
        for record, expected in zip(fewer[name], made[name][:2], strict=True):
            np.testing.assert_array_equal(record.image, expected.image)
        assert len({record.mask.tobytes() for record in made[name]}) == 5


def test_the_filling_alone_tells_the_columns_of_a_shape_apart(given):
    made = by_column(anomalies.make(records(4), given, seed=0), 4)
    for shape in ("Square", "Ellipse", "Heart"):
        for coloured, natural in zip(made[shape], made[f"{shape}+"], strict=True):
            np.testing.assert_array_equal(coloured.mask, natural.mask)
            assert not np.array_equal(coloured.image, natural.image)
    assert not np.array_equal(made["Square"][0].mask, made["Ellipse"][0].mask)


def test_shapes_are_those_of_the_columns(given):
    rng = np.random.default_rng((0, list(given.shapes).index("heart"), 2))
    expected = shapes.heart(rng, SIDE, size=(0.1, 0.2))
    heart = by_column(anomalies.make(records(3), given, seed=0), 3)["Heart"][2]
    np.testing.assert_array_equal(heart.mask, expected)
    assert tuple(heart.image[heart.mask == 1][0]) == tuple(rng.integers(0, 256, 3))  # drawn behind the shape


def test_what_lies_outside_the_region_of_interest_has_no_anomalies(given):
    outside = np.zeros((SIDE, SIDE), bool)
    outside[:, : SIDE // 2] = True
    good = [record._replace(mask=np.where(outside, IGNORED, record.mask)) for record in records(4)]
    for record, made in zip(good * len(anomalies.COLUMNS), anomalies.make(good, given, seed=0), strict=True):
        np.testing.assert_array_equal(made.image[outside], record.image[outside])
        assert ((made.mask == IGNORED) == outside).all() and (made.mask == 1).any()
        assert (made.image == record.image)[made.mask != 1].all()
    nothing = [record._replace(mask=np.full((SIDE, SIDE), IGNORED, np.uint8)) for record in records(1)]
    with pytest.raises(UserError, match=r"no place for the anomaly .* in the region of interest of test/good/000"):
        anomalies.make(nothing, given, seed=0)


def test_what_is_cropped_away_has_no_anomalies(given):
    """The places are those of images of 32 pixels with a border of 8."""
    whole = anomalies.make(records(20), given, seed=0, crop=32)
    small = anomalies.make(records(20, side=32), given, seed=0)
    for one, other in zip(whole, small, strict=True):
        np.testing.assert_array_equal(one.mask, np.pad(other.mask, 8))
    assert any(record.mask[8].any() for record in whole)


def test_natural_patches_are_squares_of_photos(given):
    photos = {name: load_sample_image(name) for name in ("china.jpg", "flower.jpg")}
    starts = set()
    for number in range(8):
        patch = anomalies.natural_patch(np.random.default_rng(number), given.photos, (427, 427, 3))
        (found,) = [
            (name, left)
            for name, photo in photos.items()
            for left in range(640 - 427 + 1)
            if np.array_equal(photo[0, left : left + 427], patch[0])
        ]
        np.testing.assert_array_equal(photos[found[0]][:, found[1] :][:, :427], patch)
        starts.add(found)
    assert len(starts) > 5 and {name for name, _ in starts} == set(photos)
    patches = {anomalies.natural_patch(np.random.default_rng(n), given.photos, (8, 8, 1)).tobytes() for n in range(9)}
    assert len(patches) == 9 and {len(patch) for patch in patches} == {64}


def test_a_folder_of_natural_images(tmp_path, given):
    write(tmp_path / "red.png", np.full((5, 9, 3), (200, 0, 0), np.uint8))
    own = anomalies.source(settings_of(natural_root=str(tmp_path)))
    assert [photo.shape for photo in own.photos] == [(5, 9, 3)]
    made = by_column(anomalies.make(records(2), own, seed=0), 2)
    for name in ("Square+", "Ellipse+", "Heart+"):
        assert {tuple(colour) for r in made[name] for colour in r.image[r.mask == 1]} == {(200, 0, 0)}


def test_natural_images_of_12_bits_in_16_are_what_they_are_in_8(tmp_path, capsys):
    """Divided by 257 they would be nearly black; one of 8 bits lies beside them."""
    for number in range(2):
        grey = part(number)[..., 0]
        write(tmp_path / "8" / f"{number}.png", grey)
        deep = grey.astype(np.uint16) * 16
        write(tmp_path / "16" / f"{number}.png", deep)
    write(tmp_path / "16" / "color.png", part(3))
    expected, found = (anomalies.natural_images(str(tmp_path / bits)) for bits in ("8", "16"))
    assert capsys.readouterr().out == (
        "2 natural images have 16 bits; white is 4095, since their largest value is 1744\n"
    )
    for one, other in zip(expected, found[:2], strict=True):
        np.testing.assert_allclose(other.astype(int), one, atol=1)
    np.testing.assert_array_equal(found[2], part(3))


@pytest.mark.medium
def test_natural_images_are_as_large_as_the_training_reads(trained, tmp_path, capsys):
    workdir = shutil.copytree(trained / "one", tmp_path / "one")
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["max_megapixels"] = 1
    (workdir / "config.json").write_text(json.dumps(config))
    photo = write(tmp_path / "photos" / "large.png", np.zeros((1001, 1000), np.uint8))
    given = ("--config", EXPERIMENT, f"--config.natural_root={photo.parent}", "--workdir", workdir)
    message = refusal(capsys, anomalies.main, *given)
    told = f"image '{photo}' is 1000 x 1001 pixels (width x height), more than the limit of 1,000,000 pixels"
    assert message.startswith(told)
    assert command(anomalies.main, *given, trained / "one") == 0  # whose limit is higher


@needs_tfds
def test_digits_of_mnist_are_its_test_images(classes):  # noqa: F811
    found = anomalies.glyphs("mnist", str(classes))
    expected = {picture("mnist", "test", number).tobytes() for number in range(4)}
    assert found.shape == (4, 28, 28) and {glyph.tobytes() for glyph in found} == expected
    made = anomalies.make(records(2), anomalies.source(settings_of(digits="mnist", mnist_root=str(classes))), seed=0)
    assert all(record.mask.any() for record in made)


def test_digits_by_default_are_bundled_ones(given):
    found = anomalies.glyphs("digits", "")
    np.testing.assert_array_equal(found, load_digits().images)
    assert found.shape == (1797, 8, 8) and found.max((1, 2)).min() > 0  # none without ink


@pytest.mark.parametrize("values, about, word", [
    ({"digits": "emnist"}, "digits", "mnist"),
    ({"digits": "mnist"}, "mnist_root", "empty"),
    ({"size": "0.2,0.1"}, "size", "(0.2, 0.1)"),
    ({"natural_root": "nowhere"}, "nowhere", "exist"),
])  # fmt: skip
def test_settings_that_cannot_be_used(values, about, word):
    with refuses(about, word):
        anomalies.source(settings_of(**values))


def test_an_empty_folder_of_natural_images_is_refused(tmp_path):
    with refuses("natural_root", "images"):
        anomalies.natural_images(str(tmp_path))


def test_the_picture_shows_every_column_beside_its_masks(given):
    drawn = anomalies.picture(anomalies.make(records(5), given, seed=0))
    assert drawn.shape == (3 * (SIDE + 4), 7 * (2 * SIDE + 4), 3)
    made = by_column(anomalies.make(records(5), given, seed=0), 5)
    for column, name in enumerate(anomalies.COLUMNS):
        for row in range(3):
            tile = drawn[row * (SIDE + 4) + 2 :, column * (2 * SIDE + 4) + 2 :]
            np.testing.assert_array_equal(tile[:SIDE, :SIDE], made[name][row].image)
            level = cv2.cvtColor(tile[:SIDE, SIDE : 2 * SIDE], cv2.COLOR_RGB2GRAY)
            np.testing.assert_array_equal(level > 128, made[name][row].mask == 1)
    assert anomalies.picture(anomalies.make(records(1), given, seed=0)).shape[0] == SIDE + 4  # fewer images than rows


# The command


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the parts, and the baseline's workdir."""
    folder = tmp_path_factory.mktemp("anomalies")
    write_parts(folder / "sets", train=12)
    assert command(train.main, *baseline(folder / "sets", folder / "one")) == 0
    return folder


@pytest.fixture(scope="module")
def done(trained):
    """Two workdirs through the command at once."""
    shutil.copytree(trained / "one", trained / "two")
    arguments = ("--config", EXPERIMENT, "--config.seed=7", "--workdir", trained / "one", trained / "two")
    assert command(anomalies.main, *arguments) == 0
    return trained


def read(path):
    return json.loads((path / anomalies.FILE).read_text())


@pytest.mark.medium
def test_figures_are_those_of_the_definition(done):
    """Recomputed from the detector's scores: the share of pairs whose anomalous member scores higher."""
    found = detectors.load(done / "one")
    good = anomalies.good_images(found, done / "one")
    assert [record.id for record in good] == ["test/good/000", "test/good/001"]
    made = by_column(anomalies.make(good, anomalies.source(settings_of()), seed=7), 2)
    normal, results = found.score(np.stack([record.image for record in good])), read(done / "one")
    assert list(results["columns"]) == list(anomalies.COLUMNS) and results["images"] == 2

    def wins(higher, lower):
        return float(np.mean((higher[:, None] > lower) + 0.5 * (higher[:, None] == lower)))

    for name, anomalous in made.items():
        scores = found.score(np.stack([record.image for record in anomalous]))
        inside = np.stack([record.mask for record in anomalous]) == 1
        expected = {
            "image_auroc": wins(scores.image, normal.image),
            "pixel_auroc": wins(scores.map[inside], np.concatenate([scores.map[~inside], normal.map.ravel()])),
        }
        assert results["columns"][name] == pytest.approx(expected)
    for key, value in results["average"].items():
        assert value == pytest.approx(sum(row[key] for row in results["columns"].values()) / 7)
    assert results["average"]["pixel_auroc"] > 0.8  # the baseline sees colours that it does not know


@pytest.mark.medium
def test_a_workdir_in_use_is_let_be(trained, tmp_path, capsys):
    shutil.copytree(trained / "one", tmp_path / "work")
    (tmp_path / "work" / anomalies.FILE).unlink(missing_ok=True)
    with disk.locked(tmp_path / "work"):
        threads = ThreadPoolExecutor(1)
        given = ("--config", EXPERIMENT, "--workdir", tmp_path / "work")
        message = threads.submit(refusal, capsys, anomalies.main, *given).result()
    assert message.startswith(f"{tmp_path / 'work'} is in use by another thread of process ")
    assert not (tmp_path / "work" / anomalies.FILE).exists()


@pytest.mark.medium
def test_results_say_where_they_come_from(done):
    found, other = read(done / "one"), read(done / "two")
    assert found["columns"] == other["columns"]
    assert found["settings"] == json.loads(settings_of(seed="7").to_json())
    assert (found["experiment"], found["task"], found["category"], found["seed"]) == (
        "baseline_mean", "no training", "nut", 0,
    )  # fmt: skip
    assert found["command"].startswith("python -m jaxad.train --config ")
    assert found["evaluated"]["command"] == (
        f"python -m jaxad.synthetic_anomalies --config {EXPERIMENT} --config.seed=7 --workdir={done / 'one'}"
    )
    assert "simulated devices" in found["device"] and "jax" in found["versions"] and len(found["date"]) == 10
    image = cv2.imread(str(done / "one" / anomalies.PICTURE))
    assert image.shape == (2 * (SIZE + 4), 7 * (2 * SIZE + 4), 3)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("cutpaste_scar", "cutpaste_scar"),
        ("cutpaste_untrained", "no training"),
        ("nsa_logistic", "nsa"),
        ("dla_untrained", "no training"),
    ],
)
def test_the_table_says_what_a_training_taught(name, task):
    assert anomalies.task_of(configs.load(f"{ROOT}/experiments/{name}.py")) == task


@pytest.mark.medium
def test_the_command_prints_the_reports_table(done, tmp_path, capsys):
    files = [str(done / name / anomalies.FILE) for name in ("one", "two")]
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- synthetic_anomalies:start -->\nold\n<!-- synthetic_anomalies:end -->\nb\n")
    report.main([*files, "--readme", str(readme), "--section", "synthetic_anomalies"])
    table = readme.read_text().removeprefix("a\n<!-- synthetic_anomalies:start -->\n")
    table = table.removesuffix("<!-- synthetic_anomalies:end -->\nb\n")
    arguments = ("--config", EXPERIMENT, "--config.seed=7", "--workdir", done / "one", "--workdir", done / "two")
    capsys.readouterr()
    assert command(anomalies.main, *arguments) == 0
    assert capsys.readouterr().out.endswith(f"\n\n{table}")
    head, _, cutout, cutpaste, one, two, _, note = table.splitlines()
    columns = "Digit | Square | Ellipse | Heart | Square+ | Ellipse+ | Heart+"
    assert head.startswith(f"| model | category | {columns} | average | average pixel AUROC | good images | epochs |")
    assert cutout.startswith("| Cutout, published | not stated | 52.3 | 90.6 |") and "| 80.7 | 81.5 | –" in cutout
    assert cutpaste.startswith("| CutPaste, published | not stated | 96.1 |") and "| 99.0 | 98.3 | –" in cutpaste
    values = [row["image_auroc"] for row in read(done / "one")["columns"].values()]
    assert one == two and " | ".join(f"{100 * value:.1f}" for value in values) in one
    assert one.startswith("| baseline_mean, no training | nut |") and str(done) not in one
    typed = "python -m jaxad.synthetic_anomalies --config experiments/synthetic_anomalies.py --config.seed=7"
    assert f", then `{typed}` |" in one
    assert "Digit: scikit-learn's digits where the paper has MNIST." in note


@pytest.mark.medium
def test_mnist_is_named_in_the_note(done):
    runs = [read(done / "one"), read(done / "two")]
    runs[1]["settings"]["digits"] = "mnist"
    (note,) = report.anomaly_table(runs).notes
    assert "Digit: scikit-learn's digits where the paper has MNIST or MNIST." in note
    assert report.anomaly_table(runs[1:]).notes[0].startswith("Image AUROC, %. Digit: MNIST.")


def test_published_rows_have_the_printed_average():
    for *values, average in published.synthetic_anomalies().values():
        assert len(values) == len(anomalies.COLUMNS) and sum(values) / 7 == pytest.approx(average, abs=0.051)


@needs_shared("papers")
def test_published_rows_stand_in_the_paper():
    lines = (SHARED / "papers" / "cutpaste.txt").read_text().splitlines()
    for name, values in published.synthetic_anomalies().items():
        assert "\t".join([name, *map(str, values)]) in lines


# Mistakes


@pytest.mark.medium
def test_a_test_set_without_good_images_is_refused(done, tmp_path, capsys):
    sets = shutil.copytree(done / "sets", tmp_path / "sets")
    shutil.rmtree(sets / "nut" / "test" / "good")
    arguments = ("--config", EXPERIMENT, "--workdir", done / "one", f"--config.data_root={sets}")
    message = refusal(capsys, anomalies.main, *arguments)
    assert str(done / "one") in message and "no good images" in message and "--config.data_root" in message


@pytest.mark.medium
def test_test_images_that_have_moved_are_named(done, tmp_path):
    sets = shutil.copytree(done / "sets", tmp_path / "sets")
    write(sets / "nut" / "test" / "good" / "new.png", part(300))
    workdir = shutil.copytree(done / "one", tmp_path / "one")
    assert command(anomalies.main, "--config", EXPERIMENT, "--workdir", workdir, f"--config.data_root={sets}") == 0
    assert read(workdir)["images"] == 3


@pytest.mark.medium
def test_test_images_of_16_bits_after_a_training_with_8_are_named(trained, tmp_path, capsys):
    sets = shutil.copytree(trained / "sets", tmp_path / "sets")
    image = write(sets / "nut" / "test" / "good" / "000.png", part(300)[..., 0].astype(np.uint16) * 16)
    found = detectors.load(trained / "one", {"data.root": str(sets)})
    assert len(anomalies.good_images(found, trained / "one")) == 2
    assert capsys.readouterr().out == (
        "1 image has 16 bits and no training image had: 65535 is taken for white: "
        f"'{image}' (largest value 1744)\n"
    )


@pytest.mark.medium
@pytest.mark.parametrize("arguments, words", [
    (("--config.sed=1",), "config has no key 'sed'; did you mean config.seed?"),
    (("--config.size=1",), "config.size must be of type tuple, not '1'"),
    (("--workdir", "nowhere"), "nowhere is no workdir"),
    (("--batch=3",), "unknown argument '--batch=3'"),
])  # fmt: skip
def test_mistakes_are_one_sentence(done, capsys, arguments, words):
    workdir = () if "--workdir" in arguments else ("--workdir", done / "one")
    assert words in refusal(capsys, anomalies.main, "--config", EXPERIMENT, *workdir, *arguments)


@pytest.mark.medium
def test_an_experiment_of_another_kind_is_refused(done, capsys):
    other = f"{ROOT}/experiments/baseline_mean.py"
    said = refusal(capsys, anomalies.main, "--config", other, "--workdir", done / "one")
    assert said.startswith(f"the config of {other} lacks size, digits, mnist_root, natural_root, data_root")


@pytest.mark.medium
def test_files_of_two_commands_make_no_table(done, tmp_path, capsys):
    timed = {"inference": benchmark.figure([0.5], [1e9], images=4, operations=None)}
    other = {"figures": timed, "config": {"score": {"size": 64}}, "memory": {"peak": {"bytes": 1, "of": "process"}}}
    other |= dict.fromkeys(("device", "dtype", "date", "commit", "command", "experiment", "category"), "x")
    other |= {"compile_s": {}, "versions": {"python": "3.11.7", "jax": "0.10.2"}}
    (tmp_path / "benchmark.json").write_text(json.dumps(other))
    said = refusal(capsys, report.main, done / "one" / anomalies.FILE, tmp_path / "benchmark.json")
    assert said.endswith("are files of two commands; make a table of each command's alone")
    (tmp_path / "broken.json").write_text('{"columns": {}}')
    assert "broken.json is not what python -m jaxad" in refusal(capsys, report.main, tmp_path / "broken.json")


def test_help(capsys):
    assert command(anomalies.main, "--help") == 0
    assert "--workdir W [W ...]" in capsys.readouterr().out
