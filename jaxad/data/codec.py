"""Image files in memory to pixels: which format they have, how large they are, and which library reads them.

Everything undecodable ends in one sentence. Files that are intact are never called damaged: their kind is named.
"""

import io
import os
import re
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from jaxad.data.levels import to_8_bits
from jaxad.data.silence import pillow_silence
from jaxad.data.tiff import (
    TIFF_SIGNATURES,
    MissingExtraError,
    UnsupportedError,
    choose_reader,
    decode_with_opencv,
    decode_with_tifffile,
    find_page,
    fits_opencv,
    import_extra,
    open_with_pillow,
    without_orientation,
)
from jaxad.errors import UserError

MAX_PIXELS = 10**9  # read by default; 3 GB in color
_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"BM": "BMP",
    **dict.fromkeys(TIFF_SIGNATURES, "TIFF"),
}
_PNG_END = b"IEND\xaeB`\x82"  # Pillow returns a picture whose last bytes are missing, so the end is looked for
_PNG_EXIF = (b"eXIf", b"exif", b"XML:com.adobe.xmp")  # a chunk and keywords by which Pillow finds an orientation
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_ORIENTATION = 0x0112  # EXIF 2.32
_LIBJPEG_SIDE = 65500  # the longest side that libjpeg reads, though the format has 65,535
_MARKER = re.compile(rb"\xff+[^\xff]")  # of a JPEG; fill bytes may precede it
_BAND = 2**24  # pixels that are converted at a time


class Pixels(NamedTuple):
    """What a file holds, upright.

    Attributes:
      values: uint8 or uint16 (h, w, c): grey or the index into a palette (c = 1), grey and alpha (2), RGB (3), or RGB
        and alpha (4).
      orientation: The EXIF orientation that the file was turned by, 1 (not at all) to 8.
      is_indexed: Whether the values are indices into a palette, with alpha behind them where only some are seen.
      is_lossy: Whether they are surely approximate, as in JPEG.
      has_white_zero: Whether a grey of 0 is white and larger values are darker: only with 16 bits, since how dark the
        largest one is depends on the white level.
    """

    values: np.ndarray
    orientation: int
    is_indexed: bool = False
    is_lossy: bool = False
    has_white_zero: bool = False


def decode_pixels(data: bytes, path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS, raw: bool = False) -> Pixels:
    """Decodes the content of a file.

    Args:
      data: The content.
      path: The file's name, for sentences.
      max_pixels: The most pixels that are read.
      raw: Whether alpha and the indices of a palette are kept; otherwise c is 1 or 3.

    Raises:
      UserError: The content is no image, damaged, too large, or of a kind that is not supported.
    """
    kind = _format(data)
    if kind is None:
        raise UserError(
            f"'{path}' is not an image in PNG, JPEG, BMP, TIFF or WebP format; convert or remove it", about=path
        )
    try:
        return _READERS[kind](data, _Limit(max_pixels), raw)
    except UnsupportedError as error:
        raise UserError(
            f"image '{path}' has {error}, which is not supported; convert it to grey or RGB with 8 or 16 bits a "
            "channel, unsigned and interleaved",
            about=path,
        ) from None
    except MissingExtraError as error:
        raise UserError(
            f"image '{path}' has {error}, which takes optional packages to read; run python3 -m pip install "
            "'jaxad[tiff]', or save the image as PNG",
            about=path,
        ) from None
    except _TooLargeError as error:
        raise UserError(f"image '{path}' is {error}", about=path) from None
    except Exception as error:  # on damaged bytes the decoders raise nearly anything (SyntaxError, struct.error, ...)
        raise UserError(
            f"image '{path}' is truncated or damaged and cannot be decoded; replace it", about=path
        ) from error


class _TooLargeError(Exception):
    """The file has more pixels than are read; the message goes on after "is"."""


class _Limit(NamedTuple):
    """The most pixels that are read."""

    pixels: int

    def check(self, size: tuple[int, int]) -> None:
        """Refuses a width and height, before any pixel is decoded."""
        width, height = size
        if width * height > self.pixels:
            raise _TooLargeError(
                f"{width} x {height} pixels (width x height), more than the limit of {self.pixels:,} pixels; "
                "cut it into tiles, or raise config.data.max_megapixels of the training (--max-megapixels in predict "
                "and serve)"
            )


