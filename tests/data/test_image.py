"""Decoding of every format and pixel type, resizing, and a sentence for every file that cannot be used."""

import builtins
import errno
import io
import os
import struct
import warnings

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxad.data.image import find_images, list_folder, other_files, read_image, resize_image, to_grey
from jaxad.errors import UserError

RNG = np.random.default_rng(0)
RGBA = RNG.integers(0, 256, (13, 9, 4), np.uint8)
RGB = RGBA[..., :3]
GREY = RGBA[..., 0]
RGBA16 = RNG.integers(0, 65536, (13, 9, 4), np.uint16)
LOSSLESS = [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True})]


def encoded(array, kind, **options):
    picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def smooth(height=40, width=48):
    return cv2.resize(np.random.default_rng(1).integers(0, 256, (6, 7, 3), np.uint8), (width, height))


def tiff(array, *, photometric=2, planar=1, sample_format=1):
    """A minimal uncompressed little-endian TIFF, since no installed writer makes the unusual ones."""
    samples = array.shape[2] if array.ndim == 3 else 1
    pixels = (np.moveaxis(array, -1, 0) if planar == 2 else array).tobytes()
    plane = len(pixels) // samples
    offsets = [8 + i * plane for i in range(samples)] if planar == 2 else [8]
    sizes = [plane] * samples if planar == 2 else [len(pixels)]
    bits = array.dtype.itemsize * 8
    tags = {256: [array.shape[1]], 257: [array.shape[0]], 258: [bits] * samples, 259: [1], 262: [photometric]}
    tags |= {273: offsets, 277: [samples], 278: [array.shape[0]], 279: sizes, 284: [planar]}
    tags |= {339: [sample_format] * samples}
    directory = 8 + len(pixels)
    extra = directory + 2 + 12 * len(tags) + 4
    entries, tail = b"", b""
    for tag, values in tags.items():
        data = struct.pack(f"<{len(values)}I", *values)
        if len(data) > 4:
            data, tail = struct.pack("<I", extra + len(tail)), tail + data
        entries += struct.pack("<HHI", tag, 4, len(values)) + data
    header = b"II*\0" + struct.pack("<I", directory)
    return header + pixels + struct.pack("<H", len(tags)) + entries + bytes(4) + tail


def write(folder, data, name="part.png"):
    path = folder / name
    path.write_bytes(data)
    return path


def message(function, *args, **options):
    with pytest.raises(UserError) as caught:
        function(*args, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(("kind", "options"), LOSSLESS)
def test_lossless_pixels_come_back_exactly(tmp_path, kind, options):
    """Colours, colours whose alpha is dropped without blending, and grey, which is repeated over the channels."""
    image = read_image(write(tmp_path, encoded(RGB, kind, **options)))
    assert image.dtype == np.uint8 and image.flags.writeable
    np.testing.assert_array_equal(image, RGB)
    exact = options | ({"exact": True} if kind == "WEBP" else {})  # otherwise WebP clears what is transparent
    np.testing.assert_array_equal(read_image(write(tmp_path, encoded(RGBA, kind, **exact))), RGB)
    grey = Image.fromarray(GREY).convert("RGB") if kind == "WEBP" else GREY
    expected = np.stack([GREY] * 3, axis=-1)
    np.testing.assert_array_equal(read_image(write(tmp_path, encoded(grey, kind, **options))), expected)


@pytest.mark.parametrize("array", [GREY, RGB, RGBA, RGBA16])
def test_one_channel_is_the_luma_of_what_three_hold(tmp_path, array):
    data = encoded(array, "PNG") if array.dtype == np.uint8 else cv2.imencode(".png", array)[1].tobytes()
    path = write(tmp_path, data)
    grey = read_image(path, channels=1)
    weighted = read_image(path) @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert grey.dtype == np.uint8 and grey.shape == (13, 9, 1)
    assert np.abs(grey[..., 0] - weighted).max() <= 0.51
    if array is GREY:
        np.testing.assert_array_equal(grey[..., 0], GREY)


def test_luma_by_hand():
    primaries = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [7, 7, 7]]], np.uint8)
    assert to_grey(primaries)[0, :, 0].tolist() == [76, 150, 29, 255, 7]  # 76.2, 149.7, 29.1


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_with_alpha_palette_and_one_bit(tmp_path, kind):
    grey_alpha = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(RGBA[..., 3].copy())])
    np.testing.assert_array_equal(read_image(write(tmp_path, encoded(grey_alpha, kind)))[..., 2], GREY)
    palette = Image.fromarray(RGB).quantize(8)
    np.testing.assert_array_equal(read_image(write(tmp_path, encoded(palette, kind))), np.array(palette.convert("RGB")))
    one_bit = Image.fromarray(GREY > 127)
    np.testing.assert_array_equal(read_image(write(tmp_path, encoded(one_bit, kind)))[..., 1], (GREY > 127) * 255)


