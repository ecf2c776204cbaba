"""Chest X-rays: the NIH ChestX-ray14 release, with lists that say which of its images are good and which are abnormal.

Wang et al. 2017 released 112,120 frontal X-rays of 1024 x 1024 grey pixels (some files are RGBA) and a table of
findings that a program read out of the reports. Schlüter et al. 2022 (Section 4) use a part of them, "rCXR": of the
subset curated by Tang et al. 2020 what the table calls posteroanterior and over 18 years of age, men and women apart.
Sex, view and age follow from the table, but not the curated subset, whose images were judged by radiologists. So the
lists cannot be derived. The authors' own are in ``chest_xray_lists``, under their licence.
"""

import os
import pathlib
from collections.abc import Sequence

from jaxad.data.folder import GOOD, FolderSource
from jaxad.data.image import MAX_PIXELS, list_folder
from jaxad.data.record import Dataset
from jaxad.data.text import read_table, read_text
from jaxad.errors import UserError
from jaxad.runtime import disk

ABNORMAL = "abnormal"  # defect type of images of which the table knows no finding
SEVERAL = "several findings"
_SHIPPED = pathlib.Path(__file__).with_name("chest_xray_lists")
_NO_FINDING = "No Finding"
_TABLE = "Data_Entry_2017*.csv"
_IMAGE, _FINDINGS = "Image Index", "Finding Labels"  # columns of the table


def load(
    root: str | os.PathLike,
    *,
    lists: str | os.PathLike,
    train: str,
    test_good: str,
    test_abnormal: str,
    min_side: int = 1,
    channels: int = 1,
    white_level: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Dataset:
    """Finds the listed images; nothing is decoded yet.

    Images lie in `root`, in ``root/images`` or in ``root/images_*/images``, as archives of the release unpack. A list
    is a text file with the name of one image in each line (``00000001_000.png``). An abnormal image's defect type is
    its finding in ``root/Data_Entry_2017*.csv`` (of several tables the last by name, which is the corrected one):
    "several findings" where it has more than one, and "abnormal" without a table or where that says "No Finding". There
    are no masks, so the pixel truth of abnormal images is unknown.

    Args:
      root: The folder of the release.
      lists: The folder of the lists; "" for those of the paper's authors, which jaxad brings.
      train: File name of the list of good training images.
      test_good: File name of the list of good test images; "" for none.
      test_abnormal: File name of the list of abnormal test images; "" for none.
      min_side: The smallest accepted height and width in pixels, checked when an image is decoded.
      channels: 1 for grey images, 3 for RGB.
      white_level: The white level of 16-bit files (see ``read_image``).
      max_pixels: The most pixels of an image that are accepted, checked when it is decoded.

    Returns:
      The training and the test source, in the order of the lists, good test images first.

    Raises:
      UserError: A folder or list is missing or unreadable; a list is empty or no text; a name is not among the images,
        or is listed twice; the table lacks a column or an abnormal image; `root` or `train` is empty.
    """
    if not os.fspath(root):
        raise UserError(
            "config.data.root is empty; name the folder of the NIH release: --config.data.root=DIR", about="data.root"
        )
    if not train:
        raise UserError(
            "config.data.train_list is empty; name the list of good training images", about="data.train_list"
        )
    root, folder = pathlib.Path(root), pathlib.Path(lists or _SHIPPED)
    listed = [(folder / name, _read_list(folder / name) if name else []) for name in (train, test_good, test_abnormal)]
    _check_disjoint(listed)
    images = _find_images(root)
    for path, files in listed:
        if unknown := next((file for file in files if file not in images), None):
            raise UserError(
                f"'{unknown}' of the list '{path}' is not in '{root}', its 'images' or 'images_*/images'; "
                "add the image or remove the line",
                about=path,
            )

    def source(split: str, files: Sequence[str], defects: Sequence[str]) -> FolderSource:
        return FolderSource(
            paths=[images[file] for file in files],
            masks=[None] * len(files),
            ids=[
                disk.escaped(f"{split}/{defect}/{images[file].stem}")
                for file, defect in zip(files, defects, strict=True)
            ],
            labels=[int(defect != GOOD) for defect in defects],
            defects=list(defects),
            min_side=min_side,
            channels=channels,
            white_level=white_level,
            max_pixels=max_pixels,
            place=f"'{root}'",
        )

    good, tested, abnormal = (files for _, files in listed)
    defects = [GOOD] * len(tested) + _findings(root, abnormal)
    return Dataset(source("train", good, [GOOD] * len(good)), source("test", tested + abnormal, defects))


def _read_list(path: pathlib.Path) -> list[str]:
    remedy = "name the folder of the lists with config.data.lists, and the lists in it with config.data.*_list"
    names = [name for line in read_text(path, list, remedy) if (name := line.strip())]
    if not names:
        raise UserError(f"the list '{path}' is empty; write the name of one image into each line", about=path)
    return names


def _check_disjoint(lists: Sequence[tuple[pathlib.Path, list[str]]]) -> None:
    """Refuses an image that is listed twice: what is tested must not have been seen in training."""
    seen: dict[str, pathlib.Path] = {}
    for path, files in lists:
        for file in files:
            if file in seen:
                raise UserError(
                    f"image '{file}' is listed in '{seen[file]}' and again in '{path}'; keep one of the lines",
                    about=file,
                )
            seen[file] = path


def _find_images(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The files of the release's image folders by name."""
    files, folders = list_folder(root)
    unpacked = [folder / "images" for folder in folders if folder.name.startswith("images_")]
    for folder in [folder for folder in folders if folder.name == "images"] + unpacked:
        if folder.is_dir():
            files += list_folder(folder)[0]
    return {path.name: path for path in files}


def _findings(root: pathlib.Path, files: Sequence[str]) -> list[str]:
    """The defect types of abnormal images."""
    tables = sorted(root.glob(_TABLE))
    if not tables:
        return [ABNORMAL] * len(files)
    rows = read_table(tables[-1], (_IMAGE, _FINDINGS), "download it again or move it away")
    found = {row[_IMAGE]: row[_FINDINGS] for _, row in rows}
    if unknown := next((file for file in files if not found.get(file)), None):
        raise UserError(
            f"'{tables[-1]}' has no finding of '{unknown}'; download it again or move it away", about=tables[-1]
        )
    return [_defect(found[file]) for file in files]


def _defect(findings: str) -> str:
    if findings == _NO_FINDING:
        return ABNORMAL
    return SEVERAL if "|" in findings else findings
