"""How many pixels are decoded at the same time, so that threads which read images share a bounded memory."""

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image

from jaxad.data.silence import pillow_silence

PIXELS = 32_000_000  # that are decoded at the same time; a larger image is decoded alone


class Room:
    """Lets threads decode images at the same time as long as these have few pixels together.

    Who comes first is let in first, so that a large image does not wait for ever while small ones come.
    """

    def __init__(self):
        self._taken, self._changed = 0, threading.Condition()
        self._turns: list[object] = []  # of those who wait

    @contextlib.contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Waits for so many pixels, and keeps them for the body."""
        pixels = min(pixels, PIXELS)
        turn = object()
        with self._changed:
            self._turns.append(turn)
            try:
                self._changed.wait_for(lambda: self._turns[0] is turn and self._taken + pixels <= PIXELS)
                self._taken += pixels
            finally:
                self._turns.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


def pixels_of(file: BinaryIO | str | os.PathLike) -> int:
    """How many pixels an image has; where that is not told at once, as many as are decoded at the same time."""
    try:
        with pillow_silence(), Image.open(file) as header:
            return header.width * header.height
    except Exception:  # of whatever kind: what is wrong with the file is told when it is decoded
        return PIXELS
