"""The white level of 16-bit files: where it comes from, what it does to pixels, and that it holds wherever it must."""

import csv
import io
import itertools
import json
import logging
import pickle
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

import jaxad
from jaxad import evaluate, predict
from jaxad.data.image import decode, read_image
from jaxad.data.levels import choose, clipped_images, declared, has_16_bits, to_8_bits
from jaxad.reporting import prediction_files
from tests.commands import train
from tests.parts import baseline, command, part, refusal, write_parts
from tests.shared import SHARED, needs_shared

VALUES = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)


def png(values: np.ndarray, bits: int | None = None) -> bytes:
    """A 16-bit PNG, grey or colour; `bits` adds a chunk sBIT that names them for each channel."""
    data = cv2.imencode(".png", values)[1].tobytes()
    if bits is None:
        return data
    content = b"sBIT" + bytes([bits] * (1 if values.ndim == 2 else 3))
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return data[:33] + chunk + data[33:]  # behind the header


def tiff(values: np.ndarray, level: int | None = None, **options) -> bytes:
    """A 16-bit grey TIFF; `level` becomes its tag 281."""
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "TIFF", tiffinfo={} if level is None else {281: level}, **options)
    return stream.getvalue()


def deep(number: int, *, spot: bool = False) -> np.ndarray:
    """A part as a 12-bit sensor sees it: 16 times the grey levels, uint16 (h, w)."""
    return part(number, spot=spot)[..., 0].astype(np.uint16) * 16


@pytest.mark.parametrize("white", [255, 1023, 4000, 4095, 16383, 65535])
def test_levels_are_rounded_and_clipped(white: int) -> None:
    mapped, clipped = to_8_bits(VALUES, white)
    assert mapped.dtype == np.uint8
    by_hand = np.minimum(np.floor(VALUES / white * 255 + 0.5), 255)
    np.testing.assert_array_equal(mapped, by_hand)
    assert clipped == 65535 - white


def test_without_a_level_all_16_bits_count() -> None:
    np.testing.assert_array_equal(to_8_bits(VALUES, None)[0], np.round(VALUES / 257))


def test_a_pixel_counts_once_whatever_its_channels() -> None:
    image = np.zeros((2, 3, 3), np.uint16)
    image[0, 0], image[1, 2, 1] = 5000, 4096
    assert to_8_bits(image, 4095)[1] == 2


ROWS = deep(0)
DECLARED = {
    "png": (png(ROWS), True, None),
    "png-sbit": (png(ROWS, 12), True, (4095, "PNG sBIT")),
    "png-rgb-sbit": (png(np.stack([ROWS] * 3, -1), 10), True, (1023, "PNG sBIT")),
    "png-8": (cv2.imencode(".png", part(0))[1].tobytes(), False, None),
    "tiff": (tiff(ROWS), True, None),
    "tiff-281": (tiff(ROWS, 4095), True, (4095, "TIFF tag 281 (MaxSampleValue)")),
    "tiff-big": (tiff(ROWS, 1000, big_tiff=True), True, (1000, "TIFF tag 281 (MaxSampleValue)")),
    "tiff-0": (tiff(ROWS, 0), True, None),
    "tiff-8": (tiff(part(0)), False, None),
    "jpeg": (cv2.imencode(".jpg", part(0))[1].tobytes(), False, None),
    "nothing": (b"II*\0\xff\xff\xff\xff", False, None),
    "cut": (tiff(ROWS, 4095)[:20], False, None),
    "loop": (b"II*\0\x08\0\0\0\0\0\x08\0\0\0", False, None),
}


@pytest.mark.parametrize("name", DECLARED)
def test_what_files_declare(name: str) -> None:
    data, deep_file, level = DECLARED[name]
    assert has_16_bits(data) is deep_file and declared(data) == level


def rows(*peaks: int, declared=None) -> dict[str, dict]:
    declared = declared or [None] * len(peaks)
    return {str(n): {"peak": p, "declared": d} for n, (p, d) in enumerate(zip(peaks, declared, strict=True))}


TAG, SBIT = "TIFF tag 281 (MaxSampleValue)", "PNG sBIT"


