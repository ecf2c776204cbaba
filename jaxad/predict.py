"""``python -m jaxad.predict``: scores image files and folders with a trained detector."""

import argparse
import collections
import contextlib
import hashlib
import io
import itertools
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import numpy as np

from jaxad import config as configs
from jaxad import detector, errors
from jaxad.data import levels
from jaxad.data.geometry import Box
from jaxad.data.image import (
    IMAGE_SUFFIXES,
    NO_IMAGES,
    decode,
    list_folder,
    passed_over,
    read_bytes,
    to_grey,
)
from jaxad.data.room import Room, pixels_of
from jaxad.data.summary import on_few
from jaxad.detector import Detector
from jaxad.errors import UserError, counted
from jaxad.exporting import card as cards
from jaxad.exporting.exported import ExportedDetector
from jaxad.reporting import prediction_files
from jaxad.reporting.charts import overlay
from jaxad.reporting.prediction_files import COLUMNS, Entry, Request
from jaxad.runtime import devices, disk, processes
from jaxad.scoring.regions import DefectRegion, find_regions, region_mask

SIDE = 1024  # longest side of a heatmap, unless another one is asked for
_EVERY_S, _LINES = 10, 10  # the fewest seconds between two lines of progress, and the most lines
_READERS = 2


class _Progress:
    """Says how many images are done: in place on a terminal, elsewhere in a line now and then, such as in a log file.

    Between two lines lie at least `_EVERY_S` seconds and a tenth of the images.

    Args:
      before: Images that an earlier call has done.
      total: All images, with those.
    """

    def __init__(self, before: int, total: int):
        self._before, self._told, self._total = before, before, total
        self._start = self._last = time.perf_counter()

    def add(self, done: int) -> None:
        """Takes how many images are done by now, with those before."""
        if sys.stderr.isatty():
            print(f"\r{done}/{self._total}", end="", file=sys.stderr)
            return
        now = time.perf_counter()
        early = now - self._last < _EVERY_S or done - self._told < self._total / _LINES
        if early or done == self._total:  # a sentence of its own ends the command
            return
        self._last, self._told = now, done
        speed = (done - self._before) / (now - self._start)
        left = (self._total - done) / speed
        print(f"{done}/{self._total} images  {speed:.1f} images/s  {left:.0f} s left", flush=True)


class Seen(NamedTuple):
    """An image file as it is needed further: not with all of its pixels.

    Attributes:
      path: The file.
      sha256: Digest of its content.
      reason: Why it cannot be read; None where it can.
      deep: Of a file of 16 bits the largest value, and how many pixels lie above the white level; else empty texts.
      shape: (h, w) of the image.
      resized: uint8 (h, w, c), as it is scored.
      box: Where it lies in the frame that is scored, see `jaxad.data.record.Record`.
      picture: uint8 (h, w, 1), grey, at the size of the heatmap; None where none is drawn.
    """

    path: Path
    sha256: str
    reason: str | None
    deep: tuple[int, int] | tuple[str, str] = ("", "")
    shape: tuple[int, int] = (0, 0)
    resized: np.ndarray | None = None
    box: Box | None = None
    picture: np.ndarray | None = None


def batch_of(found: Detector, paths: list[Path]) -> int:
    """Images that are scored together: one program serves the whole call, and one image is not padded."""
    return found.config.evaluate.batch if len(paths) > 1 else 1


def read(found: Detector, path: Path, side: int | None, room: Room) -> Seen:
    """Reads and decodes one image; `side` is that of `Request`."""
    try:
        data = read_bytes(path)
    except UserError as error:
        return Seen(path, "", str(error))
    return look(found, data, path, side, room)


def look(found: Detector, data: bytes, path: Path, side: int | None, room: Room) -> Seen:
    """Decodes the content of an image file, the only place where this is done; `side` is that of `Request`."""
    sha256 = hashlib.sha256(data).hexdigest()
    with room.taken(pixels_of(io.BytesIO(data))):
        try:
            decoded = decode(data, path, **found.read_options)
            found.refuse_shape(decoded.image.shape[:2], path)
        except UserError as error:
            return Seen(path, sha256, str(error))
        deep = ("", "") if decoded.peak is None else (decoded.peak, decoded.clipped)
        resized = found.region.geometry.image(decoded.image)
        picture = None if side is None else _shrunk(decoded.image, side)
        shape = decoded.image.shape[:2]
        return Seen(path, sha256, None, deep, shape, resized, found.region.geometry.box(shape), picture)


def _shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """The grey version of an image, (h, w, 1), whose longest side is at most `side` where that is not 0."""
    grey = to_grey(image) if image.shape[2] == 3 else image
    height, width = image.shape[:2]
    if not side or max(height, width) <= side:
        return grey
    height, width = (max(1, round(pixels * side / max(image.shape))) for pixels in (height, width))
    return cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, 1)


