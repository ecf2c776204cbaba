"""Chest X-rays: the release's folders, the lists and the table of findings, and one channel through every command."""

import csv
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

import jaxad
from jaxad import config as configs
from jaxad import data, evaluate, methods, predict
from jaxad.data import chest_xray
from jaxad.data.image import to_grey
from tests import tiny
from tests.commands import train
from tests.parts import NSA, command, refusal
from tests.refusals import refuses

COLUMNS = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
GOOD = [f"0000000{number}_000.png" for number in range(8)]
TESTED = ["00000010_000.png", "00000011_003.png"]
FINDINGS = {
    "00000020_001.png": "Cardiomegaly",
    "00000021_000.png": "Effusion|Infiltration",
    "00000022_000.png": "No Finding",
}
LISTS = {"train": "norm_MaleAdultPA_train_curated_list.txt", "test_good": "norm_MaleAdultPA_test_curated_list.txt"}
LISTS["test_abnormal"] = "anomaly_MaleAdultPA_test_curated_list.txt"
SIDE = 80


def chest(name: str, *, spot: bool = False) -> np.ndarray:
    """A bright body on black, uint8 (SIDE, SIDE), another one for each name."""
    rng = np.random.default_rng(int(name[:8]))
    row, column = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    image = np.where(row**2 + column**2 < 0.9, 120 + 60 * np.cos(5 * column + rng.uniform()), 0)
    image = image + rng.uniform(0, 8, image.shape)
    if spot:
        image[30:44, 20:34] = 250
    return image.astype(np.uint8)


def write_release(root):
    """Writes images in two of the release's folders, the table, and the lists beside it."""
    unpacked = root / "images_002" / "images"
    for folder in (root / "images", unpacked, root / "lists"):
        folder.mkdir(parents=True)
    (root / "images_003").mkdir()  # an archive that is not unpacked yet
    for name in [*GOOD, *TESTED, *FINDINGS]:
        picture = Image.fromarray(chest(name, spot=name in FINDINGS))
        if name == TESTED[1]:  # a few of the release are RGBA
            picture = picture.convert("RGBA")
        picture.save((unpacked if name in FINDINGS else root / "images") / name)
    rows = "".join(f"{name},{finding},0,1,058Y,M,PA,2682,2749,0.143,0.143,\n" for name, finding in FINDINGS.items())
    (root / "Data_Entry_2017_v2020.csv").write_text(f"{COLUMNS}\n{rows}")
    (root / "Data_Entry_2017.csv").write_text("an older table, which is not read\n")
    for name, files in zip(LISTS.values(), (GOOD, TESTED, FINDINGS), strict=True):
        (root / "lists" / name).write_text("\n".join(files) + "\n\n")
    return root


@pytest.fixture
def root(tmp_path):
    return write_release(tmp_path / "nih")


def load(root, **options):
    return chest_xray.load(root, **{"lists": root / "lists", **LISTS, **options})


def assert_refused(about, word, root, **options):
    with refuses(about, word):
        load(root, **options)


# The dataset


def test_ids_labels_and_findings_in_the_order_of_the_lists(root):
    dataset = load(root)
    assert dataset.train.ids == [f"train/good/{name[:-4]}" for name in GOOD]
    assert set(dataset.train.defects) == {"good"} and not any(dataset.train.labels)
    assert dataset.test.labels == [0, 0, 1, 1, 1]
    assert dataset.test.defects == ["good", "good", "Cardiomegaly", "several findings", "abnormal"]
    assert dataset.test.ids[2:] == [
        "test/Cardiomegaly/00000020_001", "test/several findings/00000021_000", "test/abnormal/00000022_000",
    ]  # fmt: skip


def test_records_are_grey_and_have_no_masks(root):
    dataset = load(root)
    for index, name in enumerate([*TESTED, *FINDINGS]):
        record = dataset.test[index]
        np.testing.assert_array_equal(record.image, chest(name, spot=name in FINDINGS)[..., None])
        assert (record.mask is None) == (name in FINDINGS)
    assert dataset.train[0].mask.shape == (SIDE, SIDE) and not dataset.train[0].mask.any()
    assert load(root, channels=3).train[0].image.shape == (SIDE, SIDE, 3)


