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

from jaxad import config as configs
from jaxad import detector as detectors
from jaxad import methods
from jaxad.augment import synthetic_defects
from jaxad.data import binding, folder, geometry, levels, pipeline, tiling
from jaxad.data import summary as summaries
from jaxad.data.given import Given, training_source
from jaxad.data.record import Source
from jaxad.detector import Detector
from jaxad.errors import UserError, counted, first_line
from jaxad.methods.method import Refit
from jaxad.runtime import arrays, devices, disk, provenance
from jaxad.training import synthetic_validation
from jaxad.training.cross_fitting import cross_fit

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
        or all where they are cross-fitted, or else the first `SAMPLE`.
      boxes: int (n, 4), where they lie in their frames, see `Detector.score`; None where they fill these.
      fitted: How many images the density was fitted to.
      fingerprints: Of all images, by their ids (see `jaxad.data.binding`).
      crossed: Whether the images are cross-fitted (see `jaxad.training.cross_fitting`).
    """

    summary: dict[str, Any]
    seen: np.ndarray
    boxes: np.ndarray | None
    fitted: int
    fingerprints: dict[str, dict[str, Any]]
    crossed: bool


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
        values = {name: getattr(kept, name) for name in ("fitted", "fingerprints", "crossed")}
        arrays.write(path, held, values)
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
        fitted = values["fitted"], values["fingerprints"], values["crossed"]
        return Kept(held["summary"], held["seen"], held.get("boxes"), *fitted)
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
    """Sets the ranges of a detector, and its thresholds where the good images (n, h, w, c) were held out.

    For the boxes see `Detector.score`.
    """
    scores = found.score(seen, boxes=boxes)
    found.fit_ranges(scores, boxes)
    if held_out:
        found.fit_thresholds(scores, boxes, cross_fitted=False)


def complete_crossed(found: Detector, images: np.ndarray, boxes: np.ndarray | None) -> dict[str, float]:
    """As `complete`, from all images that the density was fitted to; returns the figures of synthetic defects."""
    scores, figures = cross_fit(found, images, boxes)
    found.fit_ranges(scores, boxes)
    found.fit_thresholds(scores, boxes, cross_fitted=True)
    return figures


def on_thresholds(found: Detector) -> str:
    """Lines on the thresholds of a detector and what rate they have; "" where there are none."""
    if (kept := found.calibration) is None:
        return ""
    given = f"from {counted(len(kept.scores), 'good image')} that " + (
        "were cross-fitted" if kept.cross_fitted else "were held out"
    )
    told = f"thresholds {given}: {found.threshold:.6g} for images and {found.pixel_threshold:.6g} for pixels"
    regions = "" if kept.regions is None else f", which mark {kept.regions:.3g} regions in such an image on average"
    few = summaries.on_few(len(kept.scores), found.config.threshold.false_alarm_rate)
    return "".join(f"{line}\n" for line in (told + regions, few) if line)


def refit(
    workdir: str | os.PathLike[str],
    images: str | os.PathLike[str] | np.ndarray | Iterable[Given] | Source,
    *,
    command: str = "jaxad.refit",
) -> Detector:
    """Adds good images to what a detector was fitted to, and fits its density and threshold again.

    The old images are not needed. The density is that of all images together. ``config.data.holdout`` of all images are
    held out, as near as it can be, and the thresholds are fitted on them; validation images of the training count among
    them. As long as there are too few images to hold some out, they are cross-fitted. What ``density.name=auto`` chose
    stays. The files and arrays that the detector has taken in already are left out. Results of earlier evaluations are
    removed.

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
    names = {number: f"{binding.ADDED}{len(kept.fingerprints)}/{source.ids[number]}" for number in new}
    every = kept.fingerprints | {name: rows[number] for number, name in names.items()}
    framed = {"geometry": geometry.scored(config), "cache_bytes": 0}
    added, begun = pipeline.Images(source, new, **framed), time.perf_counter()
    made, now, figures = (_take_in_crossed if kept.crossed else _take_in)(found, hook, kept, added)
    now = now._replace(fingerprints=every)
    write(workdir, now)
    stale = [name for name in _STALE if (workdir / name).exists()]
    for name in stale:
        disk.remove(workdir / name)
    if figures is not None:
        synthetic_validation.write(workdir, figures)
    detectors.write(made, workdir)
    provenance.record(workdir, command, refit=len(new), fit_s=time.perf_counter() - begun)
    _tell(found, made, source, len(rows), kept, now)
    if measured := [name for name in stale if name != "synthetic.json"]:
        print(f"removed, since they were of the detector before: {', '.join(measured)}", flush=True)
    return made


