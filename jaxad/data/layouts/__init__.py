"""Data sets as they are published: a line of `LAYOUTS` says what tells a folder of one, and how its files are found.

The layout of MVTec AD and a plain folder of good images are those of `jaxad.data.folder`.
"""

import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxad.data.folder import GOOD, FolderSource, category_folder
from jaxad.data.folder import load as load_folder
from jaxad.data.image import IMAGE_SUFFIXES, MAX_PIXELS, list_folder, other_files
from jaxad.data.layouts import by_defect, kolektor, real_iad, table, visa
from jaxad.data.layouts.found import Found, Item, require
from jaxad.data.record import VALIDATION, Dataset
from jaxad.errors import UserError
from jaxad.runtime import disk

AUTOMATIC, MVTEC_AD, TABLE = "folder", "mvtec_ad", "table"
_MVTEC_AD = "MVTec AD"
_READ = ("train", "validation", "test", "ground_truth")


class Layout(NamedTuple):
    """How a data set is laid out.

    Attributes:
      title: Its name.
      is_here: Whether a folder is one of its categories, or of its images where it has no categories.
      find: Finds the images in such a folder.
      read: The folders in it from which images are read, whatever lies in them.
    """

    title: str
    is_here: Callable[[pathlib.Path], bool]
    find: Callable[[pathlib.Path], Found]
    read: tuple[str, ...] = _READ


def _by_defect(
    title: str, is_here: Callable[[pathlib.Path], bool], *, read: tuple[str, ...] = _READ, **options: Any
) -> Layout:
    return Layout(title, is_here, functools.partial(by_defect.find, title=title, **options), read)


LAYOUTS = {
    "mvtec_ad_2": _by_defect(
        by_defect.AD_2,
        by_defect.is_ad_2,
        validation="validation",
        test="test_public",
        masks="test_public/ground_truth",
        unused=by_defect.PRIVATE,
        read=("train", "validation", "test_public", *by_defect.PRIVATE),
    ),
    "mvtec_loco": Layout(by_defect.LOCO, by_defect.is_loco, by_defect.find_loco),
    "visa": Layout(visa.TITLE, visa.is_here, visa.find, read=("Data",)),
    "real_iad": Layout(real_iad.TITLE, real_iad.is_here, real_iad.find, read=real_iad.READ),
    "btad": _by_defect(by_defect.BTAD, by_defect.is_btad, good="ok"),
    "autovi": _by_defect(by_defect.AUTOVI, by_defect.is_autovi, several=True),
    "kolektor_sdd": Layout(kolektor.SDD, kolektor.is_sdd, kolektor.find_sdd, read=(".",)),
    "kolektor_sdd2": Layout(kolektor.SDD2, kolektor.is_sdd2, kolektor.find_sdd2),
}
SOURCES = (AUTOMATIC, MVTEC_AD, *LAYOUTS, TABLE)  # what config.data.source may be for files that are read as they are


def recognized(folder: pathlib.Path) -> str | None:
    """The key of `LAYOUTS` that a folder is told by; None for one in MVTec AD's layout and for a plain one.

    Published folders of a category hold no images directly, so a folder that does is a plain one, whatever its
    subfolders are called.

    Raises:
      UserError: A folder cannot be read.
    """
    if os.path.isdir(folder) and any(path.suffix.lower() in IMAGE_SUFFIXES for path in list_folder(folder)[0]):
        return None
    return next((name for name, layout in LAYOUTS.items() if layout.is_here(folder)), None)


def _is_table(path: str | os.PathLike) -> bool:
    return os.fspath(path).lower().endswith(table.SUFFIXES) and os.path.isfile(path)


