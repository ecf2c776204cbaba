"""``python -m jaxad.export``: what it writes, refuses and finds, and what its runner and ``--engine`` make of it."""

import contextlib
import csv
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from docs import exports, tables
from jaxad import data, detector, export, predict
from jaxad.errors import UserError
from jaxad.exporting import card as cards
from jaxad.exporting import checking, formats, runner
from jaxad.exporting.exported import ExportedDetector
from jaxad.exporting.formats import require
from jaxad.reporting.prediction_files import COLUMNS
from tests.commands import train
from tests.parts import SIZE, baseline, command, part, refusal, write, write_parts
from tests.refusals import refuses

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    write_parts(folder / "sets", train=20)
    assert (
        command(
            train.main, *baseline(folder / "sets", folder / "work", data__holdout=0.3, threshold__cross_fit_below=0)
        )
        == 0
    )
    return folder / "work"


@pytest.fixture(scope="module")
def exported(workdir):
    folder = workdir / "export" / "onnx"
    assert command(export.main, "--workdir", workdir, "--format", "onnx") == 0
    return folder


@pytest.fixture
def copied(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "copied"))


@pytest.fixture
def new(tmp_path):
    """Images of several kinds, in a folder and below it."""
    write(tmp_path / "new" / "b.png", part(1))
    write(tmp_path / "new" / "a.bmp", part(2, spot=True))
    write(tmp_path / "new" / "A" / "wide.png", np.tile(part(4, spot=True), (2, 3, 1)))
    write(tmp_path / "new" / "grey.png", part(5)[..., 0])
    write(tmp_path / "new" / "alpha.png", np.concatenate([part(6), part(7)[..., :1]], axis=2))
    turned = Image.fromarray(part(8, spot=True))
    exif = turned.getexif()
    exif[274] = 6  # turned by 90 degrees
    turned.save(tmp_path / "new" / "turned.jpg", exif=exif, quality=90)
    return tmp_path / "new"


def rows_of(file):
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def assert_same_table(found, expected, *, without=()):
    """The same rows, up to the rounding of scores."""
    assert [list(row) for row in found] == [list(COLUMNS)] * len(expected)
    for row, other in zip(found, expected, strict=True):
        assert float(row["score"]) == pytest.approx(float(other["score"]), rel=1e-5)
        named = [name for name in COLUMNS if name not in ("score", *without)]
        assert [row[name] for name in named] == [other[name] for name in named]


def test_the_card_says_what_the_model_is(workdir, exported):
    card, found = json.loads((exported / "card.json").read_text()), detector.load(workdir)
    assert card["input"]["shape"] == ["n", SIZE, SIZE, 3] and card["threshold"] == found.threshold
    assert card["sha256"] == {"model.onnx": cards.digest(exported / "model.onnx")}
    assert card["good_scores"] == {"mean": found.good_scores[0], "std": found.good_scores[1]}
    assert card["method"] == "baseline_mean" and card["precision"] == "float32" and card["versions"]["jax"]
    check = card["check"]
    assert check["images"] == 6 and check["with"] == "held-out good images" and check["passed"]
    assert check["decisions_that_differ"] == 0 and max(check["largest_difference"].values()) < 1e-5
    assert check["images_per_s"]["single"]["export"] > 0
    assert {path.name for path in exported.iterdir()} == {"card.json", "model.onnx", "runner.py"}


def test_a_detector_scores_the_same_by_its_export(workdir, exported, new, tmp_path):
    run = predict.main, "--workdir", workdir, new, "--output"
    assert command(*run, tmp_path / "plain") == 0
    assert command(*run, tmp_path / "engine", "--engine", "onnx") == 0
    assert command(*run, tmp_path / "named", "--engine", "onnx", "--export", exported) == 0
    plain, engine, named = (rows_of(tmp_path / name / "predictions.csv") for name in ("plain", "engine", "named"))
    assert_same_table(engine, plain)
    assert engine == named
    assert len({row["decision"] for row in plain}) == 2
    for folder in ("plain", "engine"):
        assert len(list((tmp_path / folder / "heatmaps").iterdir())) == len(plain)


