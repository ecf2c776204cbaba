"""``python -m jaxad.predict``: which images it takes, and what it writes."""

import csv
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

import jaxad
from jaxad import predict
from jaxad.data.image import SUFFIXES, list_folder, read_image
from jaxad.reporting import prediction_files
from jaxad.runtime import disk
from tests.commands import train
from tests.parts import HEIGHT, ROOT, SPOT, WIDTH, baseline, command, part, refusal, write, write_parts
from tests.refusals import refuses

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    write_parts(folder / "sets", train=20)
    given = {"data__holdout": 0.3, "threshold__cross_fit_below": 0}
    assert command(train.main, *baseline(folder / "sets", folder / "work", **given)) == 0
    return folder / "work"


@pytest.fixture
def new(tmp_path):
    """Images in a folder and below it: two of the same stem, one of another size, none with a label."""
    write(tmp_path / "new" / "b.png", part(1))
    write(tmp_path / "new" / "a.bmp", part(2, spot=True))
    write(tmp_path / "new" / "B" / "b.png", part(3, spot=True))
    write(tmp_path / "new" / "B" / "C" / "large.png", np.tile(part(4, spot=True), (2, 3, 1)))
    write(tmp_path / "new" / ".thumbnails" / "b.png", part(5))
    return tmp_path / "new"


def collect(*paths):
    return prediction_files.walk([str(path) for path in paths], list_folder, SUFFIXES)


def killed_at(number, patch, owner, name):
    """Lets call `number` of a function be interrupted; 0 is the one that is given predictions.csv."""
    function, calls = getattr(owner, name), []

    def killed(first, *arguments, **options):
        calls.append(first)
        if len(calls) == number or (number == 0 and Path(first).name == "predictions.csv"):
            raise KeyboardInterrupt
        return function(first, *arguments, **options)

    patch.setattr(owner, name, killed)


def run(workdir, output, *arguments):
    """Predicts; returns the rows of predictions.csv."""
    assert command(predict.main, "--workdir", workdir, "--output", output, *arguments) == 0
    return table(output)


