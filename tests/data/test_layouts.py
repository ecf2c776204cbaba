"""Data sets in miniature, laid out as they are published, and a sentence for each part that is missing."""

import csv
import json
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

import jaxad
from jaxad import config as configs
from jaxad import data, detector, evaluate
from jaxad.data import folder, layouts
from jaxad.data.geometry import Geometry
from jaxad.data.layouts import table
from jaxad.data.summary import training_images
from tests.commands import train
from tests.parts import NSA, ROOT, baseline, command, refusal
from tests.refusals import refuses

SIZE = (40, 36)  # height and width in pixels


def draw(*paths):
    """Writes images, another one for each path."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(list(str(path.name).encode())).integers(90, 110, (*SIZE, 3))
        assert cv2.imwrite(str(path), noise.astype(np.uint8))


def draw_mask(path, *, row=1, value=255):
    """Writes a mask that marks two pixels of a row, or none with the value 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(SIZE, np.uint8)
    mask[row, 2:4] = value
    assert cv2.imwrite(str(path), mask)


def ad_2(top):
    """A category of MVTec AD 2: Heckler-Kram et al. 2025, and the dataset class that comes with it."""
    good = [top / part / "good" / "000_regular.png" for part in ("train", "validation", "test_public")]
    private = [top / part / f"00{number}.png" for part in ("test_private", "test_private_mixed") for number in (0, 1)]
    draw(*good, top / "train" / "good" / "001_regular.png", top / "test_public" / "bad" / "000_regular.png", *private)
    draw_mask(top / "test_public" / "ground_truth" / "bad" / "000_regular_mask.png")


def loco(top):
    """A category of MVTec LOCO AD: Bergmann et al. 2022. Values of masks are those of defects_config.json."""
    draw(*[top / part / "good" / f"{number:03d}.png" for part in ("train", "validation", "test") for number in (0, 1)])
    for defect in ("logical_anomalies", "structural_anomalies"):
        draw(top / "test" / defect / "000.png")
        draw_mask(top / "ground_truth" / defect / "000" / "000.png", value=255)
    draw_mask(top / "ground_truth" / "logical_anomalies" / "000" / "001.png", row=5, value=254)
    rows = [("missing part", 255, 1, False), ("wrong part", 254, 1.0, True), ("unused", 253, 0.5, True)]
    names = "defect_name", "pixel_value", "saturation_threshold", "relative_saturation"
    (top / "defects_config.json").write_text(json.dumps([dict(zip(names, row, strict=True)) for row in rows]))


def btad(top):
    """A category of BTAD: Mishra et al. 2021. Masks are PNG for 01 and 02 and BMP for 03."""
    draw(top / "train" / "ok" / "0000.bmp", top / "train" / "ok" / "0001.bmp", top / "test" / "ok" / "0000.bmp")
    draw(top / "test" / "ko" / "0000.bmp", top / "test" / "ko" / "0001.bmp")
    draw_mask(top / "ground_truth" / "ko" / "0000.png")
    draw_mask(top / "ground_truth" / "ko" / "0001.bmp")


def autovi(top):
    """A category of AutoVI: Carvalho et al. 2024."""
    draw(top / "train" / "good" / "0000.png", top / "train" / "good" / "0001.png", top / "test" / "good" / "0000.png")
    for number in (0, 1):
        draw(top / "test" / "unclipped" / f"{number:04d}.png")
        draw_mask(top / "ground_truth" / "unclipped" / f"{number:04d}" / "0000.png")
    draw_mask(top / "ground_truth" / "unclipped" / "0001" / "0001.png", row=9)
    (top / "defects_config.json").write_text("[]")


def visa(top):
    """An object of VisA's archive: Zou et al. 2022. Masks hold small numbers."""
    images = top / "Data" / "Images"
    draw(*[images / "Normal" / f"{number:04d}.JPG" for number in range(3)], images / "Anomaly" / "000.JPG")
    draw_mask(top / "Data" / "Masks" / "Anomaly" / "000.png", value=3)
    rows = ["object,split,label,image,mask", "pcb1,train,normal,pcb1/Data/Images/Normal/0000.JPG,"]
    rows += [f"{top.name},train,normal,{top.name}/Data/Images/Normal/{number:04d}.JPG," for number in (2, 0)]
    rows += [f"{top.name},test,normal,{top.name}/Data/Images/Normal/0001.JPG,"]
    masked = "Data/Images/Anomaly/000.JPG", "Data/Masks/Anomaly/000.png"
    rows += [f"{top.name},test,anomaly,{','.join(f'{top.name}/{path}' for path in masked)}"]
    (top.parent / "split_csv").mkdir(exist_ok=True)
    (top.parent / "split_csv" / "1cls.csv").write_text("\n".join(rows) + "\n")


def sdd(top):
    """KolektorSDD: Tabernik et al. 2020. Every item has parts, and every part a mask of the classes 0, 1 and 2."""
    for item in range(1, 7):
        for part in range(2):
            draw(top / f"kos{item:02d}" / f"Part{part}.jpg")
            draw_mask(top / f"kos{item:02d}" / f"Part{part}_label.bmp", value=2 if (item, part) == (2, 1) else 0)