def test_without_a_table_every_finding_is_abnormal(root):
    for table in root.glob("*.csv"):
        table.unlink()
    assert load(root).test.defects == ["good"] * 2 + ["abnormal"] * 3


def test_lists_beside_the_images_and_no_test_images(root):
    (root / "lists" / LISTS["train"]).rename(root / LISTS["train"])
    dataset = load(root, lists=root, test_good="", test_abnormal="")
    assert (len(dataset.train), len(dataset.test)) == (8, 0)


# How many names the authors' lists hold, by category and list.
SHIPPED = {"chest_xray_male": (1973, 299, 139), "chest_xray_female": (1641, 244, 123)}


def shipped(category):
    """The names of the three lists that an experiment's config means."""
    options = configs.load(f"{NSA}:{category}").data
    files = (options[f"{name}_list"] for name in ("train", "test_good", "test_abnormal"))
    return [(chest_xray._SHIPPED / file).read_text().split() for file in files]


def test_the_authors_lists_are_whole_and_disjoint():
    every = []
    for category, counts in SHIPPED.items():
        lists = shipped(category)
        assert tuple(map(len, lists)) == counts
        every += [name for names in lists for name in names]
    assert len(set(every)) == len(every)
    assert all(re.fullmatch(r"\d{8}_\d{3}\.png", name) for name in every)
    # A person is on one side of the split, and in one sex's lists.
    for category in SHIPPED:
        train, *tests = ({name[:8] for name in names} for names in shipped(category))
        assert not train & set.union(*tests), category


@pytest.mark.slow
@pytest.mark.parametrize("category", SHIPPED)
def test_a_release_needs_no_other_lists(tmp_path, monkeypatch, category):
    """A miniature one with all names: few images, each under many of them."""
    folder = tmp_path / "nih" / "images"
    folder.mkdir(parents=True)
    for name in GOOD:
        Image.fromarray(chest(name)).save(tmp_path / name)
    for names in shipped(category):
        for number, name in enumerate(names):
            os.link(tmp_path / GOOD[number % len(GOOD)], folder / name)
    monkeypatch.setitem(methods.METHODS, "tiny", tiny.create)
    given = flags(tmp_path / "nih", tmp_path / "work", category=category, method="tiny", batch=64, epochs=1)
    assert command(train.main, *(flag for flag in given if "data.lists" not in str(flag))) == 0
    results = json.loads((tmp_path / "work" / "results.json").read_text())
    assert results["counts"] == {"good": SHIPPED[category][1], "defective": SHIPPED[category][2], "with_mask": 0}


@pytest.mark.parametrize("encoded", ["\ufeff{}\r\n{}\r\n", "  {} \n\n{}"])
def test_lists_as_editors_write_them(root, encoded):
    (root / "lists" / LISTS["test_good"]).write_bytes(encoded.format(*TESTED).encode())
    assert [record_id[-12:] for record_id in load(root).test.ids[:2]] == [name[:-4] for name in TESTED]


def test_no_root():
    with refuses("data.root", "NIH"):
        chest_xray.load("", lists="", **LISTS)


def test_no_list_of_training_images(root):
    assert_refused("data.train_list", "empty", root, train="")


@pytest.mark.parametrize("name", LISTS)
def test_a_missing_list(root, name):
    assert_refused(root / "lists" / "none.txt", "config.data.lists", root, **{name: "none.txt"})


def test_a_folder_in_the_place_of_a_list(root):
    assert_refused(root / "lists" / "../images", "folder", root, train="../images")


@pytest.mark.parametrize("name", LISTS)
def test_an_empty_list(root, name):
    path = root / "lists" / LISTS[name]
    path.write_text("\n \n")
    assert_refused(path, "empty", root)


def test_a_list_that_is_no_text(root):
    assert_refused(root / "lists" / "../images" / GOOD[0], "text", root, train=f"../images/{GOOD[0]}")


