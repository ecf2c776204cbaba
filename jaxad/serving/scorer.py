"""Images of several requests are scored together, by one thread."""

import threading
import time
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from jaxad.detector import Detector
from jaxad.predict import Seen


class _Waiting(NamedTuple):
    """An image that is to be scored, since when, and where its score and map go."""

    found: Detector
    seen: Seen
    since: float
    future: Future


def sizes(batch: int) -> list[int]:
    """How many images the compiled programs take, up to `batch`: a lone image does not pay for a full batch."""
    return [*(2**power for power in range(batch.bit_length()) if 2**power < batch), batch]


class Scorer:
    """Scores images in batches, each of one detector. A batch waits for more images, but not longer than it may.

    Args:
      batch: The most images that are scored together.
      wait: How many seconds the first image of a batch waits for others.
    """

    def __init__(self, *, batch: int, wait: float):
        self._batch, self._wait, self._sizes = batch, wait, sizes(batch)
        self._rows: list[_Waiting] = []
        self._changed, self._stopped = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="scorer", daemon=True)

    def start(self, detectors: list[Detector]) -> None:
        """Compiles every program before the first image is there, and starts the thread."""
        for found in detectors:
            for size in self._sizes:
                found.prepare(size)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread when what waits is scored."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def waiting(self) -> int:
        """How many images wait to be scored."""
        return len(self._rows)

    def submit(self, found: Detector, seen: Seen) -> Future:
        """Takes an image that could be read; the future's result is its score and its map, see `Detector.score`."""
        future: Future = Future()
        with self._changed:
            if self._stopped:
                raise RuntimeError("the scorer has been stopped")
            self._rows.append(_Waiting(found, seen, time.monotonic(), future))
            self._changed.notify_all()
        return future

    def _work(self) -> None:
        while taken := self._next():
            rows = [row for row in taken if row.future.set_running_or_notify_cancel()]  # who has left needs no score
            if not rows:
                continue
            try:
                stack = np.stack([row.seen.resized for row in rows])
                batch = next(size for size in self._sizes if size >= len(rows))
                scores = rows[0].found.score(stack, batch=batch, boxes=[row.seen.box for row in rows])
                for row, score, scored in zip(rows, scores.image.tolist(), scores.map, strict=True):
                    row.future.set_result((score, scored))
            except Exception as error:  # such as too little memory: these requests fail, and the thread lives on
                for row in rows:
                    if not row.future.done():
                        row.future.set_exception(error)

    def _next(self) -> list[_Waiting]:
        """Takes the next batch from what waits; none when the scorer was stopped and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._rows or self._stopped)
            if not self._rows:
                return []
            first = self._rows[0]

            def same() -> list[_Waiting]:
                return [row for row in self._rows if row.found is first.found][: self._batch]

            left = first.since + self._wait - time.monotonic()
            self._changed.wait_for(lambda: len(same()) == self._batch or self._stopped, timeout=max(0.0, left))
            taken = same()
            numbers = {id(row) for row in taken}
            self._rows = [row for row in self._rows if id(row) not in numbers]
            return taken
