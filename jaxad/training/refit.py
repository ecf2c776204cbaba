"""``jaxad.refit``: a detector takes in more good images, without those of before, as if it had been fitted to all.

``refit.npz`` in the workdir remembers what that needs: what the method keeps (`jaxad.methods.method.Refit`), the
held-out images at the size for scoring, and the fingerprints of all images. It is written before the detector, which
follows from it alone. So a call that was cut off is completed by the same call, and no image is counted twice.
"""

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxad import detector as detectors
from jaxad import methods
from jaxad.augment import synthetic_defects
from jaxad.data import binding, folder, geometry, levels, pipeline, tiling
from jaxad.data import summary as summaries
from jaxad.data.given import Given, training_source
from jaxad.data.record import Source
from jaxad.detector import Detector
from jaxad.errors import UserError, counted, first_line
from jaxad.runtime import arrays, devices, disk, provenance
from jaxad.scoring.threshold import fit_threshold
from jaxad.training import synthetic_validation

FILE = "refit.npz"
SAMPLE = 32  # good images that say what scores are like where none is held out
# What an evaluation or a training has measured of the detector before.
_STALE = (
    "results.json", "scores.csv", "report.html", "synthetic.json",
    "synthetic_anomalies.json", "synthetic_anomalies.png",
)  # fmt: skip


class Kept(NamedTuple):
    """What `FILE` holds.

    Attributes:
      summary: What `Refit.fit` or `Refit.extend` returned.
      seen: uint8 (n, h, w, c), the good images by whose scores threshold and ranges are set: those that are held out,
        or where none is, the first `SAMPLE`.
      boxes: int (n, 4), where they lie in their frames, see `Detector.score`; None where they fill these.
      fitted: How many images the density was fitted to.
      fingerprints: Of all images, by their ids (see `jaxad.data.binding`).
    """

    summary: dict[str, Any]
    seen: np.ndarray
    boxes: np.ndarray | None
    fitted: int
    fingerprints: dict[str, dict[str, Any]]


def write(workdir: Path, kept: Kept) -> None:
    """Writes the fingerprints as the images that the workdir is bound to, and `FILE`.

    Raises:
      UserError: They cannot be written.
    """
    path = workdir / FILE
    held = {"summary": kept.summary, "seen": kept.seen} | ({} if kept.boxes is None else {"boxes": kept.boxes})
    try:
        # First, so that no training of fewer images takes the place of a call that was cut off.
        disk.write_json(workdir / binding.FILE, {"images": kept.fingerprints})
        arrays.write(path, held, {"fitted": kept.fitted, "fingerprints": kept.fingerprints})
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})", about=path) from error


def _read(workdir: Path) -> Kept:
    """What `write` wrote.

    Raises:
      UserError: It is not there or damaged.
    """
    path = workdir / FILE
    try:
        held, values = arrays.read(path)
        return Kept(held["summary"], held["seen"], held.get("boxes"), values["fitted"], values["fingerprints"])
    except FileNotFoundError as error:
        raise UserError(
            f"{workdir} has no {FILE}, which a training writes and Detector.save does not; train in a workdir",
            about=path,
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions", about=path) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({first_line(error)}); restore it, or train with --restart on all images", about=path
        ) from error


def complete(found: Detector, seen: np.ndarray, boxes: np.ndarray | None, *, held_out: bool) -> None:
    """Sets the ranges of a detector, and its threshold where the good images (n, h, w, c) were held out.

    For the boxes see `Detector.score`.
    """
    scores = found.score(seen, boxes=boxes)
    found.fit_ranges(scores, boxes)
    if held_out:
        found.threshold = fit_threshold(scores.image, false_alarm_rate=found.config.threshold.false_alarm_rate)


def refit(
    workdir: str | os.PathLike[str],
    images: str | os.PathLike[str] | np.ndarray | Iterable[Given] | Source,
    *,
    command: str = "jaxad.refit",
) -> Detector:
    """Adds good images to what a detector was fitted to, and fits its density and threshold again.

    The old images are not needed. The density is that of all images together. ``config.data.holdout`` of all images are
    held out, as near as it can be, and the threshold is fitted on them; validation images of the training count among
    them. What ``density.name=auto`` chose stays. The
    files and arrays that the detector has taken in already are left out. Results of earlier evaluations are removed.

    Args:
      workdir: A directory that ``jaxad.train`` has completed, with a method whose density can take in images
        (`jaxad.methods.method.Hooks`).
      images: Good images as `jaxad.train` takes them: a folder, an iterable of arrays, images of Pillow or paths, or a
        source.
      command: What the user typed, for the provenance of the results.

    Returns:
      The new detector, which is in the workdir then.

    Raises:
      UserError: The workdir holds no such detector or is in use, or an image cannot be used.
    """
    if not isinstance(workdir, str | os.PathLike):
        raise UserError(f"workdir must be the path of a trained detector's folder, not {type(workdir).__name__}")
    workdir = Path(workdir)
    detectors.read_config(workdir)  # refuses what is no workdir, where a lock would make one
    with disk.locked(workdir), pipeline.opencv_on_one_thread(), jax.enable_x64(False):
        return _refit(workdir, images, command)


