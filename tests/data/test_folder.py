"""The two folder layouts, what their records hold, and a sentence for everything that does not fit them."""

import errno
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from jaxad.data import folder
from tests.refusals import refuses
from tests.shared import SHARED, needs_shared

SIZES = {"000": (8, 6), "001": (5, 9)}


def draw(path, size=(8, 6), value=90):
    """Writes a grey image of (height, width); returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)
    return path


def draw_mask(path, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size, np.uint8)
    mask[1, 2:4] = 255
    Image.fromarray(mask).save(path)
    return path


@pytest.fixture
def mvtec(tmp_path):
    """Two training, one good and two times two defective test images of two sizes, all with masks."""
    root = tmp_path / "sets" / "nut"
    for stem, size in SIZES.items():
        draw(root / "train" / "good" / f"{stem}.png", size)
        for defect in ("bent", "scratch"):
            draw(root / "test" / defect / f"{stem}.png", size)
            draw_mask(root / "ground_truth" / defect / f"{stem}_mask.png", size)
    draw(root / "test" / "good" / "000.png", value=40)
    return root


def assert_refused(about, word, *args, **options):
    with refuses(about, word):
        folder.load(*args, **options)


def test_mvtec_layout(mvtec):
    train, test = folder.load(mvtec.parent, "nut")
    assert train.ids == ["train/good/000", "train/good/001"]
    assert train.labels == [0, 0] and train.defects == ["good", "good"]
    assert test.ids == ["test/bent/000", "test/bent/001", "test/good/000", "test/scratch/000", "test/scratch/001"]
    assert test.labels == [1, 1, 0, 1, 1]
    assert test.defects == ["bent", "bent", "good", "scratch", "scratch"]
    assert (len(train), len(test)) == (2, 5)


def test_records(mvtec):
    train, test = folder.load(mvtec.parent, "nut")
    record = test[1]
    assert (record.id, record.label, record.defect) == ("test/bent/001", 1, "bent")
    np.testing.assert_array_equal(record.image, np.full((5, 9, 3), 90, np.uint8))
    assert record.mask.dtype == np.uint8 and np.argwhere(record.mask).tolist() == [[1, 2], [1, 3]]
    good = test[2]
    assert (good.id, good.label, good.defect, good.image[0, 0, 0]) == ("test/good/000", 0, "good", 40)
    assert good.mask.dtype == np.uint8 and good.mask.shape == (8, 6) and not good.mask.any()
    assert train[0].mask.shape == (8, 6) and train[np.int64(1)].image.shape == (5, 9, 3)
    with pytest.raises(IndexError):
        train[2]


def test_root_can_be_the_category(mvtec):
    assert folder.load(str(mvtec), "").test.ids == folder.load(mvtec.parent, "nut").test.ids


def test_sources_pickle_small_and_decode_lazily(mvtec):
    train, test = folder.load(mvtec.parent, "nut")
    copy = pickle.loads(pickle.dumps(test))
    assert copy.ids == test.ids
    np.testing.assert_array_equal(copy[4].mask, test[4].mask)
    (mvtec / "train" / "good" / "001.png").write_bytes(b"")
    train = folder.load(mvtec.parent, "nut").train  # finding files does not open them
    assert train[0].image.shape == (8, 6, 3)
    with refuses(mvtec / "train" / "good" / "001.png", "empty"):
        train[1]


@pytest.mark.parametrize("name", ["000_mask.png", "000.png", "000.bmp", "000_mask.TIFF"])
def test_masks_are_found_by_both_names_and_any_suffix(mvtec, name):
    (mvtec / "ground_truth" / "bent" / "000_mask.png").unlink()
    draw_mask(mvtec / "ground_truth" / "bent" / name)
    assert folder.load(mvtec.parent, "nut").test[0].mask.sum() == 2


def test_other_files_beside_the_layout_are_allowed(mvtec):
    (mvtec / "license.txt").write_text("free")
    (mvtec / "test" / "bent" / "Thumbs.db").write_bytes(b"x")
    (mvtec / "test" / ".DS_Store").write_bytes(b"x")
    assert len(folder.load(mvtec.parent, "nut").test) == 5


def remove(path):
    for child in sorted(path.rglob("*"), reverse=True):
        child.rmdir() if child.is_dir() else child.unlink()
    path.rmdir()


def test_without_ground_truth_the_masks_are_unknown(mvtec):
    remove(mvtec / "ground_truth")
    test = folder.load(mvtec.parent, "nut").test
    assert [test[i].mask is None for i in range(5)] == [True, True, False, True, True]
    assert test.labels == [1, 1, 0, 1, 1]


def test_without_test_images(mvtec):
    remove(mvtec / "ground_truth")
    remove(mvtec / "test")
    train, test = folder.load(mvtec.parent, "nut")
    assert len(train) == 2 and len(test) == 0 and test.ids == test.labels == test.defects == []


def test_without_anomalies_and_with_empty_folders(mvtec):
    remove(mvtec / "ground_truth" / "bent")
    remove(mvtec / "ground_truth" / "scratch")
    remove(mvtec / "test" / "scratch")
    remove(mvtec / "test" / "bent")
    (mvtec / "test" / "bent").mkdir()
    assert folder.load(mvtec.parent, "nut").test.ids == ["test/good/000"]


def test_plain_folder(tmp_path):
    for stem, size in SIZES.items():
        draw(tmp_path / "parts" / f"{stem}.jpg", size)
    train, test = folder.load(tmp_path, "parts")
    assert train.ids == ["train/good/000", "train/good/001"] and len(test) == 0
    assert train[1].image.shape == (5, 9, 3) and not train[1].mask.any()
    assert folder.load(tmp_path / "parts", "").train.ids == train.ids


def test_plain_folder_with_test_images_and_masks(tmp_path):
    parts = tmp_path / "parts"
    draw(parts / "a.png")
    draw(parts / "check" / "good" / "a.png")
    draw(parts / "check" / "dent" / "b.png")
    draw_mask(tmp_path / "truth" / "dent" / "b.png")
    assert len(folder.load(parts, "").test) == 0
    test = folder.load(parts, "", test=str(parts / "check")).test
    assert test.ids == ["test/dent/b", "test/good/a"] and test[0].mask is None
    test = folder.load(parts, "", test=str(parts / "check"), ground_truth=str(tmp_path / "truth")).test
    assert test[0].mask.sum() == 2 and test[1].mask.sum() == 0


def test_named_folders_replace_those_of_the_layout(mvtec, tmp_path):
    draw(tmp_path / "other" / "dent" / "7.png")
    draw_mask(tmp_path / "truth" / "dent" / "7.png")
    options = {"test": str(tmp_path / "other"), "ground_truth": str(tmp_path / "truth")}
    test = folder.load(mvtec, "", **options).test
    assert test.ids == ["test/dent/7"] and test[0].mask.sum() == 2
    # The layout's own masks belong to its own test images.
    assert folder.load(mvtec, "", test=options["test"]).test[0].mask is None


def test_empty_root():
    assert_refused("data.root", "empty", "", "nut")


def test_missing_root(tmp_path):
    for category in ("", "nut"):
        assert_refused(tmp_path / "no", "exist", tmp_path / "no", category)


def test_unknown_category(mvtec):
    root = mvtec.parent
    (root / "bottle").mkdir()
    (root / ".git").mkdir()
    assert_refused(root, "'bottle'", root, "botle")
    assert_refused(root, "bottle, nut", root, "xyz")
    assert_refused(root, "'nut/train'", root, "nut/train")
    assert_refused(root / "bottle", "none", root / "bottle", "nut")
    assert_refused(mvtec, f"--config.data.root={root}", mvtec, "nut")


def test_files_where_folders_should_be(mvtec, tmp_path):
    path = draw(tmp_path / "a.png")
    assert_refused(path, "file", path, "")
    assert_refused(path, "file", tmp_path, "a.png")
    remove(mvtec / "test")
    draw(mvtec / "test.png").rename(mvtec / "test")
    assert_refused(mvtec / "test", "file", mvtec, "")


def test_unreadable_folder(mvtec, monkeypatch):
    scandir, locked = os.scandir, mvtec / "test" / "bent"

    def refuse(path):
        if path == locked:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert_refused(locked, "Permission", mvtec, "")


def test_no_training_images(mvtec, tmp_path):
    good = mvtec / "train" / "good"
    for path in good.iterdir():
        path.unlink()
    assert_refused(good, "images", mvtec, "")
    good.rmdir()
    assert_refused(good, "exist", mvtec, "")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_refused(empty, "images", empty, "")


def test_a_folder_of_folders_is_no_plain_folder(mvtec):
    root = mvtec.parent
    (root / "bolt").mkdir()
    assert_refused(root, "'bolt', 'nut'", root, "")


def test_files_that_are_no_images(mvtec, tmp_path):
    before = folder.load(mvtec, "")
    names = ["train/good/list.csv", "test/notes.txt", "test/bent/a.csv", "ground_truth/bent/b.csv"]
    for name in names:
        (mvtec / name).write_text("a,b")
    after = folder.load(mvtec, "")
    assert (after.train.ids, after.test.ids) == (before.train.ids, before.test.ids)
    assert after.train.others + after.test.others == [mvtec / name for name in names]
    plain = draw(tmp_path / "plain" / "a.png").parent
    (plain / "notes.txt").write_text("x")
    assert folder.load(plain, "").train.others == [plain / "notes.txt"]


@pytest.mark.parametrize("part", ["train/good", "test/bent", "ground_truth/bent"])
def test_a_directory_where_an_image_should_be(mvtec, part):
    path = mvtec / part / "007.png"
    path.mkdir()
    assert_refused(path, "directory", mvtec, "")


def test_a_directory_among_the_images_of_a_plain_folder(tmp_path):
    draw(tmp_path / "a.png")
    (tmp_path / "b.png").mkdir()
    assert_refused(tmp_path / "b.png", "directory", tmp_path, "")


@pytest.mark.parametrize("part", ["train/good", "test/bent"])
def test_two_images_of_one_stem(mvtec, part):
    draw(mvtec / part / "001.jpg")
    assert_refused(mvtec / part / "001.png", str(mvtec / part / "001.jpg"), mvtec, "")


@pytest.mark.parametrize("part", ["test", "ground_truth"])
def test_images_outside_the_defect_folders(mvtec, part):
    path = draw(mvtec / part / "x.png")
    assert_refused(path, f"'{mvtec / part}'", mvtec, "")


def test_good_in_capitals_is_no_defect(mvtec):
    (mvtec / "test" / "good").rename(mvtec / "test" / "Good")
    path = mvtec / "test" / "Good"
    assert_refused(path, "'good'", mvtec, "")


def test_named_test_folder_must_exist(mvtec, tmp_path):
    for name in ("test", "ground_truth"):
        assert_refused(tmp_path / "no", "exist", mvtec, "", **{name: str(tmp_path / "no")})


def test_missing_mask(mvtec):
    masks = mvtec / "ground_truth" / "scratch"
    (masks / "001_mask.png").unlink()
    assert_refused(mvtec / "test" / "scratch" / "001.png", f"{masks / '001'}_mask.*", mvtec, "")
    remove(masks)
    assert_refused(mvtec / "test" / "scratch" / "000.png", f"remove the folder '{mvtec / 'ground_truth'}'", mvtec, "")


def test_a_folder_without_any_mask(mvtec):
    masks = mvtec / "ground_truth"
    for defect in list(masks.iterdir()):
        remove(defect)
    assert_refused(mvtec / "test" / "bent" / "000.png", f"remove the folder '{masks}'", mvtec, "")
    masks.rmdir()
    assert set(folder.load(mvtec, "").test.masks) == {None}
    masks.mkdir()
    folders = {"test": str(mvtec / "test"), "ground_truth": str(masks)}
    assert_refused(mvtec / "test" / "bent" / "000.png", "config.data.ground_truth", mvtec, "", **folders)


@pytest.mark.parametrize("place", ["train/good", "test/scratch", "ground_truth/scratch", "test", "ground_truth"])
@pytest.mark.parametrize("suffix", [".gif", ".PGM", ".heic"])
def test_an_image_of_a_format_that_is_not_read_is_refused_and_not_passed_over(mvtec, place, suffix):
    path = mvtec / place / f"9{suffix}"
    path.touch()
    # Directly in these two none may be.
    assert_refused(path, "directly" if place in ("test", "ground_truth") else "format", mvtec, "")


def test_two_masks(mvtec):
    draw_mask(mvtec / "ground_truth" / "bent" / "001.png", SIZES["001"])
    assert_refused(mvtec / "test" / "bent" / "001.png", "'001_mask.png', '001.png'", mvtec, "")


@pytest.mark.parametrize("name", ["bent/002_mask.png", "torn/000_mask.png", "bent/000_mask_mask.png"])
def test_mask_without_its_image(mvtec, name):
    path = draw_mask(mvtec / "ground_truth" / name)
    assert_refused(path, f"'{path.parent.name}'", mvtec, "")


def test_masks_without_test_images(mvtec):
    remove(mvtec / "test")
    path = mvtec / "ground_truth" / "bent" / "000_mask.png"
    assert_refused(path, "'bent'", mvtec, "")


def test_mask_of_a_good_image(mvtec):
    path = draw_mask(mvtec / "ground_truth" / "good" / "000_mask.png")
    assert_refused(path, "good", mvtec, "")


def test_mask_of_another_size(mvtec):
    path = draw_mask(mvtec / "ground_truth" / "bent" / "001_mask.png", (9, 5))
    with refuses(path, "9 x 5"):
        folder.load(mvtec, "").test[1]


def test_black_mask_is_used_and_reported(mvtec, caplog):
    path = draw(mvtec / "ground_truth" / "bent" / "000_mask.png", value=0)
    record = folder.load(mvtec, "").test[0]
    assert record.label == 1 and record.mask.shape == (8, 6) and not record.mask.any()
    assert caplog.messages == [f"mask '{path}' marks no pixel of its defective image; it is used as it is"]


def test_smallest_side(mvtec):
    train = folder.load(mvtec, "", min_side=6).train
    assert train[0].image.shape == (8, 6, 3)
    with refuses(mvtec / "train" / "good" / "001.png", "6 pixels"):
        train[1]


@pytest.mark.medium
@pytest.mark.parametrize(
    ("root", "category", "counts"),
    [
        pytest.param("mvtec_ad", "bottle", (209, 20, 63), marks=needs_shared("data", "mvtec_ad", "bottle")),
        pytest.param("magnetic_tile", "tile", (300, 150, 392), marks=needs_shared("data", "magnetic_tile", "tile")),
    ],
)
def test_real_sets(root, category, counts):
    train, test = folder.load(SHARED / "data" / root, category)
    assert (len(train), test.labels.count(0), test.labels.count(1)) == counts
    assert len(set(train.ids + test.ids)) == sum(counts)
    for record in (test[i] for i in range(len(test))):
        assert record.image.ndim == 3 and record.mask.shape == record.image.shape[:2]
    assert train[0].image.dtype == np.uint8
