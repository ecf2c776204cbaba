"""Looks at every image and mask of a folder as a training would, and goes on after what a training would refuse."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

from jaxad.data import MIN_SIDE, health, layouts, levels
from jaxad.data.folder import FolderSource
from jaxad.data.image import overlooking
from jaxad.data.mask import read_mask
from jaxad.data.room import Room, pixels_of
from jaxad.errors import UserError

_READERS = 2
# Folders that layouts are told by: without one of these the rest would be taken for another layout.
_PARTS = {"train", "validation", "test", "test_public", "ground_truth", "good", "ok"}


class Look(NamedTuple):
    """What is found of one image and its masks.

    Attributes:
      path: The image file.
      split, defect: Such as ``train``, ``validation`` or ``test``, and ``good`` or the defect type.
      refusals: Sentences on why the image or a mask cannot be used.
      measures: None where the image or its mask cannot be used.
      bits: 8 or 16.
      mask: What `jaxad.data.health.suspicious_mask` says.
    """

    path: pathlib.Path
    split: str
    defect: str
    refusals: tuple[str, ...] = ()
    measures: health.Measures | None = None
    bits: int = 8
    mask: str | None = None


class Survey(NamedTuple):
    """What is found in a folder.

    Attributes:
      refusals: Sentences on why its files are no data set, in order of their discovery.
      stopped: Whether the last of them hid what lies behind it, so that no image was looked at.
      train, test: What the layout found, without the files of `refusals`; None where it was stopped.
      looks: Of the training images, then of the test images, in the order of the sources.
      white: The sentence on the white level of 16-bit files; "" without any.
    """

    refusals: list[str]
    stopped: bool
    train: FolderSource | None = None
    test: FolderSource | None = None
    looks: tuple[Look, ...] = ()
    white: str = ""


def survey(folder: str | os.PathLike, *, test: str = "", ground_truth: str = "") -> Survey:
    """Looks at the images of a folder, in any layout that `jaxad.data.layouts` recognizes.

    An image is decoded once, one of 16 bits twice, since the white level follows from all of them.

    Args:
      folder: A category's folder, a plain folder of good images, or a table.
      test: See `jaxad.data.folder.load`.
      ground_truth: Likewise.
    """
    with without_warnings():
        refusals, found = _load(folder, test, ground_truth)
        if found is None:
            return Survey(refusals, True)
        with ThreadPoolExecutor(_READERS) as pool:
            rows = list(pool.map(lambda index: _fingerprint(found[0], index), range(len(found[0]))))
            white = levels.choose({str(number): row for number, row in enumerate(rows) if row}, 0)
            train, test_source = (dataclasses.replace(source, white_level=white.value) for source in found)
            room, every = Room(), [(source, index) for source in (train, test_source) for index in range(len(source))]
            looks = tuple(pool.map(lambda one: _look(*one, room), every))
    return Survey(refusals, False, train, test_source, looks, white.reason)


def _load(
    folder: str | os.PathLike, test: str, ground_truth: str
) -> tuple[list[str], tuple[FolderSource, FolderSource] | None]:
    """What is wrong with the files' places, and the sources of those where nothing is; None where there is no going on.

    A layout stops at the first file that is wrong. That one is then overlooked, and the layout is read again.
    """
    refusals: list[str] = []
    overlooked: frozenset[str] = frozenset()
    while True:
        try:
            with overlooking(overlooked):
                dataset = layouts.load(
                    layouts.AUTOMATIC, folder, "", test=test, ground_truth=ground_truth, min_side=MIN_SIDE
                )
            return refusals, (dataset.train, dataset.test)
        except UserError as error:
            refusals.append(str(error))
            about = error.about
            if about is None or about in overlooked or not _may_overlook(about, folder):
                return refusals, None
            overlooked |= {about}


def _may_overlook(about: str, folder: str | os.PathLike) -> bool:
    """Whether the data set is the same without this file or folder."""
    if os.path.isdir(about):
        return pathlib.Path(about).name not in _PARTS and not os.path.samefile(about, folder)
    return os.path.isfile(about) and not (os.path.isfile(folder) and os.path.samefile(about, folder))


def _fingerprint(source: FolderSource, index: int) -> dict | None:
    """None for a file that cannot be read, as is told when it is looked at."""
    try:
        return source.fingerprint(index)
    except UserError:
        return None


def _look(source: FolderSource, index: int, room: Room) -> Look:
    path, defect, split = source.paths[index], source.defects[index], source.ids[index].partition("/")[0]
    seen = Look(path, split, defect)
    with room.taken(pixels_of(path)):
        try:
            record = source[index]
        except UserError as error:
            sentences = dict.fromkeys([str(error), *_mask_refusals(source, index)])
            return seen._replace(refusals=tuple(sentences))
        bits = 16 if str(path) in source.deep else 8
        marked = record.mask if record.label else None
        what = None if marked is None else health.suspicious_mask(marked)
        return seen._replace(measures=health.measure(record.image), bits=bits, mask=what)


def _mask_refusals(source: FolderSource, index: int) -> Iterator[str]:
    """Why masks cannot be decoded, each by itself."""
    for path in source.masks[index] or ():
        try:
            read_mask(path, max_pixels=source.max_pixels)
        except UserError as error:
            yield str(error)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Within it nothing is logged: what masks are warned of on access is told in the findings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