def lines(output):
    """What the lines of predictions.jsonl say."""
    return [json.loads(line) for line in (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def table(output):
    """The rows of predictions.csv."""
    with open(output / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_collect_takes_files_as_they_come_and_folders_sorted(new):
    inside = ["a.bmp", "b.png", "B/b.png", "B/C/large.png"]
    assert collect(new)[0] == [new / name for name in inside]
    given = [str(new / "b.png"), str(new / "B"), str(new / "a.bmp")]
    expected = ["b.png", "B/b.png", "B/C/large.png", "a.bmp"]
    assert collect(*given)[0] == [new / name for name in expected]


def test_collect_refuses_what_holds_no_images_and_names_other_files(new):
    (new / "empty").mkdir()
    with refuses(new / "empty", "images"):
        collect(new / "empty")
    (new / "B" / "list.txt").write_text("b")
    images, others, trained = collect(new)
    assert len(images) == 4 and others == [new / "B" / "list.txt"] and trained == []
    with refuses(new / "no.png", "exist"):
        collect(new / "no.png")


@pytest.mark.medium
def test_the_table(workdir, new, tmp_path, capsys):
    rows = run(workdir, tmp_path / "out", new)
    assert list(rows[0]) == list(prediction_files.COLUMNS)
    assert [row["path"] for row in rows] == [str(path) for path in collect(new)[0]]
    detector = jaxad.load(workdir)
    assert detector.threshold is not None
    for row in rows:
        [made] = detector.predict([read_image(row["path"])])
        assert float(row["score"]) == pytest.approx(made.score, rel=1e-6)
        assert float(row["threshold"]) == detector.threshold
        assert row["decision"] == ("defective" if made.score > detector.threshold else "good")
        assert (int(row["peak_row"]), int(row["peak_column"])) == made.peak
    assert [row["decision"] for row in rows] == ["defective", "good", "defective", "defective"]
    printed = capsys.readouterr().out
    assert "4 images, 3 called defective, " in printed and str(tmp_path / "out" / "predictions.csv") in printed


def test_the_lines_say_what_the_api_says(workdir, new, tmp_path):
    (new / "c.png").write_bytes(b"broken")
    output = tmp_path / "out"
    assert command(predict.main, "--workdir", workdir, "--output", output, new) == 1
    rows, detector = table(output), jaxad.load(workdir)
    for line, row in zip(lines(output), rows, strict=True):
        assert (line["path"], line["decision"]) == (row["path"], row["decision"]) and line["mask"] is None
        assert (line["threshold"], line["pixel_threshold"]) == (detector.threshold, detector.pixel_threshold)
        if line["decision"] == "unreadable":
            assert line["reason"] == row["reason"]
            assert line["score"] is line["percentile"] is line["regions"] is None
            continue
        [made] = detector.predict([read_image(row["path"])])
        assert line["score"] == float(row["score"]) and line["percentile"] == made.percentile and line["reason"] is None
        assert len(line["regions"]) == len(made.regions)
        for told, region in zip(line["regions"], made.regions, strict=True):
            same = {name: value for name, value in told.items() if not name.endswith("_score")}
            assert same == json.loads(json.dumps({name: getattr(region, name) for name in same}))
            scores = told["peak_score"], told["mean_score"]
            assert scores == pytest.approx((region.peak_score, region.mean_score), rel=1e-4)
    spotted = lines(output)[0]
    top, left, bottom, right = spotted["regions"][0]["box"]
    assert top < SPOT[0].stop and bottom > SPOT[0].start and left < SPOT[1].stop and right > SPOT[1].start
    assert spotted["percentile"] == 100


def test_masks_are_what_the_maps_say(workdir, new, tmp_path, monkeypatch):
    """They have the image's own size; an image whose map lies below the threshold has a blank one."""
    output = tmp_path / "out"
    rows = run(workdir, output, "--masks", "--maps", "npy", new)
    level = jaxad.load(workdir).pixel_threshold
    for number, (row, line) in enumerate(zip(rows, lines(output), strict=True), start=1):
        with Image.open(output / line["mask"]) as file, Image.open(row["path"]) as image:
            assert file.format == "PNG" and file.mode == "L" and file.size == image.size
            mask = np.array(file)
        name = Path(line["mask"]).stem
        assert name == prediction_files.stem(number, Path(row["path"]))
        np.testing.assert_array_equal(mask, 255 * (np.load(output / "maps" / f"{name}.npy") > np.float32(level)))
        assert (mask > 0).sum() == sum(region["area"] for region in line["regions"])
    assert [bool(line["regions"]) for line in lines(output)] == [True, False, True, True]
    assert len(collect(tmp_path / "out" / "..")[0]) == 4  # masks are known as ours
    run(workdir, output, new / "b.png")
    assert not (output / "masks").exists()


def test_another_false_alarm_rate(workdir, new, tmp_path, capsys):
    detector = jaxad.load(workdir)
    first = run(workdir, tmp_path / "out", new)
    capsys.readouterr()
    rows = run(workdir, tmp_path / "out", "--false-alarm-rate", 0.5, new)
    told, expected = capsys.readouterr().out, detector.calibration.thresholds(0.5)
    assert "exceed" not in told and expected[0] < detector.threshold
    assert {float(row["threshold"]) for row in rows} == {expected[0]}
    assert {line["pixel_threshold"] for line in lines(tmp_path / "out")} == {expected[1]}
    assert [row["score"] for row in rows] == [row["score"] for row in first]
    run(workdir, tmp_path / "out", "--false-alarm-rate", 0.01, new)
    assert "about 1 in 7 will exceed a threshold from 6; a false-alarm rate of 0.01 needs 99" in capsys.readouterr().out
    for wrong in ("1", "-0.1", "five"):
        message = refusal(capsys, predict.main, "--workdir", workdir, "--false-alarm-rate", wrong, new)
        assert message.startswith("--false-alarm-rate must be a number in [0, 1)") and wrong in message


def test_the_peak_is_in_pixels_of_the_image(workdir, new, tmp_path):
    [row] = run(workdir, tmp_path / "out", new / "a.bmp")
    assert SPOT[0].start <= int(row["peak_row"]) < SPOT[0].stop
    assert SPOT[1].start <= int(row["peak_column"]) < SPOT[1].stop


def test_heatmaps_have_the_size_of_their_images(workdir, new, tmp_path):
    rows = run(workdir, tmp_path / "out", new)
    assert len({row["heatmap"] for row in rows}) == len(rows)  # equal stems do not overwrite each other
    for row in rows:
        with Image.open(tmp_path / "out" / row["heatmap"]) as heatmap, Image.open(row["path"]) as image:
            assert heatmap.size == image.size and heatmap.format == "JPEG"
    assert not (tmp_path / "out" / "maps").exists()


def test_a_smoothed_heatmap_changes_nothing_but_the_picture(workdir, new, tmp_path):
    smooth = tmp_path / "smooth"
    shutil.copytree(workdir, smooth)
    config = json.loads((smooth / "config.json").read_text())
    assert config["evaluate"]["heatmap_sigma"] == 0
    config["evaluate"]["heatmap_sigma"] = 3.0
    (smooth / "config.json").write_text(json.dumps(config))
    rows, drawn = [], []
    for number, fitted in enumerate((workdir, smooth)):
        output = tmp_path / f"out{number}"
        rows.append(run(fitted, output, "--maps", "npy", new / "a.bmp"))
        picture = np.array(Image.open(output / rows[-1][0]["heatmap"])).astype(int)
        drawn.append(np.abs(np.diff(picture, axis=0)).sum() + np.abs(np.diff(picture, axis=1)).sum())
    assert rows[0] == rows[1]
    assert (tmp_path / "out0/maps/00001_a.npy").read_bytes() == (tmp_path / "out1/maps/00001_a.npy").read_bytes()
    assert drawn[1] < 0.95 * drawn[0]  # most of it is the image below
    [one], [other] = (jaxad.load(fitted).predict(new / "a.bmp") for fitted in (workdir, smooth))
    assert (one.score, one.peak) == (other.score, other.peak) and np.array_equal(one.map, other.map, equal_nan=True)


@pytest.mark.parametrize("kind", ["npy", "tiff"])
def test_raw_maps(workdir, new, tmp_path, kind):
    rows = run(workdir, tmp_path / "out", "--maps", kind, new)
    files = sorted((tmp_path / "out" / "maps").iterdir())
    assert [file.name for file in files] == [f"0000{name}.{kind}" for name in ("1_a", "2_b", "3_b", "4_large")]
    for file, row in zip(files, rows, strict=True):
        if kind == "npy":
            values = np.load(file, allow_pickle=False)
        else:
            with Image.open(file) as image:
                assert image.mode == "F"
                values = np.array(image)
        image = read_image(row["path"])
        assert values.dtype == np.float32 and values.shape == image.shape[:2]
        [made] = jaxad.load(workdir).predict([image])
        np.testing.assert_allclose(values, made.map, rtol=1e-5, atol=1e-6)
    assert values.shape == (2 * HEIGHT, 3 * WIDTH)


@pytest.mark.medium
def test_without_a_threshold_there_is_no_decision(new, tmp_path, capsys):
    write_parts(tmp_path / "sets")
    assert command(train.main, *baseline(tmp_path / "sets", tmp_path / "work")) == 0
    [row] = run(tmp_path / "work", tmp_path / "out", new / "b.png")
    assert (row["threshold"], row["decision"]) == ("n/a", "n/a") and float(row["score"]) > 0
    assert "1 image, no decision (no threshold was fitted), " in capsys.readouterr().out
    [line] = lines(tmp_path / "out")
    assert line["decision"] == "n/a" and line["regions"] is line["percentile"] is line["pixel_threshold"] is None
    for given in ("--masks", "--false-alarm-rate=0.1"):
        message = refusal(capsys, predict.main, "--workdir", tmp_path / "work", given, new)
        assert "no good images were held out" in message


def test_a_second_run_replaces_the_first(workdir, new, tmp_path):
    assert len(run(workdir, tmp_path / "out", new)) == 4
    assert len(run(workdir, tmp_path / "out", new / "b.png")) == 1


@pytest.mark.parametrize("name", [r"a\b.png", "w\udcff.png"])
def test_names_that_the_table_escapes_are_known_again(workdir, tmp_path, name):
    image = write(tmp_path / "new" / name, part(1, spot=True))
    first = run(workdir, tmp_path / "out", image)
    assert run(workdir, tmp_path / "out", image) == first
    assert collect(tmp_path)[0] == [image]  # the heatmap is known as ours


def test_an_image_that_is_named_twice(workdir, new, tmp_path, monkeypatch):
    """A call that was killed between the second one's picture and its row goes on, and its picture is ours."""
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        killed_at(2, patch, prediction_files.Table, "add")
        given = ["--workdir", workdir, "--output", output, new / "a.bmp", new / "a.bmp"]
        assert command(predict.main, *given) == 130
    assert len(list((output / "heatmaps").iterdir())) == 2 and len(table(output)) == 1
    assert collect(tmp_path)[0] == collect(new)[0]
    one, two = run(workdir, output, new / "a.bmp", new / "a.bmp")
    assert one["score"] == two["score"] and one["heatmap"] != two["heatmap"]


def test_pictures_without_a_row_are_still_ours(workdir, new, tmp_path):
    """As when a user deletes rows of the table."""
    output = tmp_path / "out"
    run(workdir, output, new)
    table_file = output / "predictions.csv"
    lines = table_file.read_text().splitlines(keepends=True)
    table_file.write_text("".join([lines[0], *lines[3:]]))
    assert len(run(workdir, output, new)) == 4
    table_file.write_text("".join([lines[0], *lines[3:]]))
    assert len(collect(tmp_path)[0]) == 4


def test_an_image_of_a_format_that_is_not_read_is_unreadable_and_not_passed_over(workdir, new, tmp_path, capsys):
    Image.fromarray(part(1)).save(new / "c.gif")
    assert command(predict.main, "--workdir", workdir, "--output", tmp_path / "out", new) == 1
    rows = {row["path"]: row for row in table(tmp_path / "out")}
    row = rows[str(new / "c.gif")]
    assert row["decision"] == "unreadable" and "convert" in row["reason"] and len(rows) == 5
    assert "passed over" not in capsys.readouterr().out


def test_more_images_than_a_batch(workdir, tmp_path):
    for number in range(19):
        write(tmp_path / "many" / f"{number:02d}.png", part(number, spot=number == 17))
    rows = run(workdir, tmp_path / "out", tmp_path / "many")
    assert [row["path"][-6:-4] for row in rows] == [f"{number:02d}" for number in range(19)]
    assert max(rows, key=lambda row: float(row["score"])) is rows[17]


def test_progress_away_from_a_terminal_is_a_line_now_and_then(workdir, tmp_path, monkeypatch, capsys):
    for number in range(25):
        write(tmp_path / "many" / f"{number:02d}.png", part(number))

    def progress(output, seconds):
        """The lines of progress where each look at the clock finds it so much later."""
        clock = SimpleNamespace(perf_counter=itertools.count(0.0, seconds).__next__)
        with monkeypatch.context() as patch:
            patch.setattr(predict, "time", clock)
            run(workdir, tmp_path / output, tmp_path / "many", "--no-heatmaps")
        return re.findall(r"^(\d+)/25 images  (\S+) images/s  (\d+) s left$", capsys.readouterr().out, re.MULTILINE)

    assert progress("quick", 0.001) == []
    # Every third image is the first beyond a tenth; the last image has the command's own line.
    assert [int(done) for done, _, _ in progress("slow", 20.0)] == [3, 6, 9, 12, 15, 18, 21, 24]
    assert progress("even", 2.5)[0] == ("4", "0.4", "52")  # every fourth, since three take less than ten seconds


def test_a_terminal_shows_progress_in_place(workdir, new, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run(workdir, tmp_path / "out", new)
    printed = capsys.readouterr()
    assert printed.err.startswith("\r1/4\r2/4\r3/4\r4/4") and " s left" not in printed.out


def test_paths_are_needed(workdir, capsys):
    assert command(predict.main, "--workdir", workdir) == 2
    assert "the following arguments are required: PATH" in capsys.readouterr().err


def test_an_unreadable_file_has_a_row_and_the_rest_is_scored(workdir, new, tmp_path, capsys):
    (new / "b.png").write_bytes(b"broken")
    (new / "notes.txt").write_text("mine")
    (new / "Thumbs.db").write_bytes(b"litter")
    output = tmp_path / "out"
    assert command(predict.main, "--workdir", workdir, "--output", output, new) == 1
    rows = table(output)
    assert [row["decision"] for row in rows] == ["defective", "unreadable", "defective", "defective"]
    assert rows[1]["reason"].startswith(f"'{new / 'b.png'}' is not an image") and rows[1]["score"] == ""
    printed = capsys.readouterr()
    assert printed.out.count("passed over") == 1 and f"1 of .txt (such as {new / 'notes.txt'})" in printed.out
    assert printed.err.rstrip().splitlines()[-1].startswith("error: 1 of 4 images cannot be read; ")


def test_links_in_circles_pipes_and_empty_folders_are_passed_over(workdir, new, tmp_path, capsys):
    (new / "B" / "C" / "round").symlink_to(new)
    (new / "B" / "again").symlink_to(".")
    (new / "scan.png").mkdir()
    os.mkfifo(new / "camera.png")
    (new / "gone.png").symlink_to(new / "nowhere.png")
    (new / "more.tif").mkdir()
    write(new / "more.tif" / "d.png", part(6))
    assert command(predict.main, "--workdir", workdir, "--output", tmp_path / "out", new) == 1
    decisions = {row["path"].removeprefix(f"{new}/"): row["decision"] for row in table(tmp_path / "out")}
    names = ["a.bmp", "b.png", "gone.png", "B/b.png", "B/C/large.png", "more.tif/d.png"]
    assert list(decisions) == names and [decisions[name] == "unreadable" for name in names] == [False] * 2 + [
        True
    ] + [False] * 3
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("passed over")]
    assert f"2 of .png (such as {new / 'camera.png'})" in line
    assert f"2 of no suffix (such as {new / 'B' / 'C' / 'round'})" in line


def test_only_pictures_that_were_written_are_passed_over_and_removed(workdir, new, tmp_path, capsys):
    output = new / "predictions"
    assert len(run(workdir, output, new)) == 4
    mine = [write(output / "heatmaps" / name, part(1)) for name in ("00004_x.png", "12345_mine.png")]
    rows = run(workdir, output, new)
    assert {row["path"] for row in rows} >= {str(path) for path in mine} and len(rows) == 6
    made = {row["heatmap"].removeprefix("heatmaps/") for row in rows}
    assert {path.name for path in (output / "heatmaps").iterdir()} == made | {path.name for path in mine}
    for kind in ("--no-heatmaps", "--maps=npy"):
        assert len(run(workdir, output, kind, new)) == 6 and all(path.exists() for path in mine)
    taken = write(output / "heatmaps" / "00001_z.jpg", part(1))
    before = {path: path.read_bytes() for path in output.rglob("*.*")}
    message = refusal(capsys, predict.main, write(new / "z.png", part(1)), "--workdir", workdir, "--output", output)
    assert str(taken) in message and "not written" in message and "--output" in message
    assert {path: path.read_bytes() for path in output.rglob("*.*")} == before
    marker = json.loads((output / "predict.json").read_text())
    (output / "predict.json").write_text(json.dumps(marker | {"paths": "5d41402a"}))
    message = refusal(capsys, predict.main, new, "--workdir", workdir, "--output", output)
    assert message.startswith(f"{output} was written by another version of jaxad (predict.json says other things); ")


def test_a_picture_of_the_user_beside_one_of_ours_is_left_alone(workdir, new, tmp_path, capsys):
    """Named as ours, but with another suffix, in the other folder, or of a call that drew none."""
    output = tmp_path / "out"
    given = [run(workdir, output, new / "a.bmp", "--maps", "npy") and output / "heatmaps" / "00001_a.jpg"]
    mine = [write(output / name, part(1)) for name in ("heatmaps/00001_a.png", "maps/00001_a.jpg", "maps/00001_a.tiff")]
    arguments = (predict.main, new / "a.bmp", "--workdir", workdir, "--output", output)
    message = refusal(capsys, *arguments)  # a heatmap of many pixels would take its place
    assert str(mine[0]) in message and "not written" in message and "--output" in message
    assert all(path.exists() for path in (*given, *mine, output / "maps" / "00001_a.npy"))
    run(workdir, output, "--no-heatmaps", new / "b.png")
    assert not given[0].exists() and not (output / "maps" / "00001_a.npy").exists()
    assert all(path.exists() for path in mine)
    mine.append(write(output / "heatmaps" / "00001_b.jpg", part(1)))
    run(workdir, output, "--no-heatmaps", new / "a.bmp")
    assert all(path.exists() for path in mine)
    assert set(collect(output)[0]) == set(mine)  # and they are images like any other


def test_the_output_may_be_the_folder_of_the_images(workdir, new, capsys):
    first = run(workdir, new, new)
    assert [row["path"] for row in run(workdir, new, new)] == [row["path"] for row in first]
    assert "passed over" not in capsys.readouterr().out
    write(new / "heatmaps" / "mine.png", part(9))
    assert len(run(workdir, new, new)) == 5 and (new / "heatmaps" / "mine.png").exists()


def test_a_folder_of_the_user_is_not_taken_for_output(workdir, new, capsys):
    mine = write(new / "heatmaps" / "00001_mine.png", part(9))
    message = refusal(capsys, predict.main, "--workdir", workdir, "--output", new, new)
    assert str(new / "heatmaps") in message and "not written" in message and "--output" in message
    assert mine.exists() and not (new / "predictions.csv").exists()


@pytest.mark.medium
@pytest.mark.parametrize("kept", [0, 3, 8, 13, 16, 18])
def test_a_call_that_was_killed_goes_on(workdir, tmp_path, monkeypatch, capsys, kept):
    for number in range(19):
        write(tmp_path / "many" / f"{number:02d}.png", part(number, spot=number == 17))
    alone = run(workdir, tmp_path / "alone", "--masks", tmp_path / "many")
    with monkeypatch.context() as patch:
        killed_at(kept + 1, patch, prediction_files.Table, "add")
        output = tmp_path / "out"
        assert command(predict.main, "--workdir", workdir, "--output", output, "--masks", tmp_path / "many") == 130
    assert len(table(output)) == len(lines(output)) == kept
    with open(output / "predictions.csv", "a") as file:
        file.write(f"{tmp_path / 'many' / f'{kept:02d}.png'},0.12")  # half a row
    with open(output / "predictions.jsonl", "a") as file:
        file.write('{"path": "' + str(tmp_path / "many" / f"{kept:02d}.png"))  # and half a line
    capsys.readouterr()
    assert run(workdir, output, "--masks", tmp_path / "many") == alone
    whole = kept - kept % jaxad.load(workdir).config.evaluate.batch
    assert (f"going on after {whole} of 19 images" in capsys.readouterr().out) == bool(whole)
    assert lines(output) == lines(tmp_path / "alone")
    for row, line in zip(alone, lines(output), strict=True):
        for name in (row["heatmap"], line["mask"]):
            assert (output / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert len(list((output / "heatmaps").iterdir())) == 19


@pytest.mark.parametrize("lost", ["predictions.jsonl", "masks", "a line"])
def test_what_was_lost_of_a_killed_call_is_made_again(workdir, tmp_path, monkeypatch, lost):
    for number in range(11):
        write(tmp_path / "many" / f"{number:02d}.png", part(number, spot=number == 7))
    alone, output = run(workdir, tmp_path / "alone", "--masks", tmp_path / "many"), tmp_path / "out"
    with monkeypatch.context() as patch:
        killed_at(10, patch, prediction_files.Table, "add")
        assert command(predict.main, "--workdir", workdir, "--output", output, "--masks", tmp_path / "many") == 130
    file = output / "predictions.jsonl"
    if lost == "masks":
        (output / "masks" / "00003_02.png").unlink()
    elif lost == "a line":
        file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    else:
        file.unlink()
    assert run(workdir, output, "--masks", tmp_path / "many") == alone
    assert lines(output) == lines(tmp_path / "alone") and len(list((output / "masks").iterdir())) == 11


@pytest.fixture(scope="module")
def other(workdir):
    """A detector of the same images with other scores."""
    folder = workdir.parent
    assert command(train.main, *baseline(folder / "sets", folder / "other", score__sigma=3.0, data__holdout=0.3)) == 0
    return folder / "other"


@pytest.mark.slow
@pytest.mark.parametrize("at", ["a picture", "the table", "the marker"])
def test_no_row_of_one_detector_survives_what_another_has_begun(workdir, other, tmp_path, monkeypatch, at):
    """Another detector's call is killed while it makes the folder ready; then the first one goes on, or the other."""
    for number in range(11):
        write(tmp_path / "many" / f"{number:02d}.png", part(number))
    alone = {found: run(found, tmp_path / found.name, tmp_path / "many") for found in (workdir, other)}
    assert [row["score"] for row in alone[workdir]] != [row["score"] for row in alone[other]]

    places = {"a picture": (4, Path, "unlink"), "the table": (0, Path, "unlink"), "the marker": (1, disk, "write_json")}
    for last in (workdir, other):
        output = tmp_path / "out" / last.name
        with monkeypatch.context() as patch:
            killed_at(10, patch, prediction_files.Table, "add")
            assert command(predict.main, "--workdir", workdir, "--output", output, tmp_path / "many") == 130
        assert len(table(output)) == 9
        with monkeypatch.context() as patch:
            killed_at(places[at][0], patch, *places[at][1:])
            assert command(predict.main, "--workdir", other, "--output", output, tmp_path / "many") == 130
        assert run(last, output, tmp_path / "many") == alone[last]
        for row in alone[last]:
            assert (output / row["heatmap"]).read_bytes() == (tmp_path / last.name / row["heatmap"]).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("encoding", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "utf-8:strict"}])
def test_names_of_any_bytes_and_lengths_in_any_locale(workdir, tmp_path, encoding):
    names = [b"caf\xe9.png", rb"caf\xe9.png", "\u00fc".encode() * 120 + b".png", b"x" * 250 + b".png"]
    for number, name in enumerate(names):
        Image.fromarray(part(number)).save(tmp_path / "a.png")
        os.makedirs(tmp_path / "new", exist_ok=True)
        os.rename(tmp_path / "a.png", os.fsencode(tmp_path / "new") + b"/" + name)
    (tmp_path / "new" / "\udce9.txt").write_text("x")
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | encoding
    arguments = ["--workdir", workdir, "--output", tmp_path / "out", tmp_path / "new"]
    made = subprocess.run(
        [sys.executable, "-m", "jaxad.predict", *arguments], env=environment, capture_output=True, cwd=tmp_path
    )
    assert made.returncode == 0, made.stderr
    assert b"1 of .txt (such as " in made.stdout and b"\\udce9.txt)" in made.stdout
    rows = table(tmp_path / "out")
    told = {r"caf\xe9.png", r"caf\\xe9.png", "\u00fc" * 120 + ".png", "x" * 250 + ".png"}
    assert {row["path"].rpartition("/")[2] for row in rows} == told  # valid UTF-8, and all of them different
    assert len(rows) == len(os.listdir(tmp_path / "out" / "heatmaps")) == 4
    marker = tmp_path / "out" / "predict.json"
    marker.write_text(marker.read_text().replace('"complete": true', '"complete": false'))
    again = subprocess.run(
        [sys.executable, "-m", "jaxad.predict", *arguments], env=environment, capture_output=True, cwd=tmp_path
    )
    assert again.returncode == 0 and b"going on after 4 of 4 images" in again.stdout, again
    assert table(tmp_path / "out") == rows


def test_the_pictures_of_a_workdir_are_passed_over(workdir, new, tmp_path, capsys):
    """A folder with a workdir in it, in which predictions were made: only the user's own images are scored."""
    shutil.copytree(workdir, new / "run")
    write(new / "run" / "samples.png", part(6))
    assert command(predict.main, "--workdir", new / "run", new / "b.png") == 0
    capsys.readouterr()
    rows = run(new / "run", tmp_path / "out", new)
    assert [os.path.basename(row["path"]) for row in rows] == ["a.bmp", "b.png", "b.png", "large.png"]
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("passed over")]
    assert line.startswith("passed over, since a training wrote them: ")
    assert f", 1 of .png (such as {new / 'run' / 'samples.png'})" in line


def test_no_heatmaps_and_heatmaps_of_a_bounded_size(workdir, new, tmp_path, capsys):
    rows = run(workdir, tmp_path / "out", "--no-heatmaps", new)
    assert [row["heatmap"] for row in rows] == [""] * 4 and not (tmp_path / "out" / "heatmaps").exists()
    for side, size in ((60, (60, 48)), (0, (120, 96))):
        rows = run(workdir, tmp_path / "out", "--heatmap-side", side, new)
        with Image.open(tmp_path / "out" / rows[3]["heatmap"]) as heatmap:
            assert heatmap.size == size
    message = refusal(capsys, predict.main, "--workdir", workdir, "--heatmap-side", -1, new)
    assert "--heatmap-side" in message and "-1" in message


def test_a_side_too_long_for_jpeg_makes_a_png(workdir, tmp_path):
    write(tmp_path / "scan.png", np.full((33, 65_501, 3), 90, np.uint8))
    [row] = run(workdir, tmp_path / "out", "--heatmap-side", 0, tmp_path / "scan.png")
    with Image.open(tmp_path / "out" / row["heatmap"]) as heatmap:
        assert heatmap.format == "PNG" and heatmap.size == (65_501, 33)


@pytest.mark.medium
def test_constant_images_have_heatmaps(tmp_path):
    for number in range(4):
        write(tmp_path / "sets" / "nut" / "train" / "good" / f"{number}.png", np.full((HEIGHT, WIDTH, 3), 99, np.uint8))
    write(tmp_path / "sets" / "nut" / "test" / "good" / "0.png", np.full((HEIGHT, WIDTH, 3), 99, np.uint8))
    assert command(train.main, *baseline(tmp_path / "sets", tmp_path / "work")) == 0
    for level in (99, 255):
        path = write(tmp_path / "a.png", np.full((40, 40, 3), level, np.uint8))
        [row] = run(tmp_path / "work", tmp_path / "out", path)
        assert (tmp_path / "out" / row["heatmap"]).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_95_megapixels_take_at_most_two_gigabytes(workdir, tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    cells = np.random.default_rng(0).integers(0, 256, (395, 600, 3), np.uint8)
    image = cv2.resize(cells, (12_000, 7_900))
    cv2.imwrite(str(path), image if suffix == ".jpg" else image * np.uint16(257), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    del image
    # Linux counts the peak of the process that starts another one as that of the other one too. This one may have used
    # more before, so a small one stands between them.
    program = """if True:
        import os, subprocess, sys
        process = subprocess.Popen([sys.executable, "-m", "jaxad.predict", *sys.argv[1:]], stdout=sys.stderr)
        _, status, used = os.wait4(process.pid, 0)
        print(os.waitstatus_to_exitcode(status), used.ru_maxrss)
    """
    command = [sys.executable, "-c", program, "--workdir", workdir, "--output", tmp_path / "out", path]
    status, kilobytes = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    assert int(status) == 0 and int(kilobytes) < 2e9 / 1024, f"{kilobytes} KiB"


@pytest.mark.medium
def test_two_calls_into_one_output(workdir, new, tmp_path, capsys):
    output = tmp_path / "out"
    program = f"""if True:
        import sys
        from jaxad.runtime import disk
        with disk.locked({str(output)!r}):
            print("held", flush=True)
            sys.stdin.read()
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        message = refusal(capsys, predict.main, "--workdir", workdir, "--output", output, new)
        assert message.startswith(f"{output} is in use by process {other.pid} on ")
        assert message.endswith("; wait until it has ended, or choose another --output")
        other.stdin.close()
    assert len(run(workdir, output, new)) == 4