@pytest.mark.parametrize("name", LISTS)
def test_a_name_that_is_not_among_the_images(root, name):
    path = root / "lists" / LISTS[name]
    path.write_text(path.read_text() + "00000099_000.png\n")
    assert_refused(path, "'00000099_000.png'", root)


@pytest.mark.parametrize(
    "first, second", [("train", "test_good"), ("train", "test_abnormal"), ("test_good", "test_abnormal")]
)
def test_an_image_in_two_lists(root, first, second):
    one, other = (root / "lists" / LISTS[name] for name in (first, second))
    name = one.read_text().split()[1]
    other.write_text(f"{other.read_text()}{name}\n")
    assert_refused(name, f"'{one}' and again in '{other}'", root)


def test_an_image_twice_in_a_list(root):
    path = root / "lists" / LISTS["train"]
    path.write_text(path.read_text() + GOOD[0])
    assert_refused(GOOD[0], f"'{path}' and again in '{path}'", root)


@pytest.mark.parametrize("text, word", [
    ("", "'Image Index'"),
    ("Image Index,Finding\na.png,Mass\n", "'Finding Labels'"),
    (f"{COLUMNS}\n00000020_001.png,Mass\n", "'00000021_000.png'"),
    (f"{COLUMNS}\n" + "\n".join(f"{name}," for name in FINDINGS), "'00000020_001.png'"),
])  # fmt: skip
def test_a_table_without_the_findings(root, text, word):
    (root / "Data_Entry_2017_v2020.csv").write_text(text)
    assert_refused(root / "Data_Entry_2017_v2020.csv", word, root)


def test_a_missing_root(tmp_path, root):
    with refuses("nowhere", "exist"):
        chest_xray.load("nowhere", lists=root / "lists", **LISTS)


# One channel through the program

SMALL = {
    "data.size": 96, "view.center_crop": 70, "view.crop": 64, "evaluate.crop": 64, "evaluate.batch": 8, "batch": 8,
    "epochs": 3, "log_every": 1, "synthesis.overlap": 0.25, "data.holdout": 0.25,
}  # fmt: skip