def test_transparent_palette_is_dropped_without_a_warning(tmp_path):
    palette = Image.fromarray(RGB).quantize(4)
    path = write(tmp_path, encoded(palette, "PNG", transparency=b"\0\x40\x80\xff"))
    np.testing.assert_array_equal(read_image(path), np.array(palette.convert("RGB")))


def test_jpeg_is_close_and_cmyk_readable(tmp_path):
    image = read_image(write(tmp_path, encoded(smooth(), "JPEG", quality=95, subsampling=0)))
    assert np.abs(image.astype(int) - smooth()).mean() < 3
    cmyk = Image.fromarray(smooth()).convert("CMYK")
    image = read_image(write(tmp_path, encoded(cmyk, "JPEG", quality=95)))
    assert np.abs(image.astype(int) - smooth()).mean() < 3


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_rounded_to_8(tmp_path, suffix, channels):
    values = RGBA16[..., :channels].copy()
    values[0, :4, 0] = [0, 128, 129, 65535]  # 128 / 257 = 0.498, 129 / 257 = 0.502
    in_opencv_order = values[..., [2, 1, 0, 3][:channels]] if channels > 1 else values
    image = read_image(write(tmp_path, cv2.imencode(suffix, in_opencv_order)[1].tobytes()))
    assert image[0, :4, 0].tolist() == [0, 0, 1, 255]
    expected = np.round(values[..., :3] / 257).astype(np.uint8)
    np.testing.assert_array_equal(image, np.broadcast_to(expected, (13, 9, 3)))


