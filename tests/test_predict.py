"""``python -m jaxad.predict``: which images it takes, and what it writes."""

import csv

import numpy as np
import pytest
from PIL import Image

import jaxad
from jaxad import predict, prediction_files, train
from jaxad.data.image import SUFFIXES, list_folder, read_image
from jaxad.errors import UserError
from tests.parts import HEIGHT, SPOT, WIDTH, baseline, command, part, write, write_parts


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    write_parts(folder / "sets", train=20)
    assert command(train.main, *baseline(folder / "sets", folder / "work", data__holdout=0.3)) == 0
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


def run(workdir, output, *arguments):
    """Predicts; returns the rows of predictions.csv."""
    assert command(predict.main, "--workdir", workdir, "--output", output, *arguments) == 0
    with open(output / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_collect_takes_files_as_they_come_and_folders_sorted(new):
    inside = ["a.bmp", "b.png", "B/b.png", "B/C/large.png"]
    assert collect(new)[0] == [new / name for name in inside]
    given = [str(new / "b.png"), str(new / "B"), str(new / "a.bmp")]
    expected = ["b.png", "B/b.png", "B/C/large.png", "a.bmp"]
    assert collect(*given)[0] == [new / name for name in expected]


def test_collect_refuses_what_holds_no_images_and_names_other_files(new):
    (new / "empty").mkdir()
    with pytest.raises(UserError, match=r"folder .*empty holds no images"):
        collect(new / "empty")
    (new / "B" / "list.txt").write_text("b")
    images, others = collect(new)
    assert len(images) == 4 and others == [new / "B" / "list.txt"]
    with pytest.raises(UserError, match=r"image '.*no\.png' does not exist; check the path"):
        collect(new / "no.png")


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


def test_without_a_threshold_there_is_no_decision(new, tmp_path, capsys):
    write_parts(tmp_path / "sets")
    assert command(train.main, *baseline(tmp_path / "sets", tmp_path / "work")) == 0
    [row] = run(tmp_path / "work", tmp_path / "out", new / "b.png")
    assert (row["threshold"], row["decision"]) == ("n/a", "n/a") and float(row["score"]) > 0
    assert "1 images, no decision (no threshold was fitted), " in capsys.readouterr().out


def test_a_second_run_replaces_the_first(workdir, new, tmp_path):
    assert len(run(workdir, tmp_path / "out", new)) == 4
    assert len(run(workdir, tmp_path / "out", new / "b.png")) == 1


def test_more_images_than_a_batch(workdir, tmp_path):
    for number in range(19):
        write(tmp_path / "many" / f"{number:02d}.png", part(number, spot=number == 17))
    rows = run(workdir, tmp_path / "out", tmp_path / "many")
    assert [row["path"][-6:-4] for row in rows] == [f"{number:02d}" for number in range(19)]
    assert max(rows, key=lambda row: float(row["score"])) is rows[17]


def test_paths_are_needed(workdir, capsys):
    assert command(predict.main, "--workdir", workdir) == 2
    assert "the following arguments are required: PATH" in capsys.readouterr().err