def flags(root, workdir, *, category="chest_xray_male", **overrides):
    given = {"data.root": root, "data.lists": root / "lists", **SMALL, **overrides}
    return ["--config", f"{NSA}:{category}", "--workdir", workdir, *(f"--config.{k}={v}" for k, v in given.items())]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The release and a workdir whose detector was trained on it, with a small network."""
    folder = tmp_path_factory.mktemp("chest")
    write_release(folder / "nih")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(methods.METHODS, "tiny", tiny.create)
        assert command(train.main, *flags(folder / "nih", folder / "work", method="tiny")) == 0
        yield folder


@pytest.fixture(scope="module")
def detector(trained):
    return jaxad.load(trained / "work")


@pytest.mark.slow
def test_the_network_has_one_channel(detector):
    assert detector.channels == 1
    assert detector.variables["params"]["conv1"]["kernel"].shape[2] == 1


@pytest.mark.medium
def test_training_writes_results_without_pixel_metrics(trained):
    results = json.loads((trained / "work" / "results.json").read_text())
    assert results["category"] == "chest_xray_male"
    assert results["image"]["auroc"] is not None
    assert results["pixel"]["auroc"] is None and "mask" in results["reasons"]["pixel.auroc"]
    with open(trained / "work" / "scores.csv", newline="") as file:
        assert [row["defect"] for row in csv.DictReader(file)][2:] == ["Cardiomegaly", "several findings", "abnormal"]


@pytest.mark.medium
def test_the_report_and_the_samples_show_grey_images_in_grey(trained):
    html = (trained / "work" / "report.html").read_text()
    assert "no ground-truth mask" in html and html.count("<img") > 5
    with Image.open(trained / "work" / "samples.png") as picture:
        tile = np.array(picture)[2:66, 2:130]
    assert (tile[:, :64] == tile[:, :64, :1]).all() and tile[:, :64].std() > 20
    assert (tile[:, 64:] != tile[:, 64:, :1]).any()  # the label's colours


@pytest.mark.medium
def test_evaluating_again_gives_the_same(trained):
    before = (trained / "work" / "scores.csv").read_text()
    assert command(evaluate.main, "--workdir", trained / "work") == 0
    assert (trained / "work" / "scores.csv").read_text() == before


@pytest.mark.medium
def test_prediction_of_files_of_any_kind_is_that_of_their_grey_version(trained, detector, tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    (tmp_path / "new").mkdir()
    Image.fromarray(colour).save(tmp_path / "new" / "a.png")
    Image.fromarray(to_grey(colour)[..., 0]).save(tmp_path / "new" / "b.png")
    made = tmp_path / "made"
    assert command(predict.main, "--workdir", trained / "work", "--output", made, tmp_path / "new") == 0
    with open(made / "predictions.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert first["score"] == second["score"] and first["decision"] in ("good", "defective")
    with Image.open(made / first["heatmap"]) as heatmap:
        assert (heatmap.size, heatmap.mode) == ((70, 50), "RGB")
    [grey, rgb] = detector.predict([to_grey(colour), colour])
    assert grey.score == rgb.score == pytest.approx(float(first["score"]))
    np.testing.assert_array_equal(grey.map, rgb.map)
    assert grey.map.shape == (50, 70)


@pytest.mark.medium
@pytest.mark.parametrize("shape", [(40,), (40, 40, 2), (40, 40, 5)])
def test_arrays_that_are_no_images(detector, shape):
    with refuses(None, "(h, w, 4)"):
        detector.predict([np.zeros(shape, np.uint8)])


@pytest.mark.medium
def test_the_lists_may_have_moved_when_it_is_evaluated(trained, capsys):
    message = refusal(capsys, evaluate.main, "--workdir", trained / "work", "--config.data.lists=nowhere")
    assert message.startswith(f"'nowhere/{LISTS['train']}' does not exist; ")


@pytest.mark.medium
@pytest.mark.parametrize("overrides, words", [
    ({"data.channels": 3}, "config.normalize.mean must hold config.data.channels=3 numbers, not [0.0]"),
    ({"data.channels": 2}, "config.data.channels must be 3 (RGB) or 1 (grey), not 2"),
    ({"data.test": "x"}, "config.data.source is chest_xray, whose test images are listed and have no masks; "),
    ({"data.source": "demo", "data.root": ""}, "config.data.channels must be 3 for the demo, "),
])  # fmt: skip
def test_configs_that_do_not_fit(capsys, root, tmp_path, overrides, words):
    assert refusal(capsys, train.main, *flags(root, tmp_path / "work", **overrides)).startswith(words)


@pytest.mark.medium
def test_other_categories_have_no_lists(capsys, root, tmp_path):
    given = ["--config", f"{NSA}:object", "--workdir", tmp_path / "work", "--config.data.source=chest_xray"]
    assert refusal(capsys, train.main, *given).startswith("config.data.source chest_xray needs lists of images, ")


def test_grey_images_of_any_folder(root):
    given = {"data.root": str(root / "images"), "data.channels": "1", "normalize.mean": "0.4,", "normalize.std": "0.2,"}
    record = data.load(configs.load(f"{NSA}:object", given)).train[0]
    np.testing.assert_array_equal(record.image, chest(GOOD[0])[..., None])


@pytest.mark.slow
@pytest.mark.parametrize("category, place", [("chest_xray_male", "device"), ("chest_xray_female", "host")])
def test_nsa_itself_trains_in_one_channel(root, tmp_path, category, place):
    for path in (root / "lists").iterdir():
        path.rename(path.with_name(path.name.replace("Male", "Female" if "female" in category else "Male")))
    assert command(train.main, *flags(root, tmp_path / "work", category=category, **{"data.synthesis": place})) == 0
    results = json.loads((tmp_path / "work" / "results.json").read_text())
    assert results["counts"] == {"good": 2, "defective": 3, "with_mask": 0} and results["image"]["auroc"] is not None