def _format(data: bytes) -> str | None:
    """The format by the file's first bytes, as Pillow names it."""
    for signature, name in _SIGNATURES.items():
        if data.startswith(signature):
            return name
    return "WEBP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def _read_png(data: bytes, limit: _Limit, raw: bool) -> Pixels:
    if _PNG_END not in data:
        raise EOFError("no IEND chunk")
    try:
        return _decode_png(data, limit, raw)
    except ValueError:  # Pillow refuses a picture for texts of more than a megabyte, which are not needed
        return _decode_png(_without_texts(data), limit, raw)


def _without_texts(data: bytes) -> bytes:
    """A PNG without its textual chunks; raises struct.error where the chunks are damaged."""
    kept, at = [data[:8]], 8
    while at < len(data) and kept[-1][4:8] != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind not in _PNG_TEXTS:
            kept.append(data[at : at + length + 12])
        at += length + 12
    return b"".join(kept)


def _decode_png(data: bytes, limit: _Limit, raw: bool) -> Pixels:
    opened = _open(PngImageFile, data)
    limit.check(opened.size)
    bits = data[24]  # in the IHDR chunk
    if bits != 16:
        if opened.mode == "L" and "transparency" in opened.info:  # Pillow scales the pixels to 8 bits, but not this
            opened.info["transparency"] *= 255 // (2**bits - 1)
        return _from_pillow(opened, raw)
    # Pillow keeps only the upper 8 bits of 16-bit colors, so OpenCV decodes.
    if not fits_opencv(opened.size):
        raise _TooLargeError(
            f"a 16-bit PNG of {opened.width} x {opened.height} pixels (width x height), and no more than 2**30, with "
            "2**20 a side, are read of that kind; cut it into tiles or save it as TIFF"
        )
    _open(PngImageFile, data).verify()  # checks the checksums in silence; libpng would write to the terminal
    values, hidden = decode_with_opencv(data), opened.info.get("transparency")
    if raw and hidden is not None and values.shape[2] == 1:  # OpenCV makes alpha of a transparent color, not of a grey
        values = np.concatenate([values, np.where(values == hidden, 0, 65535).astype(np.uint16)], axis=2)
    return _from_array(values, _png_orientation(data), raw)


def _png_orientation(data: bytes) -> int:
    """What the metadata says; Pillow decodes all pixels to look behind them, so only where there is any."""
    if not any(name in data for name in _PNG_EXIF):
        return 1
    opened = _open(PngImageFile, data)
    with pillow_silence():
        return _orientation(opened.getexif())


def _read_jpeg(data: bytes, limit: _Limit, raw: bool) -> Pixels:
    frame = _jpeg_frame(data)
    limit.check(frame.size)
    if max(frame.size) > _LIBJPEG_SIDE:
        raise _TooLargeError(
            f"a JPEG of {frame.size[0]} x {frame.size[1]} pixels (width x height), and no more than {_LIBJPEG_SIDE} a "
            "side are read of that kind; save it as PNG or TIFF"
        )
    if frame.bits == 8 and not frame.is_lossless:
        return _from_pillow(_open(JpegImageFile, data), raw, is_lossy=True)
    if frame.channels not in (1, 3):
        raise UnsupportedError(f"{frame.channels} channels of {frame.bits} bits in a JPEG")
    _, imagecodecs = import_extra(f"{'lossless ' if frame.is_lossless else ''}JPEG pixels of {frame.bits} bits")
    if b"\xff\xd9" not in data[frame.pixels_at :]:  # the end of the image, whose absence the decoder overlooks
        raise EOFError("no EOI marker")
    values = imagecodecs.jpeg8_decode(data)
    values = _of_full_depth(values.reshape(*values.shape[:2], -1), frame.bits)
    exif = Image.Exif()
    with pillow_silence():
        exif.load(frame.exif)
        orientation = _orientation(exif)
    return _from_array(values, orientation, raw, is_lossy=not frame.is_lossless)


