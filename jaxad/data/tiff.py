"""TIFF files: the page to read, its tags, and which library decodes it faithfully.

Pillow keeps only 8 of the 16 bits of colors. OpenCV returns wrong pixels for several kinds of files without a word. So
the tags decide who decodes what, and what no one reads is refused by its name. tifffile with imagecodecs, which the
extra ``tiff`` installs, reads what the other two do not.
"""

import io
import struct
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from jaxad.data.silence import opencv_silence, pillow_silence, silence_libtiff

BIG_TIFF = (b"II+\0", b"MM\0+")
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", *BIG_TIFF)

# Tags of TIFF 6.0 and its supplements.
_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
_FILL_ORDER, _ORIENTATION, _SAMPLES, _MAX_SAMPLE, _PLANAR, _SUB_IFDS, _FORMAT = 266, 274, 277, 281, 284, 330, 339
_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES, _EXTRA_SAMPLES = 273, 279, 324, 325, 338
_TAGS = frozenset((
    _SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _ORIENTATION, _SAMPLES,
    _PLANAR, _SUB_IFDS, _FORMAT, _STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES, _EXTRA_SAMPLES,
    _MAX_SAMPLE,
))  # fmt: skip
_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 17: "i8", 18: "u8"}
_REDUCED, _TRANSPARENCY, _OLD_REDUCED = 1, 4, 2

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLORS = {
    _PALETTE: "a palette", 4: "a transparency mask", _CMYK: "CMYK colors", _YCBCR: "YCbCr colors",
    8: "CIE L*a*b* colors", 9: "ICC L*a*b* colors", 10: "ITU L*a*b* colors",
    32803: "the raw mosaic of a color filter array (CFA)", 32844: "LogL pixels", 32845: "LogLuv pixels",
    34892: "linear raw colors",
}  # fmt: skip
_NONE, _JPEG, _OLD_JPEG = 1, 7, 6
_COMPRESSIONS = {
    _NONE: "no", 2: "CCITT", 3: "CCITT fax 3", 4: "CCITT fax 4", 5: "LZW", _OLD_JPEG: "old-style JPEG", _JPEG: "JPEG",
    8: "Deflate", 9: "JBIG", 10: "JBIG", 22610: "JPEG XR", 32771: "16-bit padding", 32773: "PackBits",
    32809: "ThunderScan", 32946: "Deflate", 33003: "JPEG 2000", 33004: "JPEG 2000", 33005: "JPEG 2000", 34676: "SGILog",
    34677: "SGILog", 34712: "JPEG 2000", 34887: "LERC", 34892: "lossy JPEG", 34925: "LZMA", 34926: "Zstandard",
    34933: "PNG", 34934: "JPEG XR", 50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
_BY_PILLOW = {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000}
_BY_OPENCV = {1, 5, 8, 32773, 32946}
# Not JPEG XR and PNG, whose decoders write on the screen about damaged files, or overlook the damage.
_BY_TIFFFILE = {
    1, 5, 7, 8, 32773, 32946, 33003, 33004, 33005, 34712, 34887, 34925, 34926, 50000, 50001, 50002, 52546,
}  # fmt: skip
OPENCV_PIXELS, OPENCV_SIDE = 2**30, 2**20  # the most that OpenCV reads


class UnsupportedError(Exception):
    """The file is intact, but nothing that is at hand reads it faithfully; the message says what it has."""


class MissingExtraError(Exception):
    """The file is intact, and the packages of the extra ``tiff`` read it; the message says what it has."""


class _Directory(NamedTuple):
    """The tags of a page by number, each as whole numbers; where their values lie; and the offset of the next page."""

    tags: dict[int, np.ndarray]
    places: dict[int, int]
    following: int


class Page(NamedTuple):
    """The page that is read.

    Attributes:
      data: The file, with this page as the first one.
      tags: Its tags by number, each a non-empty sequence of whole numbers.
      places: Where in the file their values lie.
    """

    data: bytes
    tags: dict[int, np.ndarray]
    places: dict[int, int]

    def __getitem__(self, tag: int) -> int:
        """The first number of a tag, or its default."""
        return int(self.tags.get(tag, _DEFAULTS.get(tag, (0,)))[0])

    @property
    def size(self) -> tuple[int, int]:
        """Stored width and height in pixels."""
        return self[_WIDTH], self[_HEIGHT]

    @property
    def orientation(self) -> int:
        """The EXIF orientation, 1 to 8."""
        return self[_ORIENTATION] if 1 <= self[_ORIENTATION] <= 8 else 1

    @property
    def bits(self) -> int:
        """Bits of every channel; raises UnsupportedError where they differ."""
        if len(set(map(int, self.tags.get(_BITS, (1,))))) > 1:
            raise UnsupportedError("channels of different numbers of bits")
        return self[_BITS]

    @property
    def max_bits(self) -> int:
        """The most bits of a channel."""
        return int(max(self.tags.get(_BITS, (1,))))

    @property
    def max_sample(self) -> int:
        """The value that the file calls its largest (MaxSampleValue); 0 where it names none."""
        return int(max(self.tags.get(_MAX_SAMPLE, (0,))))

    @property
    def is_lossy(self) -> bool:
        """Whether the pixels are surely those of a JPEG."""
        return self[_COMPRESSION] in (_JPEG, _OLD_JPEG)

    @property
    def has_white_zero(self) -> bool:
        """Whether 0 is white and larger values are darker."""
        return self[_PHOTOMETRIC] == _WHITE_IS_ZERO

    @property
    def has_associated_alpha(self) -> bool:
        """Whether the other channels are stored multiplied by the alpha channel."""
        return self[_SAMPLES] in (2, 4) and self[_EXTRA_SAMPLES] == 1


_DEFAULTS = {_BITS: (1,), _COMPRESSION: (1,), _FILL_ORDER: (1,), _ORIENTATION: (1,), _SAMPLES: (1,), _PLANAR: (1,)}


def find_page(data: bytes) -> Page:
    """The first page that is neither a reduced copy of another one nor its transparency, else the first page.

    A camera may write the full image below a thumbnail, as its SubIFD.

    Raises:
      Exception: Any, where the file is damaged.
    """
    order, big = "<" if data[:2] == b"II" else ">", data[:4] in BIG_TIFF
    field, start = (order + "Q", 8) if big else (order + "I", 4)
    first = struct.unpack_from(field, data, start)[0]
    full = (page for page in _pages(data, first, order, big) if _is_full(page[1].tags))
    offset, directory = next(full, None) or (first, _read_tags(data, first, order, big))
    if offset != first:
        data = data[:start] + struct.pack(field, offset) + data[start + struct.calcsize(field) :]
    page = Page(data, directory.tags, directory.places)
    if not all(page.size) or not {_STRIPS, _TILES} & page.tags.keys():
        raise ValueError("a required tag is missing")
    _check_whole(page)
    return page


def _pages(data: bytes, first: int, order: str, big: bool) -> Iterator[tuple[int, _Directory]]:
    """The offsets and directories of the pages, each followed by its SubIFDs."""
    waiting, seen = [first], set()
    while waiting:
        offset = int(waiting.pop(0))
        if not offset or offset in seen:
            continue
        seen.add(offset)
        directory = _read_tags(data, offset, order, big)
        yield offset, directory
        waiting = [*directory.tags.get(_SUB_IFDS, ()), *waiting, directory.following]


def _is_full(tags: dict[int, np.ndarray]) -> bool:
    kind, old = (int(tags.get(tag, (0,))[0]) for tag in (_SUBFILE, _OLD_SUBFILE))
    return not kind & (_REDUCED | _TRANSPARENCY) and old != _OLD_REDUCED


def _read_tags(data: bytes, offset: int, order: str, big: bool) -> _Directory:
    """Reads one directory; other tags than those above are passed over."""
    count, head, pointer, entry, room = ("Q", "HHQ", "Q", 20, 8) if big else ("H", "HHI", "I", 12, 4)
    entries = struct.unpack_from(order + count, data, offset)[0]
    offset += struct.calcsize(count)
    tags, places = {}, {}
    for at in range(offset, offset + entries * entry, entry):
        tag, kind, number = struct.unpack_from(order + head, data, at)
        if tag not in _TAGS or kind not in _INTEGERS or not number:
            continue
        values = np.dtype(order + _INTEGERS[kind])
        at += entry - room
        if number * values.itemsize > room:
            (at,) = struct.unpack_from(order + pointer, data, at)
        tags[tag], places[tag] = np.frombuffer(data, values, number, at), at
    (following,) = struct.unpack_from(order + pointer, data, offset + entries * entry)
    return _Directory(tags, places, following)


def _check_whole(page: Page) -> None:
    """Raises ValueError if compressed pixels lie beyond the end, of which some decoders say nothing."""
    for offsets, sizes in ((_STRIPS, _STRIP_BYTES), (_TILES, _TILE_BYTES)):
        starts, lengths = page.tags.get(offsets), page.tags.get(sizes)
        if starts is None or lengths is None or page[_COMPRESSION] == _NONE:
            continue
        ends = starts.astype(np.float64) + lengths[: len(starts)]
        if ends.max() > len(page.data):
            raise ValueError("pixels are missing at the end")


def choose_reader(page: Page) -> str:
    """Which library decodes the page: ``pillow``, ``opencv`` or ``tifffile``.

    Raises:
      UnsupportedError: None does so faithfully.
    """
    bits, compression, photometric, samples = page.bits, page[_COMPRESSION], page[_PHOTOMETRIC], page[_SAMPLES]
    if set(map(int, page.tags.get(_FORMAT, (1,)))) != {1}:
        raise UnsupportedError("signed or floating-point pixels")
    if bits > 16:
        raise UnsupportedError(f"{bits} bits a channel")
    if photometric > _YCBCR or (bits > 8 and photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _YCBCR)):
        raise UnsupportedError(_COLORS.get(photometric, f"colors of kind {photometric}") + _of_bits(page))
    if bits <= 8 and compression in _BY_PILLOW and page.data[:4] != BIG_TIFF[1] and _open_with_pillow(page):
        return "pillow"
    chunky = page[_PLANAR] == 1 or samples == 1
    plain = (photometric, samples) in ((_BLACK_IS_ZERO, 1), (_RGB, 3), (_RGB, 4)) and chunky and page[_FILL_ORDER] == 1
    if bits == 16 and plain and compression in _BY_OPENCV and fits_opencv(page.size):
        return "opencv"
    if compression not in _BY_TIFFFILE:
        name = _COMPRESSIONS.get(compression)
        raise UnsupportedError(f"{name} compression" if name else f"a compression of kind {compression}")
    grey = photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) and samples <= 2
    color = (photometric == _RGB or (photometric == _YCBCR and compression == _JPEG)) and samples in (3, 4)
    if not (grey or color):
        colors = _COLORS.get(photometric, "grey or RGB pixels")
        raise UnsupportedError(f"{samples} channels of {colors}{_of_bits(page)}")
    return "tifffile"