def sdd2(top):
    """KolektorSDD2: Božič et al. 2021. Its archive holds two files of ``train`` twice."""
    for part, numbers, defective in (("train", range(10000, 10004), 10002), ("test", range(20000, 20003), 20001)):
        for number in numbers:
            draw(top / part / f"{number}.png")
            draw_mask(top / part / f"{number}_GT.png", value=255 if number == defective else 0)
    for name in ("10001", "10001_GT"):
        shutil.copy(top / "train" / f"{name}.png", top / "train" / f"{name} (copy).png")


def real_iad(top):
    """A category of Real-IAD: Wang et al. 2024, and the loaders that others wrote."""
    rows = {"train": [], "test": []}
    for split, sample in (("train", "S0001"), ("train", "S0003"), ("test", "S0002")):
        rows[split] += [("OK", f"OK/{sample}/nut_{sample[1:]}_OK_C{view}_2023", None) for view in (1, 2)]
    # A view in which the defect of a sample is not seen is a good one.
    rows["test"] += [("AK", "NG/AK/S0001/nut_0001_NG_AK_C1_2023", "NG/AK/S0001/nut_0001_NG_AK_C1_2023.png")]
    rows["test"] += [("OK", "NG/AK/S0001/nut_0001_NG_AK_C2_2023", None)]
    draw(*[top / f"{image}.jpg" for _, image, _ in rows["train"] + rows["test"]])
    draw_mask(top / "NG/AK/S0001/nut_0001_NG_AK_C1_2023.png")
    names = "anomaly_class", "image_path", "mask_path"
    listed = {
        split: [dict(zip(names, (defect, f"{image}.jpg", mask), strict=True)) for defect, image, mask in of_split]
        for split, of_split in rows.items()
    }
    folder = top.parents[1] / "realiad_jsons" / "realiad_jsons"
    folder.mkdir(parents=True)
    meta = {"meta": {"normal_class": "OK", "prefix": f"{top.name}/"}}
    (folder / f"{top.name}.json").write_text(json.dumps(meta | listed))


class Expected(NamedTuple):
    """What a layout should give.

    Attributes:
      write: Writes it into the category's folder.
      train, test: The ids of the images.
      rows: For each defective image, the rows of its mask in which pixels are marked.
      place: What is said of the training images' place after the category's folder.
      needed: Parts whose loss is told, each with what the sentence is about.
      first: The part that a folder of other images lacks.
    """

    write: Callable[[pathlib.Path], None]
    train: str
    test: str
    rows: list[list[int]]
    place: str
    needed: dict[str, str]
    first: str = "train/good"


