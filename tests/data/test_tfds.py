"""TFDS: MVTec AD from the manual download to the same records as its folders, and one class of CIFAR-10 or MNIST."""

import contextlib
import gc
import importlib.util
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxad import config as configs
from jaxad import data, predict
from jaxad.data import folder, mvtec_ad, tfds
from jaxad.data.image import to_grey
from jaxad.errors import UserError
from tests import parts
from tests.commands import train
from tests.parts import BASELINE, ROOT, command, refusal, write, write_parts
from tests.refusals import refuses
from tests.runtime.test_disk import no_space
from tests.shared import SHARED, needs_shared

# While it is imported, imports elsewhere are lazy, those of pytest's report on other tests' garbage included.
gc.collect()
gc.disable()
with contextlib.suppress(UserError):
    tfds.library()
gc.enable()

needs_tfds = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_datasets") is None, reason="the extra tfds is not installed"
)


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image.squeeze()).save(stream, "PNG")
    return stream.getvalue()


def write_bottles(root):
    """MVTec AD's bottle as a manual download: tiny parts, with an image in 16-bit grey and a mask in colour."""
    write_parts(root)
    bottle = (root / "nut").rename(root / "bottle")
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 2**16, (40, 48)).astype(np.uint16)
    write(bottle / "train" / "good" / "000.png", grey)
    write(bottle / "test" / "a dent" / "7.png", rng.integers(0, 256, (33, 47, 3)).astype(np.uint8))
    mask = np.zeros((33, 47, 3), np.uint8)
    mask[2:9, 30:, 1] = 200
    write(bottle / "ground_truth" / "a dent" / "7_mask.png", mask)
    return root


def prepare(manual, prepared, *, categories="bottle"):
    return mvtec_ad.main([f"--manual_dir={manual}", f"--data_dir={prepared}", f"--categories={categories}"])


@pytest.fixture(scope="module")
def bottles(tmp_path_factory):
    """The manual download, and TFDS's data_dir made of it."""
    root = tmp_path_factory.mktemp("tfds")
    write_bottles(root / "manual")
    prepare(root / "manual", root / "prepared")
    return root / "manual", root / "prepared"


def same_records(made, expected):
    assert type(made.ids) is type(made.labels) is type(made.defects) is list
    assert (made.ids, made.labels, made.defects) == (expected.ids, expected.labels, expected.defects)
    assert len(made) == len(expected)
    for index in range(len(expected)):
        ours, theirs = made[index], expected[index]
        assert ours.image.dtype == ours.mask.dtype == np.uint8
        np.testing.assert_array_equal(ours.image, theirs.image)
        np.testing.assert_array_equal(ours.mask, theirs.mask)
        assert (ours.label, ours.id, ours.defect) == (theirs.label, theirs.id, theirs.defect)


def assert_refused(about, word, root, category):
    with refuses(about, word):
        tfds.load(root, category)


# MVTec AD


@needs_tfds
def test_a_full_disk_ends_in_a_sentence_and_the_same_command_goes_on(tmp_path, bottles):
    with refuses(tmp_path / "prepared", "bottle"), no_space():
        prepare(bottles[0], tmp_path / "prepared")
    prepare(bottles[0], tmp_path / "prepared")
    same_records(tfds.load(tmp_path / "prepared", "bottle").train, tfds.load(bottles[1], "bottle").train)


@needs_tfds
@pytest.mark.parametrize("channels", [3, 1])
def test_the_same_records_as_the_folders(bottles, channels):
    manual, prepared = bottles
    made, expected = tfds.load(prepared, "bottle", channels=channels), folder.load(manual, "bottle", channels=channels)
    assert (len(made.train), len(made.test)) == (6, 6)
    assert made.test.ids[:2] == ["test/a dent/7", "test/good/000"]
    for ours, theirs in zip(made, expected, strict=True):
        same_records(ours, theirs)


@needs_tfds
def test_a_fingerprint_is_that_of_the_stored_image(bottles):
    manual, prepared = bottles
    made, expected = tfds.load(prepared, "bottle").train, folder.load(manual, "bottle").train
    found = [made.fingerprint(index) for index in range(len(made))]
    assert found == [pickle.loads(pickle.dumps(made)).fingerprint(index) for index in range(len(made))]
    assert len({row["sha256"] for row in found}) == len({expected[n].image.tobytes() for n in range(len(expected))})
    assert made.place == f"'mvtec_ad/bottle' in '{prepared}'" and made.left_out() == {}
    assert made.bound(found, None) is made


