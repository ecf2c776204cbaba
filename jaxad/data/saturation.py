"""How much of a defect is enough, for the metric of MVTec LOCO AD: its table ``defects_config.json``."""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxad.data.mask import read_value
from jaxad.errors import UserError
from jaxad.runtime import disk

NAME = "defects_config.json"
_KEYS = "pixel_value", "saturation_threshold", "relative_saturation"


class Saturation(NamedTuple):
    """A row of the table.

    Attributes:
      threshold: So many pixels of a defect are enough, or where it is relative, this share of them.
      relative: Whether the threshold is a share.
    """

    threshold: float
    relative: bool

    def share(self, area: int) -> float:
        """The share of a defect of `area` pixels that is enough, in (0, 1]; in whole pixels, as the authors round."""
        pixels = int(self.threshold * area) if self.relative else min(self.threshold, area)
        return max(pixels, 1) / area


def read(path: pathlib.Path, remedy: str) -> dict[int, Saturation]:
    """The rows of the table by the value that pixels of a defect have in its mask.

    Raises:
      UserError: The table is missing or damaged, which `remedy` says what to do about.
    """
    try:
        rows = disk.read_json(path, remedy, kind=list)
    except OSError as error:
        raise UserError(f"table '{path}' cannot be read ({error.strerror}); {remedy}", about=path) from error
    found = {}
    for number, row in enumerate(rows, 1):
        value, threshold, relative = (row.get(key) if isinstance(row, dict) else None for key in _KEYS)
        numbers = type(value) is int and type(threshold) in (int, float) and type(relative) is bool
        if not numbers or not 1 <= value <= 255 or not 0 < threshold <= (1 if relative else float("inf")):
            raise UserError(
                f"entry {number} of '{path}' holds no {', '.join(_KEYS)} of a defect type; {remedy}", about=path
            )
        found[value] = Saturation(threshold, relative)
    return found


def share_of(mask: np.ndarray, path: pathlib.Path, table: Mapping[int, Saturation], *, max_pixels: int) -> float:
    """The share of a defect's pixels that is enough.

    Args:
      mask: uint8 (h, w), not zero where the defect is.
      path: The file of the mask, whose value is that of a row.
      table: What `read` returned.
      max_pixels: See `jaxad.data.mask.read_mask`.

    Raises:
      UserError: The mask has several values, or one that the table does not list.
    """
    value = read_value(path, max_pixels=max_pixels)
    if value not in table:
        raise UserError(f"mask '{path}' has the value {value}, which {NAME} does not list; replace one", about=path)
    return table[value].share(np.count_nonzero(mask))
