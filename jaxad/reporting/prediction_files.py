"""The folder that ``jaxad.predict`` writes, and how a call that was interrupted goes on in it.

predict.json marks the folder and says what was asked; it comes first. A picture is whole before its row is written, and
so is the image's line in predictions.jsonl. A row names the digest of its image, so the rows on the disk tell what need
not be done again.

predictions.csv and predictions.jsonl are UTF-8. In their texts ``\\\\`` is a backslash, and ``\\xNN`` a byte of a
file's name that is no UTF-8, so that different names stay different (`disk.escaped`).
"""

import collections
import contextlib
import csv
import hashlib
import io
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxad import config as configs
from jaxad.data import binding
from jaxad.errors import UserError, other_version
from jaxad.runtime import disk

COLUMNS = (
    "path", "score", "threshold", "decision", "peak_row", "peak_column",
    "judged_top", "judged_left", "judged_bottom", "judged_right", "largest_value", "clipped_pixels", "heatmap",
    "reason", "sha256",
)  # fmt: skip
_MARKER, _TABLE, _LINES = "predict.json", "predictions.csv", "predictions.jsonl"
_FOLDERS = ("heatmaps", "maps", "masks")
_WRITER = "jaxad.predict"
_LONGEST = 200  # bytes of a picture's name before its suffix; file systems take 255 with it
_JPEG_SIDE = 65_500  # the longest side that libjpeg writes


class Request(NamedTuple):
    """What a call was asked for; only one with the same request may go on with its rows.

    Attributes:
      detector: A digest of the detector.
      paths: The images.
      batch: Images that are scored together.
      side: Longest side of a heatmap, 0 for the image's own; None for no heatmaps.
      maps: "npy", "tiff" or None.
      masks: Whether masks are written.
    """

    detector: str
    paths: list[Path]
    batch: int
    side: int | None
    maps: str | None
    masks: bool = False

    def described(self) -> dict:
        """It as predict.json holds it."""
        return self._asdict() | {"paths": [str(path) for path in self.paths], "writer": _WRITER}


class Entry(NamedTuple):
    """What is written of an image: its row of predictions.csv, and its line of predictions.jsonl without the end."""

    row: list
    line: str


def digest(path: Path) -> str:
    """SHA-256 of a file, empty where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _written(folder: Path, files: list[Path]) -> list[Path]:
    """Those of a folder's files that earlier calls wrote into a folder that they marked."""
    names = {_MARKER, _TABLE, _LINES, disk.LOCK} if _marked(folder) else set()
    if folder.name in _FOLDERS and (marked := _marked(folder.parent)):
        with contextlib.suppress(KeyError, TypeError):  # of another version it is not known
            names |= _pictures(marked, _rows(folder.parent))[folder.name].keys()
    return [file for file in files if file.name in names]


def _pictures(marked: dict, rows: list[list[str]]) -> dict[str, dict[str, int]]:
    """What a call with this marker writes into each folder: the numbers of the images by the names of their files.

    An image's row tells which suffix its heatmap has; that of an image without a row may have either.

    Raises:
      KeyError, TypeError: Another version of jaxad has written the marker.
    """
    if not isinstance(marked["paths"], list):
        raise TypeError("its paths are no list")
    suffixes = (".jpg", ".png") if marked["side"] is not None else (), (f".{marked['maps']}",) if marked["maps"] else ()
    listed, times = {}, collections.Counter(disk.escaped(path) for path in marked["paths"])
    for row in rows:
        listed.setdefault(row[COLUMNS.index("path")], []).append(row[COLUMNS.index("heatmap")])
    listed = {path: drawn for path, drawn in listed.items() if len(drawn) == times[path]}  # it may be named twice
    heatmaps, maps, masks = {}, {}, {}
    for number, path in enumerate(marked["paths"], start=1):
        name, known = stem(number, Path(path)), listed.get(disk.escaped(path))
        drawn = (f"{name}{suffix}" for suffix in suffixes[0])
        heatmaps |= {file: number for file in drawn if known is None or disk.escaped(f"{_FOLDERS[0]}/{file}") in known}
        maps |= {f"{name}{suffix}": number for suffix in suffixes[1]}
        masks |= {f"{name}.png": number} if marked["masks"] else {}
    return dict(zip(_FOLDERS, (heatmaps, maps, masks), strict=True))


def _rows(output: Path) -> list[list[str]]:
    """The rows of a folder's predictions.csv, up to one that a kill cut off."""
    try:
        with open(output / _TABLE, newline="", encoding="utf-8", errors="surrogateescape") as file:
            found = list(csv.reader(file))[1:]
    except (OSError, csv.Error):
        return []
    return list(itertools.takewhile(lambda row: len(row) == len(COLUMNS), found))