@pytest.mark.parametrize("scanned, given, value, words", [
    ({"a": {}}, 0, None, ""),
    ({"a": {}}, 4095, 4095, ""),
    (rows(200), 0, 255, "1 training image has 16 bits; white is 255, since their largest value is 200; "),
    (rows(7, 1000), 0, 1023, "2 training images have 16 bits; white is 1023, since their largest value is 1000; "),
    (rows(3900), 0, 4095, "since their largest value is 3900"),
    (rows(4096), 0, 16383, "since their largest value is 4096"),
    (rows(50000), 0, 65535, "since their largest value is 50000"),
    (rows(3000, 5000), 4000, 4000, "white is 4000, as config.data.white_level says; 1 of them holds larger values, up "
     "to 5000, which are read as this level"),
    (rows(100, 90, declared=[[4000, TAG]] * 2), 0, 4000, f"as {TAG} says"),
    (rows(100, 90, declared=[[4095, TAG], None]), 0, 4095, f"as {TAG} of 1 of them says"),
    # Different declarations are probably each image's own largest value.
    (rows(3900, 3800, declared=[[3900, TAG], [3800, TAG]]), 0, 4095, f"since {TAG} differs between files, from 3800 to "
     "3900"),
    (rows(5000, declared=[[4095, TAG]]), 0, 4095, "1 of them holds larger values, up to 5000, which are read as this "
     "level"),
    (rows(4095, 7, declared=[[4095, SBIT]] * 2), 0, 4095, "as PNG sBIT says"),
    # PNG's specification asks to scale the values to all bits.
    (rows(65520, 7, declared=[[4095, SBIT]] * 2), 0, 65535, "since values reach 65520: above 4095, as PNG sBIT says, "
     "they are scaled to 16 bits"),
])  # fmt: skip
def test_where_the_level_comes_from(scanned, given, value, words) -> None:
    level = choose(scanned, given)
    assert level.value == value and words in level.reason


def test_a_sentence_names_what_was_clipped() -> None:
    assert clipped_images({"a.png": (0, 4095)}, 4095) == clipped_images({}, None) == ""
    assert clipped_images({"a.png": (3, 5000), "b.png": (0, 7)}, 4095) == (
        "1 image holds values above 4095, the white of the 16-bit training images, which are read as this level: "
        "'a.png' (3 pixels)"
    )
    assert clipped_images({str(n): (1, 2) for n in range(12)}, 1).endswith("'9' (1 pixel) and 2 more")


@pytest.mark.medium
def test_16_bits_after_a_training_with_8_are_reported(tmp_path, capsys) -> None:
    """What is white in them is not known; PNG's specification says 65,535."""
    root = write_parts(tmp_path / "sets")
    image = root / "nut" / "test" / "good" / "000.png"
    image.write_bytes(png(deep(200)))
    words = f"1 image has 16 bits and no training image had: 65535 is taken for white: '{image}' (largest value 1744)"
    assert command(train.main, *baseline(root, tmp_path / "work")) == 0
    assert words in capsys.readouterr().out.splitlines()
    assert command(predict.main, image, "--workdir", tmp_path / "work") == 0
    assert words in capsys.readouterr().out.splitlines()


def write_deep(root: Path, *, encode, suffix: str) -> Path:
    """`write_parts` as a 12-bit sensor sees the parts, its masks as they are."""
    write_parts(root)
    for path in sorted((root / "nut").rglob("*.png")):
        if "ground_truth" not in path.parts:
            values = np.array(Image.open(path))[..., 0].astype(np.uint16) * 16
            path.unlink()
            path.with_suffix(suffix).write_bytes(encode(values))
    return root


def results(workdir: Path) -> list[float]:
    found = json.loads((workdir / "results.json").read_text())
    return [found["image"]["auroc"], found["pixel"]["auroc"], found["pixel"]["aupro"]]


def scores(workdir: Path) -> np.ndarray:
    with open(workdir / "scores.csv") as file:
        return np.array([float(row["score"]) for row in csv.DictReader(file)])


