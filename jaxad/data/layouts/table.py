"""A table of images, one row each: a CSV or Parquet file with the columns ``image``, ``label`` and ``split``.

It may have the columns ``mask`` and ``group`` too.
"""

import functools
import os
import pathlib

from jaxad.data.folder import GOOD
from jaxad.data.layouts.found import Found, Item
from jaxad.data.text import Rows, check_columns, read_table
from jaxad.errors import UserError, first_line

TITLE = "table"
_PARQUET = ".parquet"
SUFFIXES = (".csv", _PARQUET)
_COLUMNS = ("image", "label", "split")
_MASK, _GROUP = "mask", "group"
_SPLITS = ("train", "validation", "test")
_GOOD_ELSEWHERE = (GOOD, "ok", "normal")  # what good images are called in other data sets
_REMEDY = (
    f"name a CSV or Parquet file with the columns {', '.join(_COLUMNS)} with config.data.root, and maybe {_MASK} and "
    f"{_GROUP}"
)


def find(path: pathlib.Path) -> Found:
    """Reads the table. Its paths start from its folder, and other columns are not read.

    ``label`` is ``good`` or the defect type, ``split`` is ``train``, ``validation`` or ``test``. Images of the first
    two are good. Either all defective images have a ``mask`` or none has. Images of the same ``group`` are views of one
    sample.

    Raises:
      UserError: The table cannot be read, lacks a column or training images, or has a row with more values than
        columns, an unknown split, a defective image to train on, a mask of a good image, or a file that does not exist.
    """
    state = path.stat() if path.is_file() else None
    return _find(path, os.path.abspath(path), state and (state.st_mtime_ns, state.st_size))


@functools.lru_cache(maxsize=1)  # a training looks at the folders of the images before it loads these
def _find(path: pathlib.Path, place: str, state: tuple[int, int] | None) -> Found:
    """`find` of a table; `place` and `state` tell whether it is the very one that was read before."""
    rows, unread = _rows(path)
    splits: dict[str, list[Item]] = {split: [] for split in _SPLITS}
    for number, row in rows:
        where = f"row {number} of '{path}'"
        if None in row:  # what the header has no columns for
            raise UserError(f"{where} has more values than there are columns; quote those with commas", about=path)
        if row["split"] not in splits:
            raise UserError(f"{where} has the split '{row['split'] or ''}'; write {', '.join(_SPLITS)}", about=path)
        splits[row["split"]].append(_item(row, where, path))
    if not splits["train"]:
        raise UserError(f"'{path}' has no row with the split train; add the good training images", about=path)
    defective = [item for item in splits["test"] if item.defect != GOOD]
    bare = [item for item in defective if item.masks is None]
    if bare and len(bare) < len(defective):
        raise UserError(
            f"image '{bare[0].path}' has no mask in '{path}', and other defective images have; add it, or leave all "
            "masks out",
            about=path,
        )
    return Found(**splits, place=path, note=f"columns not read: {', '.join(unread)}" if unread else "")


def _rows(path: pathlib.Path) -> tuple[Rows, list[str]]:
    """The rows, with their numbers, and the names of the columns that are not read."""
    read = (*_COLUMNS, _MASK, _GROUP)
    if path.suffix.lower() == _PARQUET:
        return _parquet_rows(path, read)
    rows = read_table(path, _COLUMNS, _REMEDY)
    return rows, [column for column in (rows[0][1] if rows else ()) if column is not None and column not in read]


def _parquet_rows(path: pathlib.Path, read: tuple[str, ...]) -> tuple[Rows, list[str]]:
    """The rows of a Parquet file, which has no header, so that the first is row 1. Values become text."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise UserError(
            f"'{path}' is a Parquet file, which takes an optional package to read; run python3 -m pip install "
            "'jaxad[table]', or save it as CSV",
            about=path,
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            header = file.schema_arrow.names
            check_columns(path, header, _COLUMNS, _REMEDY)
            rows = file.read(columns=[column for column in header if column in read]).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"'{path}' cannot be read ({first_line(error)}); {_REMEDY}", about=path) from error
    texts = [{name: None if value is None else str(value) for name, value in row.items()} for row in rows]
    return list(enumerate(texts, 1)), [column for column in header if column not in read]


def _item(row: dict[str, str], where: str, path: pathlib.Path) -> Item:
    defect = row["label"]
    if not defect:
        raise UserError(f"{where} has no label; write {GOOD} or the defect type", about=path)
    if defect != GOOD and defect.strip().lower() in _GOOD_ELSEWHERE:
        raise UserError(f"{where} has the label '{defect}', which would be a defect type; write {GOOD}", about=path)
    if defect != GOOD and row["split"] != "test":
        raise UserError(
            f"{where} has the label '{defect}' and the split {row['split']}, which takes only images labeled {GOOD}; "
            "correct one of them",
            about=path,
        )
    named = {column: row.get(column) for column in ("image", _MASK)}
    files = {column: path.parent / name for column, name in named.items() if name}
    if "image" not in files:
        raise UserError(f"{where} names no image; write its path", about=path)
    if missing := next((file for file in files.values() if not os.path.isfile(file)), None):
        raise UserError(f"{where} names '{missing}', which does not exist; correct the path", about=path)
    if defect == GOOD and _MASK in files:
        raise UserError(f"{where} gives a mask to a good image, which has no defect; remove it", about=path)
    name = str(pathlib.PurePath(named["image"]).with_suffix(""))
    masks = (files[_MASK],) if _MASK in files else None
    return Item(files["image"], defect, name, masks, group=row.get(_GROUP) or "")