def _lines(output: Path) -> list[str]:
    """The lines of a folder's predictions.jsonl, up to one that a kill cut off."""
    try:
        found = (output / _LINES).read_text(encoding="utf-8").split("\n")[:-1]  # behind the last end there is nothing
    except (OSError, UnicodeDecodeError):
        return []
    return list(itertools.takewhile(lambda line: _path_in(line) is not None, found))


def _path_in(line: str) -> str | None:
    """The image that a line of predictions.jsonl is about; None where it is no such line."""
    try:
        return json.loads(line)["path"]
    except (ValueError, KeyError, TypeError):
        return None


def _marked(folder: Path) -> dict | None:
    """What predict.json of a folder says; None where there is none of ours."""
    try:
        found = json.loads((folder / _MARKER).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("writer") == _WRITER else None


def check(output: Path, request: Request) -> dict[str, dict[str, int]]:
    """Refuses a folder in which the predictions would take the place of files that are not ours.

    Returns:
      What an earlier call wrote into the folders, as `_pictures`.

    Raises:
      UserError: It holds such a file or folder.
    """
    remedy = "move it away or choose another --output"
    marked = _marked(output)
    if marked is None:
        for name in (_TABLE, _LINES, _MARKER, *_FOLDERS):
            path = output / name
            if path.is_file() or (path.is_dir() and any(path.iterdir())):
                raise UserError(f"{path} was not written by jaxad.predict; {remedy}", about=path)
        return {folder: {} for folder in _FOLDERS}
    try:
        ours, coming = _pictures(marked, _rows(output)), _pictures(request.described(), [])
    except (KeyError, TypeError) as error:
        raise other_version(str(output), f"{_MARKER} says other things", remedy, about=output) from error
    for folder in _FOLDERS:
        for name in coming[folder].keys() - ours[folder].keys():
            if (output / folder / name).exists():
                raise UserError(
                    f"{output / folder / name} was not written by jaxad.predict; {remedy}", about=output / folder / name
                )
    return ours


def stem(number: int, path: Path) -> str:
    """What a picture is called, without suffix: its number and the image's name, cut where it is too long."""
    name = f"{number:05d}_{path.stem}"
    while len(name.encode("utf-8", "surrogateescape")) > _LONGEST:
        name = name[:-1]
    return name


def save_picture(folder: Path, name: str, picture: np.ndarray) -> str:
    """Writes a picture, uint8 (h, w, 3), as JPEG, or as PNG where a side is longer than JPEG can have.

    Returns:
      The name with its suffix.
    """
    suffix, kind = (".jpg", "JPEG") if max(picture.shape) <= _JPEG_SIDE else (".png", "PNG")
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, kind, quality=90)
    _put(folder / f"{name}{suffix}", encoded.getbuffer())
    return f"{name}{suffix}"


def save_map(folder: Path, name: str, map: np.ndarray, kind: str) -> None:
    """Writes a score map, float32 (h, w), in the format `kind`, "npy" or "tiff"."""
    encoded = io.BytesIO()
    if kind == "npy":
        np.save(encoded, map)
    else:
        Image.fromarray(map).save(encoded, "TIFF")
    _put(folder / f"{name}.{kind}", encoded.getbuffer())


def save_mask(folder: Path, name: str, mask: np.ndarray) -> str:
    """Writes a mask, uint8 (h, w) of 0 and 1, as a PNG of 0 and 255; returns its name with the suffix."""
    encoded = io.BytesIO()
    Image.fromarray(mask * np.uint8(255)).save(encoded, "PNG", compress_level=1)
    _put(folder / f"{name}.png", encoded.getbuffer())
    return f"{name}.png"


def _put(path: Path, data: bytes | memoryview) -> None:
    """Writes a file at once. Unlike `disk.write_bytes` it does not wait for the disk, which a picture is not worth."""
    unfinished = disk.temporary(path)
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def prepare(output: Path, request: Request) -> list[Entry]:
    """Makes the folder ready: marks it, and removes what an earlier call left and this one does not go on with.

    Returns:
      What an interrupted call with the same request has made of the same images: whole batches.

    Raises:
      UserError: As in `check`; or a picture would take the place of a file that is not ours.
    """
    asked = request.described()
    stale, coming = check(output, request), _pictures(asked, [])
    marked = _marked(output)
    again = marked == asked | {"complete": False}
    rows = _kept(output, request) if again else []
    for folder in (".", *_FOLDERS):
        (output / folder).mkdir(parents=True, exist_ok=True)
        disk.clean(output / folder)
    # As long as the old marker and the old table stand, they tell which pictures are ours.
    for folder in _FOLDERS:
        for picture in (output / folder).iterdir():
            if stale[folder].get(picture.name, 0) > len(rows) and picture.is_file():
                picture.unlink()
        if not coming[folder] and not any((output / folder).iterdir()):
            (output / folder).rmdir()
    if not again:
        for name in (_TABLE, _LINES):  # a kill before the next one must not pass it off as this call's
            (output / name).unlink(missing_ok=True)
    disk.write_json(output / _MARKER, asked | {"complete": False})
    return rows


