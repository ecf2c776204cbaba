"""Kinds of files that few programs write: each is read faithfully or named in one sentence, and nothing is printed."""

import csv
import io
import itertools
import struct
import subprocess
import sys
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxad import predict
from jaxad.data import codec
from jaxad.data.image import decode, read_image
from jaxad.data.silence import opencv_silence
from tests.commands import train
from tests.data.test_image import encoded, message, smooth, write
from tests.data.test_image import tiff as minimal_tiff
from tests.parts import ROOT, baseline, command, refusal, write_parts

tifffile = pytest.importorskip("tifffile", reason="the extra tiff is not installed")
imagecodecs = pytest.importorskip("imagecodecs", reason="the extra tiff is not installed")

PHOTOMETRIC = {1: "minisblack", 2: "minisblack", 3: "rgb", 4: "rgb"}
BOTH = pytest.mark.parametrize("bits", [8, 16])
DAMAGED = "image '{}' is truncated or damaged and cannot be decoded; replace it"


def pixels(channels=3, bits=8, height=40, width=48):
    """Smooth pixels over the whole range of a depth, uint8 or uint16 (h, w) or (h, w, c)."""
    values = np.random.default_rng(channels).random((6, 7, channels)).astype(np.float32)
    values = cv2.resize(values, (width, height)).reshape(height, width, channels).clip(0, 1)
    made = np.round(values * (2**bits - 1)).astype(np.uint8 if bits <= 8 else np.uint16)
    return made[..., 0] if channels == 1 else made


def written(array, **options):
    channels = array.shape[2] if array.ndim == 3 else 1
    options = {"photometric": PHOTOMETRIC[channels]} | options
    if channels in (2, 4):
        options = {"extrasamples": ["unassalpha"]} | options
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def expected(array, bits):
    """What `read_image` is to make of the pixels."""
    array = array[..., None] if array.ndim == 2 else array
    array = array[..., :-1] if array.shape[2] in (2, 4) else array
    return np.broadcast_to(np.round(array / (2**bits - 1) * 255).astype(np.uint8), (*array.shape[:2], 3))


def check(tmp_path, capfd, data, array, bits, case=""):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(write(tmp_path, data, "part.tif"))
    assert image.dtype == np.uint8, case
    np.testing.assert_array_equal(image, expected(array, bits), err_msg=str(case))
    assert capfd.readouterr() == ("", ""), case


# TIFF


STRIPS = ["lzw", "adobe_deflate", "deflate", "packbits", "zstd", "lzma"]
LOSSLESS = [*STRIPS, "lerc", "jpeg2000", "jpegxl"]


def test_compressions(tmp_path, capfd):
    for compression, channels, bits in itertools.product(LOSSLESS, (1, 3), (8, 16)):
        array = pixels(channels, bits)
        data = written(array, compression=compression)
        check(tmp_path, capfd, data, array, bits, (compression, channels, bits))


def test_alpha(tmp_path, capfd):
    for compression, channels, bits in itertools.product((None, "lzw", "zstd"), (2, 4), (8, 16)):
        array = pixels(channels, bits)
        data = written(array, compression=compression)
        check(tmp_path, capfd, data, array, bits, (compression, channels, bits))