LAYOUTS = {
    "mvtec_ad_2": Expected(
        ad_2,
        "train/good/000_regular train/good/001_regular validation/good/000_regular",
        "test/bad/000_regular test/good/000_regular",
        [[1]],
        "/train/good' (MVTec AD 2)",
        {
            "train/good": "train/good",
            "validation": "validation/good",
            "test_public/good": "test_public/good",
            "test_public/ground_truth": "test_public/ground_truth",
            "test_public/ground_truth/bad/000_regular_mask.png": "test_public/bad/000_regular.png",
            "test_public/bad": "test_public/ground_truth/bad/000_regular_mask.png",
        },
    ),
    "mvtec_loco": Expected(
        loco,
        "train/good/000 train/good/001 validation/good/000 validation/good/001",
        "test/good/000 test/good/001 test/logical_anomalies/000 test/structural_anomalies/000",
        [[1, 5], [1]],
        "/train/good' (MVTec LOCO AD)",
        {
            "train": "train/good",
            "validation/good": "validation/good",
            "test/good": "test/good",
            "ground_truth": "ground_truth",
            "ground_truth/structural_anomalies/000": "test/structural_anomalies/000.png",
            "test/logical_anomalies/000.png": "ground_truth/logical_anomalies/000/000.png",
            "defects_config.json": "defects_config.json",
        },
    ),
    "visa": Expected(
        visa,
        "train/good/0002 train/good/0000",
        "test/good/0001 test/anomaly/000",
        [[1]],
        "/Data/Images/Normal' (VisA)",
        {
            "Data/Images/Normal": "Data/Images/Normal",
            "Data/Images/Anomaly": "Data/Images/Anomaly",
            "Data/Images/Normal/0001.JPG": "Data/Images/Normal/0001.JPG",
            "Data/Masks": "Data/Images/Anomaly/000.JPG",
            "../split_csv": "../split_csv/1cls.csv",
        },
        first="Data/Images/Normal",
    ),
    "real_iad": Expected(
        real_iad,
        "train/good/OK/S0001/nut_0001_OK_C1_2023 train/good/OK/S0001/nut_0001_OK_C2_2023 "
        "train/good/OK/S0003/nut_0003_OK_C1_2023 train/good/OK/S0003/nut_0003_OK_C2_2023",
        "test/good/OK/S0002/nut_0002_OK_C1_2023 test/good/OK/S0002/nut_0002_OK_C2_2023 "
        "test/AK/NG/AK/S0001/nut_0001_NG_AK_C1_2023 test/good/NG/AK/S0001/nut_0001_NG_AK_C2_2023",
        [[1]],
        "/OK' (Real-IAD; each view by itself)",
        {
            "OK": "OK/S0001/nut_0001_OK_C1_2023.jpg",
            "NG/AK/S0001/nut_0001_NG_AK_C1_2023.png": "NG/AK/S0001/nut_0001_NG_AK_C1_2023.png",
            "../../realiad_jsons": "../../realiad_jsons/realiad_jsons/nut.json",
        },
        first="../../realiad_jsons/realiad_jsons/nut.json",
    ),
    "btad": Expected(
        btad,
        "train/good/0000 train/good/0001",
        "test/ko/0000 test/ko/0001 test/good/0000",
        [[1], [1]],
        "/train/ok' (BTAD)",
        {
            "train/ok": "train/ok",
            "test/ok": "test/ok",
            "ground_truth": "ground_truth",
            "ground_truth/ko/0001.bmp": "test/ko/0001.bmp",
            "test/ko": "ground_truth/ko/0000.png",
        },
        first="train/ok",
    ),
    "autovi": Expected(
        autovi,
        "train/good/0000 train/good/0001",
        "test/good/0000 test/unclipped/0000 test/unclipped/0001",
        [[1], [1, 9]],
        "/train/good' (AutoVI)",
        {
            "train": "train/good",
            "test/good": "test/good",
            "ground_truth/unclipped/0000": "test/unclipped/0000.png",
            "test/unclipped/0001.png": "ground_truth/unclipped/0001/0000.png",
        },
    ),
    "kolektor_sdd": Expected(
        sdd,
        "train/good/kos01/Part0 train/good/kos01/Part1 train/good/kos02/Part0 train/good/kos03/Part0 "
        "train/good/kos03/Part1 train/good/kos04/Part0 train/good/kos04/Part1 train/good/kos06/Part0 "
        "train/good/kos06/Part1",
        "test/defect/kos02/Part1 test/good/kos05/Part0 test/good/kos05/Part1",
        [[1]],
        "' (KolektorSDD; good images of every 5th item are tested)",
        {"kos03/Part1_label.bmp": "kos03/Part1.jpg", "kos03/Part1.jpg": "kos03/Part1_label.bmp"},
        first="",
    ),
    "kolektor_sdd2": Expected(
        sdd2,
        "train/good/10000 train/good/10001 train/good/10003",
        "test/good/20000 test/defect/20001 test/good/20002",
        [[1]],
        "/train' (KolektorSDD2; 1 defective image of it left out)",
        {
            "train": "train",
            "test": "test",
            "test/20002_GT.png": "test/20002.png",
            "train/10000.png": "train/10000_GT.png",
        },
        first="train",
    ),
}
NAMES = pytest.mark.parametrize("name", LAYOUTS)
CATEGORY = "nut"


@pytest.fixture
def root(tmp_path):
    """Where data sets are written."""
    return tmp_path / "sets" / "realiad_256"


def written(root, name):
    """The folder of a category that is written."""
    LAYOUTS[name].write(root / CATEGORY)
    return root / CATEGORY


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_every_layout_is_here():
    assert {*LAYOUTS, "folder", "mvtec_ad", "table"} == set(layouts.SOURCES)


@NAMES
@pytest.mark.parametrize("recognize", [True, False], ids=["recognized", "named"])
def test_layout(root, name, recognize):
    """Ids, labels and defect types, and the union of an image's masks."""
    top, expected = written(root, name), LAYOUTS[name]
    train_set, test_set = layouts.load("folder" if recognize else name, root, CATEGORY)
    assert (train_set.ids, test_set.ids) == (expected.train.split(), expected.test.split())
    assert set(train_set.labels) == {0} and set(train_set.defects) == {"good"}
    assert test_set.defects == [record.split("/")[1] for record in expected.test.split()]
    assert test_set.labels == [int(defect != "good") for defect in test_set.defects]
    assert train_set.place == f"'{top}{expected.place}"
    assert train_set.others == test_set.others == [] and train_set.left_out() == {}
    records = [test_set[number] for number in range(len(test_set))]
    rows = [np.flatnonzero(record.mask.any(axis=1)).tolist() for record in records]
    assert [marked for marked, record in zip(rows, records, strict=True) if record.label] == expected.rows
    assert not any(record.mask.any() for record in records if not record.label)
    assert all(record.mask.sum() == 2 * len(marked) for marked, record in zip(rows, records, strict=True))
    assert train_set[0].image.shape == (*SIZE, 3)


@NAMES
def test_the_category_itself(root, name, monkeypatch):
    top = written(root, name)
    monkeypatch.chdir(top)
    for place in (top, "."):
        assert layouts.load("folder", place, "").test.ids == LAYOUTS[name].test.split()


@pytest.mark.parametrize("name, part", [(name, part) for name in LAYOUTS for part in LAYOUTS[name].needed])
def test_a_part_that_is_missing_is_named(root, name, part):
    top = written(root, name)
    remove(top / part)
    about = (top / LAYOUTS[name].needed[part]).resolve()
    for source in ("folder", name):
        with refuses(about, f"unpack {layouts.LAYOUTS[name].title} again"):
            layouts.load(source, root, CATEGORY)