def predictions(
    found: Detector, paths: list[Path], *, batch: int, side: int | None
) -> Iterator[tuple[Seen, float, np.ndarray]]:
    """Decodes and scores images a batch at a time, in order; the next batch is decoded in the meantime.

    Yields:
      An image, its score and its map at the size for scoring; both mean nothing where it has a reason why
      it cannot be read.
    """
    chunks = [paths[first : first + batch] for first in range(0, len(paths), batch)]
    room = Room()
    with ThreadPoolExecutor(_READERS) as readers:

        def start(chunk: list[Path]) -> list[Future]:
            return [readers.submit(read, found, path, side, room) for path in chunk]

        try:
            ahead = start(chunks[0]) if chunks else []
            for following in [*chunks[1:], []] if chunks else ():
                seen, ahead = [future.result() for future in ahead], start(following)
                # What cannot be read keeps its place in the batch, so that no other image changes its own.
                size = found.region.size
                blank = np.zeros((*size, found.channels), np.uint8)
                stack = np.stack([blank if one.resized is None else one.resized for one in seen])
                scores = found.score(stack, batch=batch, boxes=[one.box or (0, 0, *size) for one in seen])
                yield from zip(seen, scores.image.tolist(), scores.map, strict=True)
        finally:
            readers.shutdown(cancel_futures=True)


def _entry(
    found: Detector, seen: Seen, score: float, scored: np.ndarray, output: Path, number: int, request: Request
) -> Entry:
    """Writes one image's pictures; returns its entry in the tables."""
    threshold = "n/a" if found.threshold is None else found.threshold
    if seen.reason is not None:
        row = [str(seen.path), "", threshold, "unreadable", *[""] * 9, seen.reason, seen.sha256]
        return Entry(row, _line(described(found, seen, None, None)))
    name, heatmap, region = prediction_files.stem(number, seen.path), "", found.region
    if seen.picture is not None:
        low, high = found.heat_range
        picture = overlay(seen.picture, smooth_map_of(found, seen, scored), low=low, high=high)
        heatmap = f"heatmaps/{prediction_files.save_picture(output / 'heatmaps', name, picture)}"
    regions, mask = _placed(found, seen, scored, output, name, request)
    said = described(found, seen, score, regions, mask)
    place = *region.peak_at(scored, seen.shape), *region.judged_at(seen.shape)
    row = [str(seen.path), score, threshold, said["decision"], *place, *seen.deep, heatmap, "", seen.sha256]
    return Entry(row, _line(said))


def smooth_map_of(found: Detector, seen: Seen, scored: np.ndarray) -> np.ndarray:
    """The map of an image at the size of its picture, float32, smoothed for a heatmap; NaN where it is not judged."""
    return found.region.map_at(scored, seen.picture.shape[:2], sigma=found.config.evaluate.heatmap_sigma)


def regions_in(
    found: Detector, seen: Seen, scored: np.ndarray, level: float | None, *, always: bool = False
) -> tuple[np.ndarray | None, list[DefectRegion] | None]:
    """The map of an image at its own size, and the regions of it above a threshold for pixels.

    The map is None where it has no region, unless it is `always` made; the regions are where there is no threshold.
    """
    # Resampling makes no score higher, so that no full map is made of an image that has no region.
    clear = level is None or not (found.region.inside(scored) > np.float32(level)).any()
    placed = None if clear and not always else found.region.map_at(scored, seen.shape)
    if level is None:
        return placed, None
    return placed, [] if clear else find_regions(placed, level)


def _placed(
    found: Detector, seen: Seen, scored: np.ndarray, output: Path, name: str, request: Request
) -> tuple[list[DefectRegion] | None, str]:
    """Writes an image's map and mask as asked; returns its regions, and the mask's name where there is one."""
    placed, regions = regions_in(found, seen, scored, found.pixel_threshold, always=bool(request.maps))
    if request.maps:
        prediction_files.save_map(output / "maps", name, placed, request.maps)
    mask = ""
    if request.masks:
        marked = region_mask(placed, found.pixel_threshold) if regions else np.zeros(seen.shape, np.uint8)
        mask = f"masks/{prediction_files.save_mask(output / 'masks', name, marked)}"
    return regions, mask


def described(
    found: Detector, seen: Seen, score: float | None, regions: list[DefectRegion] | None, mask: str = ""
) -> dict:
    """What predictions.jsonl says of an image; None stands for what there is not, and no score for unreadable.

    Raises:
      UserError: The score is not finite.
    """
    decision = {None: "n/a", True: "defective", False: "good"}
    return {
        "path": disk.escaped(str(seen.path)),
        "score": score,
        "percentile": None if score is None else found.percentile(score),
        "threshold": found.threshold,
        "decision": "unreadable" if score is None else decision[found.decide(score)],
        "pixel_threshold": found.pixel_threshold,
        "regions": None if regions is None else [region._asdict() for region in regions],
        "mask": disk.escaped(mask) or None,
        "reason": seen.reason and disk.escaped(seen.reason),
    }


