"""What a training prints of its images: how many, from where, how many are held out, and what is left out."""

import os

import pytest

from jaxad import config as configs
from jaxad import detector
from jaxad.data import folder
from jaxad.data.summary import on_few, repeated, training_images
from tests.commands import train
from tests.parts import baseline, command, part, refusal, write, write_parts

RULE = "only the images directly in '{}' are trained on, since other folders may hold defects"


def plain(root, workdir, **overrides) -> list[str]:
    """Arguments that fit the baseline to the images of a plain folder."""
    return baseline(root, workdir, data__category="", **overrides)


def printed(capsys, *arguments) -> list[str]:
    capsys.readouterr()
    assert command(train.main, *arguments) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.medium
def test_two_images_on_top_and_twenty_below(tmp_path, capsys) -> None:
    """Trained on are the two; the twenty, in folders at two levels, are named in a warning, without what is hidden."""
    root = tmp_path / "parts"
    for number in range(2):
        write(root / f"{number}.png", part(number))
    for number in range(10):
        write(root / "b" / "deep" / f"{number}.png", part(number))
        write(root / "a" / f"{number}.PNG", part(number))
    write(root / ".hidden" / "0.png", part(0))
    (root / "a" / "Thumbs.db").touch()
    (root / "notes").mkdir()
    (root / "notes" / "read.txt").touch()
    (root / "b" / "again").symlink_to(root, target_is_directory=True)  # in a circle
    lines = printed(capsys, *plain(root, tmp_path / "work", data__holdout=0))
    assert f"training images: 2 from '{root}', all to train on" in lines
    [warning] = [line for line in lines if line.startswith("WARNING")]
    assert warning == (
        "WARNING: 20 images beside these 2 are NOT trained on, with their number in each folder: 'a' (10), "
        f"'b/deep' (10); {RULE.format(root)}; "
        "to train on them, move them into one folder and name it with --config.data.root"
    )


@pytest.mark.medium
def test_little_that_is_left_out_is_named_without_a_warning(tmp_path, capsys) -> None:
    """Not what the config names as test images and masks."""
    root = tmp_path / "parts"
    for number in range(6):
        write(root / f"{number}.png", part(number))
    for name in ("extra", "check/good", "check/spot", "truth/spot"):
        write(root / name / "0.png", part(0))
    lines = printed(
        capsys,
        *plain(root, tmp_path / "work", data__holdout=0.5, data__test=root / "check", threshold__cross_fit_below=0),
    )
    assert f"training images: 6 from '{root}', 3 to train on and 3 held out for the threshold" in lines
    assert f"left out, with the number of images: 'extra' (1), 'truth/spot' (1); {RULE.format(root)}" in lines
    assert not any(line.startswith("WARNING") for line in lines)


@pytest.mark.medium
def test_beside_the_layout_of_mvtec_ad(tmp_path, capsys) -> None:
    root = write_parts(tmp_path / "sets")
    for name in ("train/bad", "validation/good", "train", "."):
        write(root / "nut" / name / "9.png", part(9))
    (root / "nut" / "readme.txt").touch()
    lines = printed(capsys, *baseline(root, tmp_path / "work"))
    assert f"training images: 6 from '{root / 'nut' / 'train' / 'good'}', all to train on" in lines
    named = f"'{root / 'nut'}' (1), 'train' (1), 'train/bad' (1), 'validation/good' (1)"
    rule = RULE.format(root / "nut" / "train" / "good")
    assert f"left out, with the number of images: {named}; {rule}" in lines


@pytest.mark.medium
def test_files_that_are_no_images_are_passed_over_and_named_once(tmp_path, capsys) -> None:
    """Among the training images and, by another line, among the test images and masks."""
    root = write_parts(tmp_path / "sets")
    for name in ("train/good/notes.txt", "test/README", "test/spot/list.csv", "ground_truth/spot/a.csv"):
        (root / "nut" / name).touch()
    lines = printed(capsys, *baseline(root, tmp_path / "work"))
    start = "passed over, since they are no image files"
    assert [line for line in lines if "passed over" in line] == [
        f"{start}: 1 of .txt (such as {root}/nut/train/good/notes.txt)",
        f"{start}: 1 of no suffix (such as {root}/nut/test/README), 2 of .csv (such as {root}/nut/test/spot/list.csv)",
    ]
    for number in range(2):
        write(root / "plain" / f"{number}.png", part(number))
    (root / "plain" / "readme.md").touch()
    lines = printed(capsys, *plain(root / "plain", tmp_path / "other"))
    assert f"{start}: 1 of .md (such as {root}/plain/readme.md)" in lines


@pytest.mark.medium
@pytest.mark.parametrize("where", [".", "more"])
def test_files_with_the_names_of_a_workdirs_do_not_hide_what_is_left_out(tmp_path, capsys, where) -> None:
    for name in ("0", "1", "more/2"):
        write(tmp_path / "parts" / f"{name}.png", part(2))
    for name in ("config.json", "images.json"):
        (tmp_path / "parts" / where / name).write_text('{"mine": 1}')
    lines = printed(capsys, *plain(tmp_path / "parts", tmp_path / "work"))
    assert any(line.startswith("left out, with the number of images: 'more' (1)") for line in lines)


