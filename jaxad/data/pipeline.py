"""From records to endless full batches: resize, cache, shuffle, host augmentation, batch.

The stream is a function of seed and step alone. Example number i of the stream shows a training image drawn by
reshuffling in every epoch, and everything random about it comes from a generator seeded by (seed, i). So the number of
workers changes nothing, and resuming at a step is slicing the stream there.
"""

import contextlib
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import grain
import numpy as np
from absl import flags

from jaxad.data.geometry import Geometry
from jaxad.data.record import VALIDATION, Record, Source
from jaxad.errors import UserError

HostExample = Callable[[np.random.Generator, np.ndarray, np.ndarray], dict[str, np.ndarray]]
Pool = Sequence[np.ndarray | np.integer]  # what examples are drawn from: images, or numbers of images


def read_all(source: Source, geometry: Geometry, *, mask_rule: str = "any") -> list[Record]:
    """Decodes every record of `source` and frames it, in order, on two threads (decoding releases the GIL)."""

    def read(index: int) -> Record:
        return geometry.record(source[index], mask_rule=mask_rule)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(read, range(len(source))))


class Images:
    """Random access to framed images, uint8 (h, w, c): kept in memory when they fit, else decoded on access.

    Args:
      source: Where the records come from.
      numbers: Which records, by index.
      geometry: The frame.
      cache_bytes: The most memory that the cached images may take; grey ones are counted as if they were RGB.
    """

    def __init__(self, source: Source, numbers: np.ndarray, *, geometry: Geometry, cache_bytes: float):
        self._source, self._numbers, self._geometry = source, numbers, geometry
        self._cache = None
        if 0 < self.nbytes <= cache_bytes:
            self._cache = self.stack()

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def nbytes(self) -> int:
        """Bytes that all images take, in colour."""
        return len(self) * math.prod(self._geometry.size) * 3

    def __getitem__(self, index: int) -> np.ndarray:
        if self._cache is not None:
            return self._cache[index]
        return self._geometry.image(self._source[int(self._numbers[index])].image)

    def framed(self, rows: slice | np.ndarray = slice(None)) -> tuple[np.ndarray, np.ndarray | None]:
        """As `stack`, and where each image lies in its frame, int (n, 4), see `Record.box`; None where all fill theirs.

        Each image is decoded once, whether it is kept or not. There must be one at least.
        """
        if not self._geometry.fills:
            return self.stack(rows), None

        def frame(index: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
            image = self._source[int(self._numbers[index])].image
            return self._geometry.image(image), self._geometry.box(image.shape[:2])

        with ThreadPoolExecutor(2) as pool:
            images, boxes = zip(*pool.map(frame, np.arange(len(self))[rows]), strict=True)
        return np.stack(images), np.array(boxes, int)

    def stack(self, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """All images, or those with some indices, uint8 (n, h, w, c)."""
        if self._cache is not None:
            return self._cache[rows]
        with ThreadPoolExecutor(2) as pool:
            return np.stack(list(pool.map(self.__getitem__, np.arange(len(self))[rows])))


class Chosen:
    """Those of `Images` that have some numbers."""

    def __init__(self, images: Images, numbers: np.ndarray):
        self._images, self._numbers = images, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._images[int(self._numbers[index])]


def is_validation(ids: Sequence[str]) -> np.ndarray:
    """Which training images a data set brings for the threshold, by their ids: bool (n,)."""
    return np.array([name.startswith(f"{VALIDATION}/") for name in ids], bool)


def cross_fits(images: int, *, holdout: float, cross_fit_below: int) -> bool:
    """Whether so few training images, none for validation, are all fitted, and each is scored by a density of others.

    Three are needed, so that two are left to fit. No threshold is wanted where `holdout` is 0.
    """
    return 3 <= images < cross_fit_below and holdout > 0


def split_holdout(
    ids: Sequence[str], *, holdout: float, seed: int, cross_fit_below: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Splits the numbers of training images into a part to fit and a part that is held out, both in ascending order.

    Held out are the validation images. Where there are none, it is a random fraction `holdout`, rounded, or none at all
    with few images (see `cross_fits`).

    Args:
      ids: The images' ids, see `Source`.
      holdout: In [0, 1).
      seed: Where the randomness comes from.
      cross_fit_below: See `cross_fits`.

    Raises:
      UserError: `holdout` is no fraction below 1, or fewer than two images are left to fit.
    """
    if not 0 <= holdout < 1:
        raise UserError(f"config.data.holdout must lie in [0, 1), not {holdout}", about="data.holdout")
    images, validation = len(ids), is_validation(ids)
    crossed = cross_fits(images, holdout=holdout, cross_fit_below=cross_fit_below)
    held = int(validation.sum()) or (0 if crossed else round(images * holdout))
    if images - held < 2:
        raise UserError(f"training needs at least 2 good images besides the held-out part; there are {images - held}")
    if validation.any():
        return np.flatnonzero(~validation), np.flatnonzero(validation)
    order = np.random.default_rng((seed, images)).permutation(images)
    return np.sort(order[held:]), np.sort(order[:held])


class _MakeExample:
    """Turns a position in the stream into a training example; runs in worker threads or processes."""

    def __init__(self, images: Pool, example: HostExample | None, seed: int):
        self._images, self._example, self._seed = images, example, seed
        self._numbers = grain.MapDataset.range(len(images)).seed(seed % 2**32).shuffle().repeat()

    def __call__(self, position: int) -> dict[str, np.ndarray]:
        number = self._numbers[position]
        rng = np.random.default_rng((self._seed, position))
        partner = (number + rng.integers(1, len(self._images))) % len(self._images)
        pair = self._images[number], self._images[int(partner)]
        example = self._example(rng, *pair) if self._example else dict(zip(("image", "partner"), pair, strict=True))
        return {**example, "index": np.int32(position)}


@contextlib.contextmanager
def opencv_on_one_thread() -> Iterator[None]:
    """While active, OpenCV's own threads are off: they gain nothing on one small image, and compete with the step."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def start_worker(*_: int) -> None:
    """Settles a data worker's process; takes Grain's arguments."""
    cv2.setNumThreads(1)  # see `opencv_on_one_thread`
    end_with_parent()


def end_with_parent() -> None:
    """Lets a process end with the one that started it, and not before.

    Ctrl-C comes to all of them, and the one that started it may still need this one to complete a step.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def batches(
    images: Pool,
    example: HostExample | None,
    *,
    seed: int,
    batch: int,
    start: int,
    stop: int,
    per_call: int = 1,
    part: tuple[int, int] = (0, 1),
    workers: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches of steps `start` to `stop` - 1 of the stream, those of `per_call` steps at a time.

    Args:
      images: At least two training images, or in their place their numbers.
      example: ``(rng, image, partner) -> arrays``, the host part of a method; `partner` is another training image. None
        for a method without one: an example is then ``image`` and ``partner``.
      seed: Of the shuffling and of all examples.
      batch: Examples in a batch; with more than there are images, images repeat within a batch.
      start: First step, 0 for a fresh run.
      stop: One past the last step.
      per_call: Steps whose batches are yielded together; divides their number.
      part: (k, n) for the k-th of n equal parts of every batch, that of one process; n divides `batch`.
      workers: Worker processes; with 0 the work is done by threads of this process.

    Returns:
      Dicts of stacked arrays (per_call, batch / n, ...); ``index`` is the example's position in the stream.
    """
    process, processes = part
    rows = batch // processes
    stream = (
        grain.MapDataset.range(start * rows, stop * rows)
        .map(lambda row: row // rows * batch + process * rows + row % rows)
        .map(_MakeExample(images, example, seed))
        .batch(rows)
        .batch(per_call)
        .to_iter_dataset(grain.ReadOptions(num_threads=0 if workers else 2, prefetch_buffer_size=0 if workers else 2))
    )
    if workers:
        # Grain reads its own absl flags when it starts workers; jaxad's commands do not parse absl flags.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        workers = min(workers, (stop - start) // per_call)
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        stream = stream.mp_prefetch(options, worker_init_fn=start_worker)
    return iter(stream)
