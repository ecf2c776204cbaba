"""Image files: reading, resizing and listing, with one clear sentence for every file that cannot be used."""

import collections
import contextlib
import contextvars
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from jaxad.data.codec import MAX_PIXELS, decode_pixels, inverted
from jaxad.data.levels import to_8_bits
from jaxad.errors import UserError

SUFFIXES = (".bmp", ".dib", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# Images too, but of formats that are not read.
UNREAD_SUFFIXES = (
    ".arw", ".avif", ".cr2", ".cr3", ".dcm", ".dng", ".exr", ".fits", ".gif", ".hdr", ".heic", ".heif", ".j2k", ".jp2",
    ".jxl", ".mpo", ".nef", ".orf", ".pbm", ".pcx", ".pgm", ".pnm", ".ppm", ".psd", ".raw", ".tga",
)  # fmt: skip
IMAGE_SUFFIXES = (*SUFFIXES, *UNREAD_SUFFIXES)
NO_IMAGES = "they are no image files"  # why `passed_over` says that files are
_FOLDER_LITTER = ("thumbs.db", "desktop.ini")  # written by file browsers, never by the user
_OVERLOOKED = contextvars.ContextVar[frozenset[str]]("_OVERLOOKED", default=frozenset())


def to_grey(image: np.ndarray) -> np.ndarray:
    """OpenCV's luma of an RGB image: uint8 (h, w, 3) to (h, w, 1). A grey image's levels stay as they are."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]


class Decoded(NamedTuple):
    """A decoded image file.

    Attributes:
      image: uint8 (h, w, channels).
      clipped: How many pixels of a 16-bit file have a value above the white level, which is read as this level.
      peak: The largest value of a 16-bit file; None for 8 bits.
      orientation: The EXIF orientation that the image was turned by, 1 (not at all) to 8.
    """

    image: np.ndarray
    clipped: int
    peak: int | None
    orientation: int


def read_image(
    path: str | os.PathLike,
    *,
    min_side: int = 1,
    channels: int = 3,
    white_level: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Decodes an image file.

    PNG, JPEG, BMP, TIFF and WebP (told by content, not by suffix) with grey, palette, RGB or RGBA pixels of 1 to 16
    bits. 16-bit values v become round(255 v / white_level), those of other depths are scaled by what their depth calls
    white, alpha is dropped without blending, and the EXIF orientation is applied. Of several pages the first is read
    that is no reduced copy of another one. Some kinds of TIFF and JPEG take the packages of the extra ``tiff``.

    Args:
      path: The file.
      min_side: The smallest accepted height and width in pixels.
      channels: 3 for RGB, 1 for grey, which is `to_grey` of it.
      white_level: The 16-bit value, in [1, 65535], from which on pixels are white, such as 4095 for the values of a
        12-bit sensor; None for 65535.
      max_pixels: The most pixels that are accepted.

    Returns:
      uint8 (h, w, channels).

    Raises:
      UserError: The file is missing, a directory, unreadable, empty, no image, truncated or damaged, of an unsupported
        pixel type (floating point, signed, 32 bits), smaller than ``min_side`` or larger than ``max_pixels``; or its
        kind takes packages that are not installed.
    """
    options = {"min_side": min_side, "channels": channels, "white_level": white_level, "max_pixels": max_pixels}
    return decode(read_bytes(path), path, **options).image


def decode(
    data: bytes,
    path: str | os.PathLike,
    *,
    min_side: int = 1,
    channels: int = 3,
    white_level: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Decoded:
    """Decodes the content `data` of the image file `path`; otherwise as `read_image`."""
    _refuse_empty(data, path)
    pixels = decode_pixels(data, path, max_pixels=max_pixels)
    image, clipped, peak = pixels.values, 0, None
    if image.dtype == np.uint16:
        peak = int(image.max())
        image, clipped = to_8_bits(image, white_level)
    if pixels.has_white_zero:
        image = inverted(image, np.uint8(255))
    height, width = image.shape[:2]
    if min(height, width) < min_side:
        raise UserError(
            f"image '{path}' is {width} x {height} pixels (width x height), but at least {min_side} pixels a side "
            "are needed; remove it or use a larger image",
            about=path,
        )
    if image.shape[2] != channels:
        image = to_grey(image) if channels == 1 else np.repeat(image, channels, axis=2)
    return Decoded(image, clipped, peak, pixels.orientation)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Lanczos resampling whose kernel widens with the factor, so that shrinking does not alias.

    Args:
      image: uint8 (h, w, c) with c = 3 or 1.
      size: The new (height, width).

    Returns:
      uint8 (*size, c); the argument itself when it already has this size.
    """
    if image.shape[:2] == tuple(size):
        return image
    height, width = size
    flat = image[..., 0] if image.shape[2] == 1 else image  # Pillow knows no axis of a single channel
    resized = Image.fromarray(flat).resize((width, height), Image.Resampling.LANCZOS)
    return np.array(resized).reshape(height, width, image.shape[2])


def resize_map(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resamples a score map; height and width are treated apart.

    A side that grows is interpolated linearly. On one that shrinks a pixel is the highest of those that it covers, be
    it in part, so that no peak is lost.

    Args:
      scores: float32 (h, w).
      size: The new (height, width).

    Returns:
      float32 (*size,).
    """
    for axis, length in enumerate(size):
        if length < scores.shape[axis]:
            scores = covered_maximum(scores, length, axis)
    return cv2.resize(scores, size[::-1], interpolation=cv2.INTER_LINEAR)


def covered_maximum(array: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Shrinks one axis of an array to `length`; each new element is the maximum of those that it covers, be it in part.

    New element i covers the old ones from floor(i old / length) to ceil((i + 1) old / length) - 1.
    """
    edges = np.arange(length + 1, dtype=np.int64) * array.shape[axis]
    first, last = edges[:-1] // length, -(-edges[1:] // length) - 1
    # Each group of `reduceat` ends where the next begins, so it lacks a last element that is covered in part.
    return np.maximum(np.maximum.reduceat(array, first, axis=axis), array.take(last, axis=axis))


def smooth_map(scores: np.ndarray, sigma: float) -> np.ndarray:
    """Smooths a score map, float32 (h, w), with a Gaussian of this standard deviation in its pixels; 0 leaves it."""
    return cv2.GaussianBlur(scores, (0, 0), sigma) if sigma else scores


@contextlib.contextmanager
def overlooking(paths: frozenset[str]) -> Iterator[None]:
    """Within it, `list_folder` leaves these files and folders out, so that a check goes on after what it refused."""
    token = _OVERLOOKED.set(paths)
    try:
        yield
    finally:
        _OVERLOOKED.reset(token)


def list_folder(folder: str | os.PathLike) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """The files and the subfolders of a folder, each sorted by name; hidden ones and file browsers' litter left out.

    Raises:
      UserError: The folder is missing, a file, or unreadable.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries)
    except FileNotFoundError:
        raise UserError(f"folder '{folder}' does not exist; check the path", about=folder) from None
    except NotADirectoryError:
        raise UserError(
            f"'{folder}' is a file where a folder should be; name the folder that holds it", about=folder
        ) from None
    except OSError as error:
        raise UserError(
            f"folder '{folder}' cannot be read ({error.strerror}); check its permissions", about=folder
        ) from error
    except ValueError:  # a NUL character
        raise UserError(f"folder {str(folder)!r} cannot exist; check the path", about=str(folder)) from None
    found = [entry for entry in found if not entry[0].startswith(".") and entry[0].lower() not in _FOLDER_LITTER]
    root, overlooked = pathlib.Path(folder), _OVERLOOKED.get()
    if overlooked:
        found = [entry for entry in found if str(root / entry[0]) not in overlooked]
    return [root / name for name, is_dir in found if not is_dir], [root / name for name, is_dir in found if is_dir]


def passed_over(files: Sequence[pathlib.Path], reason: str) -> str:
    """One line that says which files were passed over, and why: how many of which suffix, and one of each."""
    kinds = collections.defaultdict(list)
    for path in files:
        kinds[path.suffix.lower() or "no suffix"].append(path)
    named = (f"{len(paths)} of {kind} (such as {paths[0]})" for kind, paths in kinds.items())
    return f"passed over, since {reason}: {', '.join(named)}"


def find_images(folder: str | os.PathLike, *, allow_subfolders: bool = False) -> list[pathlib.Path]:
    """The image files directly inside a folder, sorted by name, told by their suffix in any case.

    Hidden entries and the litter of file browsers (Thumbs.db, desktop.ini) are no part of the data. Files of other
    kinds are passed over, which the user is to be told (`other_files`, `passed_over`).

    Args:
      folder: The folder.
      allow_subfolders: Whether subfolders may lie beside the images; they are not searched.

    Raises:
      UserError: The folder cannot be listed, or holds an image of a format that is not read, a directory that is named
        like an image, or a subfolder that is not allowed.
    """
    files, folders = list_folder(folder)
    for path in files:
        if path.suffix.lower() in UNREAD_SUFFIXES:
            raise UserError(f"'{path}' is of a format that is not read; convert it to PNG, or move it away", about=path)
    for path in folders:
        if path.suffix.lower() in SUFFIXES:
            raise UserError(f"'{path}' is a directory where an image should be; move it away", about=path)
        if not allow_subfolders:
            raise UserError(
                f"folder '{folder}' should hold images only, but has the subfolder '{path.name}'; move it", about=path
            )
    return [path for path in files if path.suffix.lower() in SUFFIXES]


def other_files(folder: str | os.PathLike) -> list[pathlib.Path]:
    """The files directly inside a folder that `find_images` passes over; raises UserError as `list_folder`."""
    return [path for path in list_folder(folder)[0] if path.suffix.lower() not in SUFFIXES]


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of an image file, which is not empty; raises UserError as `read_image`."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise UserError(f"image '{path}' does not exist; check the path", about=path) from None
    except IsADirectoryError:
        raise UserError(f"'{path}' is a directory where an image should be; name an image file", about=path) from None
    except OSError as error:
        raise UserError(
            f"image '{path}' cannot be read ({error.strerror}); check its permissions", about=path
        ) from error
    except ValueError:  # a NUL character
        raise UserError(f"image {os.fspath(path)!r} cannot exist; check the path", about=os.fspath(path)) from None
    _refuse_empty(data, path)
    return data


def _refuse_empty(data: bytes, path: str | os.PathLike) -> None:
    if not data:
        raise UserError(f"image '{path}' is empty (zero bytes); replace or remove it", about=path)