@pytest.mark.parametrize("name, parts, about", [
    ("mvtec_ad_2", ["test_public", "test_private", "test_private_mixed"], "test_public/good"),
    ("mvtec_ad_2", ["test_public"], "test_public/good"),
    ("mvtec_loco", ["test", "ground_truth"], "test/good"),
    ("autovi", ["ground_truth"], "ground_truth"),
    ("visa", ["Data/Images/Normal", "Data/Masks"], "Data/Images/Normal"),
    ("btad", ["train", "ground_truth"], "train/ok"),
    ("kolektor_sdd2", ["train"], "train"),
])  # fmt: skip
def test_several_parts_that_are_missing(root, name, parts, about):
    """What is left still tells the data set."""
    top = written(root, name)
    for part in parts:
        remove(top / part)
    with refuses(top / about, f"unpack {layouts.LAYOUTS[name].title} again"):
        layouts.load("folder", root, CATEGORY)


def test_validation_images_alone_do_not_make_another_layout(root):
    mvtec_like(root / CATEGORY)
    draw(root / CATEGORY / "validation" / "good" / "0.png")
    assert layouts.load("folder", root, CATEGORY) == folder.load(root, CATEGORY)
    remove(root / CATEGORY / "test")
    remove(root / CATEGORY / "ground_truth")
    assert layouts.load("folder", root, CATEGORY) == folder.load(root, CATEGORY)


@NAMES
def test_a_folder_of_other_images(root, name):
    draw(root / CATEGORY / "0.png")
    with refuses((root / CATEGORY / LAYOUTS[name].first).resolve(), layouts.LAYOUTS[name].title):
        layouts.load(name, root, CATEGORY)


@NAMES
def test_a_folder_of_categories_asks_for_one(root, name):
    written(root, name)
    with refuses(root, f"of {layouts.LAYOUTS[name].title} ({CATEGORY}); name one"):
        layouts.load(name, root, "")


@NAMES
@pytest.mark.parametrize("key", ["test", "ground_truth"])
def test_other_test_images_take_the_layout_of_mvtec_ad(root, name, key):
    """Where that can be followed."""
    top = written(root, name)
    with refuses(f"data.{key}", f"leave config.data.{key} empty") as caught:
        layouts.load("folder", root, CATEGORY, **{key: "elsewhere"})
    advised = "config.data.source=mvtec_ad" in str(caught.value)
    assert advised == (top / "train" / "good").is_dir() == (name in ("mvtec_ad_2", "mvtec_loco", "autovi"))
    if advised and key == "test":
        mvtec_like(root / "other")
        elsewhere = {"test": str(root / "other" / "test"), "ground_truth": str(root / "other" / "ground_truth")}
        assert len(layouts.load("mvtec_ad", root, CATEGORY, **elsewhere).test) == 3


def test_each_defect_of_loco_has_its_saturation(root):
    """Of the two pixels of a missing part one is enough, of those of a wrong part both."""
    top = written(root, "mvtec_loco")
    test = layouts.load("folder", root, CATEGORY).test
    (first, one), (second, both) = test[2].single_defects
    assert (one, both) == (0.5, 1.0) and test[0].single_defects is None
    assert [np.argwhere(mask)[0].tolist() for mask in (first, second)] == [[1, 2], [5, 2]]
    smaller = Geometry((20, 20)).record(test[2]).single_defects
    assert [(mask.shape, share) for mask, share in smaller] == [((20, 20), 0.5), ((20, 20), 1.0)]
    assert all(mask.any() for mask, _ in smaller)
    vanished = Geometry((20, 20)).record(test[2], mask_rule="all").single_defects
    assert not any(mask.any() for mask, _ in vanished)
    path = top / "ground_truth" / "logical_anomalies" / "000" / "001.png"
    draw_mask(path, row=5, value=7)
    with refuses(path, "has the value 7, which defects_config.json does not list"):
        test[2]
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    mask[9, 9] = 254
    cv2.imwrite(str(path), mask)
    with refuses(path, "2 different values above 0"):
        test[2]
    draw_mask(path, value=0)
    assert len(test[2].single_defects) == 1


@pytest.mark.medium
def test_an_evaluation_of_loco_has_its_metric(root, tmp_path, capsys):
    top = written(root, "mvtec_loco")
    assert command(train.main, *baseline(top, tmp_path / "work", data__category="")) == 0
    assert command(evaluate.main, "--workdir", tmp_path / "work") == 0
    found = json.loads((tmp_path / "work" / "results.json").read_text())
    types = [own["pixel"]["auspro_005"] for own in found["by_defect"].values()]
    assert len(types) == 2 and found["over_types"]["pixel"]["auspro_005"] == pytest.approx(np.mean(types))
    shown = f"AU-sPRO(0.05) {100 * np.mean(types):.2f}"
    assert shown in capsys.readouterr().out
    page = (tmp_path / "work" / "report.html").read_text()
    assert "AU-sPRO(0.05), %" in page and "<th>AU-sPRO(0.05)</th>" in page and "AU-PRO(0.05)" not in page
    assert all(f"<td>{100 * value:.2f}</td>" in page for value in types)