@pytest.mark.slow
@needs_tfds
@needs_shared("data", "mvtec_ad", "bottle")
def test_real_bottles_have_the_pixels_of_the_folders(tmp_path):
    prepare(SHARED / "data" / "mvtec_ad", tmp_path)
    made, expected = tfds.load(tmp_path, "bottle"), folder.load(SHARED / "data" / "mvtec_ad", "bottle")
    assert (len(made.train), len(made.test)) == (209, 83)
    for ours, theirs in zip(made, expected, strict=True):
        same_records(ours, theirs)
    assert "tensorflow" not in sys.modules


@pytest.mark.medium
@needs_tfds
def test_neither_tensorflow_nor_jax_is_imported(tmp_path):
    write_bottles(tmp_path / "manual")
    code = (
        "import sys; from jaxad.data import mvtec_ad, tfds; "
        "mvtec_ad.main(['--manual_dir=manual', '--data_dir=prepared', '--categories=bottle']); "
        "dataset = tfds.load('prepared', 'bottle'); print([dataset.test[0].image.shape, dataset.train[0].id]); "
        "assert not {'tensorflow', 'jax', 'pyarrow', 'pandas'} & sys.modules.keys()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-2:] == [
        "bottle: 6 train, 6 test images in prepared/mvtec_ad/bottle/1.0.0", "[(33, 47, 3), 'train/good/000']"
    ]  # fmt: skip


@needs_tfds
def test_others_read_what_is_prepared(bottles):
    examples = tfds.library().data_source("mvtec_ad/bottle", split="test", data_dir=bottles[1])
    assert sorted(examples[0]) == ["defect", "id", "image", "label", "mask"]
    assert examples.dataset_info.features["label"].names == ["good", "defective"]
    assert examples[0]["image"].shape == (33, 47, 3) and set(np.unique(examples[0]["mask"])) == {0, 255}


@needs_tfds
def test_a_prepared_category_is_left_as_it_is(bottles, capsys):
    before = {path: path.stat().st_mtime_ns for path in bottles[1].rglob("*record*")}
    assert len(before) == 2
    prepare(*bottles)
    assert "bottle: 6 train, 6 test images" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in bottles[1].rglob("*record*")}


@needs_tfds
def test_the_source_reaches_worker_processes(bottles):
    dataset = tfds.load(bottles[1], "bottle")
    same_records(pickle.loads(pickle.dumps(dataset.test)), dataset.test)


# CIFAR-10 and MNIST

CLASSES = {"cifar10": ("airplane", "frog"), "mnist": ("3", "8")}
SHAPES = {"cifar10": (32, 32, 3), "mnist": (28, 28, 1)}
COUNTS = {"train": 6, "test": 4}  # of which every other one is of the first class


def picture(dataset, split, number):
    seed = [*dataset.encode(), *split.encode(), number]
    return np.random.default_rng(seed).integers(0, 256, SHAPES[dataset]).astype(np.uint8)


def prepare_classes(dataset, root, *, file_format="array_record"):
    """Prepares a few images with TFDS's own builder, given in the PNG encoding that takes it TensorFlow to make."""
    builder = tfds.library().builder(dataset, data_dir=root, file_format=file_format)

    def examples(split):
        for number in range(COUNTS[split]):
            name = CLASSES[dataset][number % 2]
            example = {"image": png(picture(dataset, split, number)), "label": name}
            yield number, example | ({"id": f"{split}_{number:05d}"} if dataset == "cifar10" else {})

    def splits(downloads):
        if dataset == "cifar10":  # the builder reads them from the download
            builder.info.features["label"].names = tfds.CATEGORIES[dataset]
        return {split: examples(split) for split in COUNTS}

    builder._split_generators = splits
    builder.download_and_prepare()
    return root


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    root = tmp_path_factory.mktemp("classes")
    for dataset in CLASSES:
        prepare_classes(dataset, root)
    return root


