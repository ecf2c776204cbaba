"""The record that every data source yields, and the pair of sources that makes a dataset."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

VALIDATION = "validation"  # begins the ids of good images that a data set brings for the threshold


class Record(NamedTuple):
    """One image with everything that is known of it.

    Attributes:
      image: uint8 (h, w, 3), RGB, or (h, w, 1), grey.
      label: 0 for a good part, 1 for a defective one.
      mask: uint8 (h, w), 1 on defective pixels; None where the pixel truth is unknown.
      id: Unique within the dataset, such as ``test/broken_large/003``; made of names of files by
        `jaxad.runtime.disk.escaped`, so that any table, page or picture can hold it.
      defect: ``good`` or the defect type, likewise.
      group: The sample that the image is a view of, likewise; "" for a sample of its own.
      single_defects: Of a defective image with several masks that lie upon each other, each mask (h, w) by itself, with
        the share of its pixels that is enough to find (`jaxad.data.saturation`); None where no such share is known.
      box: (top, left, bottom, right) of the image, or of its region of interest, in the frame that it was brought into,
        where parts of frames are filled (see `jaxad.data.geometry`); None where nothing is. What a crop cuts off lies
        beyond the frame.
    """

    image: np.ndarray
    label: int
    mask: np.ndarray | None
    id: str
    defect: str
    group: str = ""
    single_defects: tuple[tuple[np.ndarray, float], ...] | None = None
    box: tuple[int, int, int, int] | None = None


@runtime_checkable
class Source(Protocol):
    """Random access to records; decoding happens on access and the source can be sent to worker processes.

    Attributes:
      ids, labels, defects: The records' fields of these names, without decoding an image. Of training images, those
        whose ids begin with ``validation/`` are held out for the threshold.
      place: Where the records come from, for the user to read, such as a folder in quotes.
      deep: Of each file of 16 bits that this process has decoded so far, how many pixels lie above the white level
        (see `jaxad.data.levels`), and the largest value.
      others: Files that lie among the records' own and are passed over, since they are no images.
    """

    ids: Sequence[str]
    labels: Sequence[int]
    defects: Sequence[str]
    place: str
    deep: Mapping[str, tuple[int, int]]
    others: Sequence[pathlib.Path]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def fingerprint(self, index: int, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What tells a record from every other one, in values of JSON; `known` is what it was before, if anything.

        Returns:
          ``bytes`` and ``sha256`` of what the record is made of. A file of 16 bits has its largest value, ``peak``,
          and ``declared``, the white level that it declares with the place where it does, or null.
        """
        ...

    def bound(self, fingerprints: Sequence[Mapping[str, Any]], white_level: int | None) -> "Source":
        """The same records with this white level; access to a file without its fingerprint raises UserError."""
        ...

    def left_out(self) -> dict[str, int | None]:
        """How many images lie beside the records' own and are not used, by folder; None where it cannot be read."""
        ...


class Dataset(NamedTuple):
    """Good training images, validation images among them, and test images of both kinds (possibly none)."""

    train: Source
    test: Source
