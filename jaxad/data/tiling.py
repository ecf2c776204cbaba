"""Large frames in overlapping tiles: cut for a network, and its maps joined again without seams."""

import math
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad.data.pipeline import Chosen, Images

_KEPT = 4  # frames that `Tiles` remembers, so that one is not decoded again for each of its tiles


class Tiling(NamedTuple):
    """A grid of square tiles, which covers a frame.

    Attributes:
      size: (height, width) of the frame.
      side: Side of a tile in pixels, at most the frame's shorter side.
      overlap: The smallest share of a tile's side that two neighbors have in common, in [0, 0.5].
    """

    size: tuple[int, int]
    side: int
    overlap: float

    def corners(self) -> list[tuple[int, int]]:
        """First row and column of each tile, row by row."""
        rows, columns = (self._starts(length) for length in self.size)
        return [(top, left) for top in rows for left in columns]

    def _starts(self, length: int) -> list[int]:
        """Where tiles begin along an axis: as few as cover it, at equal distances."""
        common = math.ceil(self.overlap * self.side)
        count = 1 if length == self.side else math.ceil((length - common) / (self.side - common))
        return np.linspace(0, length - self.side, count).round().astype(int).tolist()

    def places(self) -> list[tuple[slice, slice]]:
        """Rows and columns of each tile, in the order of `corners`."""
        return [(slice(top, top + self.side), slice(left, left + self.side)) for top, left in self.corners()]

    def rows(self, images: np.ndarray) -> np.ndarray:
        """The indices in `Tiles` of all tiles of some images."""
        count = len(self.corners())
        return (np.asarray(images)[:, None] * count + np.arange(count)).ravel()

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """What a tile's pixels count, float32 (side, side), and the sum of this over all tiles, (*size,).

        A pixel counts the more the farther it lies from the tile's border, behind which the network sees nothing. So
        nothing jumps where a tile ends.
        """
        ramp = np.minimum(np.arange(self.side), np.arange(self.side)[::-1]) + 1.0
        # No farther than the overlap reaches: beyond it there is no second tile.
        ramp = np.minimum(ramp, max(1.0, self.overlap * self.side)).astype(np.float32)
        own, total = np.outer(ramp, ramp), np.zeros(self.size, np.float32)
        for place in self.places():
            total[place] += own
        return own, total


def tiling_of(config: ConfigDict) -> Tiling | None:
    """The tiles of ``config.data.tile``; None where whole frames are trained on and scored."""
    side = configs.tile(config)
    if not side:
        return None
    return Tiling(configs.frame(config, config.data.size), side, config.data.tile_overlap)


class Tiles:
    """Random access to the tiles of framed images, uint8 (side, side, c): those of the first one, then of the next.

    Args:
      images: The framed images.
      tiling: Their tiles.
      number: Which tile of each image there is; None for all of them.
    """

    def __init__(self, images: Images | Chosen, tiling: Tiling, number: int | None = None):
        places = tiling.places()
        self._images, self._places = images, places if number is None else [places[number]]
        self._kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._images) * len(self._places)

    @property
    def nbytes(self) -> int:
        """Bytes that all tiles take, in colour."""
        rows, columns = self._places[0]
        return len(self) * (rows.stop - rows.start) * (columns.stop - columns.start) * 3

    def __getitem__(self, index: int) -> np.ndarray:
        image, number = divmod(int(index), len(self._places))
        return np.ascontiguousarray(self._frame(image)[self._places[number]])

    def _frame(self, image: int) -> np.ndarray:
        frame = self._kept.get(image)
        if frame is None:
            frame = self._kept[image] = self._images[image]
            for oldest in list(self._kept)[:-_KEPT]:  # another thread may have been faster
                self._kept.pop(oldest, None)
        return frame

    def stack(self, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """All tiles, or those with some indices, uint8 (n, side, side, c)."""
        return np.stack([self[index] for index in np.arange(len(self))[rows]])


def cut(config: ConfigDict, images: Images | Chosen) -> Images | Chosen | Tiles:
    """What a method takes of framed images: their tiles, or the images themselves where the config has no tiles."""
    tiling = tiling_of(config)
    return images if tiling is None else Tiles(images, tiling)