def test_alpha_that_the_colors_were_multiplied_with(tmp_path):
    for compression, channels, bits in itertools.product((None, "zstd"), (2, 4), (8, 16)):
        array = pixels(channels, bits)
        white = 2**bits - 1
        array[..., -1] = np.maximum(array[..., -1], white // 4)
        stored = array.copy()
        stored[..., :-1] = np.round(array[..., :-1] * (array[..., -1:] / white))
        image = read_image(write(tmp_path, written(stored, compression=compression, extrasamples=["assocalpha"])))
        apart = np.abs(image.astype(int) - expected(array, bits)).max()
        assert apart <= 3, (compression, channels, bits)  # 8 bits divided by a quarter


def test_big_tiff(tmp_path, capfd):
    for order, channels, bits in itertools.product("<>", (1, 3), (8, 16)):
        array = pixels(channels, bits)
        data = written(array, bigtiff=True, byteorder=order)
        assert data[:4] in (b"II+\0", b"MM\0+")
        check(tmp_path, capfd, data, array, bits, (order, channels, bits))


@BOTH
@pytest.mark.parametrize(
    "options", [{"tile": (32, 32)}, {"rowsperstrip": 7}, {"predictor": True, "compression": "lzw"}, {"byteorder": ">"}]
)
def test_layouts(tmp_path, capfd, bits, options):
    array = pixels(3, bits)
    check(tmp_path, capfd, written(array, **({"compression": "zstd"} | options)), array, bits)


@BOTH
def test_separate_color_planes_and_a_reversed_grey_scale(tmp_path, capfd, bits):
    array = pixels(3, bits)
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.moveaxis(array, -1, 0).copy(), planarconfig="separate", photometric="rgb")
    check(tmp_path, capfd, stream.getvalue(), array, bits)
    grey = pixels(1, bits)
    check(tmp_path, capfd, written(2**bits - 1 - grey, photometric="miniswhite"), grey, bits)


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_reversed_grey_scale_ends_at_the_white_level(tmp_path, bits):
    """The values of a sensor in 16 bits, of which 0 is white: `white_level` is black, and so is what lies beyond."""
    grey, white = pixels(1, bits), 2**bits - 1
    stored = (white - grey).astype(np.uint16)
    stored[0, 0], grey[0, 0] = white + 7, 0
    path = write(tmp_path, written(stored, photometric="miniswhite"))
    decoded = decode(path.read_bytes(), path, white_level=white)
    np.testing.assert_array_equal(decoded.image, expected(grey, bits))
    assert (decoded.peak, decoded.clipped) == (white + 7, 1)


def test_a_reversed_grey_scale_of_every_compression(tmp_path):
    """Decoded by Pillow or tifffile; the values of 12 bits lie in 16."""
    for case in itertools.product((None, *LOSSLESS), (8, 12, 16), (False, True)):
        compression, bits, alpha = case
        grey, white = pixels(1, bits), 2**bits - 1
        stored = np.dstack([white - grey, np.full_like(grey, white)]) if alpha else white - grey
        path = write(tmp_path, written(stored, photometric="miniswhite", compression=compression))
        image = read_image(path, white_level=white if bits > 8 else None)
        np.testing.assert_array_equal(image, expected(grey, bits), err_msg=str(case))


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_other_depths_are_scaled_by_their_own_white(tmp_path, capfd, bits):
    array = pixels(1, bits)
    check(tmp_path, capfd, written(array, bitspersample=bits), array, bits)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_of_12_bits_in_a_tiff(tmp_path, capfd, channels):
    array = pixels(channels, 12)
    options = {"bitspersample": 12, "level": 99}
    data = written(array, compression="jpeg", compressionargs=options, subsampling=(1, 1))
    image = read_image(write(tmp_path, data))
    assert np.abs(image.astype(int) - expected(array, 12)).mean() < 1.5
    assert capfd.readouterr() == ("", "")


def test_jpeg_of_8_bits_in_a_tiff(tmp_path, capfd):
    image = read_image(write(tmp_path, encoded(smooth(), "TIFF", compression="jpeg", quality=95)))
    assert np.abs(image.astype(int) - smooth()).mean() < 3
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, capfd, orientation):
    exif = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0" + bytes([orientation]) + bytes(6)
    chunk = b"eXIf" + exif
    chunk = struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    for bits in (8, 16):
        array = pixels(3, bits)
        turned = codec.turn(array, orientation)
        for compression in (None, "zstd"):
            data = written(array, compression=compression, extratags=[(274, 3, 1, orientation, True)])
            check(tmp_path, capfd, data, turned, bits, (compression, bits))
        png = bytearray(cv2.imencode(".png", cv2.cvtColor(array, cv2.COLOR_RGB2BGR))[1].tobytes())
        for end in (33, len(png) - 12):  # before the pixels, or after them
            check(tmp_path, capfd, bytes(png[:end] + chunk + png[end:]), turned, bits, ("PNG", end, bits))


def test_a_png_of_16_bits_without_metadata_is_decoded_once(tmp_path, capfd, monkeypatch):
    array = pixels(3, 16)
    data = cv2.imencode(".png", cv2.cvtColor(array, cv2.COLOR_RGB2BGR))[1].tobytes()
    monkeypatch.setattr(codec.PngImageFile, "load", None)
    check(tmp_path, capfd, data, array, 16)


def pages(array, *, below=False, old=False):
    """A reduced page, and the full one behind or below it."""
    stream = io.BytesIO()
    reduced = {"extratags": [(255, 3, 1, 2, True)]} if old else {"subfiletype": 1}
    with tifffile.TiffWriter(stream) as file:
        file.write(array[::4, ::4].copy(), photometric="rgb", **reduced, subifds=1 if below else None)
        file.write(array, photometric="rgb")
    return stream.getvalue()