def _of_bits(page: Page) -> str:
    return f" of {page.bits} bits" if page.bits > 8 else ""


def fits_opencv(size: tuple[int, int]) -> bool:
    """Whether OpenCV reads images of this width and height."""
    return max(size) <= OPENCV_SIDE and size[0] * size[1] <= OPENCV_PIXELS


def _open_with_pillow(page: Page) -> TiffImageFile | None:
    """None where Pillow knows no such pixels: opening reads the tags alone, and `find_page` found these whole."""
    try:
        with pillow_silence():
            return TiffImageFile(io.BytesIO(page.data))
    except SyntaxError:
        return None


def needed_for(page: Page) -> str:
    """What of a page takes the extra ``tiff`` to read."""
    if page[_COMPRESSION] not in _BY_OPENCV:
        return f"{_COMPRESSIONS[page[_COMPRESSION]]} compression{_of_bits(page)}"
    if page.bits not in (8, 16):
        return f"{page.bits} bits a channel"
    if page[_PLANAR] != 1 and page[_SAMPLES] > 1:
        return f"separate color planes{_of_bits(page)}"
    if page[_SAMPLES] == 2:
        return f"grey pixels with alpha{_of_bits(page)}"
    if page.has_white_zero:
        return f"grey pixels with 0 as white{_of_bits(page)}"
    if page.data[:4] == BIG_TIFF[1]:
        return "a BigTIFF layout of big-endian numbers"
    return f"unusual pixels{_of_bits(page)}"