def test_samples_of_real_iad_are_its_folders(root):
    written(root, "real_iad")
    train_set, test_set = layouts.load("folder", root, CATEGORY)
    assert train_set.groups == ["OK/S0001", "OK/S0001", "OK/S0003", "OK/S0003"]
    assert test_set.groups == ["OK/S0002", "OK/S0002", "NG/AK/S0001", "NG/AK/S0001"]
    assert [test_set[number].group for number in (1, 2)] == ["OK/S0002", "NG/AK/S0001"]
    btad(root / "other")
    assert layouts.load("folder", root, "other").test.groups is None


@pytest.mark.medium
def test_an_evaluation_of_real_iad_is_by_sample_too(root, tmp_path, capsys):
    top = written(root, "real_iad")
    assert command(train.main, *baseline(top, tmp_path / "work", data__category="")) == 0
    assert command(evaluate.main, "--workdir", tmp_path / "work") == 0
    found = json.loads((tmp_path / "work" / "results.json").read_text())
    assert found["counts"] == {
        "good": 3, "defective": 1, "with_mask": 1, "good_samples": 1, "defective_samples": 1,
    }  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "work" / "scores.csv").read_text().splitlines()))
    highest = {row["group"]: max(float(one["score"]) for one in rows if one["group"] == row["group"]) for row in rows}
    assert found["sample"]["auroc"] == float(highest["NG/AK/S0001"] > highest["OK/S0002"])
    assert f"sample AUROC {100 * found['sample']['auroc']:.2f}" in capsys.readouterr().out
    assert "sample AUROC, %" in (tmp_path / "work" / "report.html").read_text()


def mvtec_like(top, *, suffix=".png", mask="_mask.png", value=255):
    """A category in the layout of MVTec AD, as that of MPDD and of VisA's one-class form."""
    draw(*[top / part / "good" / f"{number}{suffix}" for part in ("train", "test") for number in (0, 1)])
    draw(top / "test" / "bad" / f"2{suffix}")
    draw_mask(top / "ground_truth" / "bad" / f"2{mask}", value=value)


@pytest.mark.parametrize("source", ["folder", "mvtec_ad"])
@pytest.mark.parametrize("options", [{}, {"suffix": ".JPG", "mask": ".png", "value": 2}])
def test_mpdd_and_the_one_class_form_of_visa_are_laid_out_like_mvtec_ad(root, source, options):
    mvtec_like(root / CATEGORY, **options)
    made, expected = layouts.load(source, root, CATEGORY), folder.load(root, CATEGORY)
    assert made == expected and made.train.place == f"'{root / CATEGORY / 'train' / 'good'}'"
    assert made.test[0].mask.sum() == 2 and made.test.labels == [1, 0, 0]


def test_mvtec_ad_by_name(root):
    mvtec_like(root / CATEGORY)
    with refuses(root, f"of MVTec AD ({CATEGORY}); name one"):
        layouts.load("mvtec_ad", root, "")
    mvtec_like(root / "other")
    test = layouts.load("mvtec_ad", root, CATEGORY, test=str(root / "other" / "test")).test
    assert test.paths[0] == root / "other" / "test" / "bad" / "2.png"
    remove(root / CATEGORY / "train")
    with refuses(root / CATEGORY / "train" / "good", "unpack MVTec AD again"):
        layouts.load("mvtec_ad", root, CATEGORY)


def test_other_names_do_not_make_mvtec_ad_another_layout(root):
    """A defect type may have any name, and a stray file too."""
    mvtec_like(root / CATEGORY)
    (root / CATEGORY / "test" / "bad").rename(root / CATEGORY / "test" / "ok")
    (root / CATEGORY / "ground_truth" / "bad").rename(root / CATEGORY / "ground_truth" / "ok")
    draw(root / CATEGORY / "train" / "0_GT.png")
    assert layouts.load("folder", root, CATEGORY) == folder.load(root, CATEGORY)


@pytest.mark.parametrize("name", ["structural_anomalies", "logical_anomalies"])
def test_defect_types_of_loco_do_not_make_mvtec_ad_another_layout(root, name):
    """As in a copy that was brought into MVTec AD's layout."""
    mvtec_like(root / CATEGORY)
    for part in ("test", "ground_truth"):
        (root / CATEGORY / part / "bad").rename(root / CATEGORY / part / name)
    assert layouts.load("folder", root, CATEGORY) == folder.load(root, CATEGORY)


@pytest.mark.parametrize("beside", ["test/ok", "kos12", "Data/Images/Normal", "test_public"])
def test_a_folder_with_images_is_a_plain_one_whatever_lies_beside_them(root, beside):
    draw(root / "0.png", root / "1.png", root / beside / "2.png")
    assert layouts.load("folder", root, "") == folder.load(root, "")


def test_from_python_the_layout_may_be_named(root):
    mvtec_like(root / CATEGORY)
    config = configs.load(f"{ROOT}/experiments/baseline_mean.py:object", {"data.source": "btad"})
    with refuses(root / CATEGORY / "train" / "ok", "belongs to BTAD"):
        jaxad.train(config, root / CATEGORY)