def reversed_tiff(values: np.ndarray) -> bytes:
    """A TIFF of 12 bits in 16, as its tag 281 says, whose 0 is white."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, 4095 - values, photometric="miniswhite", extratags=[(281, 3, 1, 4095, True)])
    return stream.getvalue()


FORMATS = {
    "maximum": (png, ".png", 4095, "since their largest value is 1744"),
    "tag": (lambda values: tiff(values, 4095), ".tif", 4095, "as TIFF tag 281 (MaxSampleValue) says"),
    "reversed": (reversed_tiff, ".tif", 4095, "as TIFF tag 281 (MaxSampleValue) says"),
    "sbit": (lambda values: png(values, 12), ".png", 4095, "as PNG sBIT says"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_12_bits_in_16_give_what_8_bits_give(tmp_path, capsys, kind) -> None:
    """Training, evaluation and prediction, in the command and in Python; divided by 257, 7 levels would be left."""
    encode, suffix, white, words = FORMATS[kind]
    write_parts(tmp_path / "8")
    for path in (tmp_path / "8" / "nut").rglob("*.png"):
        if "ground_truth" not in path.parts:  # grey, as the files of 16 bits
            Image.fromarray(np.array(Image.open(path))[..., 0]).save(path)
    write_deep(tmp_path / "16", encode=encode, suffix=suffix)
    for bits in ("8", "16"):
        assert command(train.main, *baseline(tmp_path / bits, tmp_path / f"work{bits}", data__holdout=0.3)) == 0
    printed = capsys.readouterr().out
    assert f"6 training images have 16 bits; white is {white}, " in printed and words in printed
    one, other = tmp_path / "work8", tmp_path / "work16"
    np.testing.assert_allclose(results(other), results(one), atol=0.02)
    np.testing.assert_allclose(scores(other), scores(one), rtol=0.05)
    detector = jaxad.load(other)
    assert detector.white_level == white and jaxad.load(one).white_level is None
    bad = tmp_path / "16" / "nut" / "test" / "spot" / f"000{suffix}"
    assert command(predict.main, bad, "--workdir", other) == 0
    with open(other / "predictions" / "predictions.csv") as file:
        [row] = csv.DictReader(file)
    [made] = detector.predict([read_image(bad, white_level=detector.white_level)])
    assert float(row["score"]) == made.score
    assert np.array(Image.open(other / "predictions" / row["heatmap"])).max() > 100


@pytest.mark.medium
def test_the_level_of_the_training_images_holds_for_brighter_ones(tmp_path, capsys, caplog) -> None:
    """Training images of at most 1,744 are 12 bits; a test image and an image to predict reach beyond 4,095."""
    root = write_deep(tmp_path / "sets", encode=png, suffix=".png")
    bright = root / "nut" / "test" / "good" / "000.png"
    values = deep(200)
    values[:2, :3] = 5000
    bright.write_bytes(png(values))
    assert command(train.main, *baseline(root, tmp_path / "work")) == 0
    sentence = (
        "1 image holds values above 4095, the white of the 16-bit training images, which are read as this level: "
        f"'{bright}' (6 pixels)"
    )
    assert sentence in capsys.readouterr().out.splitlines()
    assert command(predict.main, bright, "--workdir", tmp_path / "work") == 0
    assert sentence in capsys.readouterr().out.splitlines()
    with open(tmp_path / "work" / "predictions" / "predictions.csv") as file:
        [row] = csv.DictReader(file)
    assert (row["largest_value"], row["clipped_pixels"]) == ("5000", "6")
    with caplog.at_level(logging.WARNING):
        jaxad.load(tmp_path / "work").predict([bright, root / "nut" / "test" / "good" / "001.png"])
    assert sentence in caplog.messages
    made = decode(bright.read_bytes(), bright, white_level=4095)
    assert (made.clipped, made.peak, made.image[0, 0, 0]) == (6, 5000, 255)


@pytest.mark.medium
def test_a_resumed_prediction_reports_the_images_of_all_its_parts(tmp_path, capsys, monkeypatch) -> None:
    root, out = write_deep(tmp_path / "sets", encode=png, suffix=".png"), tmp_path / "out"
    assert command(train.main, *baseline(root, tmp_path / "work", evaluate__batch=2)) == 0
    images = sorted((root / "nut" / "train" / "good").glob("*.png"))
    values = deep(200)
    values[:2, :3] = 5000
    for image in images:
        image.write_bytes(png(values))
    put, left = prediction_files.save_picture, itertools.count(5, -1)

    def interrupted(*given):
        if next(left) == 0:
            raise KeyboardInterrupt
        return put(*given)

    given = [root / "nut" / "train" / "good", "--workdir", tmp_path / "work", "--output", out]
    with monkeypatch.context() as patch:
        patch.setattr(prediction_files, "save_picture", interrupted)
        assert command(predict.main, *given) == 130
    capsys.readouterr()
    assert command(predict.main, *given) == 0
    printed = capsys.readouterr().out
    assert "going on after 4 of 6 images" in printed and "6 images hold values above 4095" in printed


@pytest.mark.slow
def test_the_level_is_that_of_the_training_wherever_the_detector_goes(tmp_path, capsys) -> None:
    """Pickled, after a resumed training, and in an ensemble; the threshold is dropped with another level."""
    root, work, other = write_deep(tmp_path / "sets", encode=png, suffix=".png"), tmp_path / "work", tmp_path / "other"
    for workdir, seed in ((work, 0), (other, 1)):
        assert command(train.main, *baseline(root, workdir, data__holdout=0.3, seed=seed)) == 0
    bad = root / "nut" / "test" / "spot" / "000.png"
    found = jaxad.load(work)
    [made] = found.predict(bad)
    [again] = pickle.loads(pickle.dumps(found)).predict(bad)
    assert (again.score, again.threshold) == (made.score, made.threshold) and made.threshold is not None
    changed = jaxad.load(work, {"data.white_level": 3200})
    assert changed.white_level == 3200 and changed.threshold is None
    assert pickle.loads(pickle.dumps(changed)).white_level == 3200
    one = scores(work)
    assert command(train.main, *baseline(root, work, data__holdout=0.3)) == 0  # nothing is left to train
    assert jaxad.load(work).white_level == 4095
    np.testing.assert_array_equal(scores(work), one)
    assert command(evaluate.main, "--workdir", work, "--workdir", other, "--output", tmp_path / "both") == 0
    shares = []
    for workdir in (work, other):
        mean, std = jaxad.load(workdir).good_scores
        shares.append((scores(workdir) - mean) / std)
    np.testing.assert_allclose(scores(tmp_path / "both"), np.mean(shares, axis=0), rtol=1e-5, atol=1e-5)
    clipped = write_deep(tmp_path / "more", encode=png, suffix=".png")
    assert command(train.main, *baseline(clipped, tmp_path / "third", data__white_level=1600)) == 0
    given = ["--workdir", work, "--workdir", tmp_path / "third", "--output", tmp_path / "three"]
    message = refusal(capsys, evaluate.main, *given, f"--config.data.root={root}")
    assert "test image 'test/good/000' or its mask is not the same in both" in message  # by another level


@pytest.mark.slow
def test_the_config_gives_the_level_and_can_be_changed_for_an_evaluation(tmp_path, capsys) -> None:
    root, work = write_deep(tmp_path / "sets", encode=png, suffix=".png"), tmp_path / "work"
    assert command(train.main, *baseline(root, work, data__white_level=1600)) == 0
    assert "white is 1600, as config.data.white_level says; 6 of them hold larger values" in capsys.readouterr().out
    first = scores(work)
    assert jaxad.load(work).white_level == 1600
    assert command(evaluate.main, "--workdir", work, "--config.data.white_level=3200") == 0
    assert jaxad.load(work, {"data.white_level": "3200"}).white_level == 3200
    assert np.abs(scores(work) - first).max() > 0.1


@pytest.mark.medium
def test_levels_that_cannot_be(tmp_path, capsys) -> None:
    write_parts(tmp_path / "sets")
    for level, words in ((-1, "must be at least 0, not -1"), (65536, "must be below 65536, not 65536")):
        given = baseline(tmp_path / "sets", tmp_path / "work", data__white_level=level)
        assert refusal(capsys, train.main, *given) == f"config.data.white_level {words}"
    demo = ["--config", baseline("", "")[1].removesuffix(":nut"), "--config.data.white_level=4095"]
    assert "config.data.white_level is for files of 16 bits a channel, and the source demo has none" in refusal(
        capsys, train.main, *demo, "--workdir", str(tmp_path / "demo")
    )


@pytest.mark.slow
@needs_shared("data", "mvtec_ad", "bottle")
def test_bottles_of_12_bits_score_as_those_of_8(tmp_path) -> None:
    """A third of MVTec AD's bottle at 64 pixels."""
    source = SHARED / "data" / "mvtec_ad" / "bottle"
    for path in sorted(source.rglob("*.png")):
        if int(path.stem.removesuffix("_mask")) % 3 == 0:
            for bits, factor in (("8", None), ("16", 16)):
                values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
                target = tmp_path / bits / "bottle" / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                if factor and "ground_truth" not in path.parts:
                    values = values.astype(np.uint16) * factor
                cv2.imwrite(str(target), values)
    for bits in ("8", "16"):
        given = baseline(tmp_path / bits, tmp_path / f"work{bits}", data__size=64, data__category="bottle")
        assert command(train.main, *given) == 0
    found, expected = results(tmp_path / "work16"), results(tmp_path / "work8")
    assert expected[0] > 0.9
    np.testing.assert_allclose(found, expected, atol=0.005)
