"""KolektorSDD and KolektorSDD2, whose masks lie beside the images.

An image whose mask marks no pixel is good. So the masks are decoded when the images are looked for. See
Tabernik et al., Journal of Intelligent Manufacturing 2020, and Božič et al., Computers in Industry 2021.
"""

import os
import pathlib
import re
from concurrent.futures import ThreadPoolExecutor

from jaxad.data.folder import GOOD, unique_stems
from jaxad.data.image import find_images, list_folder
from jaxad.data.layouts.found import Found, Item, require, unpack, without_image, without_mask
from jaxad.data.mask import read_mask
from jaxad.errors import UserError, counted

SDD, SDD2 = "KolektorSDD", "KolektorSDD2"
DEFECT = "defect"  # the only type
_ITEM = re.compile(r"kos\d\d")
_TESTED = 5  # of so many items of KolektorSDD one is tested
_COPY = "(copy)"  # ends the names of two files of KolektorSDD2 that its archive holds twice


def is_sdd(folder: pathlib.Path) -> bool:
    """Whether a folder is KolektorSDD, be it incomplete."""
    return os.path.isdir(folder) and any(_ITEM.fullmatch(path.name) for path in list_folder(folder)[1])


def is_sdd2(folder: pathlib.Path) -> bool:
    """Whether a folder is KolektorSDD2, be it incomplete."""
    parts = [folder / name for name in ("train", "test") if os.path.isdir(folder / name)]
    if os.path.isdir(folder / "train" / GOOD):  # MVTec AD's layout
        return False
    return any(path.stem.endswith("_GT") for part in parts for path in list_folder(part)[0])


def find_sdd(folder: pathlib.Path) -> Found:
    """Finds the images of KolektorSDD in ``kos<number>/Part<number>.jpg``, with masks ``Part<number>_label.bmp``.

    It has no split of its own for learning from good images. The good images of every fifth item are tested, so that no
    item is in both parts, and all defective ones.

    Raises:
      UserError: There are no items; a mask or the image of a mask is missing; a mask cannot be read.
    """
    places = [path for path in list_folder(folder)[1] if _ITEM.fullmatch(path.name)]
    if not places:
        raise UserError(f"'{folder}' has no folders 'kos01', 'kos02', ... of {SDD}; {unpack(SDD)}", about=folder)
    train, test = [], []
    for place in places:
        tested = int(place.name.removeprefix("kos")) % _TESTED == 0
        for item in _items(place, "_label", SDD, prefix=f"{place.name}/"):
            (test if item.defect == DEFECT or tested else train).append(item)
    note = f"good images of every {_TESTED}th item are tested"
    return Found(train, test, folder, note=note, folders=(tuple(places), ()))


def find_sdd2(folder: pathlib.Path) -> Found:
    """Finds the images of KolektorSDD2 in ``train/<number>.png`` and ``test``, with masks ``<number>_GT.png``.

    Defective training images are left out.

    Raises:
      UserError: A folder, a mask or the image of a mask is missing; a mask cannot be read.
    """
    require(folder, SDD2, "train", "test")
    train, test = (_items(folder / name, "_GT", SDD2) for name in ("train", "test"))
    good = [item for item in train if item.defect == GOOD]
    left = counted(len(train) - len(good), "defective image")
    places = (folder / "train",), (folder / "test",)
    return Found(good, test, folder / "train", note=f"{left} of it left out", folders=places)


def _items(folder: pathlib.Path, suffix: str, title: str, *, prefix: str = "") -> list[Item]:
    """The images of a folder; their masks have the same stems with a suffix."""
    files = [path for path in find_images(folder) if not path.stem.endswith(_COPY)]
    masks = {path.stem.removesuffix(suffix): path for path in files if path.stem.endswith(suffix)}
    images = unique_stems([path for path in files if not path.stem.endswith(suffix)])
    if not images:
        raise UserError(f"folder '{folder}' holds no images of {title}; {unpack(title)}", about=folder)
    if bare := next((path for path in images if path.stem not in masks), None):
        raise without_mask(bare, title, f"{bare.with_suffix('')}{suffix}.*")
    if alone := next((mask for stem, mask in masks.items() if stem not in {path.stem for path in images}), None):
        raise without_image(alone, title)
    with ThreadPoolExecutor(2) as pool:  # reading and decoding release the GIL
        defective = list(pool.map(lambda path: bool(read_mask(masks[path.stem]).any()), images))
    return [
        Item(path, DEFECT, prefix + path.stem, (masks[path.stem],)) if marked else Item(path, GOOD, prefix + path.stem)
        for path, marked in zip(images, defective, strict=True)
    ]