@needs_tfds
@pytest.mark.parametrize("dataset", CLASSES)
@pytest.mark.parametrize("good", [0, 1])
def test_one_class_is_good(classes, dataset, good):
    category, other = CLASSES[dataset][good], CLASSES[dataset][1 - good]
    made = tfds.load(classes, category)
    assert (made.train.labels, made.train.defects) == ([0] * 3, ["good"] * 3)
    assert sorted(made.test.labels) == [0, 0, 1, 1]
    assert made.test.defects == ["good" if label == 0 else other for label in made.test.labels]
    for split, source in made._asdict().items():
        assert len(set(source.ids)) == len(source)
        assert all(
            record_id.startswith(f"{split}/{d}/") for record_id, d in zip(source.ids, source.defects, strict=True)
        )
        pictures = {picture(dataset, split, number).tobytes(): number for number in range(COUNTS[split])}
        for record in (source[index] for index in range(len(source))):
            assert record.image.shape == (*SHAPES[dataset][:2], 3)
            number = pictures.pop(record.image[..., : SHAPES[dataset][2]].tobytes())  # each image once
            assert (number % 2 == good) == (record.label == 0) == (record.mask is not None)
            assert record.label or (record.mask.shape == SHAPES[dataset][:2] and not record.mask.any())
        assert len(pictures) == (3 if split == "train" else 0)


@needs_tfds
def test_channels_are_as_asked(classes):
    digits, grey = tfds.load(classes, "3").train, tfds.load(classes, "3", channels=1).train
    np.testing.assert_array_equal(digits[0].image, np.repeat(grey[0].image, 3, axis=2))
    frogs, grey = tfds.load(classes, "frog").test, tfds.load(classes, "frog", channels=1).test
    np.testing.assert_array_equal(to_grey(frogs[3].image), grey[3].image)


@pytest.mark.medium
@needs_tfds
def test_a_digit_through_training_and_evaluation(classes, tmp_path, capsys):
    arguments = parts.baseline(classes, tmp_path, data__source="tfds")
    arguments[1] = f"{BASELINE}:8"
    assert command(train.main, *arguments) == 0
    assert "pixel AUROC n/a (no ground-truth masks for the anomalous test images)" in capsys.readouterr().out
    scores = (tmp_path / "scores.csv").read_text()
    assert scores.count("test/good/") == scores.count("test/3/") == 2


@pytest.mark.medium
@needs_tfds
def test_predict_takes_digits_as_small_as_those_of_the_training(classes, tmp_path, capsys):
    """28 pixels, which a detector trained on folders refuses."""
    arguments = parts.baseline(classes, tmp_path / "digits", data__source="tfds")
    arguments[1] = f"{BASELINE}:8"
    assert command(train.main, *arguments) == 0
    digit = write(tmp_path / "new" / "0.png", picture("mnist", "test", 0)[..., 0])
    assert command(predict.main, "--workdir", tmp_path / "digits", digit.parent) == 0
    assert "unreadable" not in (tmp_path / "digits" / "predictions" / "predictions.csv").read_text()
    assert command(train.main, *parts.baseline(write_parts(tmp_path / "sets"), tmp_path / "parts")) == 0
    assert command(predict.main, "--workdir", tmp_path / "parts", digit.parent) == 1
    assert "is 28 x 28 pixels (width x height), but at least 32" in (
        (tmp_path / "parts" / "predictions" / "predictions.csv").read_text()
    )


def test_no_two_datasets_share_a_category():
    names = [name for categories in tfds.CATEGORIES.values() for name in categories]
    assert len(names) == len(set(names)) == 35


@needs_tfds
def test_the_classes_are_those_of_the_builders():
    for dataset in CLASSES:
        label = tfds.library().builder(dataset, data_dir="unused").info.features["label"]
        assert label.num_classes == len(tfds.CATEGORIES[dataset])
    assert tuple(label.names) == tfds.CATEGORIES["mnist"]


# Bad input


def config_of(root, category="bottle", **overrides):
    values = {"data.source": "tfds", "data.root": str(root), **overrides}
    return configs.load(f"{BASELINE}:{category}", values)


@pytest.mark.parametrize("key", ["data.test", "data.ground_truth"])
def test_folders_beside_a_dataset_are_refused(key):
    with refuses("data.source", "config.data.test"):
        data.load(config_of("anywhere", **{key: "masks"}))


def test_a_dataset_without_its_package_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    extra = "python3 -m pip install 'jaxad[tfds]'"
    with refuses(None, extra):
        data.load(config_of(tmp_path))
    write_bottles(tmp_path)
    flags = ("--manual_dir", tmp_path, "--data_dir", tmp_path / "prepared", "--categories", "bottle")
    assert extra in refusal(capsys, mvtec_ad.main, *flags)


