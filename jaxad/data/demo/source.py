"""The embedded demo data: rendered inspection photographs with exact masks, made from a seed on access.

Nothing is downloaded or stored. A picture is a function of category, split, index, seed and size alone: every one
shows another instance (lamp, exposure, focus, colour, dimensions, position, texture, sensor noise). A defective part is
drawn twice, with its defect and without, and its mask is where the two pictures visibly differ; elsewhere the good
picture is kept, so the mask misses no changed pixel.
"""

import difflib
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from jaxad.data.demo.cap import CAP
from jaxad.data.demo.fabric import FABRIC
from jaxad.data.demo.render import SUPERSAMPLING, Category, expose, grain, mix, photograph, smoothstep
from jaxad.data.demo.screw import SCREW
from jaxad.data.record import Dataset, Record
from jaxad.errors import UserError

_CATEGORIES: dict[str, Category] = {"cap": CAP, "fabric": FABRIC, "wood_screw": SCREW}
CATEGORIES: tuple[str, ...] = tuple(_CATEGORIES)
_VISIBLE = 4.0  # smallest change of any channel, in levels of 255, that counts: about twice the sensor noise
_SMALLEST_SIZE = 32


class Pair(NamedTuple):
    """A defective part beside the same part, photographed at the same moment, without its defect.

    Attributes:
      good: uint8 (size, size, 3).
      defective: uint8 (size, size, 3), equal to ``good`` wherever ``mask`` is 0.
      mask: uint8 (size, size), 1 where the defect visibly changed the picture.
    """

    good: np.ndarray
    defective: np.ndarray
    mask: np.ndarray


def _generators(category: str, split: str, index: int, seed: int) -> list[np.random.SeedSequence]:
    """Independent seeds of the part, its flaw, the lighting and the sensor noise of one picture."""
    words = [seed, zlib.crc32(category.encode()), zlib.crc32(split.encode()), index]
    return np.random.SeedSequence(words).spawn(4)


def _picture(seeds: list[np.random.SeedSequence], category: str, defect: str | None, size: int) -> np.ndarray:
    """Noiseless picture, float32 (size, size, 3) in [0, 255]; with equal seeds, of the same part with any defect."""
    kind = _CATEGORIES[category]
    part, flaw, scene = (np.random.default_rng(s) for s in seeds[:3])
    return photograph(scene, kind.draw(part, SUPERSAMPLING * size, defect, flaw), kind.rig, size)


def _visible(good: np.ndarray, defective: np.ndarray) -> np.ndarray:
    """Mask, uint8 (h, w), of the visible difference of two noiseless pictures, without pinholes and stray pixels."""
    change = np.abs(defective - good).max(axis=2)
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    mask = cv2.morphologyEx((change > _VISIBLE).astype(np.uint8), cv2.MORPH_CLOSE, disk)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    area = stats[:, cv2.CC_STAT_AREA]
    keep = area >= max(4, 0.02 * area[1:].max(initial=0))
    keep[0] = False
    return keep[labels].astype(np.uint8)


def render_pair(category: str, defect: str, index: int, *, size: int = 256, seed: int = 0) -> Pair:
    """The test part number ``index`` with the given defect and without it; a pure function of its arguments."""
    seeds = _generators(category, f"test/{defect}", index, seed)
    good, defective = _picture(seeds, category, None, size), _picture(seeds, category, defect, size)
    mask = _visible(good, defective)
    # Changes fade in from the threshold on, or the rim of a faint shadow would end in a step.
    share = mask * smoothstep(_VISIBLE, 2 * _VISIBLE, np.abs(defective - good).max(axis=2))
    defective = mix(good, defective, share)
    speckle = grain(np.random.default_rng(seeds[3]), size)
    return Pair(expose(good, speckle), expose(defective, speckle), mask)


class DemoSource:
    """One split of a demo category; pictures are rendered on access.

    Attributes:
      ids, labels, defects: The records' fields of these names, without rendering.
      place, deep, others: See `jaxad.data.record.Source`.
    """

    def __init__(self, category: str, split: str, counts: dict[str, int], *, size: int, seed: int):
        """``counts`` gives the number of pictures of each defect type, ``good`` among them, in the source's order."""
        self._category, self._split, self._size, self._seed = category, split, size, seed
        self._numbers = [number for count in counts.values() for number in range(count)]
        self.defects = [defect for defect, count in counts.items() for _ in range(count)]
        self.labels = [int(defect != "good") for defect in self.defects]
        self.ids = [f"{split}/{d}/{number:03d}" for d, number in zip(self.defects, self._numbers, strict=True)]
        self.place, self.deep, self.others = f"the demo category {category}", {}, ()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Record:
        """Renders picture ``index``; good pictures have an empty mask."""
        defect, number = self.defects[index], self._numbers[index]
        if defect == "good":
            seeds = _generators(self._category, f"{self._split}/good", number, self._seed)
            picture = _picture(seeds, self._category, None, self._size)
            image = expose(picture, grain(np.random.default_rng(seeds[3]), self._size))
            mask = np.zeros((self._size, self._size), np.uint8)
        else:
            _, image, mask = render_pair(self._category, defect, number, size=self._size, seed=self._seed)
        return Record(image, self.labels[index], mask, self.ids[index], defect)

    def fingerprint(self, index: int, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """See `Source.fingerprint`: a picture is made of nothing but these words."""
        words = [self._category, self.ids[index], self._size, self._seed]
        return {"bytes": 3 * self._size**2, "sha256": hashlib.sha256(json.dumps(words).encode()).hexdigest()}

    def bound(self, fingerprints: Sequence[Mapping[str, Any]], white_level: int | None) -> "DemoSource":
        """See `Source.bound`; there are no files that could change."""
        return self

    def left_out(self) -> dict[str, int | None]:
        """See `Source.left_out`."""
        return {}


def load(
    category: str, *, size: int = 256, train: int = 120, test_good: int = 40, test_defective: int = 15, seed: int = 0
) -> Dataset:
    """Good training pictures, and good and defective test pictures, of a demo category.

    Args:
      category: One of ``CATEGORIES``.
      size: Side of the square pictures in pixels, at least 32.
      train: Number of training pictures.
      test_good: Number of good test pictures.
      test_defective: Number of defective test pictures of each defect type.
      seed: Another seed gives other instances; the first pictures do not depend on the counts.

    Raises:
      UserError: if the category is unknown or the size too small.
    """
    if category not in _CATEGORIES:
        near = difflib.get_close_matches(str(category), CATEGORIES, n=1, cutoff=0)[0]
        raise UserError(
            f"config.data.category: there is no demo category {category!r}; did you mean {near!r}? "
            f"Choose one of {', '.join(CATEGORIES)}.",
            about="data.category",
        )
    if size < _SMALLEST_SIZE:
        raise UserError(
            f"config.data.size: demo pictures of {size} pixels show nothing; use {_SMALLEST_SIZE} or more",
            about="data.size",
        )
    defective = dict.fromkeys(_CATEGORIES[category].defects, test_defective)
    return Dataset(
        DemoSource(category, "train", {"good": train}, size=size, seed=seed),
        DemoSource(category, "test", {"good": test_good, **defective}, size=size, seed=seed),
    )
