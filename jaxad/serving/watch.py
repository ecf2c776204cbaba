"""A folder that is watched: each image file that comes is scored, and moved once, after its line is on the disk.

A kill at any moment loses no file and doubles none. Lines come first, files are moved after them, and a line names
where its file goes. A file that still lies in the folder and has a line, but is not there yet, is only moved.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import logging
import math
import os
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple

from jaxad import predict
from jaxad.data.image import IMAGE_SUFFIXES, list_folder
from jaxad.data.room import Room
from jaxad.detector import Detector
from jaxad.errors import UserError, first_line, user_message
from jaxad.runtime import disk
from jaxad.serving.scorer import Scorer

RESULTS = "results.jsonl"
UNREADABLE = "unreadable"
_NAME = 255  # bytes of a file's name, the most that file systems take
_BLOCK = 2**16  # bytes that are read at a time from the end of a file
_LOG = logging.getLogger(__name__)


class Folders(NamedTuple):
    """Where files come from, where they go, and where their lines are added."""

    watched: Path
    done: Path
    results: Path


def folders(watched: str, done: str, results: str | None) -> Folders:
    """The folders that the user names; `done` and a folder in it are made where they are missing.

    Raises:
      UserError: There is no folder to watch; or a file of it cannot be moved at once; or names mean the same.
    """
    for path in (watched, done, results or ""):
        disk.refuse_nul(path)
    given = Folders(Path(watched), Path(done), Path(results) if results else Path(done) / RESULTS)
    if not given.watched.is_dir():
        raise UserError(f"there is no folder {watched} to watch; make it, or check the path", about="--watch")
    try:
        (given.done / UNREADABLE).mkdir(parents=True, exist_ok=True)
        given.results.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"folder {error.filename} cannot be made ({error.strerror}); choose another --done or --results",
            about="--done",
        ) from error
    if os.path.samefile(given.watched, given.done):
        raise UserError(f"--watch and --done are the same folder {watched}; name another --done", about="--done")
    if len({os.stat(place).st_dev for place in (given.watched, given.done, given.done / UNREADABLE)}) > 1:
        raise UserError(
            f"{watched} and {done} lie on different file systems, between which no file is moved at once; name a "
            "--done beside --watch",
            about="--done",
        )
    return given


@contextlib.contextmanager
def locked(results: Path) -> Iterator[None]:
    """While active, no other server adds lines to this file.

    Raises:
      UserError: One does already.
    """
    with open(results, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{results} is in use by another server; choose another --results", about="--results"
            ) from None
        except OSError as error:
            _LOG.warning("%s cannot be locked (%s); let no other server add lines to it", results, error.strerror)
        yield


class _Lines:
    """The file of lines, to which whole lines alone are added, and what a kill has left undone of it."""

    def __init__(self, place: Folders):
        self._path = place.results
        # Where the files go that have a line, by name and digest.
        self.unmoved: dict[tuple[str, str], str] = {}
        with open(self._path, "a+b") as file:
            _cut(file)
            file.seek(0)
            for number, line in enumerate(file, start=1):
                name, digest, target = self._read(line, number)
                if not os.path.lexists(place.done / target) and os.path.lexists(place.watched / name):
                    self.unmoved[name, digest] = target

    def _read(self, line: bytes, number: int) -> tuple[str, str, str]:
        try:
            held = json.loads(line)
            name, digest, target = fields = held["file"], held["sha256"], held["moved_to"]
            if not all(isinstance(field, str) for field in fields):
                raise TypeError("file, sha256 and moved_to are no texts")
            return name, digest, target
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self._path} was not written by jaxad.serve (line {number}: {first_line(error)}); move it away or "
                "choose other --results",
                about="--results",
            ) from error

    def add(self, said: list[dict]) -> None:
        """Brings lines to the disk: all of them, or none where it raises OSError."""
        size = None
        try:
            with open(self._path, "ab") as file:
                size = file.tell()
                file.write(b"".join(json.dumps(one).encode() + b"\n" for one in said))
                file.flush()
                os.fsync(file.fileno())
            disk.sync(self._path.parent)  # the file may be new
        except OSError:
            if size is not None:
                os.truncate(self._path, size)
            raise
        self.unmoved |= {(one["file"], one["sha256"]): one["moved_to"] for one in said}


def _cut(file: IO[bytes]) -> None:
    """Removes a last line that a kill cut off; its file has not been moved."""
    end = size = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end < size:
        file.truncate(end)


class Watcher:
    """Watches a folder in a thread of its own. Nobody else may take files or add lines, for which the caller has locks.

    Args:
      place: The folders.
      name: What the detector is called.
      found: The detector.
      scorer: Scores the images, with those of requests.
      readers: Decode them.
      room: How many pixels are decoded at a time.
      batch: Images that are scored together; their lines are written at once.
      every: Seconds between two looks. A file is taken when two looks in a row find it the same.
    """

    def __init__(
        self, place: Folders, name: str, found: Detector, scorer: Scorer, readers: ThreadPoolExecutor, room: Room,
        *, batch: int, every: float,
    ):  # fmt: skip
        self._place, self._name, self._found, self._scorer = place, name, found, scorer
        self._readers, self._room, self._batch, self._every = readers, room, batch, every
        self._lines, self._before, self._told = _Lines(place), {}, set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Ends when the batch under way is moved."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            try:
                self.look()
            except Exception as error:  # such as a full disk: it is told, and tried again
                known = user_message(error)
                sentence = known[0] if known else f"{type(error).__name__}: {first_line(error)}"
                if sentence not in self._told:
                    _LOG.warning("%s is watched on, though: %s", self._place.watched, sentence)
                self._told.add(sentence)
            else:
                self._told.clear()

    def look(self) -> None:
        """Looks once, and takes what has not changed since the last look.

        Raises:
          UserError: The folder cannot be read.
          OSError: A line cannot be written; the next look tries again.
          Exception: A file cannot be scored or moved: the first such error, after all other files were worked on.
        """
        now = dict(self._files())
        ready = [path for path, state in now.items() if self._before.get(path) == state]
        self._before, errors = now, []
        for first in range(0, len(ready), self._batch):
            if self._stop.is_set():
                break
            errors += self._take({path: now[path] for path in ready[first : first + self._batch]})
        if errors:
            raise errors[0]

    def _files(self) -> Iterator[tuple[Path, tuple]]:
        """The image files in the folder, each with what changes when it is written to."""
        for path in list_folder(self._place.watched)[0]:
            if path.suffix.lower() in IMAGE_SUFFIXES and (state := _state(path)):
                yield path, state

    def _take(self, batch: dict[Path, tuple]) -> list[Exception]:
        """Scores a batch of files, writes their lines, and moves them; returns what went wrong with single files."""
        errors: list[Exception] = []
        read = [self._readers.submit(predict.read, self._found, path, None, self._room) for path in batch]
        seen = []
        for future in read:
            with _into(errors):
                one = future.result()
                if _state(one.path) == batch[one.path]:  # else it is written to just now, or has gone
                    seen.append(one)
        new = [one for one in seen if _key(one) not in self._lines.unmoved]
        futures = [None if one.reason else self._scorer.submit(self._found, one) for one in new]
        taken, said = set(self._lines.unmoved.values()), []
        for one, future in zip(new, futures, strict=True):
            with _into(errors):
                target = self._target(one, taken)
                said.append(self._said(one, future) | {"moved_to": target})
                taken.add(target)
        if said:
            self._lines.add(said)
        for one in seen:
            if _key(one) in self._lines.unmoved:  # else it has no line
                with _into(errors):
                    self._move(one, batch[one.path])
        for folder in (self._place.done / UNREADABLE, self._place.done, self._place.watched):
            disk.sync(folder)
        return errors

    def _move(self, seen: predict.Seen, state: tuple) -> None:
        """Moves a file that has a line, unless it has changed since it was in this state."""
        now = _state(seen.path)
        if now == state:
            os.rename(seen.path, self._place.done / self._lines.unmoved[_key(seen)])
        elif now is not None and _digest(seen.path) == seen.sha256:
            return  # it was only touched; a later look moves it
        # What has changed is another file, which gets a line of its own.
        del self._lines.unmoved[_key(seen)]

    def _said(self, seen: predict.Seen, future: Future | None) -> dict:
        """What the line of an image says."""
        found, regions, score = self._found, None, None
        if future is not None:
            score, scored = future.result()
            with self._room.taken(math.prod(seen.shape)):  # a map of the image is made
                _, regions = predict.regions_in(found, seen, scored, found.pixel_threshold)
        said = predict.described(found, seen, score, regions)
        return said | {"detector": self._name, "file": seen.path.name, "sha256": seen.sha256}

    def _target(self, seen: predict.Seen, taken: set[str]) -> str:
        """Where a file goes, relative to the folder of those that are done; never in the place of another one."""
        folder = f"{UNREADABLE}/" if seen.reason else ""
        stem, suffix, target = seen.path.stem, seen.path.suffix, f"{folder}{seen.path.name}"
        for number in itertools.count(2):
            if target not in taken and not os.path.lexists(self._place.done / target):
                return target
            end = f"-{number}{suffix}"
            while len(os.fsencode(stem + end)) > _NAME:
                stem = stem[:-1]
            target = f"{folder}{stem}{end}"


@contextlib.contextmanager
def _into(errors: list[Exception]) -> Iterator[None]:
    """Takes down what goes wrong with one file, so that it does not hold up the others."""
    try:
        yield
    except Exception as error:
        errors.append(error)


def _digest(path: Path) -> str:
    """The SHA-256 of a file; as of `predict.read`, it is empty where the file cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _key(seen: predict.Seen) -> tuple[str, str]:
    return seen.path.name, seen.sha256


def _state(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written to or replaced; None where there is no regular file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns, found.st_ino) if stat.S_ISREG(found.st_mode) else None
