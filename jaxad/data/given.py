"""Images as a Python program gives them: paths, Pillow's images and arrays, brought to one form.

`to_image` reads one for a detector; `training_source` makes a source of those to train on.
"""

import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from jaxad.data.codec import MAX_PIXELS
from jaxad.data.folder import GOOD, FolderSource
from jaxad.data.image import Decoded, decode, read_bytes, to_grey
from jaxad.data.record import Record, Source
from jaxad.errors import UserError, counted, first_line

Given = str | os.PathLike | Image.Image | np.ndarray
_LEVELS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")  # of 8 bits
_PLACE = "the program that called jaxad.train"


def several(images: Given | Iterable[Given]) -> Iterable[Given]:
    """The images one by one; a single path, image of Pillow, or array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) is one.

    An array with one axis, of text or objects, holds one in each place.

    Raises:
      UserError: There is nothing to iterate over.
    """
    if isinstance(images, str | os.PathLike | Image.Image):
        return [images]
    if hasattr(images, "__array__"):
        array = np.asarray(images)
        if array.ndim == 1 and array.dtype.kind in "OUT":  # of paths or images, such as a column of a table
            return list(array)
        shape = array.shape
        return [images] if len(shape) < 3 or (len(shape) == 3 and shape[2] in (1, 3, 4)) else images
    if not isinstance(images, Iterable):
        raise UserError(f"images must be paths, images of Pillow or arrays, not {_kind(images)}")
    return images


