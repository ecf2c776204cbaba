import numpy as np
import pytest

from jaxad.data import layouts, roi, roi_finding
from jaxad.data.demo import source as demo
from jaxad.errors import UserError
from tests.parts import write
from tests.shared import SHARED, needs_shared
from tests.test_aspect_ratio import load


class Pictures:
    """A source of images."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return type("Record", (), {"image": self.images[index]})


def config_of(text, size=64):
    return load("baseline_mean", "object", {"data.roi": str(text), "data.size": size})


def blank(height=100, width=200, count=1):
    return Pictures([np.zeros((height, width, 3), np.uint8)] * count)


def test_pixels_become_shares():
    text, said = roi_finding.resolve(config_of("20,10 120,10 120,60 20,60"), blank())
    assert text == "0.1,0.1 0.6,0.1 0.6,0.6 0.1,0.6"
    assert said == "25 % of each image is trained on and scored, by config.data.roi"
    again, said = roi_finding.resolve(config_of(text), Pictures([*blank().images, *blank(70, 90).images]))
    assert again == text  # shares fit images of any sizes


def shape(kind, height=90, width=120):
    rows, columns = np.indices((height, width))
    if kind == "disc":
        return np.hypot(rows - 40, columns - 60) < 33.3
    if kind == "ring":
        distance = np.hypot(rows - 45, columns - 60)
        return (distance < 40) & (distance > 15)
    if kind == "two":
        return ((rows > 10) & (rows < 50) & (columns > 4) & (columns < 50)) | ((rows > 40) & (columns > 77))
    corner = (rows < 40) & (columns < 50)  # a pixel alone, and one in a hole
    corner[20, 20] = False
    corner[60, 70] = True
    return corner


@pytest.mark.parametrize("kind", ["disc", "ring", "two", "corner"])
def test_a_mask_file_becomes_the_same_pixels(kind, tmp_path):
    marked = shape(kind)
    write(tmp_path / "part.png", 255 * marked.astype(np.uint8))
    # In a frame of many more pixels nothing is left out.
    text, said = roi_finding.resolve(config_of(tmp_path / "part.png", size=1024), blank(90, 120))
    assert roi.origin_of(text) == "part.png" and float(said.split()[0]) == pytest.approx(100 * marked.mean(), abs=0.3)
    np.testing.assert_array_equal(roi.read(text).in_image((90, 120), (0, 0, 90, 120)), marked)
    # Twice as large the outline is the same.
    double = roi.read(text).in_image((180, 240), (0, 0, 180, 240))
    assert (double == np.kron(marked, np.ones((2, 2), bool))).mean() > 0.998


def test_a_mask_is_simplified_to_half_a_pixel_of_the_frame(tmp_path):
    rows, columns = np.indices((1800, 2400))
    marked = np.hypot(rows - 900, columns - 1200) < 700.3
    write(tmp_path / "part.png", 255 * marked.astype(np.uint8))
    text, _ = roi_finding.resolve(config_of(tmp_path / "part.png", size=64), blank(1800, 2400))
    assert len(text) < 600
    found = roi.read(text).in_image((1800, 2400), (0, 0, 1800, 2400))
    far = np.abs(np.hypot(rows - 900, columns - 1200) - 700) > 0.5 * 1400 / 64 + 2
    assert (found == marked)[far].all() and (found != marked).any()


@pytest.mark.parametrize(
    ("text", "images", "words"),
    [
        ("10,10 300,10 20,20", blank(), r"corner 300,10 outside the training images, which are 200 x 100 pixels"),
        ("2,2 90,2 90,90", Pictures([np.zeros((100, 200, 3), np.uint8), np.zeros((100, 100, 3), np.uint8)]),
         "given in pixels, but the training images differ in size"),
        ("0,0 31,0 31,80", blank(), "spans 31 x 80 pixels .* of a training image of 200 x 100, but at least 32"),
        ("0,0 0.5,0 0.5,0.1", blank(), "spans 100 x 10 pixels"),
    ],
)  # fmt: skip
def test_polygons_that_do_not_fit_the_images_are_refused(text, images, words):
    with pytest.raises(UserError, match=words):
        roi_finding.resolve(config_of(text), images)


def test_masks_that_do_not_fit_the_images_are_refused(tmp_path):
    write(tmp_path / "square.png", np.full((50, 50), 255, np.uint8))
    with pytest.raises(UserError, match=r"50 x 50 pixels .*, which is not the aspect ratio of a training image of 200"):
        roi_finding.resolve(config_of(tmp_path / "square.png"), blank())
    write(tmp_path / "empty.png", np.zeros((50, 100), np.uint8))
    with pytest.raises(UserError, match="marks no pixel; paint what is to be judged white"):
        roi_finding.resolve(config_of(tmp_path / "empty.png"), blank())


def parts(count, *, level=220.0, noise=2.0, move=0, size=40):
    """Dark squares on a plain background, at other places in each image."""
    found = []
    for number in range(count):
        rng = np.random.default_rng(number)
        image = np.full((120, 160, 3), level) + rng.normal(0, noise, (120, 160, 1))
        top, left = 40 + rng.integers(-move, move + 1, 2) if move else (40, 60)
        image[top : top + size, left : left + size] = 60
        image[5, 5] = 0  # a speck is no part
        found.append(image.clip(0, 255).astype(np.uint8))
    return Pictures(found)


def found_in(source):
    mask, reason = roi_finding.automatic(source)
    return None if mask is None else mask.astype(bool), reason


def test_what_lies_before_a_plain_background_is_found():
    mask, reason = found_in(parts(6))
    assert reason == "the rest is a plain background" and mask.shape == (192, 256)
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) / mask.shape[1 - axis] for axis in (1, 0))
    assert 40 / 120 - 0.07 < rows[0] < 40 / 120 and 80 / 120 < rows[-1] < 80 / 120 + 0.07
    assert 60 / 160 - 0.05 < columns[0] < 60 / 160 and 100 / 160 < columns[-1] < 100 / 160 + 0.05
    text, said = roi_finding.resolve(config_of("auto"), parts(6))
    assert text.startswith("auto = ") and "by config.data.roi=auto: the rest is a plain background" in said


def test_all_places_of_a_part_are_in_the_region():
    source = parts(12, move=25)
    mask, _ = found_in(source)
    seen = (np.stack(source.images)[:, 8:, 8:, 0] < 100).any(axis=0)
    inside = roi.read(roi_finding.resolve(config_of("auto"), source)[0]).in_image((120, 160), (0, 0, 120, 160))
    assert inside[8:, 8:][seen].all() and inside.mean() < 0.8 and mask.mean() == pytest.approx(inside.mean(), abs=0.02)


def test_where_nothing_is_plain_there_is_no_region():
    rng = np.random.default_rng(0)
    texture = Pictures([rng.integers(0, 256, (100, 100, 1)).astype(np.uint8) for _ in range(3)])
    mask, reason = found_in(texture)
    assert mask is None and "of the images' border has one plain color" in reason
    mask, reason = found_in(parts(3, size=0))
    assert mask is None and reason == "the images show nothing but a plain background"
    full = Pictures([np.pad(image // 3, ((6, 6), (6, 6), (0, 0)), constant_values=250) for image in parts(3).images])
    mask, reason = found_in(full)
    assert mask is None and "what is no background covers" in reason
    text, said = roi_finding.resolve(config_of("auto"), texture)
    assert text == "" and said.startswith("config.data.roi=auto finds no region, and whole images count: only")


@pytest.mark.medium
def test_the_demo_cap_is_found_and_fabric_is_not():
    mask, _ = found_in(demo.load("cap", size=64).train)
    assert 0.45 < mask.mean() < 0.7 and mask[128, 128] and not mask[:10, :10].any()
    assert found_in(demo.load("fabric", size=64).train)[0] is None


@pytest.mark.medium
@needs_shared("data", "mvtec_ad", "bottle")
def test_the_bottle_is_found():
    mask, _ = found_in(layouts.load("folder", str(SHARED / "data/mvtec_ad"), "bottle", min_side=32).train)
    assert 0.65 < mask.mean() < 0.85 and not mask[:8, :8].any() and not mask[-8:, -8:].any()


@pytest.mark.medium
@needs_shared("data", "magnetic_tile", "tile")
def test_magnetic_tiles_have_no_background():
    mask, reason = found_in(layouts.load("folder", str(SHARED / "data/magnetic_tile"), "tile", min_side=32).train)
    assert mask is None and "of the images' border has one plain color" in reason