@pytest.mark.medium
def test_a_workdir_beside_the_images_is_not_called_left_out(tmp_path, capsys) -> None:
    for number in range(2):
        write(tmp_path / "parts" / f"{number}.png", part(number))
    given = plain(tmp_path / "parts", tmp_path / "parts" / "run")
    printed(capsys, *given)
    write(tmp_path / "parts" / "run" / "samples.png", part(0))
    assert not any("left out" in line for line in printed(capsys, *given))


def test_nothing_left_out_is_nothing_said(tmp_path) -> None:
    root = write_parts(tmp_path / "sets")
    assert folder.load(root, "nut").train.left_out() == {}
    assert folder.load(root, "nut").test.left_out() == {}


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_named(tmp_path) -> None:
    root = write_parts(tmp_path / "sets") / "nut" / "train" / "good"
    (root.parent / "closed").mkdir(mode=0)
    assert folder.load(root.parents[2], "nut").train.left_out() == {"train/closed": None}


HELD = {
    # images, holdout: the words on the threshold
    (5, 0.1): "a share of 0.1 (config.data.holdout) of 5 images is less than half a one, so none is held out: no "
    "threshold will be fitted, and nothing is decided; add good images or set --config.data.holdout=0.11, which holds "
    "out one, and train again with --restart (from Python restart=True)",
    (2, 0.1): "a share of 0.1 (config.data.holdout) of 2 images is less than half a one, so none is held out: no "
    "threshold will be fitted, and nothing is decided; add good images, and train again with --restart (from Python "
    "restart=True)",
    (5, 0.0): "no images are held out (config.data.holdout=0): no threshold will be fitted, and nothing is decided",
    (5, 0.11): "of new good images, about 1 in 2 will exceed a threshold from 1; a false-alarm rate of 0.05 needs 19 "
    "for the threshold: add good images",
}  # fmt: skip


@pytest.mark.medium
@pytest.mark.parametrize("images, holdout", HELD)
def test_few_images_say_what_becomes_of_the_threshold(tmp_path, capsys, images, holdout) -> None:
    for number in range(images):
        write(tmp_path / "parts" / f"{number}.png", part(number))
    given = plain(tmp_path / "parts", tmp_path / "work", data__holdout=holdout, threshold__cross_fit_below=0)
    assert HELD[images, holdout] in printed(capsys, *given)
    assert (detector.load(tmp_path / "work").threshold is None) == (holdout != 0.11)


def test_enough_held_out_images_need_no_word(tmp_path) -> None:
    for number in range(38):
        write(tmp_path / "parts" / f"{number}.png", part(number))
    _, file, *_ = plain(tmp_path / "parts", tmp_path)
    config = configs.load(file, {"data.holdout": "0.5", "threshold.cross_fit_below": "38"})
    source = folder.load(tmp_path / "parts", "").train
    assert training_images(source, config, {}) == (
        f"training images: 38 from '{tmp_path / 'parts'}', 19 to train on and 19 held out for the threshold"
    )
    with config.unlocked():
        config.threshold.cross_fit_below = 39
    assert training_images(source, config, {}) == (
        f"training images: 38 from '{tmp_path / 'parts'}', all to train on; for the threshold each is scored by a "
        "density of others"
    )


@pytest.mark.parametrize(
    ("images", "rate", "needed"), [(18, 0.05, 19), (19, 0.05, None), (98, 0.01, 99), (99, 0.01, None)]
)
def test_too_few_images_for_a_rate_are_told_with_the_number_that_it_needs(images, rate, needed) -> None:
    told = on_few(images, rate)
    if needed is None:
        assert told == ""
    else:
        assert f"about 1 in {images + 1} " in told and f"{rate:g} needs {needed} for the threshold" in told


def test_no_number_of_images_allows_a_rate_of_0() -> None:
    assert "about 1 in 10 " in on_few(9, 0.0) and "needs" not in on_few(9, 0.0)


@pytest.mark.slow
def test_images_without_a_folder_have_a_place_too(tmp_path, capsys) -> None:
    _, file, *_ = baseline("", "")
    given = ["--config", file.removesuffix(":nut"), "--workdir", tmp_path / "work", "--config.data.size=32"]
    line = "training images: 120 from the demo category cap, 108 to train on and 12 held out for the threshold"
    assert line in printed(capsys, *given)


@pytest.mark.medium
def test_a_plain_folder_that_holds_only_subfolders_is_still_refused(tmp_path, capsys) -> None:
    write(tmp_path / "parts" / "a" / "0.png", part(0))
    message = refusal(capsys, train.main, *plain(tmp_path / "parts", tmp_path / "work"))
    assert "holds neither images nor 'train/good', only 'a'" in message


@pytest.mark.medium
def test_copies_among_the_training_images_are_named(tmp_path, capsys) -> None:
    """Two of one image and one of another are three copies; without any there is no line."""
    root = tmp_path / "parts"
    for number, same in enumerate([0, 1, 0, 0, 1, 2]):
        write(root / f"{number}.png", part(same))
    lines = printed(capsys, *plain(root, tmp_path / "work", data__holdout=0))
    [warning] = [line for line in lines if line.startswith("WARNING")]
    assert warning.startswith("WARNING: 3 training images are copies of other ones, such as 'train/good/2' of ")
    assert "python -m jaxad.check" in warning
    assert repeated({"a": {"sha256": "x"}, "b": {"sha256": "y"}}) == ""
    assert repeated({"a": {"sha256": "x"}, "b": {"sha256": "x"}}).startswith("WARNING: 1 training image is a copy of")