@BOTH
@pytest.mark.parametrize("options", [{}, {"below": True}, {"old": True}])
def test_a_reduced_page_is_passed_over(tmp_path, capfd, bits, options):
    array = pixels(3, bits)
    check(tmp_path, capfd, pages(array, **options), array, bits)


def test_a_reduced_page_is_read_where_there_is_no_other(tmp_path, capfd):
    array = pixels()
    check(tmp_path, capfd, written(array, subfiletype=1), array, 8)


@pytest.mark.parametrize(
    ("photometric", "channels", "bits", "what"),
    [
        (32803, 1, 16, "the raw mosaic of a color filter array (CFA) of 16 bits"),
        (34892, 3, 16, "linear raw colors of 16 bits"),
        (8, 3, 8, "CIE L*a*b* colors"),
        (5, 4, 16, "CMYK colors of 16 bits"),
        (3, 1, 16, "a palette of 16 bits"),
        (1, 3, 16, "3 channels of grey or RGB pixels of 16 bits"),
        (6, 3, 16, "3 channels of YCbCr colors of 16 bits"),
        (777, 1, 8, "colors of kind 777"),
    ],
)
def test_pixels_that_no_one_reads_are_named(tmp_path, capfd, photometric, channels, bits, what):
    path = write(tmp_path, minimal_tiff(pixels(channels, bits), photometric=photometric))
    assert message(read_image, path) == (
        f"image '{path}' has {what}, which is not supported; convert it to grey or RGB with 8 or 16 bits a channel, "
        "unsigned and interleaved"
    )
    assert capfd.readouterr() == ("", "")


def test_a_compression_that_no_one_reads_is_named(tmp_path, capfd):
    for code, what in (
        (65000, "a compression of kind 65000"),
        (34676, "SGILog compression"),
        (9, "JBIG compression"),
        (34934, "JPEG XR compression"),
    ):
        data = bytearray(written(pixels(1, 16), compression="lzw"))
        at = bytes(data).index(struct.pack("<HHI", 259, 3, 1)) + 8
        data[at : at + 2] = struct.pack("<H", code)
        assert f"has {what}, which is not supported" in message(read_image, write(tmp_path, bytes(data)))
    assert capfd.readouterr() == ("", "")


SPECIAL = {
    "Zstandard compression of 16 bits": lambda: written(pixels(3, 16), compression="zstd"),
    "LZMA compression of 16 bits": lambda: written(pixels(1, 16), compression="lzma"),
    "LERC compression": lambda: written(pixels(3), compression="lerc"),
    "JPEG 2000 compression": lambda: written(pixels(3), compression="jpeg2000"),
    "JPEG XL compression of 16 bits": lambda: written(pixels(3, 16), compression="jpegxl"),
    "WebP compression": lambda: written(pixels(3), compression="webp"),
    "12 bits a channel": lambda: written(pixels(1, 12), bitspersample=12),
    "separate color planes of 16 bits": lambda: minimal_tiff(pixels(3, 16), planar=2),
    "grey pixels with 0 as white of 16 bits": lambda: minimal_tiff(pixels(1, 16), photometric=0),
    "grey pixels with alpha of 16 bits": lambda: written(pixels(2, 16)),
    "a BigTIFF layout of big-endian numbers": lambda: written(pixels(), bigtiff=True, byteorder=">"),
    "JPEG pixels of 12 bits": lambda: imagecodecs.jpeg8_encode(pixels(3, 12), bitspersample=12),
}


@pytest.mark.parametrize("what", SPECIAL)
@pytest.mark.parametrize("package", ["tifffile", "imagecodecs"])
def test_without_the_extra_what_takes_it_is_named(tmp_path, monkeypatch, capfd, what, package):
    path = write(tmp_path, SPECIAL[what]())
    assert read_image(path).shape == (40, 48, 3)
    monkeypatch.setitem(sys.modules, package, None)
    assert message(read_image, path) == (
        f"image '{path}' has {what}, which takes optional packages to read; run python3 -m pip install 'jaxad[tiff]', "
        "or save the image as PNG"
    )
    assert capfd.readouterr() == ("", "")


