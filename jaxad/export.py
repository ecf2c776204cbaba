"""``python -m jaxad.export``: a trained detector as a model that runs without jaxad, checked to say the same."""

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxad import config as configs
from jaxad import data, detector, errors
from jaxad.data import pipeline
from jaxad.data.image import IMAGE_SUFFIXES, list_folder, read_image
from jaxad.detector import Detector
from jaxad.errors import UserError, counted
from jaxad.exporting import card as cards
from jaxad.exporting import checking, formats, program
from jaxad.exporting import runner as runner_file
from jaxad.exporting.exported import ExportedDetector
from jaxad.reporting import prediction_files
from jaxad.runtime import devices, disk, provenance

_MOST = 128  # good images that an export is checked with
_HELD_OUT, _TRAINED_ON = "held-out good images", "training images, since none were held out"


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        "python -m jaxad.export",
        description="Writes a detector as a model that takes uint8 images (n, h, w, c) and gives scores and maps, with "
        "card.json and runner.py beside it, and checks that it scores as jaxad does.",
    )
    parser.add_argument("--workdir", required=True, help="a directory that jaxad.train completed")
    parser.add_argument("--format", required=True, choices=tuple(cards.FILES), help="what runs the model")
    parser.add_argument("--output", help="directory to write to (default: export/FORMAT in the workdir)")
    parser.add_argument(
        "--precision", choices=tuple(cards.TOLERANCES), default="float32",
        help="what its numbers are kept or computed in (default float32); float16 keeps the weights in it, int8 "
        "computes the network's convolutions in it",
    )  # fmt: skip
    parser.add_argument(
        "--check", nargs="+", metavar="IMAGES",
        help="image files and folders to check it with (default: good images that the training held out)",
    )  # fmt: skip
    flags = parser.parse_args(argv)
    configs.refuse_empty(parser, flags)
    if flags.precision not in (taken := cards.PRECISIONS[flags.format]):
        raise UserError(
            f"--precision {flags.precision} is none of {flags.format}'s, which takes {', '.join(taken)}",
            about="--precision",
        )
    formats.require(flags.format)
    formats.require(flags.precision)
    devices.set_up_process()
    if not _run(flags, provenance.command("jaxad.export", argv)):
        sys.exit(1)


def _run(flags: argparse.Namespace, command: str) -> bool:
    """Writes and checks what the flags name; returns whether the check was passed, or could not be made."""
    found = detector.load(flags.workdir)
    program.refuse_unexportable(found)
    good = _calibration(found) if flags.precision == "int8" else None
    images, what = _named(found, flags.check) if flags.check else _held_out(found)
    folder = Path(flags.output) if flags.output else cards.default_folder(flags.workdir, flags.format)
    disk.refuse_nul(folder)
    try:
        with cards.building(folder) as made:
            formats.write(found, made, format=flags.format, precision=flags.precision, good=good)
            if flags.format != "stablehlo":
                shutil.copyfile(runner_file.__file__, made / cards.RUNNER)
            card = cards.described(found, format=flags.format, precision=flags.precision, command=command)
            cards.write(made, card | {"check": None})
    except OSError as error:
        raise UserError(
            f"the export cannot be written to {folder} ({error.strerror or error}); make that possible or choose "
            "another --output",
            about=folder,
        ) from error
    print(f"written: {folder}", flush=True)
    if not len(images):
        print(f"not checked: {what}; name images by --check")
        return True
    made = checking.compare(found, ExportedDetector(found, folder), _batches(found, images)) | {"with": what}
    cards.write(folder, card | {"check": made})
    print(checking.summary(made))
    return made["passed"]


def _batches(found: Detector, images) -> Iterator[np.ndarray]:
    """Images a batch at a time, as they are scored."""
    batch = found.config.evaluate.batch
    for start in range(0, len(images), batch):
        yield np.stack([images[n] for n in range(start, min(start + batch, len(images)))])


class _Files:
    """Image files as they are scored: uint8 (h, w, c) by number; refuses one that does not fill its frame."""

    def __init__(self, found: Detector, paths: list[Path]):
        self._found, self._paths = found, paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> np.ndarray:
        path = self._paths[number]
        image = read_image(path, **self._found.read_options)
        program.refuse_unfilled(self._found, image.shape[:2], path, "leave it out of --check")
        return self._found.region.geometry.image(image)


def _named(found: Detector, given: list[str]) -> tuple[_Files, str]:
    """The files and folders that a user named to check with, and what they are."""
    paths, _, _ = prediction_files.walk(given, list_folder, IMAGE_SUFFIXES)
    return _Files(found, paths), f"images of {', '.join(given)}"


def _held_out(found: Detector) -> tuple[Sequence[np.ndarray], str]:
    """Good images to check with, and what they are; none, and why there are none."""
    try:
        fitted, held = _good(found)
    except UserError as error:
        return (), f"the training images are not there ({error})"
    images = _filled(found, held if len(held) else fitted)
    if not len(images):
        return (), "no good image has the aspect ratio that the export takes"
    return images, _HELD_OUT if len(held) else _TRAINED_ON


def _calibration(found: Detector) -> np.ndarray:
    """Training images for int8, uint8 (n, h, w, c).

    Raises:
      UserError: They are not there, or the detector has a density.
    """
    if jax.tree.leaves(found.density):
        raise UserError(
            f"int8 would move the features of {found.config.experiment} away from the density that was fitted to them; "
            "choose another --precision",
            about="--precision",
        )
    try:
        fitted, _ = _good(found)
    except UserError as error:
        raise UserError(
            f"int8 is calibrated on training images, which are not there ({error}); choose another --precision",
            about="--precision",
        ) from error
    return _filled(found, fitted)


def _good(found: Detector) -> tuple[pipeline.Images, pipeline.Images]:
    """Good images that the detector was trained on, and those that were held out, some of each at most.

    Raises:
      UserError: They are not there.
    """
    source = data.load(found.config, white_level=found.white_level).train
    fitted, held = pipeline.split_holdout(source.ids, **configs.split_options(found.config))
    framed = {"geometry": found.region.geometry, "cache_bytes": 0}
    return pipeline.Images(source, fitted[:_MOST], **framed), pipeline.Images(source, held[:_MOST], **framed)


def _filled(found: Detector, images: pipeline.Images) -> np.ndarray:
    """Those images that fill their frame, uint8 (n, h, w, c); says how many others there are."""
    frames, boxes = images.framed()
    if boxes is None:
        return frames
    filling = [found.region.geometry.valid([box]) is None for box in boxes]
    if others := filling.count(False):
        print(f"left out of the check, since their aspect ratio is another: {counted(others, 'image')}")
    return frames[filling]


if __name__ == "__main__":
    errors.run(main)