def _line(said: dict) -> str:
    """A line of predictions.jsonl."""
    return json.dumps(said, ensure_ascii=False)


def score_files(found: Detector, output: Path, request: Request) -> tuple[int, int, int]:
    """Scores images and writes the two tables to `output`, and as asked heatmaps/, maps/ and masks/.

    A call that was interrupted goes on where it was. Of several processes, each scores its share of the images and
    writes the pictures of these; they begin anew, and the table is written at the end.

    Returns:
      How many images are called defective, how many cannot be read, and how many were not done by an earlier call.

    Raises:
      UserError: The folder holds what is not ours.
      OSError: A file cannot be written.
    """
    processes.assert_equal_across_processes("the list of images", [str(path) for path in request.paths])
    alone, kept = processes.count() == 1, 0
    if processes.is_main_process():
        # Another request than any of one process: no call goes on with the rows of several.
        made = prediction_files.prepare(output, request if alone else request._replace(detector="several processes"))
        made = made if alone else []
        if kept := len(made):
            print(f"going on after {kept} of {counted(len(request.paths), 'image')} of an interrupted call")
    processes.barrier()
    if alone:
        table = prediction_files.Table(output, made)
        with contextlib.closing(table):
            for entry in _score_share(found, output, request, slice(len(made), len(request.paths))):
                table.add(entry)
                made.append(entry)
    else:
        shares = processes.gather(list(_score_share(found, output, request, processes.local_slice(len(request.paths)))))
        made = [Entry(*entry) for entry in itertools.chain(*shares)]
        if processes.is_main_process():
            with contextlib.closing(prediction_files.Table(output, made)):
                pass
    rows = [entry.row for entry in made]
    if processes.is_main_process():
        prediction_files.complete(output, request)
        if sentence := levels.clipped_images(_deep(rows), found.white_level):
            print(sentence, flush=True)
    decisions = collections.Counter(row[COLUMNS.index("decision")] for row in rows)
    return decisions["defective"], decisions["unreadable"], len(request.paths) - kept


def _deep(rows: list[list]) -> dict[str, tuple[int, int]]:
    """Of the files of 16 bits among the rows, how many pixels lie above the white level, and the largest value."""
    path, peak, clipped = (COLUMNS.index(name) for name in ("path", "largest_value", "clipped_pixels"))
    return {row[path]: (int(row[clipped]), int(row[peak])) for row in rows if row[peak] != ""}


def _score_share(found: Detector, output: Path, request: Request, mine: slice) -> Iterator[Entry]:
    """Scores some of the images, writes their pictures, and yields their entries in the tables."""
    made = predictions(found, request.paths[mine], batch=request.batch, side=request.side)
    progress = _Progress(mine.start, mine.stop)
    for number, (seen, score, scored) in enumerate(made, start=mine.start + 1):
        entry = _entry(found, seen, score, scored, output, number, request)
        yield entry._replace(row=[disk.escaped(cell) if isinstance(cell, str) else cell for cell in entry.row])
        if processes.is_main_process():
            progress.add(number)


