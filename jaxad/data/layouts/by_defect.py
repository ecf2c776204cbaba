"""Data sets with a folder for each defect type, and one for its masks: MVTec AD 2, MVTec LOCO AD, BTAD and AutoVI.

They differ in the names of the folders, in whether there are validation images, and in whether an image has one mask or
a folder of them. MVTec AD itself, and MPDD and VisA's one-class form, which are laid out like it, are read by
`jaxad.data.folder`.
"""

import os
import pathlib

from jaxad.data.folder import GOOD, defect_folders, unique_stems
from jaxad.data.image import SUFFIXES, find_images, list_folder
from jaxad.data.layouts.found import Found, Item, good_items, require, unpack, without_image, without_mask
from jaxad.data.saturation import NAME as TABLE
from jaxad.data.saturation import read as read_saturations
from jaxad.errors import UserError

AD_2, LOCO, BTAD, AUTOVI = "MVTec AD 2", "MVTec LOCO AD", "BTAD", "AutoVI"
_LOCO_DEFECTS = ("logical_anomalies", "structural_anomalies")
PRIVATE = ("test_private", "test_private_mixed")  # of MVTec AD 2: without labels, for the benchmark's server


def is_ad_2(folder: pathlib.Path) -> bool:
    """Whether a folder is a category of MVTec AD 2, be it incomplete."""
    if any(os.path.isdir(folder / part) for part in ("test_public", *PRIVATE)):
        return True
    good = folder / "train" / GOOD
    if os.path.isdir(folder / "test") or not os.path.isdir(folder / "validation" / GOOD) or not os.path.isdir(good):
        return False
    return any(path.stem.endswith("_regular") for path in list_folder(good)[0])  # what no other set calls its images


def is_loco(folder: pathlib.Path) -> bool:
    """Whether a folder is a category of MVTec LOCO AD, be it incomplete.

    One in MVTec AD's layout may have defect types of the same names, but no validation images or folders of masks.
    """
    if os.path.isdir(folder / "validation") and os.path.isfile(folder / TABLE):
        return True
    masks = [folder / "ground_truth" / defect for defect in _LOCO_DEFECTS]
    if not any(os.path.isdir(place) for place in (*masks, *(folder / "test" / defect for defect in _LOCO_DEFECTS))):
        return False
    validated = os.path.isdir(folder / "validation") or not os.path.isdir(folder / "train" / GOOD)
    return validated or any(list_folder(place)[1] for place in masks if os.path.isdir(place))


def is_btad(folder: pathlib.Path) -> bool:
    """Whether a folder is a category of BTAD, be it incomplete."""
    if os.path.isdir(folder / "train" / GOOD):  # MVTec AD's layout, with any names of defect types
        return False
    return any(os.path.isdir(folder / part) for part in ("train/ok", "test/ok", "test/ko"))


def is_autovi(folder: pathlib.Path) -> bool:
    """Whether a folder is a category of AutoVI, told from one of MVTec AD by folders of masks, or a table alone."""
    masks = folder / "ground_truth"
    if is_loco(folder):
        return False
    if not os.path.isdir(masks):
        return os.path.isfile(folder / TABLE)
    listed = [list_folder(defect) for defect in list_folder(masks)[1]]
    return any(folders for _, folders in listed) and not any(
        path.suffix.lower() in SUFFIXES for files, _ in listed for path in files
    )


def find(
    folder: pathlib.Path,
    *,
    title: str,
    good: str = GOOD,
    validation: str = "",
    test: str = "test",
    masks: str = "ground_truth",
    several: bool = False,
    unused: tuple[str, ...] = (),
) -> Found:
    """Finds the images and masks of one category.

    Args:
      folder: The category's folder, with ``train/<good>``, ``<test>/<good or defect>`` and ``<masks>/<defect>``.
      title: The data set's name.
      good: The name of the folders of good images.
      validation: The folder of validation images, in which is one of good images; "" without.
      test: The folder of test images.
      masks: The folder of masks.
      several: Whether an image's masks are all images in ``<masks>/<defect>/<stem>``, and not ``<stem>.*`` or
        ``<stem>_mask.*`` alone.
      unused: Folders of images that belong to the data set and are not read.

    Raises:
      UserError: A folder, its images, the mask of a defective image or the image of a mask is missing; an image has two
        masks where it should have one.
    """
    splits = [f"{name}/{good}" for name in ("train", validation) if name]
    require(folder, title, *splits, f"{test}/{good}", masks)
    by_split = []
    for split in splits:
        by_split.append(good_items(unique_stems(find_images(folder / split))))
        if not by_split[-1]:
            raise UserError(
                f"folder '{folder / split}' holds no images of {title}; {unpack(title)}", about=folder / split
            )
    places = [place for place in defect_folders(folder / test) if place != folder / masks]
    by_image = _masks(folder / masks, title, several=several)
    tested = []
    for place in places:
        found = unique_stems(find_images(place))
        if place.name == good:
            tested += good_items(found)
        else:
            tested += [_defective(path, folder / masks, by_image, title, several=several) for path in found]
    if left := next(iter(by_image.values()), None):
        raise without_image(left[0], title)
    used = tuple(folder / name for name in (*splits, test, masks, *unused))
    return Found(
        train=by_split[0],
        test=tested,
        place=folder / splits[0],
        validation=by_split[1] if validation else (),
        beside=(folder, used),
        folders=(tuple(folder / split for split in splits), tuple(places)),
    )


def find_loco(folder: pathlib.Path) -> Found:
    """`find` in a category of MVTec LOCO AD, with the saturations of its table.

    Raises:
      UserError: As `find`, or the table is missing or damaged.
    """
    found = find(folder, title=LOCO, validation="validation", several=True)
    return found._replace(saturations=read_saturations(folder / TABLE, unpack(LOCO)))


def _masks(folder: pathlib.Path, title: str, *, several: bool) -> dict[tuple[str, str], list[pathlib.Path]]:
    """The mask files by defect type and by the stem of the image."""
    found: dict[tuple[str, str], list[pathlib.Path]] = {}
    for place in defect_folders(folder):
        if several:
            own = {(place.name, image.name): find_images(image) for image in list_folder(place)[1]}
            found |= {key: paths for key, paths in own.items() if paths}
            continue
        for path in find_images(place):
            stem = path.stem.removesuffix("_mask")
            if (place.name, stem) in found:
                raise UserError(
                    f"'{path}' and '{found[place.name, stem][0].name}' are masks of the same image, which has one in "
                    f"{title}; remove one of them",
                    about=path,
                )
            found[place.name, stem] = [path]
    return found


def _defective(
    path: pathlib.Path,
    folder: pathlib.Path,
    masks: dict[tuple[str, str], list[pathlib.Path]],
    title: str,
    *,
    several: bool,
) -> Item:
    """A defective image with its masks, which are taken out of `masks`."""
    defect = path.parent.name
    own = masks.pop((defect, path.stem), [])
    if not own:
        raise without_mask(path, title, f"{folder / defect / path.stem}{'/*' if several else '_mask.*'}")
    return Item(path, defect, path.stem, tuple(own))
