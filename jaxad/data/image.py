"""Image files: decoding, masks, resizing and listing, with one clear sentence for every file that cannot be used."""

import io
import os
import pathlib
import struct
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from jaxad.data.levels import to_8_bits
from jaxad.errors import UserError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_FOLDER_LITTER = ("thumbs.db", "desktop.ini")  # written by file browsers, never by the user
_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
_PNG_END = b"IEND\xaeB`\x82"  # Pillow returns a picture whose last bytes are missing, so the end is looked for

# TIFF tags (TIFF 6.0 specification, section 8), and their values of interest.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLES_PER_PIXEL, _PLANAR, _SAMPLE_FORMAT = 258, 262, 277, 284, 339
_UNSIGNED, _MIN_IS_BLACK, _RGB, _INTERLEAVED = 1, 1, 2, 1


class _UnsupportedPixels(Exception):
    """The file is intact, but its pixels are of a type that has no faithful 8-bit reading."""


def to_grey(image: np.ndarray) -> np.ndarray:
    """OpenCV's luma of an RGB image: uint8 (h, w, 3) to (h, w, 1). A grey image's levels stay as they are."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]


class Decoded(NamedTuple):
    """A decoded image file.

    Attributes:
      image: uint8 (h, w, channels).
      clipped: How many pixels of a 16-bit file have a value above the white level, which is read as white.
      peak: The largest value of a 16-bit file; None for 8 bits.
    """

    image: np.ndarray
    clipped: int
    peak: int | None


def read_image(
    path: str | os.PathLike, *, min_side: int = 1, channels: int = 3, white_level: int | None = None
) -> np.ndarray:
    """Decodes an image file.

    PNG, JPEG, BMP, TIFF and WebP (told by content, not by suffix) with grey, palette, RGB or RGBA pixels of 1 to 8
    or 16 bits. 16-bit values v become round(255 v / white_level), alpha is dropped without blending, the EXIF
    orientation is applied, and of several pages the first is read.

    Args:
      path: The file.
      min_side: The smallest accepted height and width in pixels.
      channels: 3 for RGB, 1 for grey, which is `to_grey` of it.
      white_level: The 16-bit value, in [1, 65535], from which on pixels are white, such as 4095 for the values of a
        12-bit sensor; None for 65535.

    Returns:
      uint8 (h, w, channels).

    Raises:
      UserError: The file is missing, a directory, unreadable, empty, no image, truncated or damaged, of an unsupported
        pixel type (floating point, signed, 32 bits), or smaller than ``min_side``.
    """
    return decode(read_bytes(path), path, min_side=min_side, channels=channels, white_level=white_level).image


def decode(
    data: bytes,
    path: str | os.PathLike,
    *,
    min_side: int = 1,
    channels: int = 3,
    white_level: int | None = None,
) -> Decoded:
    """Decodes the content `data` of the image file `path`; otherwise as `read_image`."""
    image, clipped, peak = _decode(data, path), 0, None
    if image.dtype == np.uint16:
        peak = int(image.max())
        image, clipped = to_8_bits(image, white_level)
    height, width = image.shape[:2]
    if min(height, width) < min_side:
        raise UserError(
            f"image '{path}' is {width} x {height} pixels (width x height), but at least {min_side} pixels a side "
            "are needed; remove it or use a larger image"
        )
    return Decoded(to_grey(image) if channels == 1 else image, clipped, peak)


def read_mask(path: str | os.PathLike) -> np.ndarray:
    """Decodes a mask file: a pixel is defective where its brightest channel exceeds half of white.

    When no pixel does, the values are taken for class numbers, of which every one but 0 is defective.

    Returns:
      uint8 (h, w) of 0 and 1.

    Raises:
      UserError: As in ``read_image``.
    """
    brightness = _decode(read_bytes(path), path).max(axis=-1)
    half = np.iinfo(brightness.dtype).max // 2
    return (brightness > (half if brightness.max() > half else 0)).astype(np.uint8)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Lanczos resampling whose kernel widens with the factor, so that shrinking does not alias.

    Args:
      image: uint8 (h, w, c) with c = 3 or 1.
      size: The new (height, width).

    Returns:
      uint8 (*size, c); the argument itself when it already has this size.
    """
    return _resize(image, size, Image.Resampling.LANCZOS)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest-neighbour resampling of a mask: uint8 (h, w) to uint8 (*size), with no new values."""
    return _resize(mask, size, Image.Resampling.NEAREST)


def resize_map(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resamples a score map: each side is averaged over areas where it shrinks, and interpolated where it grows.

    Args:
      scores: float32 (h, w).
      size: The new (height, width).

    Returns:
      float32 (*size,).
    """
    smaller = [min(old, new) for old, new in zip(scores.shape, size, strict=True)]
    shrunk = cv2.resize(scores, smaller[::-1], interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, size[::-1], interpolation=cv2.INTER_LINEAR)


def smooth_map(scores: np.ndarray, sigma: float) -> np.ndarray:
    """Smooths a score map, float32 (h, w), with a Gaussian of this standard deviation in its pixels; 0 leaves it."""
    return cv2.GaussianBlur(scores, (0, 0), sigma) if sigma else scores