def identity(found: Detector) -> str:
    """A digest of everything that a detector's predictions depend on, to tell whether rows may be kept."""
    seen = hashlib.sha256()
    for leaf in jax.tree.leaves((found.variables, found.density)):
        seen.update(np.ascontiguousarray(leaf))
    fitted = found.threshold, found.heat_range, found.white_level, found.pixel_threshold, found.calibration
    machine = jax.__version__, jax.local_device_count(), jax.default_backend()
    if isinstance(found, ExportedDetector):
        machine = *machine, found.card["sha256"]
    seen.update(f"{found.config.to_json()}{fitted}{machine}".encode())
    return seen.hexdigest()


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        "python -m jaxad.predict",
        description="Scores images: predictions.csv, predictions.jsonl with the defective regions, and heatmap "
        "overlays in heatmaps/. What the detector was trained on is judged: the whole image, or its central part where "
        "config.evaluate.crop is set.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image files, or folders of images")
    parser.add_argument("--workdir", required=True, help="a directory that jaxad.train completed")
    parser.add_argument("--output", help="directory to write to (default: predictions/ in the workdir)")
    parser.add_argument("--maps", choices=("npy", "tiff"), help="also write the raw score maps, float32, to maps/")
    parser.add_argument("--masks", action="store_true", help="also write which pixels are defective, PNG, to masks/")
    parser.add_argument(
        "--false-alarm-rate", metavar="R", help="set the thresholds for another rate than the training did, in [0, 1)"
    )
    drawn = parser.add_mutually_exclusive_group()
    drawn.add_argument("--no-heatmaps", action="store_true", help="draw no heatmaps, which saves time")
    drawn.add_argument(
        "--heatmap-side", type=int, default=SIDE, metavar="N",
        help=f"longest side of a heatmap in pixels (default {SIDE}); 0 for the image's own size",
    )  # fmt: skip
    parser.add_argument(
        "--max-megapixels", metavar="N", help="the largest images that are read (default: as in training)"
    )
    parser.add_argument(
        "--engine", choices=("openvino", "onnx", "stablehlo"), help="score by an export, which jaxad.export has written"
    )
    parser.add_argument("--export", metavar="DIR", help="the export's folder (default: export/ENGINE in the workdir)")
    processes.add_flags(parser)
    flags = parser.parse_args(argv)
    configs.refuse_empty(parser, flags)
    if flags.export and not flags.engine:
        raise UserError("--export names an export, which --engine scores by; give both", about="--export")
    if flags.heatmap_side < 0:
        raise UserError(f"--heatmap-side must be at least 0, not {flags.heatmap_side}", about="--heatmap-side")
    if (largest := flags.max_megapixels) and (not largest.isdecimal() or int(largest) < 1):
        raise UserError(f"--max-megapixels must be a whole number from 1 on, not {largest!r}", about="--max-megapixels")
    rate = _rate(flags.false_alarm_rate)
    devices.set_up_process()
    with processes.run_distributed(flags):
        unreadable = _run(flags, rate)
    if unreadable:
        sys.exit(1)


def _rate(text: str | None) -> float | None:
    """The value of --false-alarm-rate; None where it is not given."""
    try:
        rate = None if text is None else float(text)
    except ValueError:
        rate = np.nan
    if rate is not None and not 0 <= rate < 1:
        raise UserError(f"--false-alarm-rate must be a number in [0, 1), not {text!r}", about="--false-alarm-rate")
    return rate


def _set_thresholds(found: Detector, rate: float | None, *, masks: bool) -> None:
    """Sets the thresholds for the rate that is asked, if any, and refuses masks where there is no threshold."""
    if rate is not None:
        found.set_false_alarm_rate(rate)
        if processes.is_main_process() and (few := on_few(len(found.calibration.scores), rate)):
            print(few, flush=True)
    if masks and found.pixel_threshold is None:
        raise UserError(
            f"there is no threshold for pixels to make masks by: {detector.NO_THRESHOLD}; leave --masks out, or train "
            "with config.data.holdout=0.1",
            about="--masks",
        )


def _run(flags: argparse.Namespace, rate: float | None) -> int:
    """Scores what the flags name; returns how many images cannot be read."""
    largest = {"data.max_megapixels": flags.max_megapixels} if flags.max_megapixels else {}
    found = detector.load(flags.workdir, largest)
    _set_thresholds(found, rate, masks=flags.masks)
    if flags.engine:
        found = ExportedDetector(
            found, flags.export or cards.default_folder(flags.workdir, flags.engine), format=flags.engine
        )
    output = Path(flags.output or Path(flags.workdir) / "predictions")
    disk.refuse_nul(output)
    paths, others, trained = prediction_files.walk(flags.paths, list_folder, IMAGE_SUFFIXES)
    if others:
        print(passed_over(others, NO_IMAGES))
    if trained:
        print(passed_over(trained, "a training wrote them"))
    batch, side = batch_of(found, paths), None if flags.no_heatmaps else flags.heatmap_side
    request = Request(identity(found), paths, batch, side, flags.maps, flags.masks)
    found.prepare(batch)
    start = time.perf_counter()
    try:
        output.mkdir(parents=True, exist_ok=True)
        with disk.locked(output, option="--output") if processes.is_main_process() else contextlib.nullcontext():
            flagged, unreadable, scored = score_files(found, output, request)
    except OSError as error:
        raise UserError(
            f"the predictions cannot be written to {output} ({error.strerror or error}); "
            "make that possible or choose another --output",
            about=output,
        ) from error
    speed = scored / (time.perf_counter() - start)
    decided = f"{flagged} called defective" if found.threshold is not None else "no decision (no threshold was fitted)"
    table = output / "predictions.csv"
    print(f"{counted(len(paths), 'image')}, {decided}, {speed:.1f} images/s: {table}")
    if unreadable and processes.is_main_process():
        print(
            f"error: {unreadable} of {counted(len(paths), 'image')} cannot be read; {table} says why in the column "
            f"reason, replace or remove {'it' if unreadable == 1 else 'them'}",
            file=sys.stderr,
        )
    return unreadable


if __name__ == "__main__":
    errors.run(main)