def test_items_of_kolektor_sdd_are_tested_by_their_numbers(root):
    """Also where one is left out."""
    remove(written(root, "kolektor_sdd") / "kos03")
    train_set, test_set = layouts.load("folder", root, CATEGORY)
    assert [name for name in test_set.ids if "/good/" in name] == ["test/good/kos05/Part0", "test/good/kos05/Part1"]
    assert "train/good/kos06/Part0" in train_set.ids


def test_plain_folders_are_recognized_as_before(root):
    draw(root / "0.png", root / "more" / "1.png")
    assert layouts.load("folder", root, "") == folder.load(root, "")
    root.rename(root.with_name("parts.csv"))
    assert len(layouts.load("folder", root.with_name("parts.csv"), "").train) == 1


def test_two_masks_where_there_is_one(root):
    top = written(root, "btad")
    draw_mask(top / "ground_truth" / "ko" / "0001.png")
    with refuses(top / "ground_truth" / "ko" / "0001.png", "'0001.bmp'"):
        layouts.load("folder", root, CATEGORY)


def test_what_lies_beside_a_layout(root):
    top = written(root, "mvtec_ad_2")
    draw(top / "train" / "bad" / "0.png")
    for path in ("train/good/a.txt", "validation/good/b.txt", "test_public/bad/c.txt"):
        (top / path).touch()
    train_set, test_set = layouts.load("folder", root, CATEGORY)
    assert train_set.left_out() == {"train/bad": 1}
    assert [path.name for path in train_set.others + test_set.others] == ["a.txt", "b.txt", "c.txt"]


@pytest.mark.parametrize("old, new, word", [
    ("test,normal", "valid,normal", "row 5"),
    ("test,normal", "test,good", "row 5"),
    (f"{CATEGORY},train", "pcb2,train", "no training image"),
    ("object,", "category,", "'object'"),
    (f"test,normal,{CATEGORY}/Data/Images/Normal/0001.JPG,", "test,normal", "lists"),
    ("Normal/0000.JPG,\n" + CATEGORY + ",test", "Normal/0002.JPG,\n" + CATEGORY + ",test", "listed twice"),
])  # fmt: skip
def test_a_table_of_visa_that_says_something_else(root, old, new, word):
    written(root, "visa")
    path = root / "split_csv" / "1cls.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    twice = root / CATEGORY / "Data" / "Images" / "Normal" / "0002.JPG"
    about = {"listed twice": twice, "lists": root}
    with refuses(about.get(word, path), word):
        layouts.load("folder", root, CATEGORY)


@pytest.mark.parametrize("text, word", [
    ("{", "damaged"),
    ("[]", "JSON"),
    ('{"train": []}', "anomaly_class"),
    ('{"train": [3], "test": []}', "anomaly_class"),
    ('{"train": [], "test": []}', "no training images"),
    ('{"train": [{"image_path": "NG/AK/S0001/nut_0001_NG_AK_C1_2023.jpg", "mask_path": null, "anomaly_class": "AK"}], '
     '"test": []}', "or defective ones"),
])  # fmt: skip
def test_a_list_of_real_iad_that_says_something_else(root, text, word):
    written(root, "real_iad")
    path = root.parent / "realiad_jsons" / "realiad_jsons" / f"{CATEGORY}.json"
    path.write_text(text)
    with refuses(path, word):
        layouts.load("folder", root, CATEGORY)


def test_a_defective_view_without_a_mask(root):
    written(root, "real_iad")
    path = root.parent / "realiad_jsons" / "realiad_jsons" / f"{CATEGORY}.json"
    listed = json.loads(path.read_text())
    listed["test"][2]["mask_path"] = None
    path.write_text(json.dumps(listed))
    record = layouts.load("folder", root, CATEGORY).test[2]
    assert record.label == 1 and record.mask is None


def write_table(root, *rows, header="image,label,split,mask"):
    """Writes a table, and the images a, b, ... and masks that its rows may name."""
    draw(*[root / f"{name}.png" for name in "abcde"])
    for name in "de":
        draw_mask(root / "masks" / f"{name}.png", value=7)
    (root / "images.csv").write_text("\n".join([header, *rows]) + "\n")
    return root / "images.csv"


ROWS = "a.png,good,train,", "b.png,good,validation,", "c.png,good,test,", "d.png,dent,test,masks/d.png"


@pytest.mark.parametrize("source", ["folder", "table"])
def test_table(root, source):
    path = write_table(root, *ROWS, f"{root / 'e.png'},scratch,test,masks/e.png")
    train_set, test_set = layouts.load(source, path, "")
    assert train_set.ids == ["train/good/a", "validation/good/b"]
    assert test_set.ids == ["test/good/c", "test/dent/d", f"test/scratch/{root / 'e'}"]
    assert test_set.labels == [0, 1, 1] and test_set[1].mask.sum() == 2 and train_set.place == f"'{path}' (table)"


def test_a_table_without_masks_and_with_other_columns(root):
    path = write_table(root, *["a.png,3,good,train", "d.png,4,dent,test"], header="image,camera,label,split")
    train_set, test_set = layouts.load("table", path, "")
    assert test_set.masks == [None] and test_set[0].mask is None and test_set.groups is None
    assert train_set.place == f"'{path}' (table; columns not read: camera)"


GROUPED = "a.png,good,train,,", "c.png,good,test,part 1,", "d.png,dent,test,part 1,masks/d.png", "e.png,good,test,,"


