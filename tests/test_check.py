"""The command that looks at a folder before a training: every problem at once, in order, and the exit status."""

import json

import cv2
import numpy as np
import pytest

from jaxad import check
from jaxad.data import layouts
from tests.data import test_layouts as miniature
from tests.parts import HEIGHT, WIDTH, command, part, refusal, write, write_parts
from tests.shared import SHARED, needs_shared


def checked(capsys, folder, *arguments):
    """The exit status and the lines."""
    capsys.readouterr()
    status = command(check.main, folder, *arguments)
    printed = capsys.readouterr()
    assert not printed.err
    return status, printed.out.splitlines()


def level(lines, name):
    return [line for line in lines if line.startswith(f"{name}: ")]


def test_a_sound_folder_has_no_problem(tmp_path, capsys):
    root = write_parts(tmp_path) / "nut"
    before = sorted(root.rglob("*"))
    status, lines = checked(capsys, root)
    assert status == 0 and lines == [
        f"training images from '{root / 'train' / 'good'}'",
        "train: 6 images (6 good)",
        "test: 5 images (2 good, 3 spot)",
        f"sizes (width x height): {WIDTH} x {HEIGHT} (11)",
        "pixels: color, 8 bits (11)",
        "0 errors, 0 warnings, 0 notes: a training would take this",
    ]
    assert sorted(root.rglob("*")) == before


def test_everything_that_is_refused_is_told_at_once(tmp_path, capsys):
    root = write_parts(tmp_path) / "nut"
    masks, spots = root / "ground_truth" / "spot", root / "test" / "spot"
    (root / "train" / "good" / "cut.png").write_bytes((root / "train" / "good" / "000.png").read_bytes()[:500])
    (root / "train" / "good" / "nested").mkdir()
    (spots / "empty.png").touch()
    (root / "test" / "good" / "moving.gif").write_bytes(b"GIF89a")
    write(spots / "bare.png", part(300, spot=True))
    write(masks / "alone_mask.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    write(masks / "000_mask.png", np.ones((WIDTH, HEIGHT), np.uint8))
    write(masks / "empty.png", np.ones((HEIGHT, WIDTH), np.uint8))
    (masks / "001_mask.png").write_bytes(b"no image")
    status, lines = checked(capsys, root)
    told = "\n".join(level(lines, "error"))
    assert status == 1 and lines[-1].startswith("8 errors") and lines[-1].endswith("would refuse this")
    names = "cut.png", "nested", "empty.png", "moving.gif", "bare.png", "alone_mask.png", "001_mask.png"
    for word in (*names, "48 x 40"):
        assert word in told, word


def test_copies_masks_and_mixtures_in_order(tmp_path, capsys):
    root = write_parts(tmp_path, train=12) / "nut"
    good, test = root / "train" / "good", root / "test" / "good"
    write(test / "seen.png", part(0))
    write(good / "twice.png", part(1))
    larger = cv2.resize(part(2), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    write(test / "resized.png", larger)
    write(good / "blurred.png", cv2.GaussianBlur(part(50), (0, 0), 3))
    write(test / "bright.png", np.uint8(np.clip(part(51) * 2.4, 0, 255)))
    write(test / "grey.png", part(52)[..., 0])
    write(root / "ground_truth" / "spot" / "000_mask.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    write(root / "ground_truth" / "spot" / "001_mask.png", np.full((HEIGHT, WIDTH), 255, np.uint8))
    (good / "notes.txt").touch()
    status, lines = checked(capsys, root, "--output", tmp_path / "out")
    assert status == 0
    order = [line.partition(":")[0] for line in lines if line.startswith(("warning", "note"))]
    assert order == sorted(order, reverse=True)
    warnings, notes = ("\n".join(level(lines, name)) for name in ("warning", "note"))
    for word in ("seen.png", "twice.png", "resized.png", "blurred.png", "spot/000.png", "spot/001.png"):
        assert word in warnings, word
    for word in ("bright.png", "grey.png", "notes.txt", "resized.png"):
        assert word in notes, word
    held = json.loads((tmp_path / "out" / "check.json").read_text())
    assert not held["refused"] and len(held["images"]) == 14 + 9
    copies = [finding["files"] for finding in held["findings"] if finding["kind"] == "near copy"]
    assert copies == [[[str(test / "resized.png"), str(good / "002.png")]]]
    picture = cv2.imread(str(tmp_path / "out" / "check.png"))
    assert picture.shape[1] > 1000 and picture.std() > 10


@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_every_layout_is_read(tmp_path, capsys, name):
    status, lines = checked(capsys, miniature.written(tmp_path / "realiad_256", name))
    assert status == 0 and any(line.startswith("train: ") for line in lines)


def test_what_hides_the_rest_is_said(tmp_path, capsys):
    root = write_parts(tmp_path) / "nut"
    for path in (root / "train" / "good").iterdir():
        path.unlink()
    status, lines = checked(capsys, root)
    assert status == 1 and "holds no images" in lines[0] and "no image was looked at" in lines[1]


def test_output_among_the_images_is_refused(tmp_path, capsys):
    root = write_parts(tmp_path) / "nut"
    for place in (root, root / "train" / "good"):
        assert "--output" in refusal(capsys, check.main, root, "--output", place)
    assert "does not exist" in refusal(capsys, check.main, tmp_path / "none")


@pytest.mark.medium
@needs_shared("data", "mvtec_ad", "bottle")
def test_bottles_that_look_alike_are_no_copies(capsys):
    """But two training images show the same bottle."""
    status, lines = checked(capsys, SHARED / "data" / "mvtec_ad" / "bottle")
    assert status == 0 and not level(lines, "warning")
    note, background = level(lines, "note")
    assert "070.png" in note and "069.png" in note
    assert "23 % of the training images are a plain background; set config.data.roi=auto" in background


def test_a_plain_background_is_told(tmp_path, capsys):
    for number in range(4):
        image = np.full((96, 96, 3), 240, np.uint8)
        image[30:60, 20:50] = part(number)[:30, :30]
        write(tmp_path / "parts" / f"{number}.png", image)
    status, lines = checked(capsys, tmp_path / "parts")
    [told] = [line for line in level(lines, "note") if "background" in line]
    share = int(told.split()[1])
    assert status == 0 and 100 * (1 - 42**2 / 96**2) <= share <= 100 * (1 - 30**2 / 96**2)
    (tmp_path / "parts" / "0.png").write_bytes(b"no image")  # no image is looked at again after that
    status, lines = checked(capsys, tmp_path / "parts")
    assert status == 1 and not [line for line in level(lines, "note") if "background" in line]