class _Frame(NamedTuple):
    """What the markers of a JPEG say (ITU-T T.81, annex B)."""

    size: tuple[int, int]
    bits: int
    channels: int
    is_lossless: bool
    exif: bytes
    pixels_at: int


def _jpeg_frame(data: bytes) -> _Frame:
    """Reads the markers up to the pixels; raises where they are damaged."""
    at, frame, exif = 2, None, b""
    while True:
        at = _MARKER.search(data, at).end()
        marker = data[at - 1]
        if marker <= 0x01 or 0xD0 <= marker <= 0xD7:  # without a segment
            continue
        (length,) = struct.unpack_from(">H", data, at)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # frames; tables and an extension are not
            bits, height, width, channels = struct.unpack_from(">BHHB", data, at + 2)
            frame = (width, height), bits, channels, marker in (0xC3, 0xC7, 0xCB, 0xCF)
        elif marker == 0xE1 and data[at + 2 : at + 8] == b"Exif\0\0":
            exif = exif or data[at + 2 : at + length]
        elif marker == 0xDA:  # start of the scan
            return _Frame(*frame, exif, at + length)
        at += length


def _read_bmp(data: bytes, limit: _Limit, raw: bool) -> Pixels:
    opened = _open(BmpImageFile, data)
    limit.check(opened.size)
    if opened.mode == "1" and data[28] != 1:  # bits of a pixel
        # Pillow 13 takes a palette of black and white for one of 1 bit whatever the bits; of three colors it does not.
        start, header = struct.unpack_from("<II", data, 10)
        end = 14 + header + 8  # of the two colors
        three = b"\3\0\0\0" + data[50:end] + bytes(4)
        opened = _open(BmpImageFile, data[:10] + struct.pack("<I", start + 4) + data[14:46] + three + data[end:])
    return _from_pillow(opened, raw)


def _read_webp(data: bytes, limit: _Limit, raw: bool) -> Pixels:
    try:
        opened = _open(WebPImageFile, data)
    except Image.DecompressionBombError:  # the plugin checks Pillow's limit itself
        raise _TooLargeError("a WebP of more pixels than Pillow reads; save it as PNG or TIFF") from None
    limit.check(opened.size)
    return _from_pillow(opened, raw, is_lossy=b"VP8L" not in data)


def _read_tiff(data: bytes, limit: _Limit, raw: bool) -> Pixels:
    page = find_page(data)
    limit.check(page.size)
    reader = choose_reader(page)
    if reader == "pillow":
        return _from_pillow(open_with_pillow(page), raw, page.orientation, is_lossy=page.is_lossy)
    if reader == "opencv":
        values = decode_with_opencv(without_orientation(page))
    else:
        values = _of_full_depth(decode_with_tifffile(page), page.bits)
    if page.has_associated_alpha:
        values = _unassociated(values)
    pixels = _from_array(values, page.orientation, raw, is_lossy=page.is_lossy)
    if page.has_white_zero and values.dtype != np.uint16:
        return pixels._replace(values=inverted(pixels.values, np.uint8(255)))
    return pixels._replace(has_white_zero=page.has_white_zero)


_READERS: dict[str, Callable[[bytes, _Limit, bool], Pixels]] = {
    "PNG": _read_png,
    "JPEG": _read_jpeg,
    "BMP": _read_bmp,
    "TIFF": _read_tiff,
    "WEBP": _read_webp,
}


def _open(plugin: Callable[[io.BytesIO], Image.Image], data: bytes) -> Image.Image:
    """Opens an image without `Image.open`, which prints a warning of many pixels, or refuses them."""
    with pillow_silence():
        return plugin(io.BytesIO(data))


