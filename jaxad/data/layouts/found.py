"""What a layout finds: the images of each split with their masks, and a sentence for each part that is missing."""

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from jaxad.data.folder import GOOD
from jaxad.data.saturation import Saturation
from jaxad.errors import UserError


class Item(NamedTuple):
    """An image file.

    Attributes:
      path: The file.
      defect: ``good`` or the defect type.
      name: The end of its id.
      masks: The mask files, of which a pixel is defective that any marks; None for good images and where the pixel
        truth is unknown.
      group: The sample that the image is a view of; "" for a sample of its own.
    """

    path: pathlib.Path
    defect: str
    name: str
    masks: tuple[pathlib.Path, ...] | None = None
    group: str = ""


class Found(NamedTuple):
    """The images of one category.

    Attributes:
      train, test: The good training images, and test images of both kinds.
      validation: Good images on which the threshold is fitted.
      place: Where the training images lie, for the user to read.
      note: What else the user is to know of them, in a few words.
      beside: The folder whose other images are left out, and the folders in it that are not; None where the layout
        itself says which images are used.
      folders: The folders of the training images, and those of the test images. Their files that are no images are
        passed over.
      saturations: How much of a defect is enough, by the value in its mask; None where the data set does not say.
    """

    train: list[Item]
    test: list[Item]
    place: pathlib.Path
    validation: Sequence[Item] = ()
    note: str = ""
    beside: tuple[pathlib.Path, tuple[pathlib.Path, ...]] | None = None
    folders: tuple[tuple[pathlib.Path, ...], tuple[pathlib.Path, ...]] = ((), ())
    saturations: Mapping[int, Saturation] | None = None


def good_items(paths: Iterable[pathlib.Path]) -> list[Item]:
    """Good images, named by their stems."""
    return [Item(path, GOOD, path.stem) for path in paths]


def require(folder: pathlib.Path, title: str, *parts: str) -> None:
    """Refuses a folder that lacks one of these subfolders of a data set, whose name is `title`.

    Raises:
      UserError: One is missing.
    """
    for part in parts:
        if not os.path.isdir(folder / part):
            raise UserError(
                f"'{folder}' has no folder '{part}', which belongs to {title}; {unpack(title)}", about=folder / part
            )


def unpack(title: str) -> str:
    """What to do about a data set of which a part is missing, for the end of a sentence."""
    return f"unpack {title} again, or correct config.data.root, config.data.category or config.data.source"


def without_mask(image: pathlib.Path, title: str, mask: str) -> UserError:
    """The error for a defective image without its mask, which should be `mask`."""
    return UserError(f"image '{image}' has no mask '{mask}', which belongs to {title}; {unpack(title)}", about=image)


def without_image(mask: pathlib.Path, title: str) -> UserError:
    """The error for a mask without its image."""
    return UserError(f"mask '{mask}' has no defective image, which belongs to {title}; {unpack(title)}", about=mask)