@pytest.fixture(scope="module")
def keeping(tmp_path_factory):
    """A detector that keeps the aspect ratio, with its export; two good images have another one."""
    folder = tmp_path_factory.mktemp("keeping")
    write_parts(folder / "sets", train=20)
    for number in (20, 21):
        write(folder / "sets" / "nut" / "train" / "good" / f"{number:03d}.png", np.tile(part(number), (1, 5, 1)))
    options = {"data__resize": "keep", "data__holdout": 0.9, "evaluate__batch": 4}
    assert command(train.main, *baseline(folder / "sets", folder / "work", **options)) == 0
    return folder / "work"


def test_images_of_another_aspect_ratio_are_told_by_name(keeping, tmp_path, capsys):
    assert command(export.main, "--workdir", keeping, "--format", "onnx") == 0
    assert "left out of the check, since their aspect ratio is another: " in capsys.readouterr().out
    write(tmp_path / "new" / "a.png", part(1))
    write(tmp_path / "new" / "wide.png", np.tile(part(2), (1, 5, 1)))
    write(tmp_path / "new" / "z.png", part(3))
    call = "--workdir", keeping, tmp_path / "new", "--engine", "onnx", "--no-heatmaps", "--output", tmp_path / "out"
    assert command(predict.main, *call) == 1
    rows = rows_of(tmp_path / "out" / "predictions.csv")
    assert [row["decision"] == "unreadable" for row in rows] == [False, True, False]
    assert "wide.png" in rows[1]["reason"] and "leave --engine out" in rows[1]["reason"] and rows[1]["sha256"]
    call = "--workdir", keeping, "--format", "onnx", "--output", tmp_path / "export", "--check", tmp_path / "new"
    told = refusal(capsys, export.main, *call)
    assert "wide.png" in told and "--check" in told


def test_the_runner_needs_no_jax_and_writes_the_same_table(workdir, exported, new, tmp_path):
    assert command(predict.main, "--workdir", workdir, new, "--output", tmp_path / "plain", "--no-heatmaps") == 0
    absent = (
        "import sys, runpy; sys.modules |= dict.fromkeys(('jax', 'jaxad', 'flax', 'cv2')); sys.argv = sys.argv[1:]; "
    )
    code = f"{absent}runpy.run_path(sys.argv[0], run_name='__main__')"
    call = [sys.executable, "-c", code, exported / "runner.py", new, "--output", tmp_path / "table.csv"]
    subprocess.run(call, check=True)
    assert_same_table(rows_of(tmp_path / "table.csv"), rows_of(tmp_path / "plain" / "predictions.csv"))


def test_the_runner_says_which_files_it_does_not_read(exported, tmp_path, monkeypatch):
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((48, 48), 40_000, np.uint16)).save(deep)
    (tmp_path / "damaged.png").write_bytes(b"no image")
    write(tmp_path / "small.png", part(1)[:8])
    write(tmp_path / "whole.png", part(1))
    names = ["deep.png", "damaged.png", "small.png", "whole.png"]
    arguments = ["runner.py", *(str(tmp_path / name) for name in names), "--output", str(tmp_path / "table.csv")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="cannot be scored"):
        runpy.run_path(str(exported / "runner.py"), run_name="__main__")
    rows = rows_of(tmp_path / "table.csv")
    assert [row["decision"] for row in rows[:3]] == ["unreadable"] * 3 and rows[3]["decision"] == "good"
    assert "jaxad.predict" in rows[0]["reason"] and rows[1]["reason"] and "8 pixels" in rows[2]["reason"]


def test_the_runner_has_the_rows_of_predict_in_a_folder_of_all_kinds(workdir, exported, tmp_path, monkeypatch):
    new = tmp_path / "new"
    write(new / "b.png", part(1))
    write(new / "dir.png" / "a.png", part(2))
    write(new / ".hidden.png", part(3))
    write(new / ".hidden" / "a.png", part(3))
    write(new / "deep.tif", part(4))
    (new / "raw.dng").write_bytes(b"raw")
    (new / "notes.txt").write_text("no image")
    (new / "gone.png").symlink_to("nowhere")
    (new / "loop").symlink_to(new)
    os.rename(write(new / "c.png", part(5)), os.fsencode(new) + b"/\xe9\\.png")
    assert command(predict.main, "--workdir", workdir, new, "--output", tmp_path / "plain", "--no-heatmaps") == 1
    arguments = ["runner.py", str(new), "--output", str(tmp_path / "table.csv")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="cannot be scored"):
        runpy.run_path(str(exported / "runner.py"), run_name="__main__")
    found, expected = rows_of(tmp_path / "table.csv"), rows_of(tmp_path / "plain" / "predictions.csv")
    assert [(row["path"], row["sha256"]) for row in found] == [(row["path"], row["sha256"]) for row in expected]
    decisions = {
        Path(row["path"]).name: (row["decision"], other["decision"]) for row, other in zip(found, expected, strict=True)
    }
    assert decisions.pop("deep.tif") == ("unreadable", "good")  # as docs/export.md says
    assert all(ours == theirs for ours, theirs in decisions.values()) and len(decisions) == 5