def test_16_bits_become_8_bits_unchanged_when_they_hold_8(tmp_path):
    path = write(tmp_path, cv2.imencode(".png", RGB[..., ::-1].astype(np.uint16) * 257)[1].tobytes())
    np.testing.assert_array_equal(read_image(path), RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    stored = smooth()
    # EXIF 2.32, tag 0x0112: which sides of the scene the stored row 0 and column 0 show.
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: stored[::-1].swapaxes(0, 1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: stored[:, ::-1].swapaxes(0, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind, options in (("JPEG", {"quality": 95}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        image = read_image(write(tmp_path, encoded(stored, kind, exif=exif, **options)))
        assert image.shape == upright.shape, kind
        assert np.abs(image.astype(int) - upright).mean() < (4 if kind == "JPEG" else 1e-9), kind


def test_format_is_told_by_content_not_by_suffix(tmp_path):
    np.testing.assert_array_equal(read_image(write(tmp_path, encoded(RGB, "BMP"), "a.png")), RGB)


def test_first_page_of_several(tmp_path):
    data = encoded(RGB, "TIFF", save_all=True, append_images=[Image.fromarray(255 - RGB)])
    np.testing.assert_array_equal(read_image(write(tmp_path, data)), RGB)


SAMPLES = {
    "png": encoded(smooth(), "PNG"),
    "jpeg": encoded(smooth(), "JPEG"),
    "progressive-jpeg": encoded(smooth(), "JPEG", progressive=True),
    "bmp": encoded(smooth(), "BMP"),
    "tiff": encoded(smooth(), "TIFF"),
    "lzw-tiff": encoded(smooth(), "TIFF", compression="tiff_lzw"),
    "webp": encoded(smooth(), "WEBP"),
    "16-bit-png": cv2.imencode(".png", smooth().astype(np.uint16) * 200)[1].tobytes(),
    "16-bit-tiff": cv2.imencode(".tiff", smooth().astype(np.uint16) * 200)[1].tobytes(),
}


@pytest.mark.parametrize("data", SAMPLES.values(), ids=SAMPLES.keys())
def test_every_truncation_is_noticed(tmp_path, data, capfd):
    assert read_image(write(tmp_path, data)).shape == (40, 48, 3)
    for length in [16, 60, len(data) // 4, len(data) // 2, len(data) - 40, len(data) - 5, len(data) - 1]:
        path = write(tmp_path, data[:length])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as on a user's terminal: a warning does not count as noticing
            text = message(read_image, path)
        assert text == f"image '{path}' is truncated or damaged and cannot be decoded; replace it"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("bits", [8, 16])
def test_a_flipped_byte_in_a_png_is_noticed(tmp_path, bits, capfd):
    data = bytearray(cv2.imencode(".png", smooth().astype(f"uint{bits}"))[1].tobytes())
    data[len(data) // 2] ^= 0xFF
    assert "truncated or damaged" in message(read_image, write(tmp_path, bytes(data)))
    assert capfd.readouterr().err == ""


def test_missing_file(tmp_path):
    path = tmp_path / "none.png"
    assert message(read_image, path) == f"image '{path}' does not exist; check the path"
    assert message(read_image, "a\0b.png") == r"image 'a\x00b.png' cannot exist; check the path"


def test_empty_file(tmp_path):
    path = write(tmp_path, b"")
    assert message(read_image, path) == f"image '{path}' is empty (zero bytes); replace or remove it"


@pytest.mark.parametrize("data", [b"just text, no picture", b"GIF89a\1\0\1\0", b"RIFF\0\0\0\0WAVEfmt "])
def test_file_that_is_no_image(tmp_path, data):
    path = write(tmp_path, data)
    assert message(read_image, path) == (
        f"'{path}' is not an image in PNG, JPEG, BMP, TIFF or WebP format; convert or remove it"
    )


def test_directory_where_an_image_should_be(tmp_path):
    path = tmp_path / "000.png"
    path.mkdir()
    assert message(read_image, path) == f"'{path}' is a directory where an image should be; name an image file"
    assert f"'{path}' is a directory where an image should be" in message(find_images, tmp_path)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_unreadable_file(tmp_path, monkeypatch, number):
    path = write(tmp_path, encoded(RGB, "PNG"))

    def refuse(file, *args, **options):
        raise OSError(number, os.strerror(number), str(file))

    monkeypatch.setattr(builtins, "open", refuse)
    text = message(read_image, path)
    assert text == f"image '{path}' cannot be read ({os.strerror(number)}); check its permissions"


def test_image_smaller_than_needed(tmp_path):
    path = write(tmp_path, encoded(RGB, "PNG"))
    assert read_image(path, min_side=9).shape == (13, 9, 3)
    text = message(read_image, path, min_side=10)
    assert text == (
        f"image '{path}' is 9 x 13 pixels (width x height), but at least 10 pixels a side are needed; "
        "remove it or use a larger image"
    )


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (tiff(RGB.astype(np.float32), sample_format=3), "signed or floating-point pixels"),
        (tiff(GREY.astype(np.float32), photometric=1, sample_format=3), "signed or floating-point pixels"),
        (tiff(RGB.astype(np.int16), sample_format=2), "signed or floating-point pixels"),
        (tiff(GREY.astype(np.uint32), photometric=1), "32 bits a channel"),
    ],
)
def test_unsupported_pixel_types(tmp_path, data, what):
    path = write(tmp_path, data, "part.tif")
    assert message(read_image, path) == (
        f"image '{path}' has {what}, which is not supported; convert it to grey or RGB with 8 or 16 bits a channel, "
        "unsigned and interleaved"
    )


def test_the_minimal_tiff_is_read_where_it_is_supported(tmp_path):
    expected = np.round(RGBA16[..., :3] / 257)
    np.testing.assert_array_equal(read_image(write(tmp_path, tiff(RGBA16[..., :3]))), expected)
    np.testing.assert_array_equal(read_image(write(tmp_path, tiff(RGB))), RGB)
    np.testing.assert_array_equal(read_image(write(tmp_path, tiff(RGB, planar=2))), RGB)
    np.testing.assert_array_equal(read_image(write(tmp_path, tiff(GREY, photometric=0)))[..., 0], 255 - GREY)


def test_resizing_to_the_same_size_is_free():
    assert resize_image(RGB, (13, 9)) is RGB


def lanczos_1d(signal, size):
    """Lanczos-3 with the kernel widened by the factor when shrinking, from its definition."""
    factor = len(signal) / size
    width = max(factor, 1.0)
    out = []
    for index in range(size):
        x = (np.arange(len(signal)) + 0.5 - (index + 0.5) * factor) / width
        weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
        out.append((weights * signal).sum() / weights.sum())
    return np.clip(out, 0, 255)


@pytest.mark.parametrize("size", [7, 31, 100])
def test_resizing_is_lanczos(size):
    signal = np.random.default_rng(2).integers(0, 256, 50)
    image = np.broadcast_to(signal[None, :, None], (20, 50, 3)).astype(np.uint8)
    resized = resize_image(image, (20, size))
    assert resized.shape == (20, size, 3) and resized.dtype == np.uint8
    assert np.abs(resized[4, :, 1] - lanczos_1d(signal, size)).max() <= 1
    turned = resize_image(image.swapaxes(0, 1), (size, 20))
    np.testing.assert_array_equal(turned, resized.swapaxes(0, 1))
    np.testing.assert_array_equal(resize_image(image[..., :1], (20, size)), resized[..., :1])


def test_shrinking_does_not_alias():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    inner = resize_image(stripes, (16, 16))[:, 2:-2].astype(int)
    assert np.abs(inner - 128).max() <= 2


def test_find_images(tmp_path):
    for name in ["b.PNG", "a.jpg", "10.tif", "9.webp", ".hidden.txt", "Thumbs.db", "desktop.ini", "c.jpeg"]:
        write(tmp_path, b"x", name)
    write(tmp_path, b"x", "e.BMP")
    write(tmp_path, b"x", "f.tiff")
    (tmp_path / ".cache").mkdir()
    names = [path.name for path in find_images(tmp_path)]
    assert names == ["10.tif", "9.webp", "a.jpg", "b.PNG", "c.jpeg", "e.BMP", "f.tiff"]


def test_find_images_skips_nothing(tmp_path):
    path = write(tmp_path, b"x", "notes.txt")
    assert find_images(str(tmp_path)) == [] and other_files(str(tmp_path)) == [path]
    (tmp_path / "more").mkdir()
    text = message(find_images, tmp_path)
    assert text == f"folder '{tmp_path}' should hold images only, but has the subfolder 'more'; move it"
    assert find_images(tmp_path, allow_subfolders=True) == []


def test_folders_that_cannot_be_listed(tmp_path, monkeypatch):
    assert message(list_folder, tmp_path / "no") == f"folder '{tmp_path / 'no'}' does not exist; check the path"
    assert message(list_folder, "a\0b") == r"folder 'a\x00b' cannot exist; check the path"
    path = write(tmp_path, b"x")
    text = message(list_folder, path)
    assert text == f"'{path}' is a file where a folder should be; name the folder that holds it"

    def refuse(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    text = message(list_folder, tmp_path)
    assert text == f"folder '{tmp_path}' cannot be read (Permission denied); check its permissions"
