"""``python -m jaxad.synthetic_anomalies``: how well trained detectors find pasted shapes (Li et al. 2021, Table 6).

Digits, squares, ellipses and hearts are pasted on the good images of a test set, filled with one random colour or with
a patch of a natural image, and scored against the images as they are. No training makes such shapes on purpose, which
is what the figures are for: how far a detector carries beyond what it was taught.
(`jaxad.training.synthetic_validation` is another thing: defects on held-out training images, to compare settings while
no test image may be looked at.)
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad import data, detector, errors, evaluate, methods, metrics, report
from jaxad.config_keys import explained
from jaxad.data import levels, tfds
from jaxad.data.codec import MAX_PIXELS
from jaxad.data.geometry import Box
from jaxad.data.image import (
    NO_IMAGES,
    decode,
    find_images,
    other_files,
    passed_over,
    read_bytes,
    resize_image,
    to_grey,
)
from jaxad.data.record import Record
from jaxad.errors import UserError
from jaxad.metrics import IGNORED
from jaxad.reporting import sample_grid, tables
from jaxad.runtime import devices, disk, provenance
from jaxad.synthetic_anomalies import shapes

FILE, PICTURE = "synthetic_anomalies.json", "synthetic_anomalies.png"
# Its config keys, besides ``seed``, and what they are.
SETTINGS = explained("""
size: Bounds of a shape's longer side, as shares of the image's side.
digits: scikit-learn's digits, or MNIST's.
mnist_root: The folder in which TensorFlow Datasets has prepared MNIST.
natural_root: A folder of natural images.
data_root: Where the test images are now, if not where they were.
""")
# The columns of Table 6 by name: what is pasted, and whether natural images fill it.
COLUMNS = {
    "Digit": ("digit", False),
    "Square": ("square", False),
    "Ellipse": ("ellipse", False),
    "Heart": ("heart", False),
    "Square+": ("square", True),
    "Ellipse+": ("ellipse", True),
    "Heart+": ("heart", True),
}
_SHOWN = 3  # images of each column in the picture
_TRIES = 100  # places for a shape, half of which must lie in the region of interest


class Source(NamedTuple):
    """What anomalies are made of.

    Attributes:
      shapes: ``(rng, side) -> mask`` by name, see `jaxad.synthetic_anomalies.shapes`.
      photos: uint8 (h, w, 3) natural images of any size.
    """

    shapes: dict[str, Callable[[np.random.Generator, int], np.ndarray]]
    photos: list[np.ndarray]


def glyphs(digits: str, mnist_root: str) -> np.ndarray:
    """Handwritten digits (n, h, w), 0 without ink: scikit-learn's 1,797 of 8 x 8 pixels, or MNIST's test images.

    Args:
      digits: "digits" or "mnist".
      mnist_root: TFDS's data_dir with MNIST in it, for "mnist".

    Raises:
      UserError: The name is another one, or MNIST cannot be read (see `jaxad.data.tfds`).
    """
    if digits == "digits":
        from sklearn.datasets import load_digits  # half a second, as below

        return load_digits().images
    if digits != "mnist":
        raise UserError(f"config.digits must be digits or mnist, not {digits!r}", about="digits")
    if not mnist_root:
        raise UserError(
            "config.mnist_root is empty; name the data_dir of TFDS with MNIST: --config.mnist_root=DIR",
            about="mnist_root",
        )
    test = tfds.load(mnist_root, "0", channels=1).test  # digits of every class
    return np.stack([test[index].image[..., 0] for index in range(len(test))])


def natural_images(root: str, *, max_pixels: int = MAX_PIXELS) -> list[np.ndarray]:
    """The images of a folder, or where `root` is empty the two photos that come with scikit-learn.

    Those of 16 bits have a white level of their own, chosen as that of training images, which a line tells.

    Args:
      root: The folder, or "".
      max_pixels: The most pixels of an image that are read.

    Returns:
      uint8 (h, w, 3) each.

    Raises:
      UserError: The folder holds no images, or one cannot be read.
    """
    if not root:
        from sklearn.datasets import load_sample_image

        return [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    if not (paths := find_images(root)):
        raise UserError(f"config.natural_root: folder {root} holds no images", about="natural_root")
    if others := other_files(root):
        print(passed_over(others, NO_IMAGES), flush=True)
    made, deep = {}, {}
    for path in paths:
        data = read_bytes(path)
        made[path] = decode(data, path, max_pixels=max_pixels)
        if made[path].peak is not None:
            deep[path] = {"peak": made[path].peak, "declared": levels.declared(data)}
    white = levels.choose(deep, 0, noun="natural image", setting="")
    if white.reason:
        print(white.reason, flush=True)
    for path in deep:
        made[path] = decode(read_bytes(path), path, max_pixels=max_pixels, white_level=white.value)
    return [one.image for one in made.values()]


def source(settings: ConfigDict, *, max_pixels: int = MAX_PIXELS) -> Source:
    """What the settings name; raises UserError as `glyphs`, `natural_images` and `shapes.square`.

    Args:
      settings: As in experiments/synthetic_anomalies.py.
      max_pixels: As in `natural_images`.
    """
    size = tuple(settings.size)
    shapes.check_size(size)
    digit = partial(shapes.digit, glyphs=glyphs(settings.digits, settings.mnist_root))
    made = {"digit": digit, "square": shapes.square, "ellipse": shapes.ellipse, "heart": shapes.heart}
    photos = natural_images(settings.natural_root, max_pixels=max_pixels)
    return Source({name: partial(f, size=size) for name, f in made.items()}, photos)


def natural_patch(rng: np.random.Generator, photos: Sequence[np.ndarray], shape: tuple[int, int, int]) -> np.ndarray:
    """A random square of a random photo, as wide as the photo's shorter side and as large as an image.

    So a shape shows of a photo the share that it covers of an image.

    Args:
      rng: Source of randomness.
      photos: uint8 (h, w, 3).
      shape: (h, w, c), c = 3 or 1.

    Returns:
      uint8 of `shape`.
    """
    photo = photos[int(rng.integers(len(photos)))]
    least = min(photo.shape[:2])
    top, left = (int(rng.integers(length - least + 1)) for length in photo.shape[:2])
    patch = resize_image(photo[top : top + least, left : left + least], shape[:2])
    return to_grey(patch) if shape[2] == 1 else patch


def paste(
    rng: np.random.Generator,
    image: np.ndarray,
    given: Source,
    *,
    shape: str,
    natural: bool,
    crop: int = 0,
    box: Box | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Pastes one shape on an image.

    Args:
      rng: Source of randomness; the shape is drawn before what fills it.
      image: uint8 (h, w, c).
      given: What there is to paste.
      shape: A name in ``given.shapes``.
      natural: Whether a natural image fills it; otherwise one colour, uniform over all.
      crop: Side of the central square in which the shape lies, what its size is a share of; 0 for any square that is as
        large as the image has room for.
      box: The part of the image in which it lies; None for all of it.

    Returns:
      The image, uint8 (h, w, c), and the mask, uint8 (h, w) of 0 and 1: outside of it nothing has changed, inside of
      it everything is pasted.
    """
    height, width = image.shape[:2]
    top, left, bottom, right = np.clip(box or (0, 0, height, width), 0, (height, width, height, width)).tolist()
    side = crop or min(bottom - top, right - left)
    mask = np.zeros((height, width), bool)
    square, free = given.shapes[shape](rng, side), (bottom - top - side, right - left - side)
    down, across = ((length // 2 if crop else int(rng.integers(length + 1))) if length else 0 for length in free)
    mask[top + down : top + down + side, left + across : left + across + side] = square
    fill = natural_patch(rng, given.photos, image.shape) if natural else rng.integers(0, 256, image.shape[2])
    return np.where(mask[..., None], fill, image).astype(np.uint8), mask.astype(np.uint8)


def make(good: Sequence[Record], given: Source, *, seed: int, crop: int = 0) -> list[Record]:
    """Every column's anomalies on every good image, column by column.

    Those of image number i depend on i, on this image and on the arguments, not on other images. A shape filled with
    colour and the same shape filled with a natural image have the same mask, where no region of interest makes them
    be drawn again: half of a shape at least lies in it, and the rest is not pasted.

    Args:
      good: Good test images at the size for scoring.
      given: What there is to paste.
      seed: Of everything random.
      crop: As in `paste`.

    Returns:
      Records whose defect is the name of the column.
    """
    made = []
    for name, (shape, natural) in COLUMNS.items():
        for number, record in enumerate(good):
            rng = np.random.default_rng((seed, list(given.shapes).index(shape), number))
            counted = np.ones(record.image.shape[:2], bool) if record.mask is None else record.mask != IGNORED
            for _ in range(_TRIES):
                image, mask = paste(rng, record.image, given, shape=shape, natural=natural, crop=crop, box=record.box)
                if 2 * mask[counted].sum() >= mask.sum():
                    break
            else:
                raise UserError(
                    f"no place for the anomaly '{name}' was found in the region of interest of {record.id}; it is too "
                    "small for this test",
                    about="data.roi",
                )
            image = np.where(counted[..., None], image, record.image)
            mask = np.where(counted, mask, np.uint8(IGNORED))
            made.append(Record(image, 1, mask, f"{name}/{record.id}", name, box=record.box))
    return made


def good_images(found: detector.Detector, workdir: str | Path) -> list[Record]:
    """The good test images of a detector's config, at the size for scoring; raises UserError where there are none.

    A line names those of 16 bits with values above the white level.
    """
    test = data.load(found.config, white_level=found.white_level).test
    good = [index for index, label in enumerate(test.labels) if label == 0]
    if not good:
        raise UserError(
            f"the test set of {workdir} holds no good images, on which anomalies are pasted; add some to it, or name "
            "another folder with --config.data_root=DIR",
            about=workdir,
        )
    records = [found.region.geometry.record(test[index]) for index in good]
    if sentence := levels.clipped_images(test.deep, found.white_level):
        print(sentence, flush=True)
    return records


def measure(found: detector.Detector, records: Sequence[Record]) -> dict:
    """AUROC in [0, 1] of each column against the good images, all among `records`.

    Returns:
      {"columns": {name: {"image_auroc", "pixel_auroc"}}, "average": {"image_auroc", "pixel_auroc"}, "images": int},
      where images counts the good ones.
    """
    scores = metrics.evaluate(evaluate.score_records(found, records))
    columns = {
        name: {f"{level}_auroc": scores["by_defect"][name][level]["auroc"] for level in ("image", "pixel")}
        for name in COLUMNS
    }
    average = {key: float(np.mean([row[key] for row in columns.values()])) for key in ("image_auroc", "pixel_auroc")}
    return {"columns": columns, "average": average, "images": scores["counts"]["good"]}


def picture(made: Sequence[Record]) -> np.ndarray:
    """The first anomalies, one column of the picture for each of `COLUMNS`, each beside its mask: uint8 RGB."""
    each = [[record for record in made if record.defect == name][:_SHOWN] for name in COLUMNS]
    shown = [record for row in zip(*each, strict=True) for record in row]
    images, masks = (np.stack(arrays) for arrays in ([r.image for r in shown], [r.mask for r in shown]))
    return sample_grid.label_grid(images, masks, columns=len(COLUMNS), rows=_SHOWN)


def run(workdir: Path, settings: ConfigDict, given: Source, *, command: str) -> dict:
    """Measures one detector; writes the figures and the picture into its workdir.

    Args:
      workdir: Where it was trained.
      settings: As in experiments/synthetic_anomalies.py.
      given: What `source` made of them.
      command: That makes these figures.

    Returns:
      What the file holds.

    Raises:
      UserError: The detector cannot be loaded, its test set has no good images, or the workdir is in use.
    """
    detector.read_config(workdir)
    with disk.locked(workdir):  # nobody trains another detector meanwhile
        return _run(workdir, settings, given, command)


def _run(workdir: Path, settings: ConfigDict, given: Source, command: str) -> dict:
    """`run` in a workdir that is locked."""
    found = detector.load(workdir, {"data.root": settings.data_root} if settings.data_root else None)
    config = found.config
    good = good_images(found, workdir)
    made = make(good, given, seed=settings.seed, crop=config.evaluate.crop)
    results = {
        "task": task_of(config),
        **measure(found, [*good, *made]),
        "settings": json.loads(settings.to_json()),
        **evaluate.origin([workdir], config, command=command),
    }
    sample_grid.write(workdir / PICTURE, picture(made))
    disk.write_json(workdir / FILE, results)
    return results


def task_of(config: ConfigDict) -> str:
    """What the training taught: the value of `Keys.task`, or the method's name where it has but one task."""
    if not config.epochs:
        return "no training"
    key = methods.rules_of(config.method).task
    return configs.flatten(config)[key] if key else config.method


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        "python -m jaxad.synthetic_anomalies",
        description=f"Scores good test images with and without pasted shapes: {FILE} and {PICTURE} in each workdir, "
        "and a table of AUROCs.",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="experiments/synthetic_anomalies.py")
    parser.add_argument(
        "--workdir",
        required=True,
        nargs="+",
        action="extend",
        metavar="W",
        help="a directory that jaxad.train completed; each is a row of the table",
    )
    flags, overrides = configs.arguments(parser, argv)
    devices.set_up_process()
    settings = configs.load(flags.config, overrides, required=("seed", *SETTINGS))
    largest = max(configs.max_pixels(detector.read_config(workdir)) for workdir in flags.workdir)
    given, rows = source(settings, max_pixels=largest), []
    typed = ["--config", flags.config, *(f"--config.{key}={value}" for key, value in overrides.items())]
    for workdir in map(Path, flags.workdir):
        command = provenance.command("jaxad.synthetic_anomalies", [*typed, f"--workdir={workdir}"])
        rows.append(run(workdir, settings, given, command=command))
        print(f"{workdir}: image AUROC {100 * rows[-1]['average']['image_auroc']:.1f}, {workdir / FILE}", flush=True)
    print("\n" + tables.markdown([report.anomaly_table(rows)]), end="")


if __name__ == "__main__":
    errors.run(main)