def test_the_runner_reads_as_many_pixels_as_the_card_allows(exported, tmp_path, monkeypatch):
    """Pillow warns of more than MAX_IMAGE_PIXELS and refuses twice as many; the card alone decides."""
    monkeypatch.setattr(sys, "argv", ["runner.py", str(write(tmp_path / "a.png", part(1))), "--output"])
    for limit, decision in ((None, "good"), (100, "unreadable")):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        folder = shutil.copytree(exported, tmp_path / decision)
        if limit:
            card = json.loads((folder / "card.json").read_text())
            (folder / "card.json").write_text(json.dumps(card | {"max_pixels": limit}))
        sys.argv = [*sys.argv[:3], str(tmp_path / "table.csv")]
        with pytest.raises(SystemExit) if limit else contextlib.nullcontext():
            runpy.run_path(str(folder / "runner.py"), run_name="__main__")
        assert rows_of(tmp_path / "table.csv")[0]["decision"] == decision


def test_the_runner_says_what_is_not_there_and_writes_nothing_beside_its_card(exported, tmp_path, monkeypatch, capsys):
    arguments = ["runner.py", str(tmp_path / "absent.png"), "--output"]
    monkeypatch.setattr(sys, "argv", [*arguments, str(tmp_path / "table.csv")])
    with pytest.raises(SystemExit, match="cannot be scored"):
        runpy.run_path(str(exported / "runner.py"), run_name="__main__")
    (row,) = rows_of(tmp_path / "table.csv")
    assert row["decision"] == "unreadable" and row["reason"] and row["sha256"] == ""
    monkeypatch.setattr(sys, "argv", [*arguments, str(exported / "predictions.csv")])
    with pytest.raises(SystemExit):
        runpy.run_path(str(exported / "runner.py"), run_name="__main__")
    assert "--output" in capsys.readouterr().err and not (exported / "predictions.csv").exists()


def test_the_runners_suffixes_are_those_of_predict():
    assert sorted(predict.IMAGE_SUFFIXES) == runner.SUFFIXES


def test_a_failed_export_leaves_the_earlier_one_and_blocks_no_other(workdir, copied, tmp_path, monkeypatch):
    def content(folder):
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(found, folder, **options):
        (folder / "model.onnx").write_bytes(b"half")
        raise UserError("it cannot be written")

    before = content(copied)
    call = export.main, "--workdir", workdir, "--output"
    with monkeypatch.context() as patch:
        patch.setattr(formats, "write", fail)
        for folder in (copied, tmp_path / "fresh"):
            assert command(*call, folder, "--format", "onnx") == 2
    assert content(copied) == before
    for folder in (copied, tmp_path / "fresh"):
        assert command(*call, folder, "--format", "stablehlo") == 0
        assert content(folder).keys() == {"card.json", "model.stablehlo"}


def test_an_export_that_a_kill_stopped_does_not_block_the_next(workdir, tmp_path, monkeypatch):
    replace, call = Path.replace, (export.main, "--workdir", workdir, "--output", tmp_path / "out", "--format", "onnx")

    def stop(path, target):
        if Path(target) == tmp_path / "out" / "model.onnx":
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        assert command(*call) == 130
    assert command(*call) == 0
    assert json.loads((tmp_path / "out" / "card.json").read_text())["check"]["passed"]


