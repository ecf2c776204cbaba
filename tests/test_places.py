"""Where a workdir and other paths of the user may be, and what their names may hold."""

import csv
import shutil

import pytest

import jaxad
from jaxad import evaluate, predict, report
from jaxad.errors import UserError
from tests.commands import train
from tests.parts import baseline, command, part, refusal, write, write_parts


@pytest.fixture
def root(tmp_path):
    return write_parts(tmp_path / "sets")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A workdir with a fitted baseline, not to be changed."""
    folder = tmp_path_factory.mktemp("fitted")
    write_parts(folder / "sets")
    assert command(train.main, *baseline(folder / "sets", folder / "work")) == 0
    return folder / "work"


@pytest.fixture
def copy(fitted, tmp_path):
    """A copy of that workdir."""
    return shutil.copytree(fitted, tmp_path / "copy")


@pytest.mark.medium
def test_a_workdir_that_would_make_a_plain_folder_one_of_another_layout_is_refused(capsys, root):
    """The next command would look for the images in train/good."""
    plain = root / "nut" / "train" / "good"
    message = refusal(capsys, train.main, *baseline(plain, plain / "train", data__category=""))
    assert message.startswith(f"the workdir {plain / 'train'} would make {plain} a folder in MVTec AD's layout; ")
    assert not (plain / "train").exists()


@pytest.mark.medium
@pytest.mark.parametrize("where", [".", "nut", "nut/train/good", "nut/test/run", "nut/ground_truth"])
def test_a_workdir_among_the_images_is_refused_before_anything_is_written(capsys, root, where):
    before = sorted(root.rglob("*"))
    (root.parent / "link").symlink_to(root)
    for workdir in (root / where, root.parent / "link" / where):
        message = refusal(capsys, train.main, *baseline(root, workdir))
        assert message.startswith(f"the workdir {workdir} ") and message.endswith(
            " a folder from which images are read; choose another --workdir"
        )
    assert sorted(root.rglob("*")) == before
    assert command(train.main, *baseline(root, root / "nut" / "run")) == 0


@pytest.mark.medium
def test_a_workdir_whose_name_is_no_utf_8(capsys, root, tmp_path):
    for workdir in (tmp_path / "caf\udce9", tmp_path / "caf\udce9" / "run"):
        message = refusal(capsys, train.main, *baseline(root, workdir))
        assert message.startswith(rf"the workdir {tmp_path}/caf\xe9") and " has a name that is no UTF-8" in message
        for main in (evaluate.main, predict.main):
            assert refusal(capsys, main, "--workdir", workdir, *[root] * (main is predict.main)) == message
    assert not (tmp_path / "caf\udce9").exists()


@pytest.mark.medium
def test_tables_of_names_that_are_no_utf_8_are_utf_8(root, tmp_path):
    """Also those of names that hold backslashes, and all names are different."""
    for folder, name in (("good", "caf\udce9"), ("good", r"caf\xe9"), ("sp\udcffot", "\u00e9")):
        write(root / "nut" / "test" / folder / f"{name}.png", part(7))
    shutil.rmtree(root / "nut" / "ground_truth")
    assert command(train.main, *baseline(root, tmp_path / "run")) == 0
    with open(tmp_path / "run" / "scores.csv", newline="", encoding="utf-8") as file:
        rows = {row["id"]: row["defect"] for row in csv.DictReader(file)}
    named = {r"test/good/caf\xe9": "good", r"test/good/caf\\xe9": "good", "test/sp\\xffot/\u00e9": r"sp\xffot"}
    assert named.items() <= rows.items() and len(rows) == 8


@pytest.mark.slow
def test_paths_with_a_nul_character(capsys, root, copy, fitted):
    """None reaches a command by its command line, but every one may by its function."""
    bad, nut = f"{root}/a\0b", root / "nut" / "test" / "good"
    for main, arguments in (
        (train.main, ["--config", f"{bad}.py"]),
        (train.main, baseline(root, bad)),
        (train.main, baseline(bad, root / "run")),
        (evaluate.main, ["--workdir", bad]),
        (evaluate.main, ["--workdir", copy, fitted, "--output", bad]),
        (predict.main, ["--workdir", bad, nut]),
        (predict.main, ["--workdir", copy, bad]),
        (predict.main, ["--workdir", copy, nut, "--output", bad]),
        (report.main, [bad]),
    ):
        message = refusal(capsys, main, *arguments)
        assert r"a\x00b" in message and "\0" not in message, message
    found = jaxad.load(copy)
    for call in (lambda: jaxad.load(bad), lambda: found.predict([bad]), lambda: found.save(bad)):
        with pytest.raises(UserError, match=r"a\\x00b"):
            call()
