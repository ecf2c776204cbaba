"""A detector whose images are scored by its export."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxad.data.geometry import Box
from jaxad.detector import Detector
from jaxad.errors import UserError
from jaxad.exporting import card as cards
from jaxad.exporting import formats, program
from jaxad.methods.method import Scores


class ExportedDetector(Detector):
    """A detector that scores by an export of itself, and is otherwise the same.

    Args:
      found: The detector.
      folder: Where its export lies.
      format: What the export must be; None for any.

    Attributes:
      card: That of the export.

    Raises:
      UserError: There is no export, it is damaged, of another detector, or its runtime is not installed.
    """

    def __init__(self, found: Detector, folder: str | Path, *, format: str | None = None):
        self.__dict__.update(found.__dict__)
        self.card = cards.read(folder)
        if format not in (None, self.card["format"]):
            raise UserError(
                f"the export in {folder} is of the format {self.card['format']}, not {format}; choose another --export",
                about=folder,
            )
        if self.card.get("detector") != cards.fingerprint(found):
            raise UserError(
                f"the export in {folder} is of another detector, or of this one before it was changed; run "
                "jaxad.export again",
                about=folder,
            )
        self._program = functools.cache(formats.runner(Path(folder), self.card))

    def refuse_shape(self, shape: tuple[int, int], path: str | os.PathLike) -> None:
        """Refuses an image that does not fill its frame, which no export takes into account."""
        program.refuse_unfilled(self, shape, path, "leave --engine out for it")

    def score(
        self, images: np.ndarray, *, batch: int | None = None, boxes: Sequence[Box] | np.ndarray | None = None
    ) -> Scores:
        """As `Detector.score`, by the export.

        Raises:
          UserError: As there, or an image does not fill its frame, which no export takes into account.
        """
        self.region.seen(images)  # refuses what is no such array
        if boxes is not None and self.region.geometry.valid(boxes) is not None:
            height, width = self.region.size
            raise UserError(
                f"an image has another aspect ratio than {width} x {height} (width x height), which an export cannot "
                "score; leave --engine out for such images"
            )
        batch, scores, maps = self._batch(batch), [], []
        for start in range(0, len(images), batch):
            rows = images[start : start + batch]
            filled = np.concatenate([rows, np.zeros((batch - len(rows), *rows.shape[1:]), np.uint8)])
            score, map = self._program(batch)(filled)
            scores.append(score[: len(rows)])
            maps.append(map[: len(rows)])
        return Scores(np.concatenate(scores), np.concatenate(maps))