def folders_read(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folders in a category's folder, there or not, from which images are read; none for a plain one.

    Of a table they are those of the files that it names.
    """
    if _is_table(folder):
        found = table.find(folder)
        items = [*found.train, *found.validation, *found.test]
        return list(dict.fromkeys(file.parent for item in items for file in (item.path, *(item.masks or ()))))
    if name := recognized(folder):
        return [folder / part for part in LAYOUTS[name].read]
    return [folder / part for part in ("train", "test", "ground_truth")] if (folder / "train").is_dir() else []


def load(
    source: str,
    root: str | os.PathLike,
    category: str,
    *,
    test: str = "",
    ground_truth: str = "",
    min_side: int = 1,
    channels: int = 3,
    white_level: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Dataset:
    """Finds the images and masks of one category; nothing is decoded yet but masks that tell which images are good.

    Validation images are records of the training source, which their ids tell (`jaxad.data.record.VALIDATION`).

    Args:
      source: One of `SOURCES`; ``folder`` recognizes the layout by what lies there.
      root: The folder of categories, or of one category, or a table.
      category: The category's name, or "".
      test: See `jaxad.data.folder.load`, for folders that it reads.
      ground_truth: Likewise.
      min_side: The smallest accepted height and width in pixels, checked when an image is decoded.
      channels: 3 for RGB images, 1 for grey ones, whatever the files hold.
      white_level: The white level of 16-bit files (see `jaxad.data.image.read_image`).
      max_pixels: The most pixels of an image that are accepted, checked when it is decoded.

    Returns:
      The training and the test source.

    Raises:
      UserError: `root` is empty or missing; there is no such category; a part of the data set is missing, which is
        named; a file cannot be read; `test` or `ground_truth` is given for a data set that has its own.
    """
    options = {"min_side": min_side, "channels": channels, "white_level": white_level, "max_pixels": max_pixels}
    named = {"data.test": test, "data.ground_truth": ground_truth}
    if source == TABLE or (source == AUTOMATIC and _is_table(root)):
        _refuse_named(table.TITLE, root, {"data.category": category, **named})
        return _dataset(table.TITLE, table.find(pathlib.Path(root)), options)
    folder = category_folder(root, category)
    name = recognized(folder) if source == AUTOMATIC else source
    if name is None or name == MVTEC_AD:
        if name == MVTEC_AD:
            _check_is_category(folder, _MVTEC_AD, _is_mvtec_ad)
            require(folder, _MVTEC_AD, f"train/{GOOD}")
        return load_folder(root, category, test=test, ground_truth=ground_truth, **options)
    layout = LAYOUTS[name]
    _check_is_category(folder, layout.title, layout.is_here)
    other = f", or set config.data.source={MVTEC_AD} for other test images" if _is_mvtec_ad(folder) else ""
    _refuse_named(layout.title, folder, named, other)
    return _dataset(layout.title, layout.find(folder), options)


def _is_mvtec_ad(folder: pathlib.Path) -> bool:
    return os.path.isdir(folder / "train" / GOOD)


def _refuse_named(title: str, place: str | os.PathLike, named: dict[str, str], otherwise: str = "") -> None:
    """Refuses keys of the config that would have no effect."""
    for key, value in named.items():
        if value:
            raise UserError(
                f"config.{key} is '{value}', but '{place}' ({title}) says itself which images are which; leave "
                f"config.{key} empty{otherwise}",
                about=key,
            )


def _check_is_category(folder: pathlib.Path, title: str, is_here: Callable[[pathlib.Path], bool]) -> None:
    """Refuses a folder of categories."""
    if is_here(folder):
        return
    if names := [path.name for path in list_folder(folder)[1] if is_here(path)]:
        raise UserError(
            f"'{folder}' holds the folders of {title} ({', '.join(names)}); name one of them: "
            f"--config.data.root={folder / names[0]}",
            about=folder,
        )


def _dataset(title: str, found: Found, options: dict[str, int | None]) -> Dataset:
    place = f"'{found.place}' ({'; '.join(part for part in (title, found.note) if part)})"
    others = [[path for folder in part for path in other_files(folder)] for part in found.folders]
    train = [("train", item) for item in found.train] + [(VALIDATION, item) for item in found.validation]
    test = [("test", item) for item in found.test]
    _refuse_repeated([item for _, item in train + test])
    return Dataset(
        _source(train, place=place, beside=found.beside, others=others[0], **options),
        _source(test, place=place, others=others[1], saturations=found.saturations, **options),
    )


def _refuse_repeated(items: list[Item]) -> None:
    """Refuses a file that is there twice: what is tested must not have been seen in training."""
    seen = set()
    for item in items:
        if (place := os.path.abspath(item.path)) in seen:
            raise UserError(f"image '{item.path}' is listed twice; keep one of the rows", about=item.path)
        seen.add(place)


def _source(rows: list[tuple[str, Item]], **options: Any) -> FolderSource:
    by_id: dict[str, Item] = {}
    for split, item in rows:
        name = disk.escaped(f"{split}/{item.defect}/{item.name}")
        if name in by_id:
            raise UserError(
                f"'{by_id[name].path}' and '{item.path}' differ only in the suffix; rename or remove one of them",
                about=item.path,
            )
        by_id[name] = item
    items = list(by_id.values())
    return FolderSource(
        paths=[item.path for item in items],
        masks=[item.masks for item in items],
        ids=list(by_id),
        labels=[int(item.defect != GOOD) for item in items],
        defects=[disk.escaped(item.defect) for item in items],
        groups=[disk.escaped(item.group) for item in items] if any(item.group for item in items) else None,
        **options,
    )
