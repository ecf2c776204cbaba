"""The private test images of MVTec AD 2 in the form of its benchmark, as MVTec's own program checks it."""

import shutil
import sys

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from jaxad import detector, submission
from jaxad.data.geometry import Geometry
from jaxad.data.image import read_image, resize_image
from jaxad.methods.method import Scores
from jaxad.scoring.region import Region
from tests.commands import train
from tests.data.test_layouts import SIZE, ad_2, draw
from tests.parts import baseline, command, refusal
from tests.refusals import refuses

SPLITS = "test_private", "test_private_mixed"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A category with ten validation images and a bright spot in one private image, and its workdir."""
    root = tmp_path_factory.mktemp("ad2")
    top = root / "sets" / "can"
    ad_2(top)
    draw(*[top / "validation" / "good" / f"{number:03d}_regular.png" for number in range(10)])
    image = cv2.imread(str(top / "test_private" / "001.png"))
    image[8:16, 20:30] = 255
    cv2.imwrite(str(top / "test_private" / "001.png"), image)
    rate = {"threshold__false_alarm_rate": 0.1}
    assert command(train.main, *baseline(top, root / "work", data__category="", **rate)) == 0
    return top, root / "work"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "submission"


def run(trained, output, *more):
    return submission.main, "--workdir", trained[1], "--output", output, *more


def listed(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.medium
def test_maps_and_masks(trained, output, capsys):
    top, workdir = trained
    for _ in range(2):  # the second call replaces the files of the first
        assert command(*run(trained, output)) == 0
    stems = [f"{split}/00{number}" for split in SPLITS for number in (0, 1)]
    assert listed(output) == sorted(
        [f"anomaly_images/can/{stem}.tiff" for stem in stems]
        + [f"anomaly_images_thresholded/can/{stem}.png" for stem in stems]
    )
    found = detector.load(workdir)
    threshold, marked = found.pixel_threshold, {}
    low, high = found.heat_range
    for stem in stems:
        [expected] = found.predict(top / f"{stem}.png")
        made = tifffile.imread(output / "anomaly_images" / "can" / f"{stem}.tiff")
        assert made.dtype == np.float16 and made.shape == SIZE
        np.testing.assert_allclose(made, (expected.map - low) / (high - low), rtol=1e-3, atol=1e-3)
        mask = np.asarray(Image.open(output / "anomaly_images_thresholded" / "can" / f"{stem}.png"))
        assert mask.dtype == np.uint8 and mask.shape == SIZE and set(np.unique(mask)) <= {0, 255}
        np.testing.assert_array_equal(mask == 255, expected.map > threshold)
        marked[stem] = (mask == 255).mean(axis=0)
    assert marked["test_private/001"][22:28].min() > 0.1 and marked["test_private/001"][:15].max() < 0.1
    told = capsys.readouterr().out
    assert f"4 images, pixels above {threshold:.4g} marked" in told
    assert "missing or unfinished: fabric, fruit_jelly, rice, sheet_metal, vial, wallplugs, walnuts" in told


@pytest.mark.medium
def test_an_unfinished_category_is_not_done(trained, output, monkeypatch, capsys):
    write, written = submission._write, []

    def stop(*given):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(write(*given))

    with monkeypatch.context() as patch:
        patch.setattr(submission, "_write", stop)
        assert command(*run(trained, output)) == 130
    assert len([name for name in listed(output) if name.endswith(".tiff")]) == 3
    others = output / "anomaly_images" / "vial"
    (output / "anomaly_images" / "can").rename(others)  # a stand-in for another category
    assert command(*run(trained, output)) == 0
    assert "missing or unfinished: fabric, fruit_jelly, rice, sheet_metal, vial," in capsys.readouterr().out
    assert not (output / "anomaly_images" / "can" / "unfinished").exists()


@pytest.mark.medium
def test_the_threshold_is_of_the_validation_images(trained):
    """Of ten, none has a pixel above it at a rate of 1 in 10, and the one with the highest has at a rate of 1 in 5."""
    top, workdir = trained
    found = detector.load(workdir)
    images = [read_image(path) for path in (top / "validation" / "good").iterdir()]
    highest = np.sort(found.score(np.stack([resize_image(image, (32, 32)) for image in images])).map.max((1, 2)))
    assert len(highest) == 10 and found.pixel_threshold > highest[-1]
    found.set_false_alarm_rate(0.2)
    assert found.pixel_threshold == pytest.approx(highest[-2:].mean())


@pytest.mark.medium
def test_any_threshold_may_be_given(trained, output):
    found = detector.load(trained[1])
    assert submission.write_category(found, output, threshold=-np.inf) == 4
    path = output / "anomaly_images_thresholded" / "can" / "test_private_mixed" / "000.png"
    assert (np.asarray(Image.open(path)) == 255).all()
    submission.write_category(found, output, threshold=np.inf)
    assert not np.asarray(Image.open(path)).any()


@pytest.mark.medium
def test_scores_beyond_float16_are_cut(trained, output):
    found = detector.load(trained[1])
    found.heat_range = (0.0, 1e-9)
    submission.write_category(found, output, threshold=0.0)
    made = tifffile.imread(output / "anomaly_images" / "can" / "test_private" / "001.tiff")
    assert np.isfinite(made).all() and made.max() == np.finfo(np.float16).max


@pytest.mark.medium
def test_what_is_not_judged_is_not_marked(trained, output, monkeypatch):
    found = detector.load(trained[1])
    monkeypatch.setattr(found, "region", Region(Geometry((32, 32)), border=8))
    maps = np.pad(np.arange(256, dtype=np.float32).reshape(1, 16, 16) + 1, ((0, 0), (8, 8), (8, 8)))
    monkeypatch.setattr(
        found, "score", lambda images, batch, boxes: Scores(np.zeros(len(images)), maps.repeat(len(images), 0))
    )
    submission.write_category(found, output, threshold=-np.inf)
    mask = np.asarray(Image.open(output / "anomaly_images_thresholded" / "can" / "test_private" / "000.png"))
    made = tifffile.imread(output / "anomaly_images" / "can" / "test_private" / "000.tiff")
    assert mask[10:30, 9:27].all() and mask.sum() == 255 * 20 * 18
    assert (made[mask == 0] == made.min()).all() and made.max() == made[10:30, 9:27].max() > made.min()


@pytest.mark.medium
def test_refusals(trained, output, tmp_path, capsys, monkeypatch):
    top, workdir = trained
    copy = tmp_path / "sets" / "can"
    shutil.copytree(top, copy)
    moved = f"--config.data.root={copy}"
    (copy / "test_private" / "001.png").write_bytes(b"no image")
    assert f"'{copy / 'test_private' / '001.png'}' is not an image" in refusal(capsys, *run(trained, output, moved))
    (copy / "test_private" / "001.png").unlink()
    left = output / "anomaly_images" / "can" / "test_private" / "000.tiff"
    (left.parent / "001.tiff").touch()
    told = refusal(capsys, *run(trained, output, moved))
    assert told.startswith(f"'{left.parent / '001.tiff'}' belongs to no private test image")
    (copy / "test_private" / "000.png").unlink()
    assert f"'{copy / 'test_private'}' holds no images of MVTec AD 2" in refusal(capsys, *run(trained, output, moved))
    shutil.rmtree(copy / "test_private")
    assert f"'{copy}' has no folder 'test_private'" in refusal(capsys, *run(trained, output, moved))
    for part in ("validation", "test_public", "test_private_mixed"):
        shutil.rmtree(copy / part)
    with refuses(copy, "no category of MVTec AD 2"):
        submission.write_category(detector.load(workdir, {"data.root": str(copy)}), output, threshold=0.0)
    (tmp_path / "file").touch()
    told = refusal(capsys, *run(trained, tmp_path / "file" / "below"))
    assert "cannot be written" in told and "--output" in told
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert "python3 -m pip install 'jaxad[tiff]'" in refusal(capsys, *run(trained, output))
