"""A table of images, one row each: a CSV file with the columns ``image``, ``label``, ``split`` and maybe ``mask``."""

import os
import pathlib

from jaxad.data.folder import GOOD
from jaxad.data.layouts.found import Found, Item
from jaxad.data.text import read_table
from jaxad.errors import UserError

TITLE = "table"
SUFFIX = ".csv"
_COLUMNS = ("image", "label", "split")
_MASK = "mask"
_SPLITS = ("train", "validation", "test")
_GOOD_ELSEWHERE = (GOOD, "ok", "normal")  # what good images are called in other data sets


def find(path: pathlib.Path) -> Found:
    """Reads the table. Its paths start from its folder, and other columns are not read.

    ``label`` is ``good`` or the defect type, ``split`` is ``train``, ``validation`` or ``test``. Images of the first
    two are good. Either all defective images have a ``mask`` or none has.

    Raises:
      UserError: The table cannot be read, lacks a column or training images, or has a row with more values than
        columns, an unknown split, a defective image to train on, a mask of a good image, or a file that does not exist.
    """
    remedy = f"name a CSV file with the columns {', '.join(_COLUMNS)} with config.data.root, and maybe {_MASK}"
    rows = read_table(path, _COLUMNS, remedy)
    splits: dict[str, list[Item]] = {split: [] for split in _SPLITS}
    for number, row in enumerate(rows, 1):
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
    unread = [column for column in rows[0] if column not in (*_COLUMNS, _MASK)]
    note = f"columns not read: {', '.join(unread)}" if unread else ""
    return Found(**splits, place=path, note=note)


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
    return Item(files["image"], defect, name, (files[_MASK],) if _MASK in files else None)