def _take_in(
    found: Detector, hook: Refit, kept: Kept, images: pipeline.Images
) -> tuple[Detector, Kept, dict[str, float] | None]:
    """The detector with new images, of which a part is held out, what it keeps, and the figures of synthetic defects.

    The fingerprints stay as they were.
    """
    config, held_before = found.config, len(kept.fingerprints) - kept.fitted
    fitted, held = _split(len(images), kept, holdout=config.data.holdout, seed=config.seed)
    held_out = held_before + len(held) > 0
    given = found.variables, devices.to_host(found.density), kept.summary
    chosen = tiling.cut(config, pipeline.Chosen(images, fitted))
    density, summary = hook.extend(*given, chosen, jax.random.key(config.seed))
    # A sample of fitted images stands for held-out ones only as long as there are none.
    old = len(kept.seen) if held_before or not held_out else 0
    seen, boxes = _joined(kept, old, images, held if held_out else fitted[: SAMPLE - old])
    made, figures = found.with_weights(found.variables, density), None
    complete(made, seen, boxes, held_out=held_out)
    if held_out:
        figures = _measure(made, seen, pipeline.Chosen(images, fitted) if len(fitted) else seen, boxes)
    return made, kept._replace(summary=summary, seen=seen, boxes=boxes, fitted=kept.fitted + len(fitted)), figures


def _joined(kept: Kept, old: int, images: pipeline.Images, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The first `old` images that were kept with some new ones, and the boxes of all, see `Kept`."""
    seen, boxes = kept.seen[:old], None if kept.boxes is None else kept.boxes[:old]
    if not len(shown):
        return seen, boxes
    images, new = images.framed(shown)
    return np.concatenate([seen, images]), None if boxes is None else np.concatenate([boxes, new])


def _measure(
    found: Detector, good: np.ndarray, others: Sequence[np.ndarray], boxes: np.ndarray | None
) -> dict[str, float]:
    """How well a detector finds synthetic defects in good images that it was not fitted to."""
    made = synthetic_defects.make(good, others, boxes=boxes, geometry=found.region.geometry)
    return synthetic_validation.measure(found.score(made.images, boxes=made.boxes), made)


def _take_in_crossed(
    found: Detector, hook: Refit, kept: Kept, images: pipeline.Images
) -> tuple[Detector, Kept, dict[str, float]]:
    """As `_take_in` where all images of before are at hand: some of all are held out once there are enough."""
    config, key, density = found.config, jax.random.key(found.config.seed), devices.to_host(found.density)
    every, boxes = _joined(kept, len(kept.seen), images, np.arange(len(images)))
    if summaries.cross_fits(len(every), config):
        density, summary = hook.extend(found.variables, density, kept.summary, images, key)
        made = found.with_weights(found.variables, density)
        figures = complete_crossed(made, every, boxes)
        return made, kept._replace(summary=summary, seen=every, boxes=boxes, fitted=len(every)), figures
    numbers = [str(number) for number in range(len(every))]
    fitted, held = pipeline.split_holdout(numbers, **configs.split_options(config))
    density, summary = hook.again(found.variables, density, every[fitted], key)
    made = found.with_weights(found.variables, density)
    seen, boxes = every[held], None if boxes is None else boxes[held]
    complete(made, seen, boxes, held_out=True)
    figures = _measure(made, seen, every[fitted], boxes)
    return made, kept._replace(summary=summary, seen=seen, boxes=boxes, fitted=len(fitted), crossed=False), figures


def _tell(found: Detector, made: Detector, source: Source, given: int, before: Kept, now: Kept) -> None:
    """Says what was taken in of so many images that were given, and what thresholds there are now."""
    images, held = len(now.fingerprints), len(now.fingerprints) - now.fitted
    new = images - len(before.fingerprints)
    told = f"{counted(new, 'new image')}; the detector has {images} now, of which {held} are held out"
    if known := given - new:
        told += f"; {counted(known, 'image')} of those given were among them before"
    lines = [told, summaries.beside(source), levels.clipped_images(source.deep, found.white_level)]
    if made.threshold is None:
        lines.append(summaries.on_threshold(images, 0, made.config))
    else:
        was = "none" if found.threshold is None else f"{found.threshold:.6g}"
        lines += [on_thresholds(made).rstrip(), f"the threshold of images was {was} before"]
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
