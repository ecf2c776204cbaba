"""Real-IAD: Wang et al., CVPR 2024. Five views of every sample, and lists in JSON of what is trained on and tested."""

import os
import pathlib
from typing import Any

from jaxad.data.folder import GOOD
from jaxad.data.layouts.found import Found, Item, unpack
from jaxad.errors import UserError
from jaxad.runtime import disk

TITLE = "Real-IAD"
READ = "OK", "NG"
_LISTS = pathlib.Path("realiad_jsons", "realiad_jsons")  # of all views; those of a single one lie beside it
_GOOD = "OK"


def is_here(folder: pathlib.Path) -> bool:
    """Whether a folder is a category of Real-IAD, ``realiad_<size>/<category>``, be it incomplete."""
    above = pathlib.Path(os.path.abspath(folder)).parent.name
    return above.startswith("realiad_") and any(os.path.isdir(folder / part) for part in READ)


def find(folder: pathlib.Path) -> Found:
    """Finds the images and masks of one category by its list, ``realiad_jsons/realiad_jsons/<category>.json``.

    Every view is an image of its own, and those in one folder show one sample. The defect types are the codes of the
    list.

    Raises:
      UserError: The list, or a file that it names, is missing; the list is damaged, names no training images, or
        defective ones.
    """
    place = pathlib.Path(os.path.abspath(folder))  # the folder may be given as "."
    path = place.parent.parent / _LISTS / f"{place.name}.json"
    try:
        listed = disk.read_json(path, unpack(TITLE))
    except OSError as error:
        raise UserError(f"list '{path}' cannot be read ({error.strerror}); {unpack(TITLE)}", about=path) from error
    try:
        train, test = ([_item(row, folder) for row in listed[split]] for split in ("train", "test"))
    except (KeyError, TypeError, AttributeError) as error:
        what = "holds no images with image_path, mask_path and anomaly_class, to train on and to test"
        raise UserError(f"list '{path}' {what}; {unpack(TITLE)}", about=path) from error
    if not train or any(item.defect != GOOD for item in train):
        raise UserError(f"list '{path}' names no training images, or defective ones; {unpack(TITLE)}", about=path)
    return Found(train, test, folder / _GOOD, note="each view by itself")


def _item(row: dict[str, Any], folder: pathlib.Path) -> Item:
    image, defect = folder / row["image_path"], str(row["anomaly_class"])
    masks = (folder / row["mask_path"],) if row["mask_path"] else ()
    if missing := next((file for file in (image, *masks) if not os.path.isfile(file)), None):
        raise UserError(f"'{missing}', which the list of {TITLE} names, does not exist; {unpack(TITLE)}", about=missing)
    name = pathlib.PurePath(row["image_path"]).with_suffix("")
    item = Item(image, GOOD, str(name), group=str(name.parent))
    return item if defect == _GOOD else item._replace(defect=defect, masks=masks or None)