def _kept(output: Path, request: Request) -> list[Entry]:
    """The entries of whole batches that still hold."""
    found, kept = [Entry(*both) for both in zip(_rows(output), _lines(output), strict=False)], 0
    for number, ((row, line), path) in enumerate(zip(found, request.paths, strict=False), start=1):
        values = dict(zip(COLUMNS, row, strict=True))
        # The digest is the last column: where it is whole, so is the row.
        same = values["path"] == disk.escaped(str(path)) == _path_in(line) and values["sha256"] == digest(path)
        name = stem(number, path)
        heatmaps = [output / "heatmaps" / f"{name}{suffix}" for suffix in (".jpg", ".png")]
        drawn = not values["heatmap"] or any(heatmap.is_file() for heatmap in heatmaps)
        # What could not be read is tried again: a package that it takes may be there now.
        if not same or values["decision"] == "unreadable" or not drawn:
            break
        if request.maps and not (output / "maps" / f"{name}.{request.maps}").is_file():
            break
        if request.masks and not (output / "masks" / f"{name}.png").is_file():
            break
        kept = number
    return found[: kept if kept == len(request.paths) else kept - kept % request.batch]


class Table:
    """predictions.csv and predictions.jsonl, of which every entry is on the disk as soon as it is added."""

    def __init__(self, output: Path, entries: list[Entry]):
        # The new files take the old ones' places at once, with the entries that are kept.
        kept = io.StringIO(newline="")
        csv.writer(kept).writerows([COLUMNS, *(entry.row for entry in entries)])
        _put(output / _LINES, "".join(f"{entry.line}\n" for entry in entries).encode())
        _put(output / _TABLE, kept.getvalue().encode())
        self._lines = open(output / _LINES, "a", encoding="utf-8", newline="\n")  # noqa: SIM115
        self._rows = open(output / _TABLE, "a", newline="", encoding="utf-8")  # noqa: SIM115
        self._writer = csv.writer(self._rows)

    def add(self, entry: Entry) -> None:
        """Writes an entry, the row last: where it is whole, so is the line."""
        self._lines.write(f"{entry.line}\n")
        self._lines.flush()
        self._writer.writerow(entry.row)
        self._rows.flush()

    def close(self) -> None:
        """Closes the files with all entries on the disk."""
        for file in (self._lines, self._rows):
            os.fsync(file.fileno())
            file.close()


def complete(output: Path, request: Request) -> None:
    """Says in predict.json that nothing is missing: the next call begins anew."""
    disk.write_json(output / _MARKER, request.described() | {"complete": True})


def walk(paths: list[str], listing: Callable, suffixes: tuple[str, ...]) -> tuple[list[Path], list[Path], list[Path]]:
    """The images named, what lies in the folders named and is no image file, and what a training wrote there.

    Args:
      paths: Files, which are images as they are, and folders with images directly in them and below.
      listing: Gives the files and the subfolders of a folder, sorted.
      suffixes: Those of images, in lower case.

    Raises:
      UserError: A path does not exist, or a folder holds no image.
    """
    images, others, trained = [], [], []
    for path in map(Path, paths):
        disk.refuse_nul(path)
        if not path.is_dir():
            if not os.path.lexists(path):
                raise UserError(f"image '{path}' does not exist; check the path", about=path)
            images.append(path)
            continue
        found = _walk(path, listing, suffixes)
        if not found[0]:
            raise UserError(f"folder {path} holds no images", about=path)
        for every, inside in zip((images, others, trained), found, strict=True):
            every += inside
    return images, others, trained


def _walk(top: Path, listing: Callable, suffixes: tuple[str, ...]) -> tuple[list[Path], list[Path], list[Path]]:
    """As `walk`, of a single folder, in which there may be no image."""
    images, others, trained, waiting = [], [], [], [(top, frozenset())]
    while waiting:
        folder, above = waiting.pop()
        place = os.path.realpath(folder)
        if place in above:  # a link to a folder that it lies in has no end
            others.append(folder)
            continue
        files, folders = listing(folder)
        if configs.is_workdir(folder):
            trained += [path for path in (*files, *folders) if path.name in (*binding.WRITTEN, disk.LOCK)]
            files, folders = ([path for path in paths if path not in trained] for paths in (files, folders))
        written = set(_written(folder, files))
        for file in files:
            if file not in written:
                (images if _is_image(file, suffixes) else others).append(file)
        if folder.suffix.lower() in suffixes and not (files or folders):  # it may be a mishap
            others.append(folder)
        waiting += [(subfolder, above | {place}) for subfolder in reversed(folders)]
    return images, others, trained


def _is_image(file: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether it is one by its suffix and can be read or tried: to read from a pipe or a device may never end."""
    return file.suffix.lower() in suffixes and (file.is_file() or not file.exists())
