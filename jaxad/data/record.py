"""The record that every data source yields, and the pair of sources that makes a dataset."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np


class Record(NamedTuple):
    """One image with everything that is known of it.

    Attributes:
      image: uint8 (h, w, 3), RGB, or (h, w, 1), grey.
      label: 0 for a good part, 1 for a defective one.
      mask: uint8 (h, w), 1 on defective pixels; None where the pixel truth is unknown.
      id: Unique within the dataset, such as ``test/broken_large/003``.
      defect: ``good`` or the defect type.
    """

    image: np.ndarray
    label: int
    mask: np.ndarray | None
    id: str
    defect: str


class Source(Protocol):
    """Random access to records; decoding happens on access and the source can be sent to worker processes.

    ``ids``, ``labels`` and ``defects`` hold the records' fields of these names without decoding an image.
    """

    ids: Sequence[str]
    labels: Sequence[int]
    defects: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class Dataset(NamedTuple):
    """Good training images, and test images of both kinds (possibly none)."""

    train: Source
    test: Source