def test_grey_is_opencvs_luma():
    card = {"input": {"shape": ["n", 8, 8, 1]}, "min_side": 1, "max_pixels": 10**6}
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    encoded = predict.cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    assert np.array_equal(runner.read(encoded, card), predict.to_grey(image))


def test_the_runners_columns_are_those_of_predict():
    assert tuple(runner.COLUMNS) == COLUMNS


def tampered(folder, change):
    """Changes a model and lets the card describe it."""
    model = onnx.load(folder / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
    onnx.save(model, folder / "model.onnx")
    cards.write(folder, json.loads((folder / "card.json").read_text()))


def test_a_check_finds_a_model_that_says_something_else(workdir, copied):
    tampered(copied, lambda array: (array * 1.001).astype(np.float32))
    found = detector.load(workdir)
    images = np.stack([np.array(Image.fromarray(part(n)).resize((SIZE, SIZE))) for n in range(5)])
    made = checking.compare(found, ExportedDetector(found, copied), [images[:3], images[3:]])
    assert not made["passed"] and made["images"] == 5 and made["largest_difference"]["scores"] > 1e-4
    assert "FAILED" in checking.summary(made | {"with": "images"})


def test_a_failed_check_ends_with_status_1(workdir, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(cards.TOLERANCES, "float32", 0.0)
    monkeypatch.setattr(checking, "TOLERANCES", {"float32": -1.0})
    assert command(export.main, "--workdir", workdir, "--format", "onnx", "--output", tmp_path / "out") == 1
    assert json.loads((tmp_path / "out" / "card.json").read_text())["check"]["passed"] is False
    assert "FAILED" in capsys.readouterr().out


def test_weights_in_float16_take_half_the_room_and_score_alike(workdir, exported, new, tmp_path, capsys):
    call = (
        "--workdir",
        workdir,
        "--format",
        "onnx",
        "--precision",
        "float16",
        "--check",
        new,
        "--output",
        tmp_path / "half",
    )
    assert command(export.main, *call) == 0
    sizes = [(folder / "model.onnx").stat().st_size for folder in (exported, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0]
    check = json.loads((tmp_path / "half" / "card.json").read_text())["check"]
    assert check["images"] == 6 and 0 < check["largest_difference"]["maps"] < check["tolerance"]


def test_stablehlo_scores_as_the_detector(workdir, new, tmp_path):
    folder = tmp_path / "hlo"
    assert command(export.main, "--workdir", workdir, "--format", "stablehlo", "--output", folder) == 0
    assert {path.name for path in folder.iterdir()} == {"card.json", "model.stablehlo"}
    call = predict.main, "--workdir", workdir, new, "--no-heatmaps", "--output"
    assert command(*call, tmp_path / "plain") == 0
    assert command(*call, tmp_path / "engine", "--engine", "stablehlo", "--export", folder) == 0
    assert_same_table(*(rows_of(tmp_path / name / "predictions.csv") for name in ("engine", "plain")))


def test_openvino_scores_as_the_detector(workdir, new, tmp_path):
    pytest.importorskip("openvino")
    folder = tmp_path / "vino"
    assert command(export.main, "--workdir", workdir, "--format", "openvino", "--output", folder) == 0
    assert {path.name for path in folder.iterdir()} == {"card.json", "model.bin", "model.xml", "runner.py"}
    call = predict.main, "--workdir", workdir, new, "--no-heatmaps", "--output"
    assert command(*call, tmp_path / "plain") == 0
    assert command(*call, tmp_path / "engine", "--engine", "openvino", "--export", folder) == 0
    assert_same_table(*(rows_of(tmp_path / name / "predictions.csv") for name in ("engine", "plain")))


def test_a_result_file_says_by_which_calls_it_was_made(workdir, new, tmp_path):
    file = tmp_path / "export_parts.json"
    assert command(exports.main, workdir, file, new, "onnx:float32", "onnx:float16") == 0
    made = json.loads(file.read_text())
    assert made["command"].startswith("python -m jaxad.train ") and made["date"] and made["device"]
    assert made["compared_by"] == "python -m docs.exports WORKDIR FILE.json DIR onnx:float32 onnx:float16"
    assert made["compared_with"] == f"{tmp_path.name}/new" and str(tmp_path) not in file.read_text()
    assert [row["precision"] for row in made["rows"]] == ["float32", "float16"]
    (heads, *_), rows = tables._exports(tmp_path)[0][:2]
    assert heads == "detector" and len(rows) == 2


def test_training_images_that_are_gone_leave_it_unchecked(tmp_path, capsys):
    write_parts(tmp_path / "sets", train=6)
    assert command(train.main, *baseline(tmp_path / "sets", tmp_path / "work")) == 0
    shutil.rmtree(tmp_path / "sets")
    assert command(export.main, "--workdir", tmp_path / "work", "--format", "onnx") == 0
    assert "not checked" in capsys.readouterr().out
    assert json.loads((tmp_path / "work" / "export" / "onnx" / "card.json").read_text())["check"] is None


@pytest.mark.parametrize(
    "spoil, word",
    [
        (lambda folder: (folder / "card.json").unlink(), "card.json"),
        (lambda folder: (folder / "card.json").write_text("{}"), "card.json"),
        (lambda folder: (folder / "model.onnx").unlink(), "missing"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"other"), "not the model"),
    ],
)
def test_an_export_that_is_not_whole_is_refused(workdir, copied, new, spoil, word, capsys):
    spoil(copied)
    assert word in refusal(capsys, predict.main, "--workdir", workdir, new, "--engine", "onnx", "--export", copied)


def test_a_model_that_cannot_be_loaded_is_refused(workdir, copied):
    (copied / "model.onnx").write_bytes(b"no model")
    cards.write(copied, json.loads((copied / "card.json").read_text()))
    with refuses(about=None, word="cannot be run"):
        ExportedDetector(detector.load(workdir), copied)


def test_the_export_of_another_detector_is_refused(workdir, exported):
    other = detector.load(workdir, {"score.reduction": "mean"})
    with refuses(about=exported, word="another detector"):
        ExportedDetector(other, exported)


def test_bad_requests_are_refused(workdir, exported, new, tmp_path, capsys):
    call = export.main, "--workdir", workdir, "--format"
    assert "stablehlo" in refusal(capsys, *call, "stablehlo", "--precision", "float16")
    assert "no network" in refusal(capsys, *call, "stablehlo", "--precision", "bfloat16", "--output", tmp_path / "no")
    write(tmp_path / "full" / "mine.png", part(1))
    assert "mine.png" in refusal(capsys, *call, "onnx", "--output", tmp_path / "full")
    assert "does not exist" in refusal(capsys, *call, "onnx", "--check", tmp_path / "absent")
    given = predict.main, "--workdir", workdir, new
    assert "--engine" in refusal(capsys, *given, "--export", exported)
    assert "onnx" in refusal(capsys, *given, "--engine", "openvino", "--export", exported)


def test_int8_takes_training_images_and_no_density(workdir, tmp_path, monkeypatch, capsys):
    """Up to the call of OpenVINO, which the tests do without."""
    given = []

    def write(found, folder, *, good, **options):
        given.append((good, options))
        raise UserError("written")

    monkeypatch.setattr(formats, "require", lambda name: None)
    monkeypatch.setattr(formats, "write", write)
    call = export.main, "--workdir", workdir, "--format", "openvino", "--precision", "int8", "--output", tmp_path / "x"
    assert "the density that was fitted to them" in refusal(capsys, *call)
    assert not given
    found = detector.load(workdir)
    monkeypatch.setattr(detector, "load", lambda workdir: found.with_weights(found.variables, {}))
    assert "written" in refusal(capsys, *call)
    [(good, options)] = given
    assert good.shape == (14, SIZE, SIZE, 3) and options == {"format": "openvino", "precision": "int8"}
    monkeypatch.setattr(data, "load", lambda *given, **options: (_ for _ in ()).throw(UserError("gone")))
    assert "calibrated on training images, which are not there (gone)" in refusal(capsys, *call)


@pytest.mark.parametrize("kind, extra", [("onnx", "onnx"), ("openvino", "openvino"), ("int8", "int8")])
def test_missing_packages_are_named_with_their_extra(monkeypatch, kind, extra):
    for name in ("onnx", "onnxruntime", "openvino", "nncf"):
        monkeypatch.setitem(sys.modules, name, None)
    with refuses(about=None, word=f"python3 -m pip install 'jaxad[{extra}]'"):
        require(kind)