def test_groups_of_a_table(root):
    path = write_table(root, *GROUPED, header="image,label,split,group,mask")
    train_set, test_set = layouts.load("table", path, "")
    assert test_set.groups == ["part 1", "part 1", ""] and [record.group for record in test_set] == test_set.groups
    assert train_set.groups is None and train_set[0].group == ""


def write_parquet(root, *rows, header="image,label,split,mask"):
    """The same table as `write_table` writes, in Parquet, where what is empty is null."""
    path = write_table(root, *rows, header=header)
    columns = zip(*(row.split(",") for row in rows), strict=True)
    named = {name: [value or None for value in column] for name, column in zip(header.split(","), columns, strict=True)}
    parquet.write_table(pyarrow.table(named), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


@pytest.mark.parametrize("source", ["folder", "table"])
def test_a_table_in_parquet(root, source):
    path = write_parquet(root, *GROUPED, header="image,label,split,group,mask")
    expected = layouts.load("table", path.with_suffix(".csv"), "")
    for made, like in zip(layouts.load(source, path, ""), expected, strict=True):
        assert (made.ids, made.paths, made.masks, made.groups) == (like.ids, like.paths, like.masks, like.groups)
        assert made.place == f"'{path}' (table)"
    assert layouts.folders_read(path) == [root, root / "masks"]


def test_numbers_in_parquet_are_text(root):
    path = write_parquet(root, *ROWS)
    columns = parquet.read_table(path).to_pydict() | {"group": [1, 2, None, 7], "camera": [b"x"] * 4}
    columns["label"] = pyarrow.array(columns["label"]).dictionary_encode()
    parquet.write_table(pyarrow.table(columns), path)
    train_set, test_set = layouts.load("table", path, "")
    assert (train_set.groups, test_set.groups) == (["1", "2"], ["", "7"])
    assert train_set.place == f"'{path}' (table; columns not read: camera)"


def test_a_table_in_parquet_that_cannot_be_used(root, monkeypatch):
    path = write_parquet(root, *ROWS, "e.png,good,valid,")
    with refuses(path, "'valid'; write train") as caught:
        layouts.load("table", path, "")
    assert str(caught.value).startswith(f"row 5 of '{path}'")  # there is no header that would be a row
    with refuses(write_parquet(root, *ROWS, header="image,label,part,mask"), "no column 'split'"):
        layouts.load("table", path, "")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        with refuses(path, "python3 -m pip install 'jaxad[table]'"):
            layouts.load("table", path, "")
    path.write_bytes(path.read_bytes()[:-20])
    with refuses(path, "cannot be read"):
        layouts.load("table", path, "")
    with refuses(root / "no.parquet", "cannot be read"):
        layouts.load("table", root / "no.parquet", "")


def test_a_table_is_read_once_until_it_changes(root, monkeypatch):
    path, read = write_table(root, *ROWS), []
    found = table.read_table
    monkeypatch.setattr(table, "read_table", lambda *given: read.append(given) or found(*given))
    layouts.folders_read(path)
    assert len(layouts.load("table", path, "").test) == 2 and len(read) == 1
    write_table(root, *ROWS, "e.png,good,test,")
    assert len(layouts.load("table", path, "").test) == 3 and len(read) == 2
    monkeypatch.chdir(root)
    assert layouts.load("table", "images.csv", "").test.paths[0] == pathlib.Path("c.png") and len(read) == 3


@pytest.mark.parametrize("row, word", [
    ("e.png,good,valid,", "'valid'; write train"),
    ("e.png,good", "has the split ''"),
    ("e.png,,test,", "no label"),
    ("e.png,dent,train,", "labeled good"),
    ("e.png,0,validation,", "'0'"),
    ("e.png,Good,test,", "'Good', which would be a defect type"),
    ("e.png,good ,test,", "write good"),
    ("e.png,OK,test,", "write good"),
    ("e.png,normal,test,", "write good"),
    (",good,test,", "no image"),
    ("f.png,good,test,", "does not exist"),
    ("e.png,dent,test,masks/f.png", "does not exist"),
    ("e.png,good,test,masks/e.png", "good image"),
    ("e,1.png,good,test,", "commas"),
])  # fmt: skip
def test_a_row_that_cannot_be_used(root, row, word):
    path = write_table(root, *ROWS, row)
    with refuses(path, word) as caught:
        layouts.load("table", path, "")
    assert str(caught.value).startswith(f"row 6 of '{path}'")  # below the header and the four others


def test_rows_are_numbered_as_a_spreadsheet_does(root):
    path = write_table(root, *ROWS, "", '"e.png",good,valid,')
    with refuses(path, "'valid'") as caught:
        layouts.load("table", path, "")
    assert str(caught.value).startswith(f"row 7 of '{path}'")  # the empty row counts


def test_a_table_that_cannot_be_used(root):
    with refuses(root / "no.csv", "exist"):
        layouts.load("folder", root / "no.csv", "")
    with refuses(write_table(root, *ROWS, header="image,label,part,mask"), "'split'"):
        layouts.load("folder", root / "images.csv", "")
    with refuses(write_table(root, *ROWS[1:]), "training images"):
        layouts.load("folder", root / "images.csv", "")
    with refuses(write_table(root, *ROWS, "e.png,dent,test,"), f"'{root / 'e.png'}' has no mask"):
        layouts.load("folder", root / "images.csv", "")
    write_table(root, *ROWS, "./c.png,good,test,")
    with refuses(root / "./c.png", "listed twice"):
        layouts.load("folder", root / "images.csv", "")
    draw(root / "c.bmp")
    write_table(root, *ROWS, "c.bmp,good,test,")
    with refuses(root / "c.bmp", "differ only in the suffix"):
        layouts.load("folder", root / "images.csv", "")
    for key in ("data.category", "data.test", "data.ground_truth"):
        named = {"category": "", key.removeprefix("data."): "x"}
        with refuses(key, "images.csv"):
            layouts.load("table", root / "images.csv", **named)


def test_by_the_config(root):
    """The layout is a value of the config, and other keys of the data reach the images."""
    written(root, "kolektor_sdd")
    given = {"data.root": str(root / CATEGORY), "data.channels": "1", "normalize.mean": "0.4,", "normalize.std": "0.2,"}
    for source in ("folder", "kolektor_sdd"):
        train_set = data.load(configs.load(f"{NSA}:object", given | {"data.source": source})).train
        assert train_set[0].image.shape == (*SIZE, 1) and len(train_set) == 9
    small = configs.load(f"{NSA}:object", given | {"data.source": "folder", "data.white_level": 4095})
    assert data.load(small).train.white_level == 4095


def test_validation_images_are_told(root):
    written(root, "mvtec_ad_2")
    config = configs.load(f"{NSA}:object", {"data.root": str(root / CATEGORY)})
    lines = training_images(data.load(config).train, config, {}).splitlines()
    assert lines[0] == (
        f"training images: 2 from '{root / CATEGORY / 'train' / 'good'}' (MVTec AD 2), all to train on; 1 validation "
        "image for the threshold, in place of config.data.holdout"
    )


@pytest.mark.medium
def test_the_threshold_comes_from_the_validation_images(root, tmp_path, capsys):
    """Without any share that is held out; they are bound to the workdir, and none of them is trained on."""
    top = written(root, "mvtec_ad_2")
    given = baseline(root, tmp_path / "work", data__holdout=0)
    assert command(train.main, *given) == 0
    [score] = detector.load(tmp_path / "work").predict([top / "validation" / "good" / "000_regular.png"])
    found = detector.load(tmp_path / "work")
    assert found.threshold > score.score and found.good_scores[0] == pytest.approx(score.score)
    assert command(evaluate.main, "--workdir", tmp_path / "work") == 0
    results = json.loads((tmp_path / "work" / "results.json").read_text())
    assert results["counts"] == {"good": 1, "defective": 1, "with_mask": 1} and results["threshold"]["value"]
    draw_mask(top / "validation" / "good" / "000_regular.png")
    message = refusal(capsys, train.main, *given)
    assert "1 changed ('validation/good/000_regular')" in message


@pytest.mark.medium
@NAMES
def test_training_and_evaluation_take_every_layout(root, tmp_path, capsys, name):
    top, expected = written(root, name), LAYOUTS[name]
    assert command(train.main, *baseline(top, tmp_path / "work", data__category="")) == 0
    assert f"from '{top}{expected.place}, " in capsys.readouterr().out
    assert command(evaluate.main, "--workdir", tmp_path / "work") == 0
    counts = json.loads((tmp_path / "work" / "results.json").read_text())["counts"]
    good = len([record for record in expected.test.split() if record.split("/")[1] == "good"])
    expected_counts = {"good": good, "defective": len(expected.rows), "with_mask": len(expected.rows)}
    assert {kind: counts[kind] for kind in expected_counts} == expected_counts


@pytest.mark.medium
@pytest.mark.parametrize("name, where", [
    ("mvtec_ad_2", "test_public/run"), ("mvtec_ad_2", "test_private/run"), ("visa", "Data/run"), ("btad", "test/run"),
    ("kolektor_sdd", "run"), ("kolektor_sdd2", "train/run"),
])  # fmt: skip
def test_a_workdir_among_the_images_is_refused(root, capsys, name, where):
    top = written(root, name)
    message = refusal(capsys, train.main, *baseline(root, top / where))
    assert message.endswith("lies in a folder from which images are read; choose another --workdir")
    assert not (top / where).exists()


@pytest.mark.medium
@pytest.mark.parametrize("where", ["run", "masks/run"])
def test_a_workdir_among_the_images_of_a_table_is_refused(root, capsys, where):
    path = write_table(root, *ROWS)
    message = refusal(capsys, train.main, *baseline(path, root / where, data__category=""))
    assert message.endswith("lies in a folder from which images are read; choose another --workdir")


@pytest.mark.medium
def test_the_rate_of_the_threshold_is_taken_without_a_share_held_out(root, tmp_path):
    written(root, "mvtec_ad_2")
    given = baseline(root, tmp_path / "work", data__holdout=0, threshold__false_alarm_rate=0.5)
    assert command(train.main, *given) == 0
    assert detector.load(tmp_path / "work").threshold is not None