def list_folder(folder: str | os.PathLike) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """The files and the subfolders of a folder, each sorted by name; hidden ones and file browsers' litter left out.

    Raises:
      UserError: The folder is missing, a file, or unreadable.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries)
    except FileNotFoundError:
        raise UserError(f"folder '{folder}' does not exist; check the path") from None
    except NotADirectoryError:
        raise UserError(f"'{folder}' is a file where a folder should be; name the folder that holds it") from None
    except OSError as error:
        raise UserError(f"folder '{folder}' cannot be read ({error.strerror}); check its permissions") from error
    found = [entry for entry in found if not entry[0].startswith(".") and entry[0].lower() not in _FOLDER_LITTER]
    root = pathlib.Path(folder)
    return [root / name for name, is_dir in found if not is_dir], [root / name for name, is_dir in found if is_dir]


def find_images(folder: str | os.PathLike, *, allow_subfolders: bool = False) -> list[pathlib.Path]:
    """The image files directly inside a folder, sorted by name, told by their suffix in any case.

    Hidden entries and the litter of file browsers (Thumbs.db, desktop.ini) are no part of the data. Everything else
    that is not an image is an error, since leaving it out unsaid would lose data.

    Args:
      folder: The folder.
      allow_subfolders: Whether subfolders may lie beside the images; they are not searched.

    Raises:
      UserError: The folder cannot be listed, or holds a file of another kind, a directory that is named like an image,
        or a subfolder that is not allowed.
    """
    files, folders = list_folder(folder)
    for path in files:
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"'{path}' is not an image ({', '.join(SUFFIXES)}); move it out of the folder of images")
    for path in folders:
        if path.suffix.lower() in SUFFIXES:
            raise UserError(f"'{path}' is a directory where an image should be; move it away")
        if not allow_subfolders:
            raise UserError(f"folder '{folder}' should hold images only, but has the subfolder '{path.name}'; move it")
    return files


def _resize(array: np.ndarray, size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    if array.shape[:2] == tuple(size):
        return array
    height, width = size
    flat = array[..., 0] if array.shape[2:] == (1,) else array  # Pillow knows no axis of a single channel
    return np.array(Image.fromarray(flat).resize((width, height), method)).reshape(height, width, *array.shape[2:])


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of an image file, which is not empty; raises UserError as `read_image`."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise UserError(f"image '{path}' does not exist; check the path") from None
    except IsADirectoryError:
        raise UserError(f"'{path}' is a directory where an image should be; name an image file") from None
    except OSError as error:
        raise UserError(f"image '{path}' cannot be read ({error.strerror}); check its permissions") from error
    if not data:
        raise UserError(f"image '{path}' is empty (zero bytes); replace or remove it")
    return data


def _decode(data: bytes, path: str | os.PathLike) -> np.ndarray:
    """Uint8 or uint16 (h, w, 3), RGB."""
    kind = _format(data)
    if kind is None:
        raise UserError(f"'{path}' is not an image in PNG, JPEG, BMP, TIFF or WebP format; convert or remove it")
    try:
        return _decode_16_bits(data, kind) if _has_16_bits(data, kind) else _decode_8_bits(data, kind)
    except _UnsupportedPixels as error:
        raise UserError(
            f"image '{path}' has {error}, which is not supported; save it with 8 or 16 bits a channel, "
            "unsigned and interleaved"
        ) from None
    except Image.DecompressionBombError:
        raise UserError(f"image '{path}' has more pixels than can be read at once; cut it into tiles") from None
    except Exception as error:  # on damaged bytes the decoders raise nearly anything (SyntaxError, struct.error, ...)
        raise UserError(f"image '{path}' is truncated or damaged and cannot be decoded; replace it") from error


def _format(data: bytes) -> str | None:
    """The format by the file's first bytes, as Pillow names it."""
    for signature, name in _SIGNATURES.items():
        if data.startswith(signature):
            return name
    return "WEBP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def _has_16_bits(data: bytes, kind: str) -> bool:
    """Whether the channels have 16 bits; raises _UnsupportedPixels for a TIFF that no decoder reads faithfully."""
    if kind == "PNG":
        return data[24] == 16  # bit depth in the IHDR chunk
    if kind != "TIFF":
        return False
    stream = io.BytesIO(data)
    tags = ImageFileDirectory_v2(stream.read(8))
    stream.seek(tags.next)
    tags.load(stream)
    bits = max(tags.get(_BITS_PER_SAMPLE, (1,)))
    if set(tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))) != {_UNSIGNED}:
        raise _UnsupportedPixels("signed or floating-point pixels")
    if bits > 8 and bits != 16:
        raise _UnsupportedPixels(f"{bits} bits a channel")
    if bits == 16:
        # OpenCV returns garbage for separate colour planes and does not invert a reversed grey scale.
        if tags.get(_PHOTOMETRIC) not in (_MIN_IS_BLACK, _RGB):
            raise _UnsupportedPixels("16-bit pixels that are neither grey with 0 as black nor RGB")
        if tags.get(_SAMPLES_PER_PIXEL, 1) > 1 and tags.get(_PLANAR, _INTERLEAVED) != _INTERLEAVED:
            raise _UnsupportedPixels("separate colour planes of 16 bits")
    return bits == 16


def _decode_8_bits(data: bytes, kind: str) -> np.ndarray:
    """With Pillow, since OpenCV blends the alpha of TIFF files with black and returns some cut files without a word."""
    if kind == "PNG" and _PNG_END not in data:
        raise EOFError("no IEND chunk")
    with Image.open(io.BytesIO(data), formats=(kind,)) as image:
        ImageOps.exif_transpose(image, in_place=True)
        if "transparency" in image.info:  # a transparent colour; Pillow warns unless it passes through RGBA
            image = image.convert("RGBA")
        return np.array(image.convert("RGB"))


def _decode_16_bits(data: bytes, kind: str) -> np.ndarray:
    """With OpenCV, since Pillow keeps only the upper 8 bits of 16-bit colours."""
    if kind == "PNG":
        if _PNG_END not in data:
            raise EOFError("no IEND chunk")
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            image.verify()  # checks the checksums in silence; libpng would write to the terminal
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if decoded is None or decoded.dtype != np.uint16:
        raise struct.error("no 16-bit picture")
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