@pytest.mark.parametrize(("category", "hint"), [("botle", "'bottle'"), ("", "; choose")])
def test_an_unknown_category_is_refused(category, hint):
    assert_refused("data.category", hint, "anywhere", category)
    assert_refused("data.category", "7, 8, 9", "anywhere", category)


def test_an_empty_root_is_refused():
    assert_refused("data.root", "empty", "", "bottle")


@needs_tfds
def test_what_is_not_prepared_is_refused(tmp_path):
    own = f"python -m jaxad.data.mvtec_ad --manual_dir DIR --data_dir {tmp_path} --categories bottle"
    assert_refused(tmp_path, own, tmp_path, "bottle")
    built = f"tfds build mnist --data_dir={tmp_path} --file_format=array_record"
    assert_refused(tmp_path, built, tmp_path, "8")
    assert_refused(tmp_path / "none", "exist", tmp_path / "none", "cat")


@needs_tfds
def test_another_file_format_is_refused(classes, tmp_path):
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    for path in (classes / "mnist" / "3.0.1").glob("*.*"):
        text = path.read_bytes().replace(b'"fileFormat": "array_record"', b'"fileFormat": "tfrecord"')
        (tmp_path / "mnist" / "3.0.1" / path.name).write_bytes(text)
    assert_refused(tmp_path, "array_record", tmp_path, "8")


@needs_tfds
@pytest.mark.parametrize("name", ["dataset_info.json", "mvtec_ad-train.array_record-00000-of-00001"])
def test_damaged_files_are_refused(bottles, tmp_path, name):
    for path in (bottles[1] / "mvtec_ad" / "bottle" / "1.0.0").iterdir():
        copy = tmp_path / "mvtec_ad" / "bottle" / "1.0.0" / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes()[:70] if path.name == name else path.read_bytes())
    assert_refused(tmp_path, f"--data_dir {tmp_path} --categories bottle", tmp_path, "bottle")


def refused_preparation(capsys, manual, categories="bottle"):
    flags = ("--manual_dir", manual, "--data_dir", manual.parent / "prepared", "--categories", categories)
    told = refusal(capsys, mvtec_ad.main, *flags)
    assert not (manual.parent / "prepared").exists()
    return told


@needs_tfds
@pytest.mark.parametrize("part", ["train", "test", "ground_truth"])
def test_a_missing_manual_download_says_where_to_get_it(tmp_path, capsys, part):
    manual = write_bottles(tmp_path / "manual")
    (manual / "bottle" / part).rename(tmp_path / "away")
    assert refused_preparation(capsys, manual) == (
        f"there is no '{manual / 'bottle' / part}' of MVTec AD; download it from MVTec's own page, "
        "mvtec.com/company/research/datasets/mvtec-ad, and unpack it so that each category has its folder in the "
        "manual directory: bottle/train, bottle/test, bottle/ground_truth, ..."
    )
    assert f"there is no '{manual / 'cable' / 'train'}'" in refused_preparation(capsys, manual, "cable")


@needs_tfds
def test_unusable_manual_downloads_are_refused(tmp_path, capsys):
    manual = write_bottles(tmp_path / "manual")
    told = refused_preparation(capsys, manual, "bottle,capsul")
    assert told.startswith("--categories: there is no category 'capsul'; did you mean 'capsule'? choose one of carpet,")
    (manual / "bottle" / "ground_truth" / "spot" / "001_mask.png").unlink()
    assert "spot/001.png' has no mask" in refused_preparation(capsys, manual)
    (manual / "bottle" / "test").rename(tmp_path / "away")
    (manual / "bottle" / "test").mkdir()
    for path in (manual / "bottle" / "ground_truth").rglob("*.png"):
        path.unlink()
    assert "holds no images; unpack MVTec AD again" in refused_preparation(capsys, manual)


@needs_tfds
def test_a_damaged_image_is_refused_by_its_name(tmp_path, capsys):
    manual = write_bottles(tmp_path / "manual")
    path = manual / "bottle" / "test" / "good" / "001.png"
    path.write_bytes(path.read_bytes()[:-20])
    flags = ("--manual_dir", manual, "--data_dir", tmp_path / "prepared", "--categories", "bottle")
    told = refusal(capsys, mvtec_ad.main, *flags)
    assert told.startswith(f"image '{path}' is truncated or damaged")
    assert_refused(tmp_path / "prepared", "'mvtec_ad/bottle'", tmp_path / "prepared", "bottle")
