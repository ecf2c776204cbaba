"""VisA as its archive unpacks: Zou et al., ECCV 2022.

An object's images lie in ``<object>/Data``, and the table ``split_csv/1cls.csv`` beside the objects says which of them
are for training in the one-class setting.
"""

import os
import pathlib

from jaxad.data.folder import GOOD
from jaxad.data.layouts.found import Found, Item, require, unpack, without_mask
from jaxad.data.text import read_table
from jaxad.errors import UserError

TITLE = "VisA"
_IMAGES = ("Data/Images/Normal", "Data/Images/Anomaly")
_SPLITS = pathlib.Path("split_csv", "1cls.csv")
_LABELS = {"normal": GOOD, "anomaly": "anomaly"}


def is_here(folder: pathlib.Path) -> bool:
    """Whether a folder is an object of VisA, be it incomplete."""
    return any(os.path.isdir(folder / part) for part in _IMAGES)


def find(folder: pathlib.Path) -> Found:
    """Finds the images and masks of one object by the table in the folder above.

    Raises:
      UserError: A folder, the table, or a file that it lists is missing; the table lacks a column or the object, or has
        an unknown value.
    """
    require(folder, TITLE, *_IMAGES)
    place = pathlib.Path(os.path.abspath(folder))  # the folder may be given as "."
    path = place.parent / _SPLITS
    rows = read_table(path, ("object", "split", "label", "image", "mask"), unpack(TITLE))
    splits: dict[str, list[Item]] = {"train": [], "test": []}
    for number, row in rows:
        if row["object"] == place.name:
            if row["split"] not in splits or row["label"] not in _LABELS:
                raise UserError(
                    f"row {number} of '{path}' has the split '{row['split']}' and the label '{row['label']}', but "
                    f"{TITLE} has the splits train and test and the labels normal and anomaly; {unpack(TITLE)}",
                    about=path,
                )
            splits[row["split"]].append(_item(row, place.parent, path))
    if not splits["train"]:
        raise UserError(f"'{path}' lists no training image of '{place.name}'; {unpack(TITLE)}", about=path)
    return Found(**splits, place=folder / _IMAGES[0])


def _item(row: dict[str, str], root: pathlib.Path, table: pathlib.Path) -> Item:
    image = root / (row["image"] or "")
    if not os.path.isfile(image):
        raise UserError(f"'{image}', which '{table}' lists, does not exist; {unpack(TITLE)}", about=image)
    defect = _LABELS[row["label"]]
    if defect == GOOD:
        return Item(image, defect, image.stem)
    mask = root / (row["mask"] or "")
    if not os.path.isfile(mask):
        raise without_mask(image, TITLE, str(mask))
    return Item(image, defect, image.stem, (mask,))
