"""``python -m jaxad.predict``: scores image files and folders with a trained detector."""

import argparse
import csv
import io
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from jaxad import config as configs
from jaxad import detector, errors, hosts, parallel
from jaxad.data import MIN_SIDE, levels
from jaxad.data.image import decode, find_images, list_folder, read_bytes
from jaxad.detector import Detector, Prediction
from jaxad.errors import UserError
from jaxad.figures import overlay

COLUMNS = ("path", "score", "threshold", "decision", "peak_row", "peak_column", "heatmap")


def collect(paths: list[str]) -> list[Path]:
    """The images named: files as they are, folders with the images directly in them and below.

    Raises:
      UserError: A path does not exist, or a folder holds no image.
    """
    found = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        inside = list(_inside(path))
        if not inside:
            raise UserError(f"folder {path} holds no images")
        found += inside
    return found


def _inside(folder: Path) -> Iterator[Path]:
    yield from find_images(folder, allow_subfolders=True)
    for subfolder in list_folder(folder)[1]:
        yield from _inside(subfolder)


def batch_of(found: Detector, paths: list[Path]) -> int:
    """Images that are scored together: one program serves the whole call, and one image is not padded."""
    return found.config.evaluate.batch if len(paths) > 1 else 1


def predictions(
    found: Detector, paths: list[Path], deep: dict[str, tuple[int, int]]
) -> Iterator[tuple[Path, np.ndarray, Prediction]]:
    """Decodes and scores images a batch at a time; yields path, image uint8 (h, w, c) and prediction, in order.

    Files of 16 bits are entered in `deep`, with the number of pixels above the white level and the largest value.
    """
    batch = batch_of(found, paths)
    options = {"min_side": MIN_SIDE, "channels": found.channels, "white_level": found.white_level}
    options["max_pixels"] = configs.max_pixels(found.config)
    for start in range(0, len(paths), batch):
        chunk = paths[start : start + batch]
        decoded = [decode(read_bytes(path), path, **options) for path in chunk]
        some = {str(path): (one.clipped, one.peak) for path, one in zip(chunk, decoded, strict=True)}
        deep |= {name: row for name, row in some.items() if row[1] is not None}
        images = [one.image for one in decoded]
        yield from zip(chunk, images, found.predict(images, batch=batch), strict=True)


def write_images(
    output: Path,
    stem: str,
    image: np.ndarray,
    prediction: Prediction,
    heat_range: tuple[float, float],
    maps: str | None,
) -> None:
    """Writes one image's heatmap overlay (JPEG) and, if asked for, its raw map, both at the image's own size."""
    drawn = overlay(image, prediction.map, low=heat_range[0], high=heat_range[1])
    Image.fromarray(drawn).save(output / "heatmaps" / f"{stem}.jpg", quality=90)
    if maps == "npy":
        encoded = io.BytesIO()  # np.save into a file on a full disk raises an error that does not say so
        np.save(encoded, prediction.map)
        (output / "maps" / f"{stem}.npy").write_bytes(encoded.getbuffer())
    elif maps == "tiff":
        Image.fromarray(prediction.map).save(output / "maps" / f"{stem}.tiff")


def score_files(found: Detector, paths: list[Path], output: Path, *, maps: str | None) -> int:
    """Scores images and writes predictions.csv, heatmaps/ and, with `maps` "npy" or "tiff", maps/ to `output`.

    Of several processes, each scores its share of the images and writes the pictures of these.

    Returns:
      The number of images that are called defective.

    Raises:
      UserError: An image cannot be read.
      OSError: A file cannot be written.
    """
    hosts.same("the list of images", [str(path) for path in paths])
    if hosts.lead():
        for folder in ("heatmaps", "maps") if maps else ("heatmaps",):
            (output / folder).mkdir(parents=True, exist_ok=True)
            for stale in (output / folder).glob("[0-9][0-9][0-9][0-9][0-9]_*"):  # of an earlier call
                if stale.is_file():
                    stale.unlink()
    hosts.wait()
    deep: dict[str, tuple[int, int]] = {}
    rows = _score_share(found, paths, output, maps, deep)
    if hosts.count() > 1:
        rows = itertools.chain(*hosts.gather(list(rows)))
    if not hosts.lead():
        _tell_deep(deep, found.white_level)
        return 0
    flagged = 0
    with open(output / "predictions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow(row)
            flagged += row[COLUMNS.index("decision")] == "defective"
    _tell_deep(deep, found.white_level)
    return flagged


def _tell_deep(deep: dict[str, tuple[int, int]], white_level: int | None) -> None:
    """Process 0 says what all have found of files of 16 bits."""
    every = {name: row for part in hosts.gather(deep) for name, row in part.items()}
    if hosts.lead() and (sentence := levels.describe(every, white_level)):
        print(sentence, flush=True)


def _score_share(
    found: Detector, paths: list[Path], output: Path, maps: str | None, deep: dict[str, tuple[int, int]]
) -> Iterator[list]:
    """Scores this process's share of the images, writes their pictures, and yields their rows of predictions.csv."""
    mine = hosts.share(len(paths))
    for number, (path, image, made) in enumerate(predictions(found, paths[mine], deep), start=mine.start + 1):
        stem = f"{number:05d}_{path.stem}"
        decision = {None: "n/a", True: "defective", False: "good"}[made.defective]
        threshold = "n/a" if made.threshold is None else made.threshold
        write_images(output, stem, image, made, found.heat_range, maps)
        if sys.stderr.isatty() and hosts.lead():
            print(f"\r{number}/{mine.stop}", end="", file=sys.stderr)
        yield [str(path), made.score, threshold, decision, *made.peak, f"heatmaps/{stem}.jpg"]


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        "python -m jaxad.predict",
        description="Scores images: predictions.csv, and heatmap overlays in heatmaps/. The whole image is seen.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image files, or folders of images")
    parser.add_argument("--workdir", required=True, help="a directory that jaxad.train completed")
    parser.add_argument("--output", help="directory to write to (default: predictions/ in the workdir)")
    parser.add_argument("--maps", choices=("npy", "tiff"), help="also write the raw score maps, float32, to maps/")
    parser.add_argument(
        "--max-megapixels", metavar="N", help="the largest images that are read (default: as in training)"
    )
    hosts.add_flags(parser)
    flags = parser.parse_args(argv)
    configs.refuse_empty(parser, flags)
    parallel.keep_freed_memory()
    with hosts.joined(flags):
        _run(flags)


def _run(flags: argparse.Namespace) -> None:
    largest = {"data.max_megapixels": flags.max_megapixels} if flags.max_megapixels else {}
    found = detector.load(flags.workdir, largest)
    paths, output = collect(flags.paths), Path(flags.output or Path(flags.workdir) / "predictions")
    found.prepare(batch_of(found, paths))
    start = time.perf_counter()
    try:
        flagged = score_files(found, paths, output, maps=flags.maps)
    except OSError as error:
        raise UserError(
            f"the predictions cannot be written to {output} ({error.strerror or error}); "
            "make that possible or choose another --output"
        ) from error
    speed = len(paths) / (time.perf_counter() - start)
    decided = f"{flagged} called defective" if found.threshold is not None else "no decision (no threshold was fitted)"
    print(f"{len(paths)} images, {decided}, {speed:.1f} images/s: {output / 'predictions.csv'}")


if __name__ == "__main__":
    errors.run(main)
