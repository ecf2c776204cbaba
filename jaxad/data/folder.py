"""Images in folders: the MVTec AD layout, and a plain folder of good images."""

import collections
import dataclasses
import difflib
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxad import config as configs
from jaxad.data.image import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    Decoded,
    decode,
    find_images,
    list_folder,
    other_files,
    read_bytes,
)
from jaxad.data.levels import declared, has_16_bits
from jaxad.data.mask import read_mask_of
from jaxad.data.record import Dataset, Record
from jaxad.data.saturation import Saturation, share_of
from jaxad.errors import UserError
from jaxad.runtime import disk

GOOD = "good"
# The categories of MVTec AD, which the papers' tables have as rows.
TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
OBJECTS = (
    "bottle", "cable", "capsule", "hazelnut", "metal_nut", "pill", "screw", "toothbrush", "transistor", "zipper",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Records that are decoded from their files on access.

    Attributes:
      paths: The image files.
      masks: The mask files of each image, of which a pixel is defective that any marks; None for good images and where
        the pixel truth is unknown.
      ids: ``train/good/<stem>`` or ``test/<defect>/<stem>``.
      labels: 0 good, 1 defective.
      defects: ``good`` or the defect type.
      min_side: The smallest accepted height and width in pixels.
      channels: 3 for RGB images, 1 for grey ones.
      place: Where the images lie, for the user to read.
      beside: The folder whose other images are left out, and the folders in it that are not.
      white_level: See `jaxad.data.levels`.
      max_pixels: The most pixels of an image that are accepted.
      others: See `Source`.
      groups: The sample that each image is a view of, "" for its own; None where there are none.
      saturations: How much of a defect is enough, by the value in its mask; None where it is not known.
      sha256: What the content of the files was when the training began; None where none is asked for.
      deep: See `Source`.
    """

    paths: list[pathlib.Path] = dataclasses.field(repr=False)
    masks: list[tuple[pathlib.Path, ...] | None] = dataclasses.field(repr=False)
    ids: list[str] = dataclasses.field(repr=False)
    labels: list[int] = dataclasses.field(repr=False)
    defects: list[str] = dataclasses.field(repr=False)
    min_side: int
    channels: int = 3
    place: str = ""
    beside: tuple[pathlib.Path, tuple[pathlib.Path, ...]] | None = None
    white_level: int | None = None
    max_pixels: int = MAX_PIXELS
    others: list[pathlib.Path] = dataclasses.field(default_factory=list, repr=False)
    groups: list[str] | None = dataclasses.field(default=None, repr=False)
    saturations: Mapping[int, Saturation] | None = dataclasses.field(default=None, repr=False)
    sha256: list[str] | None = dataclasses.field(default=None, repr=False)
    deep: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Record:
        """Decodes one record.

        Raises:
          UserError: The image or the mask cannot be used (see ``read_image`` and ``read_mask_of``), or the image is not
            the one that the source is bound to.
        """
        path = self.paths[index]
        data = read_bytes(path)
        if self.sha256 is not None and hashlib.sha256(data).hexdigest() != self.sha256[index]:
            raise UserError(
                f"image '{path}' is not the one that this training began with; restore it and run the same command "
                "again",
                about=path,
            )
        decoded = decode(
            data,
            path,
            min_side=self.min_side,
            channels=self.channels,
            white_level=self.white_level,
            max_pixels=self.max_pixels,
        )
        if decoded.peak is not None:
            self.deep[str(path)] = decoded.clipped, decoded.peak
        masks = self._masks(index, decoded)
        mask = None if masks is None else functools.reduce(np.maximum, masks)
        singles = None
        if self.saturations is not None and self.labels[index] and masks is not None:
            pairs = zip(self.masks[index], masks, strict=True)
            options = {"max_pixels": self.max_pixels}
            singles = tuple((m, share_of(m, place, self.saturations, **options)) for place, m in pairs if m.any())
        group = self.groups[index] if self.groups else ""
        return Record(decoded.image, self.labels[index], mask, self.ids[index], self.defects[index], group, singles)

    def fingerprint(self, index: int, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """See `Source.fingerprint`; only a file of 16 bits is decoded, and only when it is not the known one."""
        path = self.paths[index]
        data = read_bytes(path)
        content = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if known is not None and content.items() <= known.items():
            return dict(known)
        if not has_16_bits(data):
            return content
        peak = decode(data, path, max_pixels=self.max_pixels).peak
        return content if peak is None else content | {"peak": peak, "declared": declared(data)}

    def bound(self, fingerprints: Sequence[Mapping[str, Any]], white_level: int | None) -> "FolderSource":
        """See `Source.bound`."""
        sha256 = [fingerprint["sha256"] for fingerprint in fingerprints]
        return dataclasses.replace(self, sha256=sha256, white_level=white_level)

    def left_out(self) -> dict[str, int | None]:
        """See `Source.left_out`; at every level, without hidden entries."""
        if self.beside is None:
            return {}
        top, used = self.beside
        seen = {os.path.realpath(folder) for folder in used}
        below = [(folder, images) for folder, images in _images_below(top, seen) if images != 0]
        return {str(top) if folder == top else os.path.relpath(folder, top): images for folder, images in below}

    def _masks(self, index: int, image: Decoded) -> list[np.ndarray] | None:
        if not self.labels[index]:
            return [np.zeros(image.image.shape[:2], np.uint8)]
        masks, path = self.masks[index], self.paths[index]
        return masks and [read_mask_of(mask, image, path, max_pixels=self.max_pixels) for mask in masks]


def load(
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
    """Finds the images and masks of one category; nothing is decoded yet.

    The category's folder is ``root/category``, or ``root`` when ``category`` is "". Two layouts are told apart by
    whether it has a subfolder ``train``:

    - MVTec AD: ``train/good``, ``test/<good or defect>``, ``ground_truth/<defect>``. Without a ``test`` folder
      the test source is empty.
    - Plain: the good training images lie in the folder itself; its subfolders are read only when named as ``test``
      and ``ground_truth``, since they may hold defective images (`FolderSource.left_out` names the others).

    A mask is ``ground_truth/<defect>/<stem>_mask.*`` or ``<stem>.*``. Without any ground truth folder the masks of
    defective images are None; good images need none, theirs are zero. A mask that marks no pixel is used as it is, with
    a logged warning on access. A test subfolder may be empty. The image suffix is no part of an id, so two images in
    one folder may not share a stem. Folders may hold only the images that are described here, and files that are none
    (``find_images`` says what is overlooked).

    Args:
      root: The folder of categories, or of one category.
      category: The category's name, or "".
      test: Another folder of ``good`` and defect type subfolders; by default the layout's own.
      ground_truth: A folder of masks in the same structure; by default the layout's own, and none where ``test`` is
        given.
      min_side: The smallest accepted height and width in pixels, checked when an image is decoded.
      channels: 3 for RGB images, 1 for grey ones, whatever the files hold.
      white_level: The white level of 16-bit files (see ``read_image``).
      max_pixels: The most pixels of an image that are accepted, checked when it is decoded.

    Returns:
      The training and the test source, each in order of folder and file name.

    Raises:
      UserError: A folder is missing, unreadable or a file; the category is unknown; there are no training images; an
        image lies where none is read; ``root`` is empty; a defective image lacks its mask or has two; a mask lacks its
        image.
    """
    folder = category_folder(root, category)
    has_train = any(path.name == "train" for path in list_folder(folder)[1])
    train = _train_images(folder, has_train)
    test_folder = _part(folder, "test", test, has_train)
    masks_folder = _part(folder, "ground_truth", ground_truth, has_train and not test)
    images = _images_by_defect(test_folder) if test_folder else {}
    without = "leave config.data.ground_truth empty" if ground_truth else f"remove the folder '{masks_folder}'"
    masks = _masks_by_image(images, masks_folder, without) if masks_folder else {}
    options = {"min_side": min_side, "channels": channels, "white_level": white_level, "max_pixels": max_pixels}
    good = folder / "train" / GOOD if has_train else folder
    used = [good, *(pathlib.Path(named) for named in (test, ground_truth) if named)]
    if has_train:
        used += [folder / "test", folder / "ground_truth"]
    own = {"place": f"'{good}'", "beside": (folder, tuple(used))}
    return Dataset(
        _source("train", {GOOD: train}, {}, **options, **own, others=other_files(good)),
        _source("test", images, masks, **options, place=f"'{test_folder}'", others=_others(test_folder, masks_folder)),
    )


def category_folder(root: str | os.PathLike, category: str) -> pathlib.Path:
    """The folder ``root/category``, or `root` when `category` is "".

    Raises:
      UserError: `root` is empty, missing, unreadable or a file, or has no such category.
    """
    if not os.fspath(root):
        raise UserError(
            "config.data.root is empty; name the folder that holds the images: --config.data.root=DIR",
            about="data.root",
        )
    root = pathlib.Path(root)
    files, folders = list_folder(root)
    if not category:
        return root
    names = [path.name for path in folders]
    if category in names:
        return root / category
    if category in [path.name for path in files]:
        raise UserError(
            f"'{root / category}' is a file where the category's folder should be; name a folder", about=root / category
        )
    if root.resolve().name == category:
        raise UserError(
            f"'{root}' has no category '{category}', since it is this category's folder itself; name the one above it: "
            f"--config.data.root={root.resolve().parent}",
            about=root,
        )
    nearest = difflib.get_close_matches(category, names, n=1, cutoff=0.5)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    raise UserError(
        f"'{root}' has no category '{category}'; {hint}existing ones: {', '.join(names) or 'none'}", about=root
    )


def _train_images(folder: pathlib.Path, has_train: bool) -> list[pathlib.Path]:
    source = folder / "train" / GOOD if has_train else folder
    images = unique_stems(find_images(source, allow_subfolders=not has_train))
    if images:
        return images
    _, subfolders = list_folder(source)
    if subfolders:
        raise UserError(
            f"folder '{folder}' holds neither images nor 'train/{GOOD}', only {_quoted(subfolders)}; "
            "name a category or another folder",
            about=folder,
        )
    raise UserError(f"folder '{source}' holds no images; put the good training images there", about=source)


def _part(folder: pathlib.Path, name: str, given: str, use_own: bool) -> pathlib.Path | None:
    """The folder given, else the layout's own if it may be used and is there, else None."""
    if given:
        return pathlib.Path(given)
    own = folder / name
    return own if use_own and os.path.lexists(own) else None


def _images_by_defect(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    return {path.name: unique_stems(find_images(path)) for path in defect_folders(folder)}


def _others(*tops: pathlib.Path | None) -> list[pathlib.Path]:
    """The files that are no images in folders of defect types and directly in these."""
    places = [place for top in tops if top for place in (top, *defect_folders(top))]
    return [path for place in places for path in other_files(place)]


def defect_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """The subfolders of a folder that holds one for each defect type.

    Raises:
      UserError: An image lies in the folder itself, or "good" is spelled in another way.
    """
    files, folders = list_folder(folder)
    if images := [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]:
        raise UserError(
            f"'{images[0]}' lies directly in '{folder}', which should hold only the subfolder '{GOOD}' and one for "
            "each defect type; sort the files into these",
            about=images[0],
        )
    for path in folders:
        if path.name != GOOD and path.name.lower() == GOOD:
            raise UserError(
                f"folder '{path}' would be a defect type of that name; write '{GOOD}' in small letters", about=path
            )
    return folders


def unique_stems(files: list[pathlib.Path]) -> list[pathlib.Path]:
    """The files themselves; raises UserError where two differ only in the suffix."""
    by_stem: dict[str, pathlib.Path] = {}
    for path in files:
        if path.stem in by_stem:
            raise UserError(
                f"'{by_stem[path.stem]}' and '{path.name}' differ only in the suffix; rename or remove one of them",
                about=path,
            )
        by_stem[path.stem] = path
    return files


def _masks_by_image(
    images: dict[str, list[pathlib.Path]], folder: pathlib.Path, without: str
) -> dict[pathlib.Path, pathlib.Path]:
    """Pairs every defective image with its mask, and leaves no mask over; `without` says how to do without masks."""
    files = {path.name: find_images(path) for path in defect_folders(folder)}
    if files.get(GOOD):
        raise UserError(
            f"'{files[GOOD][0]}' is a mask of a good image, which has no defect; remove it", about=files[GOOD][0]
        )
    pairs: dict[pathlib.Path, pathlib.Path] = {}
    for defect, paths in images.items():
        by_stem = collections.defaultdict(list)
        for mask in files.get(defect, []):
            by_stem[mask.stem].append(mask)
        for image in paths if defect != GOOD else []:
            pairs[image] = _mask_of(image, by_stem, folder / defect, without)
    used = set(pairs.values())
    for defect, paths in files.items():
        for mask in paths:
            if mask not in used:
                raise UserError(
                    f"mask '{mask}' has no image among the test images of '{defect}'; add the image or remove the mask",
                    about=mask,
                )
    return pairs


def _mask_of(
    image: pathlib.Path, masks: dict[str, list[pathlib.Path]], folder: pathlib.Path, without: str
) -> pathlib.Path:
    found = masks[f"{image.stem}_mask"] + masks[image.stem]
    if not found:
        raise UserError(
            f"defective image '{image}' has no mask '{folder / image.stem}_mask.*' or '{image.stem}.*'; add it, or "
            f"{without} to do without masks and figures for pixels",
            about=image,
        )
    if len(found) > 1:
        raise UserError(f"defective image '{image}' has more than one mask: {_quoted(found)}; keep one", about=image)
    return found[0]


def _images_below(folder: pathlib.Path, seen: set[str]) -> Iterator[tuple[pathlib.Path, int | None]]:
    """How many images lie in each folder at or below this one; not in those `seen`, which grow by what is visited.

    What lies in the workdir of a training is no data.
    """
    try:
        files, subfolders = list_folder(folder)
    except UserError:
        yield folder, None
        return
    if (own := os.path.realpath(folder)) not in seen:
        yield folder, sum(path.suffix.lower() in IMAGE_SUFFIXES for path in files)
        seen.add(own)  # links may lead in circles
    for subfolder in subfolders:
        if os.path.realpath(subfolder) not in seen and not configs.is_workdir(subfolder):
            yield from _images_below(subfolder, seen)


def _source(
    split: str, images: dict[str, list[pathlib.Path]], masks: dict[pathlib.Path, pathlib.Path], **options: Any
) -> FolderSource:
    rows = [(path, defect) for defect, paths in images.items() for path in paths]
    return FolderSource(
        paths=[path for path, _ in rows],
        masks=[(masks[path],) if path in masks else None for path, _ in rows],
        ids=[disk.escaped(f"{split}/{defect}/{path.stem}") for path, defect in rows],
        labels=[int(defect != GOOD) for _, defect in rows],
        defects=[disk.escaped(defect) for _, defect in rows],
        **options,
    )


def _quoted(paths: list[pathlib.Path]) -> str:
    return ", ".join(f"'{path.name}'" for path in paths)