def _orientation(exif: Image.Exif) -> int:
    value = exif.get(_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _from_pillow(opened: Image.Image, raw: bool, orientation: int | None = None, *, is_lossy: bool = False) -> Pixels:
    """The pixels of an opened image of up to 8 bits; `orientation` is looked up where it is None."""
    opened.load()
    if orientation is None:
        with pillow_silence():
            orientation = _orientation(opened.getexif())
            ImageOps.exif_transpose(opened, in_place=True)
    is_indexed = raw and opened.mode in ("P", "PA")
    alpha = _alpha_of_indices(opened) if is_indexed else None
    if raw and not is_indexed and "transparency" in opened.info:  # a color that is not seen
        opened = opened.convert("RGBA" if opened.mode == "RGB" else "LA")
    opened.info.pop("transparency", None)  # alpha is dropped without blending; Pillow would warn of it
    grey, color = {"1", "L", "LA", "La"}, {"RGBA", "RGBa"}
    if is_indexed:
        mode = "P"
    elif raw and opened.mode in ("LA", "La", *color):
        mode = opened.mode.upper()
    else:
        mode = "L" if opened.mode in grey else "RGB"
    values = _to_array(opened, mode)
    if alpha is not None:
        values = np.concatenate([values, alpha], axis=2)
    return Pixels(values, orientation, is_indexed, is_lossy)


def _alpha_of_indices(indexed: Image.Image) -> np.ndarray | None:
    """Alpha, uint8 (h, w, 1), of a picture with a palette; None unless it shows some pixels and hides others."""
    if indexed.mode != "PA" and "transparency" not in indexed.info:
        return None
    alpha = indexed.convert("RGBA").getchannel("A")
    least, most = alpha.getextrema()
    return np.asarray(alpha)[..., None] if least == 0 < most else None


def _to_array(image: Image.Image, mode: str) -> np.ndarray:
    """Converts an image in bands of rows, so that a large one is not held a third and fourth time."""
    pixels = np.empty((image.height, image.width, 1 if mode == "P" else len(mode)), np.uint8)
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        whole = rows >= image.height
        band = image if whole else image.crop((0, top, image.width, min(top + rows, image.height)))
        if band.mode == "La":  # grey that is multiplied by alpha; Pillow converts it to grey with alpha alone
            band = band.convert("LA")
        if band.mode == "PA" and mode == "P":
            band = band.getchannel(0)
        if band.mode != mode:
            band = band.convert(mode)
        pixels[top : top + rows] = np.asarray(band).reshape(band.height, band.width, -1)
    return pixels


def _of_full_depth(values: np.ndarray, bits: int) -> np.ndarray:
    """Pixels of neither 8 nor 16 bits are scaled to 8, since their depth says which value is white."""
    return values if bits in (8, 16) else to_8_bits(values.astype(np.uint16), 2**bits - 1)[0]


def _unassociated(values: np.ndarray) -> np.ndarray:
    """Divides the channels by the last one, alpha, with which they were multiplied; 0 where that is 0."""
    white = np.iinfo(values.dtype).max
    alpha = np.maximum(values[..., -1:], 1).astype(np.float32) / white
    color = np.minimum(np.round(values[..., :-1] / alpha), white).astype(values.dtype)
    return np.concatenate([color * (values[..., -1:] > 0), values[..., -1:]], axis=-1)


def inverted(values: np.ndarray, white: int) -> np.ndarray:
    """Grey (h, w, c), c = 1 or 2 with alpha, of which 0 and `white` have changed places; beyond that is 0."""
    grey = white - np.minimum(values[..., :1], white)
    return np.concatenate([grey, values[..., 1:]], axis=-1)


def _from_array(values: np.ndarray, orientation: int, raw: bool, *, is_lossy: bool = False) -> Pixels:
    """Pixels that are not yet upright."""
    if not raw and values.shape[2] in (2, 4):
        values = values[..., :-1]
    return Pixels(turn(values, orientation), orientation, is_lossy=is_lossy)


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns stored pixels (h, w, ...) upright: an orientation says which sides row 0 and column 0 show (EXIF 2.32)."""
    if orientation in (3, 4):
        pixels = pixels[::-1]
    if orientation in (2, 3):
        pixels = pixels[:, ::-1]
    if orientation in (6, 7):
        pixels = pixels[::-1]
    if orientation in (7, 8):
        pixels = pixels[:, ::-1]
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels)