def to_image(
    given: Given,
    *,
    number: int,
    channels: int,
    min_side: int,
    white_level: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Decoded:
    """One image in the form that a detector takes.

    Files are read by `jaxad.data.image.decode`. Pillow's images are treated likewise: the EXIF orientation is applied,
    alpha is dropped without blending. So is a fourth channel of an array.

    Args:
      given: A path, an image of Pillow, or an array uint8 (h, w), (h, w, 1), (h, w, 3) RGB or (h, w, 4) RGBA.
      number: Which of several images it is, for the sentence.
      channels: 3 or 1.
      min_side: The smallest accepted height and width in pixels.
      white_level: Of files of 16 bits, see `read_image`.
      max_pixels: The most pixels of a file, see `read_image`.

    Returns:
      uint8 (h, w, channels), grey from RGB by `to_grey`, RGB from grey by three equal channels, and what a file's
      decoding tells of it.

    Raises:
      UserError: It is of another kind, cannot be read, or is smaller than `min_side`.
    """
    if isinstance(given, str | os.PathLike):
        options = {"min_side": min_side, "channels": channels, "white_level": white_level, "max_pixels": max_pixels}
        return decode(read_bytes(given), given, **options)
    if not isinstance(given, Image.Image) and not hasattr(given, "__array__"):
        raise UserError(f"image {number} must be a path, an image of Pillow or an array, not {_kind(given)}")
    image = _decoded(given, number) if isinstance(given, Image.Image) else np.asarray(given)
    if image.ndim == 2:
        image = image[..., None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise UserError(
            f"image {number} must be uint8 (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), with levels from 0 to 255, not "
            f"{image.dtype} {np.shape(given)}"
        )
    height, width = image.shape[:2]
    if min(height, width) < min_side:
        raise UserError(
            f"image {number} is {width} x {height} pixels (width x height), but at least {min_side} pixels a side are "
            "needed"
        )
    image = np.ascontiguousarray(image[..., :3])  # OpenCV takes no view with its rows reversed
    if image.shape[2] != channels:
        image = to_grey(image) if channels == 1 else np.repeat(image, 3, axis=2)
    return Decoded(image, clipped=0, peak=None, orientation=1)


def attempt(given: Given, *, keep_errors: bool, **options: Any) -> Decoded | UserError:
    """`to_image`, or where `keep_errors` is true and there is no such image, the error that it raises."""
    try:
        return to_image(given, **options)
    except UserError as error:
        if keep_errors:
            return error
        raise


class ArraySource:
    """Good images in memory.

    Attributes:
      ids, labels, defects, place, deep, others: See `jaxad.data.record.Source`.

    Args:
      images: uint8 (h, w, c), of any sizes.
    """

    def __init__(self, images: Sequence[np.ndarray]):
        self._images = images
        self.ids = [_id(number) for number in range(len(images))]
        self.labels, self.defects = [0] * len(images), [GOOD] * len(images)
        self.place, self.deep, self.others = _PLACE, {}, ()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Record:
        """One image, with an empty mask."""
        image = self._images[index]
        return Record(image, 0, np.zeros(image.shape[:2], np.uint8), self.ids[index], GOOD)

    def fingerprint(self, index: int, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """See `Source.fingerprint`: an image is its shape and its levels."""
        image = self._images[index]
        content = str(image.shape).encode() + image.tobytes()
        return {"bytes": image.nbytes, "sha256": hashlib.sha256(content).hexdigest()}

    def bound(self, fingerprints: Sequence[Mapping[str, Any]], white_level: int | None) -> "ArraySource":
        """See `Source.bound`; there are no files that could change."""
        return self

    def left_out(self) -> dict[str, int | None]:
        """See `Source.left_out`."""
        return {}


def training_source(images: Iterable[Given] | Source, *, channels: int, min_side: int, max_pixels: int) -> Source:
    """The source of good images that a Python program gives.

    Args:
      images: A source, which is returned as it is; or paths of files, which are decoded on access; or images of Pillow
        and arrays as `to_image` takes them, which are kept in memory.
      channels: 3 or 1.
      min_side: The smallest accepted height and width in pixels.
      max_pixels: The most pixels of a file.

    Raises:
      UserError: There is nothing to iterate over, an image cannot be used, only some of them are paths, or a source has
        defective images or images of other channels.
    """
    if isinstance(images, Source):
        _check_source(images, channels)
        return images
    every = list(several(images))
    paths = [pathlib.Path(image) for image in every if isinstance(image, str | os.PathLike)]
    if not paths:
        options = {"channels": channels, "min_side": min_side}
        return ArraySource([to_image(image, number=number, **options).image for number, image in enumerate(every)])
    if len(paths) < len(every):
        raise UserError("images must be all paths, or all arrays and images of Pillow; give those of one kind")
    count = len(paths)
    return FolderSource(
        paths=paths,
        masks=[None] * count,
        ids=[_id(number) for number in range(count)],
        labels=[0] * count,
        defects=[GOOD] * count,
        place=_PLACE,
        channels=channels,
        min_side=min_side,
        max_pixels=max_pixels,
    )


def _check_source(source: Source, channels: int) -> None:
    """Refuses images that are not good ones, or that have not the channels that the network expects."""
    if defective := [name for name, label in zip(source.ids, source.labels, strict=True) if label]:
        raise UserError(
            f"{counted(len(defective), 'image')} of {source.place} are labeled defective, such as '{defective[0]}'; "
            "jaxad trains on good images alone: give a source of those"
        )
    if len(source) and (found := source[0].image.shape[-1]) != channels:
        raise UserError(
            f"the images of {source.place} have {counted(found, 'channel')}, and config.data.channels is {channels}; "
            "make the two agree",
            about="data.channels",
        )


def _id(number: int) -> str:
    return f"train/{GOOD}/{number:06d}"


def _decoded(given: Image.Image, number: int) -> np.ndarray:
    """The pixels of an image of Pillow, uint8 (h, w, 3), which is left as it is."""
    if given.mode not in _LEVELS:
        raise UserError(
            f"image {number} is an image of Pillow in mode {given.mode}, whose levels are not from 0 to 255; give the "
            "path of its file, or scale it to 8 bits"
        )
    try:
        image = ImageOps.exif_transpose(given)
        if "transparency" in image.info:  # a transparent colour; Pillow warns unless it passes through RGBA
            image = image.convert("RGBA")
        return np.array(image.convert("RGB"))
    except Exception as error:  # a cut-off file, which Pillow decodes only now, or one that was closed
        raise UserError(f"image {number}, an image of Pillow, cannot be decoded ({first_line(error)})") from error


def _kind(given: Any) -> str:
    return f"{type(given).__module__}.{type(given).__qualname__}".removeprefix("builtins.")
