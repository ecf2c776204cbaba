"""Images that a Python program gives: paths, Pillow's images in every mode, arrays, and a sentence for all else."""

import numpy as np
import pytest
from PIL import Image

from jaxad.data.given import several, to_image
from jaxad.data.image import read_image, to_grey
from tests.refusals import refuses


def noise(*shape, seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)


def converted(given, *, channels=3, number=4, min_side=1):
    image = to_image(given, number=number, channels=channels, min_side=min_side).image
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == channels and image.flags.c_contiguous
    return image


def assert_refused(about, word, given, **options):
    with refuses(about, word):
        converted(given, **options)


def test_arrays():
    grey, color = noise(6, 5), noise(6, 5, 3)
    np.testing.assert_array_equal(converted(grey), np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(converted(grey[..., None]), np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(converted(grey, channels=1), grey[..., None])
    np.testing.assert_array_equal(converted(color), color)
    np.testing.assert_array_equal(converted(color, channels=1), to_grey(color))
    np.testing.assert_array_equal(converted(np.dstack([color, grey])), color)  # alpha is dropped without blending
    np.testing.assert_array_equal(converted(np.dstack([color, grey]), channels=1), to_grey(color))
    flipped = color[::-1, ::-1, ::-1]  # as of BGR: a view with negative strides
    np.testing.assert_array_equal(converted(flipped), flipped)
    np.testing.assert_array_equal(converted(flipped, channels=1), to_grey(np.ascontiguousarray(flipped)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_pillow_is_what_its_file_is(tmp_path, mode, channels):
    image = Image.fromarray(noise(40, 36, 4)).convert("RGB").convert(mode)
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    image.save(path)
    expected = read_image(path, channels=channels)
    for given in (image, Image.open(path), path, str(path)):
        np.testing.assert_array_equal(converted(given, channels=channels), expected)


def test_alpha_palettes_and_orientation_of_pillow(tmp_path):
    color, alpha = noise(40, 36, 3), noise(40, 36, seed=1)
    np.testing.assert_array_equal(converted(Image.fromarray(np.dstack([color, alpha]))), color)
    palette = Image.fromarray(noise(40, 36) % 3).convert("P")
    palette.save(tmp_path / "p.png", transparency=0)
    opened = Image.open(tmp_path / "p.png")
    np.testing.assert_array_equal(converted(opened), read_image(tmp_path / "p.png"))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.fromarray(color).save(tmp_path / "turned.png", exif=exif)
    turned = Image.open(tmp_path / "turned.png")
    assert converted(turned).shape == (36, 40, 3) and turned.size == (36, 40)  # the user's image stays as it was
    np.testing.assert_array_equal(converted(turned), np.rot90(color, -1))


@pytest.mark.parametrize("given, what", [
    (noise(6, 5, 3) / 255, "float64 (6, 5, 3)"),
    (noise(6, 5, dtype=np.float32), "float32 (6, 5)"),
    (noise(6, 5) > 100, "bool (6, 5)"),
    (noise(6, 5, dtype=np.uint16), "uint16 (6, 5)"),
    (noise(6, 5, dtype=np.int64), "int64 (6, 5)"),
    (noise(6, 5, 2), "uint8 (6, 5, 2)"),
    (noise(2, 6, 5, 3), "uint8 (2, 6, 5, 3)"),
    (noise(5), "uint8 (5,)"),
    (np.array(["a"]), "<U1 (1,)"),
    (np.array(None), "object ()"),
])  # fmt: skip
def test_arrays_that_are_no_images(given, what):
    assert_refused(None, what, given)


@pytest.mark.parametrize("given, what", [
    (None, "NoneType"), (3, "int"), ([[1, 2]], "list"), (b"bytes", "bytes"), ({}, "dict"), (open, "builtin_function"),
])  # fmt: skip
def test_things_that_are_no_images(given, what):
    assert_refused(None, what, given)


@pytest.mark.parametrize("mode", ["I;16", "I", "F", "I;16B"])
def test_pillow_modes_whose_levels_are_not_those_of_8_bits(mode):
    assert_refused(None, f"mode {mode},", Image.new(mode, (5, 6)))


def test_images_of_pillow_that_cannot_be_decoded(tmp_path):
    path = tmp_path / "cut.png"
    Image.fromarray(noise(64, 64, 3)).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    image = Image.open(path)
    assert_refused(None, "decoded", image)
    image.close()
    assert_refused(None, "decoded", image)
    assert_refused(path, "truncated", path)


def test_paths_that_cannot_be_read(tmp_path):
    (tmp_path / "text.png").write_text("text")
    assert_refused(tmp_path / "none.png", "exist", tmp_path / "none.png")
    assert_refused(tmp_path, "directory", str(tmp_path))
    assert_refused(tmp_path / "text.png", "PNG", tmp_path / "text.png")


def test_images_that_are_too_small(tmp_path):
    for image in (noise(31, 40, 3), Image.fromarray(noise(31, 40))):
        assert_refused(None, "40 x 31", image, min_side=32)
    Image.fromarray(noise(31, 40)).save(tmp_path / "small.png")
    assert_refused(tmp_path / "small.png", "40 x 31", tmp_path / "small.png", min_side=32)
    assert_refused(None, "5 x 0", noise(0, 5, 3), min_side=1)


def test_one_image_and_several():
    grey, color = noise(40, 36), noise(40, 36, 3)
    for one in ("a.png", Image.fromarray(grey), grey, color, grey[..., None], noise(40, 36, 4)):
        [same] = several(one)
        assert same is one
    for stack in (noise(5, 40, 36), noise(5, 40, 36, 3), noise(1, 40, 36, 1)):
        assert len(list(several(stack))) == len(stack)
    for column in (np.array(["a.png", "b.png"]), np.array(["a.png", "b.png"], object)):
        assert list(several(column)) == ["a.png", "b.png"]
    assert list(several(())) == []
    for wrong, kind in ((3, "int"), (None, "NoneType")):
        with refuses(None, kind):
            several(wrong)