def _refit(workdir: Path, images: Any, command: str) -> Detector:
    """`refit` in a workdir that is locked."""
    found = detectors.load(workdir)
    config, hook = found.config, methods.create(found.config).hooks.refit
    if hook is None:
        raise UserError(
            f"a detector of config.method={config.method} cannot take in more images; train again with all of them",
            about=workdir,
        )
    kept = _read(workdir)
    source, rows = _bound(found, images)
    new = _unknown(rows, kept)
    held_before = len(kept.fingerprints) - kept.fitted
    fitted, held = _split(len(new), kept, holdout=config.data.holdout, seed=config.seed)

    def part(chosen: np.ndarray) -> pipeline.Images | tuple[()]:
        framed = {"geometry": geometry.scored(config), "cache_bytes": 0}
        return pipeline.Images(source, new[chosen], **framed) if len(chosen) else ()

    def cut(images: pipeline.Images | tuple[()]) -> Sequence[np.ndarray]:
        tiles = tiling.tiling_of(config)
        return tiling.Tiles(images, tiles) if tiles is not None and images else images

    begun = time.perf_counter()
    given = found.variables, devices.to_host(found.density), kept.summary
    density, summary = hook.extend(*given, cut(part(fitted)), jax.random.key(config.seed))
    held_out = held_before + len(held) > 0
    # A sample of fitted images stands for held-out ones only as long as there are none.
    old = kept.seen if held_before or not held_out else kept.seen[:0]
    shown = part(held if held_out else fitted[: SAMPLE - len(old)])
    seen = np.concatenate([old, shown.stack()]) if shown else old
    boxes = kept.boxes
    if boxes is not None:
        boxes = np.concatenate([boxes[: len(old)], *([shown.boxes()] if shown else [])])
    made = found.with_weights(found.variables, density)
    complete(made, seen, boxes, held_out=held_out)
    names = {number: f"{binding.ADDED}{len(kept.fingerprints)}/{source.ids[number]}" for number in new}
    every = kept.fingerprints | {name: rows[number] for number, name in names.items()}
    write(workdir, Kept(summary, seen, boxes, kept.fitted + len(fitted), every))
    stale = [name for name in _STALE if (workdir / name).exists()]
    for name in stale:
        disk.remove(workdir / name)
    if held_out:
        defects = synthetic_defects.make(seen, part(fitted) or seen, boxes=boxes)
        scores = made.score(defects.images, boxes=defects.boxes)
        synthetic_validation.write(workdir, synthetic_validation.measure(scores, defects))
    detectors.write(made, workdir)
    provenance.record(workdir, command, refit=len(new), fit_s=time.perf_counter() - begun)
    _tell(found, source, len(rows), (len(fitted), len(held)), (len(every), len(seen) if held_out else 0))
    if measured := [name for name in stale if name != "synthetic.json"]:
        print(f"removed, since they were of the detector before: {', '.join(measured)}", flush=True)
    if held_out:
        before = "none" if found.threshold is None else f"{found.threshold:.6g}"
        print(f"the threshold is {made.threshold:.6g} now; it was {before}", flush=True)
    return made


def _tell(found: Detector, source: Source, given: int, new: tuple[int, int], now: tuple[int, int]) -> None:
    """Says what was taken in: `new` and `now` are how many were fitted and held out, and all that are, and held out."""
    config, (fitted, held), (every, held_out) = found.config, new, now
    told = f"{counted(fitted + held, 'new image')} ({fitted} to fit, {held} held out); the detector has {every} now"
    if before := given - fitted - held:
        told += f"; {counted(before, 'image')} of those given were among them before"
    lines = [told, summaries.on_threshold(every, held_out, config.data.holdout, config.threshold.false_alarm_rate)]
    lines += [summaries.beside(source), levels.clipped_images(source.deep, found.white_level)]
    print("\n".join(line for line in lines if line), flush=True)


def _bound(found: Detector, images: Any) -> tuple[Source, list[dict[str, Any]]]:
    """The images that were given, which must not change any more, and their fingerprints."""
    options = {name: found.read_options[name] for name in ("channels", "min_side", "max_pixels")}
    if isinstance(images, str | os.PathLike) and Path(images).is_dir():
        source = folder.load(images, "", **options).train
    else:
        source = training_source(images, **options)
    if not len(source):
        raise UserError("no images were given; name a folder of good images, or their files")
    rows = list(binding.fingerprints(source, {}).values())
    return source.bound(rows, found.white_level), rows


def _unknown(rows: list[dict[str, Any]], kept: Kept) -> np.ndarray:
    """The numbers of the images that the detector has not taken in, of equal ones the first."""
    seen, new = {row["sha256"] for row in kept.fingerprints.values()}, []
    for number, row in enumerate(rows):
        if row["sha256"] not in seen:
            new.append(number)
            seen.add(row["sha256"])
    return np.array(new, int)


def _split(new: int, kept: Kept, *, holdout: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides new images at random into those to fit and those to hold out, so that of all the share is held out."""
    total = len(kept.fingerprints) + new
    missing = round(total * holdout) - (len(kept.fingerprints) - kept.fitted)
    held = min(new, max(0, missing))
    order = np.random.default_rng((seed, total)).permutation(new)
    return np.sort(order[held:]), np.sort(order[:held])
