"""The white level of 16-bit files: which value of a sensor with 10, 12, 14 or 16 bits is white.

A file of 16 bits may hold the values of a sensor as they are. Divided by 257, the 4,096 values of 12 bits would become
16 grey levels. So the white level comes from the config, from what the files declare, or from the largest value of
all training images.
"""

import contextlib
import functools
import struct
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxad.data.tiff import TIFF_SIGNATURES, Page, find_page
from jaxad.errors import counted

FULL = 2**16 - 1  # the white of a file that uses all 16 bits
_SENSORS = (8, 10, 12, 14, 16)  # bits of common sensors
_TIFF, _PNG = "TIFF tag 281 (MaxSampleValue)", "PNG sBIT"
_SHOWN = 10  # files that a sentence names
_ROWS = 64  # of an image that are mapped at a time


class WhiteLevel(NamedTuple):
    """Where 16-bit values are white, and a line that says why.

    Attributes:
      value: In [1, 65535]; None where no training image has 16 bits and the config gives none.
      reason: For the user to read; empty where there is nothing to say.
    """

    value: int | None
    reason: str


def to_8_bits(image: np.ndarray, white_level: int | None) -> tuple[np.ndarray, int]:
    """Maps 0 to 0 and the white level to 255, rounded; larger values become 255 too.

    Args:
      image: uint16 (h, w, c).
      white_level: In [1, 65535]; None for 65535, so that v becomes round(v / 257).

    Returns:
      uint8 (h, w, c), and the number of pixels with a value above the white level.
    """
    white = white_level or FULL
    table, mapped, above = _table(white), np.empty(image.shape, np.uint8), 0
    for start in range(0, len(image), _ROWS):  # NumPy takes 8 bytes for each value that it looks up
        rows = slice(start, start + _ROWS)
        mapped[rows] = table[image[rows]]
        above += int((image[rows] > white).any(axis=-1).sum()) if white < FULL else 0
    return mapped, above


@functools.lru_cache
def _table(white: int) -> np.ndarray:
    values = np.arange(FULL + 1, dtype=np.int64)
    return np.minimum((values * 510 + white) // (2 * white), 255).astype(np.uint8)


def has_16_bits(data: bytes) -> bool:
    """Whether a file may hold more than 8 bits a channel, from its header; only PNG and TIFF files do."""
    if data.startswith(b"\x89PNG"):
        return data[24:25] == b"\x10"  # bit depth in the IHDR chunk
    page = _tiff_page(data)
    return page is not None and page.max_bits > 8


def declared(data: bytes) -> tuple[int, str] | None:
    """The white level that a file of 16 bits declares, and by what; None where it declares none."""
    if data.startswith(b"\x89PNG"):
        bits = _significant_bits(data)
        return (2**bits - 1, _PNG) if 1 <= bits <= 16 else None
    page = _tiff_page(data)
    return (page.max_sample, _TIFF) if page is not None and 1 <= page.max_sample <= FULL else None


def _significant_bits(data: bytes) -> int:
    """The most bits of a colour channel that a PNG's sBIT chunk names; 0 without one."""
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"sBIT":
            channels = length - (data[25] in (4, 6))  # colour types with alpha, whose bits come last
            return max(data[at + 8 : at + 8 + channels], default=0)
        if kind in (b"IDAT", b"PLTE"):  # the chunk lies before them
            return 0
        at += length + 12
    return 0


def _tiff_page(data: bytes) -> Page | None:
    """The page that is read; None for another format, and for a damaged file, as decoding says."""
    with contextlib.suppress(Exception):  # on damaged tags anything may be raised
        return find_page(data) if data[:4] in TIFF_SIGNATURES else None
    return None


def choose(
    scanned: Mapping[str, Mapping],
    given: int,
    *,
    noun: str = "training image",
    setting: str = "config.data.white_level",
) -> WhiteLevel:
    """The white level of a training set, or of other images that belong together.

    What the config gives decides, else what the files declare, else the largest value: a common sensor's white that is
    not below it. Files that declare different levels probably declare their own largest values, so the same is
    done with the largest declared one. PNG files whose sBIT names fewer bits than their values need hold values
    that were scaled to 16 bits, as PNG's specification asks.

    Args:
      scanned: What `Source.fingerprint` tells of each training image, by its id.
      given: ``config.data.white_level``; 0 for automatic.
      noun: What one of them is, for the line.
      setting: The key of the config that gives it; "" where none does.
    """
    deep = {name: row for name, row in scanned.items() if "peak" in row}
    if not deep:
        return WhiteLevel(given or None, "")
    peak = max(row["peak"] for row in deep.values())
    value, why = (given, f"as {setting} says") if given else _automatic(list(deep.values()), peak)
    above = sum(row["peak"] > value for row in deep.values())
    files = f"{counted(len(deep), noun)} {'have' if len(deep) > 1 else 'has'} 16 bits"
    reason = f"{files}; white is {value}, {why}"
    if above:
        holds = "hold" if above > 1 else "holds"
        reason += f"; {above} of them {holds} larger values, up to {peak}, which are read as this level"
    return WhiteLevel(value, f"{reason}; --{setting}=N sets it" if setting and not given else reason)


def _automatic(deep: list[Mapping], peak: int) -> tuple[int, str]:
    """The white level of files whose largest value is `peak`, and why."""
    declarations = [tuple(row["declared"]) for row in deep if row["declared"]]
    if not declarations:
        return _sensor_white(peak), f"since their largest value is {peak}"
    levels = sorted({level for level, _ in declarations})
    names = " and ".join(sorted({name for _, name in declarations}))
    some = "" if len(declarations) == len(deep) else f" of {len(declarations)} of them"
    if peak > levels[-1] and names == _PNG:
        return FULL, f"since values reach {peak}: above {levels[-1]}, as {names}{some} says, they are scaled to 16 bits"
    if len(levels) > 1:
        return _sensor_white(levels[-1]), f"since {names}{some} differs between files, from {levels[0]} to {levels[-1]}"
    return levels[0], f"as {names}{some} says"


def _sensor_white(value: int) -> int:
    return next(2**bits - 1 for bits in _SENSORS if value < 2**bits)


def clipped_images(deep: Mapping[str, tuple[int, int]], white_level: int | None) -> str:
    """A sentence on files of 16 bits that the training images say nothing of; "" without any.

    Args:
      deep: How many pixels lie above the white level, and the largest value, by file.
      white_level: That of the training images; None where none of them had 16 bits.
    """
    if white_level is None:
        rows = [f"'{name}' (largest value {peak})" for name, (_, peak) in deep.items()]
        verbs, what = ("has", "have"), f"16 bits and no training image had: {FULL} is taken for white"
    else:
        rows = [f"'{name}' ({counted(above, 'pixel')})" for name, (above, _) in deep.items() if above]
        verbs = "holds", "hold"
        what = f"values above {white_level}, the white of the 16-bit training images, which are read as this level"
    if not rows:
        return ""
    files = f"{counted(len(rows), 'image')} {verbs[len(rows) > 1]}"
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return f"{files} {what}: {', '.join(rows[:_SHOWN])}{more}"