def open_with_pillow(page: Page) -> TiffImageFile:
    """Opens a page of up to 8 bits; Pillow turns it upright when it loads the pixels."""
    silence_libtiff()
    opened = _open_with_pillow(page)
    with pillow_silence():
        opened.getexif()  # loading the pixels looks this up again
    opened.im = Image.core.new(opened.mode, page.size)  # Pillow would check its own limit before it made this
    return opened


def decode_with_opencv(data: bytes) -> np.ndarray:
    """Decodes 16-bit pixels: uint16 (h, w, c), in the order RGB; raises ValueError on damaged ones."""
    with opencv_silence:
        try:
            decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error as error:
            raise ValueError("OpenCV refuses the picture") from error
    if decoded is None or decoded.dtype != np.uint16:
        raise ValueError("no 16-bit picture")
    if decoded.ndim == 2:
        return decoded[..., None]
    order = cv2.COLOR_BGR2RGB if decoded.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    return cv2.cvtColor(decoded, order, dst=decoded)


def without_orientation(page: Page) -> bytes:
    """The file with its orientation set to 1, since OpenCV applies it, and fails where that swaps the sides."""
    if page.orientation == 1:
        return page.data
    at, value = page.places[_ORIENTATION], np.ones_like(page.tags[_ORIENTATION]).tobytes()
    return page.data[:at] + value + page.data[at + len(value) :]


def decode_with_tifffile(page: Page) -> np.ndarray:
    """Decodes what Pillow and OpenCV do not: uint8 or, with more than 8 bits, uint16 (h, w, c), as they are stored.

    Raises:
      MissingExtraError: The extra is not installed.
      Exception: Any, where the pixels are damaged.
    """
    tifffile, _ = import_extra(needed_for(page))
    with tifffile.TiffFile(io.BytesIO(page.data)) as file:
        first = file.pages[0]
        pixels = first.asarray()
        if first.axes == "SYX":
            pixels = np.moveaxis(pixels, 0, -1)
    if pixels.shape[:2] != page.size[::-1] or pixels.dtype not in (np.uint8, np.uint16, bool):
        raise UnsupportedError(f"pixels of the shape {first.axes} and the type {pixels.dtype}")
    return pixels.reshape(*pixels.shape[:2], -1)


def import_extra(what: str) -> tuple:
    """The packages tifffile and imagecodecs; raises MissingExtraError about `what` where one is not installed."""
    try:
        import imagecodecs
        import tifffile
    except ModuleNotFoundError:
        raise MissingExtraError(what) from None
    return tifffile, imagecodecs