def test_what_needs_no_extra_works_without(tmp_path, monkeypatch, capfd):
    kinds = [(channels, bits, kind) for channels in (1, 3) for bits in (8, 16) for kind in (None, "lzw", "deflate")]
    kinds += [(channels, 8, kind) for channels in (1, 3) for kind in ("zstd", "lzma")]
    files = [(written(pixels(c, bits), compression=kind), pixels(c, bits), bits) for c, bits, kind in kinds]
    for package in ("tifffile", "imagecodecs"):
        monkeypatch.setitem(sys.modules, package, None)
    for data, array, bits in files:
        check(tmp_path, capfd, data, array, bits)


DAMAGEABLE = [*STRIPS, "lerc", "jpeg2000", "jpegxl", "webp", "jpeg", None]


@BOTH
@pytest.mark.parametrize("compression", DAMAGEABLE)
def test_a_cut_tiff_is_damaged_in_silence(tmp_path, capfd, compression, bits):
    if (compression, bits) in (("webp", 16), ("jpeg", 16)):
        pytest.skip("the compression holds 8 bits")
    data = written(pixels(3, bits), compression=compression)
    for length in (9, 16, 60, 200, len(data) // 2, len(data) * 3 // 4, len(data) - 1):
        path = write(tmp_path, data[:length])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert message(read_image, path) == DAMAGED.format(path)
    assert capfd.readouterr() == ("", "")


@BOTH
@pytest.mark.parametrize("compression", ["lzw", "deflate", "zstd", "lzma"])
def test_a_damaged_tiff_is_told_in_silence(tmp_path, capfd, compression, bits):
    data = bytearray(written(pixels(3, bits, 200, 300), compression=compression))
    for place in range(len(data) // 2, len(data) // 2 + 40, 7):
        data[place] ^= 0xFF
    try:
        read_image(write(tmp_path, bytes(data)))  # damage may leave readable codes
    except Exception as error:
        assert str(error) == DAMAGED.format(tmp_path / "part.png")
    assert capfd.readouterr() == ("", "")


@pytest.mark.medium
def test_lines_of_libraries_do_not_reach_the_screen_of_a_process(tmp_path):
    """As a user sees it: the whole standard error of a process that reads all kinds, damaged and intact."""
    for number, what in enumerate(SPECIAL):
        write(tmp_path, SPECIAL[what](), f"{number}.tif")
        write(tmp_path, SPECIAL[what]()[:-300], f"{number}-cut.tif")
    for bits in (8, 16):
        for compression in ("lzw", "deflate"):
            data = bytearray(written(pixels(3, bits), compression=compression))
            data[len(data) // 2] ^= 0xFF
            write(tmp_path, bytes(data), f"{bits}{compression}.tif")
    code = (
        "import pathlib, sys; from jaxad.data.image import read_image; from jaxad.errors import UserError\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    try: read_image(path)\n"
        "    except UserError as error: pass\n"
    )
    made = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")


def test_opencv_s_log_level_is_left_as_it_was():
    logs = cv2.utils.logging
    before = logs.getLogLevel()
    with opencv_silence, opencv_silence:
        assert logs.getLogLevel() == logs.LOG_LEVEL_SILENT
    assert logs.getLogLevel() == before


# JPEG


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_of_12_bits(tmp_path, capfd, channels):
    array = pixels(channels, 12)
    data = imagecodecs.jpeg8_encode(array, bitspersample=12, level=99, subsampling="444")
    image = read_image(write(tmp_path, data))
    assert np.abs(image.astype(int) - expected(array, 12)).mean() < 1.5
    for length in (10, len(data) // 3, len(data) - 40):
        path = write(tmp_path, data[:length])
        assert message(read_image, path) == DAMAGED.format(path)
    exif = Image.Exif()
    exif[0x0112] = 6
    segment = exif.tobytes()
    turned = data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    np.testing.assert_array_equal(read_image(write(tmp_path, turned)), codec.turn(image, 6))
    assert capfd.readouterr() == ("", "")


@BOTH
def test_lossless_jpeg(tmp_path, capfd, bits):
    array = pixels(3, bits)
    data = imagecodecs.jpeg8_encode(array, bitspersample=bits, lossless=True, colorspace="rgb", outcolorspace="rgb")
    check(tmp_path, capfd, data, array, bits)


SLOPPY = {
    "cut": b"II*\0\x08\0\0\0\x05\0\x12\x01\x03\0",
    "nowhere": b"II*\0\xff\xff\0\0",
    "no TIFF": b"garbage!!",
    "several orientations": b"II*\0\x08\0\0\0\1\0\x12\1\3\0\3\0\0\0\6\0\0\0\0\0\0\0",
    "a value beyond the end": b"II*\0\x08\0\0\0\1\0\x0f\1\2\0\xff\0\0\0\xff\0\0\0\0\0\0\0",
}


@pytest.mark.parametrize("exif", SLOPPY.values(), ids=SLOPPY.keys())
def test_sloppy_exif_is_no_damage(tmp_path, capfd, exif):
    """Pillow prints warnings of it."""
    segment = b"Exif\0\0" + exif
    data = encoded(smooth(), "JPEG", quality=95)
    stored = read_image(write(tmp_path, data))
    assert data[2:4] == b"\xff\xe0"  # JFIF, without which the resolution is looked up in the EXIF data
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[20:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(write(tmp_path, data)), stored)
    assert capfd.readouterr() == ("", "")


def test_a_jpeg_with_fill_bytes_and_several_segments(tmp_path):
    data = encoded(smooth(), "JPEG", quality=95)
    expected = read_image(write(tmp_path, data))
    padded = data[:2] + b"\xff\xff\xff\xfe\0\4hi" + data[2:]
    np.testing.assert_array_equal(read_image(write(tmp_path, padded)), expected)


# PNG


@BOTH
@pytest.mark.parametrize("after", [False, True])
def test_a_png_with_a_long_text(tmp_path, capfd, bits, after):
    """Pillow refuses texts that take more than a megabyte when they are unpacked."""
    array = pixels(3, bits)
    data = cv2.imencode(".png", array[..., ::-1])[1].tobytes()
    chunk = b"zTXtComment\0\0" + zlib.compress(bytes(2**21))
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    at = len(data) - 12 if after else 33
    data = data[:at] + chunk + data[at:]
    with pytest.raises(ValueError, match="MAX_TEXT_CHUNK"):
        Image.open(io.BytesIO(data)).load()
    check(tmp_path, capfd, data, array, bits)
    path = write(tmp_path, data[:-60] + b"IEND\xaeB`\x82")
    assert message(read_image, path) == DAMAGED.format(path)


# BMP


@pytest.mark.parametrize("colors", [(0, 0, 0, 255, 255, 255), (255, 255, 255, 0, 0, 0), (9, 8, 7, 200, 1, 2)])
def test_a_bmp_with_two_colors(tmp_path, colors):
    indices = (np.random.default_rng(0).random((40, 48)) < 0.3).astype(np.uint8)
    picture = Image.frombytes("P", (48, 40), indices.tobytes())
    picture.putpalette(colors)
    path = write(tmp_path, encoded(picture, "BMP"))
    np.testing.assert_array_equal(read_image(path), np.reshape(colors, (2, 3))[indices])


# Size


def header(kind, width, height, bits=8):
    """The start of a file, with all that says how large the image is."""
    if kind == "PNG":
        chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
        start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        return start + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", 0x35AF061E) + bytes(4) + b"IEND\xaeB`\x82"
    if kind == "BMP":
        data = encoded(np.zeros((4, 4, 3), np.uint8), "BMP")
        return data[:18] + struct.pack("<II", width, height) + data[26:]
    if kind == "TIFF":
        data = minimal_tiff(pixels(3, bits))
        data = data.replace(struct.pack("<HHII", 256, 4, 1, 48), struct.pack("<HHII", 256, 4, 1, width))
        return data.replace(struct.pack("<HHII", 257, 4, 1, 40), struct.pack("<HHII", 257, 4, 1, height))
    data = bytearray(encoded(smooth(), "JPEG"))
    at = bytes(data).index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "JPEG"])
def test_more_pixels_than_the_limit_are_refused_before_they_are_decoded(tmp_path, kind):
    path = write(tmp_path, header(kind, 40000, 30000))
    assert message(read_image, path) == (
        f"image '{path}' is 40000 x 30000 pixels (width x height), more than the limit of 1,000,000,000 pixels; "
        "cut it into tiles, or raise config.data.max_megapixels of the training (--max-megapixels in predict and "
        "serve)"
    )
    path = write(tmp_path, encoded(smooth(), kind))
    assert read_image(path, max_pixels=40 * 48).shape == (40, 48, 3)
    assert "more than the limit of 1,919 pixels;" in message(read_image, path, max_pixels=40 * 48 - 1)


@BOTH
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "JPEG"])
def test_pillow_s_limit_is_not_ours(tmp_path, monkeypatch, kind, bits):
    """A small limit of Pillow stands for a large image: it prints a warning above it, and refuses twice as many."""
    monkeypatch.setattr(codec, "_BAND", 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    array = pixels(3, bits)
    if bits == 16 and kind in ("BMP", "JPEG"):
        pytest.skip("the format holds 8 bits")
    data = written(array) if kind == "TIFF" else cv2.imencode(f".{kind.lower()}", array[..., ::-1])[1].tobytes()
    path = write(tmp_path, data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).shape == (40, 48, 3)
        assert Image.MAX_IMAGE_PIXELS == 200
    if kind != "JPEG":
        np.testing.assert_array_equal(read_image(path), expected(array, bits))


@pytest.mark.slow
def test_a_line_scan_of_200_megapixels_with_a_side_of_100_000(tmp_path, capfd):
    row = np.zeros((1, 2000), np.uint8)
    row[0, -1] = 200
    picture = np.broadcast_to(row, (100_000, 2000))
    path = write(tmp_path, cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(path, channels=1)
    assert image.shape == (100_000, 2000, 1) and (image[:, -1] == 200).all() and not image[:, :-1].any()
    assert capfd.readouterr() == ("", "")


def test_a_jpeg_with_a_longer_side_than_libjpeg_reads(tmp_path):
    path = write(tmp_path, header("JPEG", 65501, 100))
    assert message(read_image, path) == (
        f"image '{path}' is a JPEG of 65501 x 100 pixels (width x height), and no more than 65500 a side are read of "
        "that kind; save it as PNG or TIFF"
    )


def test_a_16_bit_png_with_more_than_opencv_reads(tmp_path):
    path = write(tmp_path, header("PNG", 2**20 + 1, 2, bits=16))
    assert message(read_image, path) == (
        f"image '{path}' is a 16-bit PNG of 1048577 x 2 pixels (width x height), and no more than 2**30, with 2**20 a "
        "side, are read of that kind; cut it into tiles or save it as TIFF"
    )


@pytest.mark.medium
def test_the_limit_in_training_and_predict(tmp_path, capsys):
    root = write_parts(tmp_path)
    large = root / "large.png"
    large.write_bytes(encoded(np.zeros((1000, 1001, 3), np.uint8), "PNG"))
    train_image = root / "nut" / "train" / "good" / "999.png"
    train_image.write_bytes(large.read_bytes())
    arguments = baseline(root, tmp_path / "work", data__max_megapixels=1)
    told = refusal(capsys, train.main, *arguments)
    limit = "1001 x 1000 pixels (width x height), more than the limit of 1,000,000 pixels; "
    assert told.startswith(f"image '{train_image}' is {limit}")
    train_image.unlink()
    assert command(train.main, *arguments) == 0
    flags = ("--workdir", tmp_path / "work", "--output", tmp_path / "out", large)
    assert command(predict.main, *flags, "--max-megapixels", "2") == 0
    assert command(predict.main, *flags) == 1
    with open(tmp_path / "out" / "predictions.csv", newline="", encoding="utf-8") as file:
        [row] = csv.DictReader(file)
    assert row["decision"] == "unreadable" and row["reason"].startswith(f"image '{large}' is {limit}")
    for number in ("0.05", "0", "-1", "many"):
        message = refusal(capsys, predict.main, *flags, "--max-megapixels", number)
        assert "--max-megapixels" in message and repr(number) in message


@pytest.mark.medium
def test_a_command_names_the_kind_of_an_intact_file(tmp_path, capsys, monkeypatch):
    root = write_parts(tmp_path)
    path = root / "nut" / "train" / "good" / "000.tif"
    (root / "nut" / "train" / "good" / "000.png").unlink()
    path.write_bytes(minimal_tiff(pixels(1, 16), photometric=32803))
    told = refusal(capsys, train.main, *baseline(root, tmp_path / "work"))
    assert told.startswith(f"image '{path}' has the raw mosaic of a color filter array (CFA) of 16 bits, which is not")
    path.write_bytes(written(pixels(3, 16), compression="zstd"))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "imagecodecs", None)
        told = refusal(capsys, train.main, *baseline(root, tmp_path / "work"))
    assert told.startswith(f"image '{path}' has Zstandard compression of 16 bits, which takes optional packages")
    assert command(train.main, *baseline(root, tmp_path / "work")) == 0
