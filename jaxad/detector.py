"""A trained detector: everything that is needed to score images, in one directory.

The directory is the workdir: config.json, ``detector/`` with variables and density (Orbax), and detector.json with
the threshold, what the scores and maps of good images are like, and the seal of the files in ``detector/``.
"""

import contextlib
import inspect
import itertools
import logging
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad import methods
from jaxad.config_values import Value
from jaxad.data import MIN_SIDE, levels
from jaxad.data.geometry import Box
from jaxad.data.given import Given, attempt, several
from jaxad.data.image import Decoded
from jaxad.data.tiling import tiling_of
from jaxad.errors import UserError, first_line, other_version
from jaxad.methods import memory
from jaxad.methods.method import Scores
from jaxad.runtime import checkpoint, devices, disk
from jaxad.runtime.fork_guard import refuse_forked
from jaxad.scoring.calibration import Calibration, calibrate
from jaxad.scoring.region import region_of
from jaxad.scoring.regions import DefectRegion, find_regions

NO_THRESHOLD = (
    "no good images were held out, or config.score, config.evaluate.crop or the white level is not what it was fitted "
    "with"
)
_FITTED = ("threshold", "heat_range", "good_scores", "white_level", "pixel_threshold", "calibration")
REWRITE = "run its training command again to rewrite it"
# What may still be changed in a trained detector's config.
CHANGEABLE = (
    "evaluate.", "score.", "data.root", "data.category", "data.test", "data.ground_truth", "data.source", "data.lists",
    "data.white_level", "data.max_megapixels",
)  # fmt: skip


class Prediction(NamedTuple):
    """What a detector says of one image.

    Attributes:
      score: The image score; larger is more anomalous.
      threshold: Scores above it are called defective; None where none was fitted.
      defective: The decision; None without a threshold.
      map: float32 (h, w), the score map at the image's own size; NaN outside the region that is judged.
      peak: (row, column) of the highest value of the map as it was scored, in pixels of the image.
      judged: (top, left, bottom, right) of the region that is judged, in pixels of the image; bottom and right lie
        outside it. What the training left out, such as the border around a central crop, is not judged. Of a region of
        interest it is the box.
      percentile: The share in percent, from 0 to 100, of good images with a lower score, of those that the thresholds
        were fitted on; None without a threshold.
      pixel_threshold: Pixels whose value in the map is above it are called defective; None where none was fitted.
      regions: Those pixels, in connected regions, the highest peak first; None without a threshold for pixels. An image
        below `threshold` may have some, and one above it none.
    """

    score: float
    threshold: float | None
    defective: bool | None
    map: np.ndarray
    peak: tuple[int, int]
    judged: tuple[int, int, int, int]
    percentile: float | None = None
    pixel_threshold: float | None = None
    regions: list[DefectRegion] | None = None


class Detector:
    """A method with its fitted variables and density.

    It can be passed to another process, if that was spawned and not forked: it is pickled as the path of its workdir,
    where the process loads it. What was fitted on good images (from `threshold` on) is passed as it is.

    Args:
      config: The config that it was trained with. `channels` of it, 3 or 1, is what c stands for below.
      variables: Parameters and batch statistics.
      density: What ``Method.fit`` returned.
      threshold: Image scores above it are called defective; None without held-out images.
      heat_range: The map's median and highest value on good images; heatmaps run from the one to the other.
      good_scores: Mean and standard deviation of good images' scores.
      white_level: Of the 16-bit training images, for `jaxad.data.image.read_image`; ``config.data.white_level`` goes
        before it. None where no training image has 16 bits.
      pixel_threshold: Values of the map above it are called defective; None without held-out images.
      calibration: The scores of the good images that both thresholds were fitted on; None without held-out images.
    """

    def __init__(
        self,
        config: ConfigDict,
        variables: Any,
        density: Any,
        threshold: float | None = None,
        heat_range: tuple[float, float] = (0.0, 1.0),
        good_scores: tuple[float, float] = (0.0, 1.0),
        white_level: int | None = None,
        pixel_threshold: float | None = None,
        calibration: Calibration | None = None,
    ):
        refuse_forked()
        self._origin: tuple | None = None  # the arguments of `_load_again`, once it is in a workdir
        self.config, self.channels, self.threshold = config, configs.channels(config), threshold
        self.region, self.tiling = region_of(config), tiling_of(config)
        self.heat_range, self.good_scores = heat_range, good_scores
        self.pixel_threshold, self.calibration = pixel_threshold, calibration
        self.white_level = configs.white_level(config) or white_level
        self.variables, self.density = variables, density
        self._mesh = devices.local_mesh()
        self._weights = self._on_devices()
        with jax.enable_x64(False):  # also in a process that computes in float64
            method = methods.create(config)
        self._embed, self._per_position = method.hooks.embed, method.hooks.per_position
        self._score = self._compiled(method.score)
        map_terms = method.hooks.map_terms
        self._map_terms = map_terms and self._compiled(map_terms)

    def with_weights(self, variables: Any, density: Any) -> "Detector":
        """A detector with the same config and these weights, for which nothing is compiled again."""
        refuse_forked()
        other = object.__new__(Detector)
        other.__dict__.update(self.__dict__ | {"variables": variables, "density": density, "_origin": None})
        other._weights = other._on_devices()
        return other

    def _on_devices(self) -> tuple[Any, Any]:
        with jax.enable_x64(False):  # also in a process that computes in float64
            return devices.replicate((self.variables, self.density), self._mesh)

    def refuse_shape(self, shape: tuple[int, int], path: str | os.PathLike) -> None:
        """Raises UserError where an image file of this (height, width) cannot be scored; a detector takes any."""

    @property
    def read_options(self) -> dict:
        """The options by which `jaxad.data.image.read_image` reads a file as the training read its own."""
        # TFDS may hold images as small as MNIST's.
        options = {"channels": self.channels, "min_side": 1 if self.config.data.source == "tfds" else MIN_SIDE}
        return options | {"white_level": self.white_level, "max_pixels": configs.max_pixels(self.config)}

    @property
    def _fitted(self) -> dict:
        return {name: getattr(self, name) for name in _FITTED}

    def __reduce__(self):
        if self._origin is None:
            raise UserError(
                "a detector is passed to another process by its workdir, and this one is in none; train it with a "
                "workdir, or write it with save, or load it in that process"
            )
        return _load_again, self._origin, self._fitted

    def __getattr__(self, name: str):
        if name != "_error" and "_error" in self.__dict__ and not name.startswith("__"):  # see `_load_again`
            raise self._error
        raise AttributeError(f"a detector has no attribute {name!r}")

    def _compiled(self, function: Callable) -> Callable:
        """A function of variables, density and images in [0, 1], compiled for uint8 images over all local devices."""

        def scaled(weights, rows):
            images, *valid = rows if isinstance(rows, tuple) else (rows,)
            if valid and "valid" not in inspect.signature(function).parameters:
                raise UserError(
                    f"the score of {self.config.method} takes no `valid`, the pixels that count, which a region of "
                    "interest and images of several aspect ratios need: add this parameter, or set "
                    "config.data.resize=squeeze and no config.data.roi",
                    about="method",
                )
            return function(*weights, images / jnp.float32(255), *valid)

        return devices.jit_per_example(scaled, self._mesh)

    def score(
        self, images: np.ndarray, *, batch: int | None = None, boxes: Sequence[Box] | np.ndarray | None = None
    ) -> Scores:
        """Scores images that have the size for scoring already, (h, w) = ``region.size``.

        The network sees the central square of side ``config.evaluate.crop``, or the whole image where that is 0.

        Args:
          images: uint8 (n, h, w, c).
          batch: Images in one call of the compiled program, ``config.evaluate.batch`` by default; the last is padded.
          boxes: Where each image lies in its frame, or its region of interest, see `Record.box`; None where all of
            them fill it.

        Returns:
          NumPy scores: image (n,) and map (n, h, w), float32. The map is zero where the network sees nothing, and
          outside the boxes and the region of interest.

        Raises:
          UserError: The images are no such array, or there is no such batch.
        """
        valid = self._valid(boxes, len(images))
        if self.tiling is not None:
            return self._score_tiles(self.region.seen(images), valid, batch)
        if valid is not None:
            found = self._call(self._score, (self.region.seen(images), valid), batch)
            return found._replace(map=np.where(valid, found.map, np.float32(0)))
        found = self._call(self._score, self.region.seen(images), batch)
        return found._replace(map=self.region.bordered(found.map))

    def _valid(self, boxes: Sequence[Box] | np.ndarray | None, count: int) -> np.ndarray | None:
        """Which pixels of so many frames count, bool (n, h, w), see `score`; None where all do."""
        valid = self.region.geometry.valid(boxes)
        return valid if valid is None or boxes is not None else np.repeat(valid, count, axis=0)

    def _score_tiles(self, frames: np.ndarray, valid: np.ndarray | None, batch: int | None) -> Scores:
        """`score` tile by tile: the highest image score of a tile, and the weighted mean of overlapping maps."""
        count, places, (own, total) = len(frames), self.tiling.places(), self.tiling.weights()
        maps, best = np.zeros((count, *self.region.size), np.float32), np.full(count, -np.inf, np.float32)
        if not count:
            return Scores(best, maps)
        every, each = range(len(places)), range(count)
        # With a density for each tile, the same tile of all images is scored together; else all tiles of an image.
        if self._per_position:
            groups, batch = [[(image, number) for image in each] for number in every], 1 if count == 1 else batch
        else:
            groups, batch = [[(image, number) for number in every] for image in each], None
        for group in groups:
            rows = np.stack([frames[image][places[number]] for image, number in group])
            counted = None if valid is None else np.stack([valid[image][places[number]] for image, number in group])
            shown = np.ones(len(group), bool) if counted is None else counted.any(axis=(1, 2))
            if counted is not None:
                counted[~shown] = True  # of nothing there is no score, which is left out below
                rows = rows, counted
            density = self._weights[1]
            if self._per_position:  # a network that all share is in the first alone
                density = density["tile0"] | density[f"tile{group[0][1]}"]
            found = self._call(self._score, rows, batch, weights=(self._weights[0], density))
            for (image, number), score, scored, counts in zip(group, found.image, found.map, shown, strict=True):
                maps[image][places[number]] += own * scored
                best[image] = max(best[image], score) if counts else best[image]
        maps /= total
        return Scores(best, maps if valid is None else np.where(valid, maps, np.float32(0)))

    def map_terms(self, images: np.ndarray) -> dict[str, np.ndarray] | None:
        """The terms of which the score map is the sum, for a picture.

        Args:
          images: As in `score`.

        Returns:
          float32 (n, h, w) by name; None where the method's map has none (see `Hooks`).
        """
        if self._map_terms is None or self.tiling is not None:
            return None
        found = self._call(self._map_terms, self.region.seen(images))
        return {name: self.region.bordered(maps) for name, maps in found.items()}

    def embed(self, images: np.ndarray) -> dict[str, np.ndarray] | None:
        """Features of images as they are, which come first, and as training changes them, by name, for a picture.

        Args:
          images: As in `score`.

        Returns:
          float32 (n, d) by name; None where the method has none (see `Hooks`).
        """
        if self._embed is None or self.tiling is not None:
            return None

        def call(weights, rows):
            numbers, images = rows
            keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(self.config.seed), number))(numbers)
            return self._embed(*weights, keys, images / jnp.float32(255))

        return self._call(devices.jit_per_example(call, self._mesh), (np.arange(len(images)), self.region.seen(images)))

    def prepare(self, batch: int) -> None:
        """Compiles the program for `batch` images, or loads it from the cache, before the first image is there."""
        self.score(np.zeros((1, *self.region.size, self.channels), np.uint8), batch=batch)

    def _call(self, compiled: Callable, rows, batch: int | None = None, *, weights: tuple[Any, Any] | None = None):
        """What a compiled ``(weights, rows) -> made`` makes of any number of rows, `batch` of them in one call.

        Both are pytrees, of NumPy arrays (n, ...); `batch` is ``config.evaluate.batch`` by default, and `weights` are
        those of the whole detector.
        """
        refuse_forked()
        batch, made = self._batch(batch), []
        for start in range(0, len(jax.tree.leaves(rows)[0]) or 1, batch):  # of no rows the shapes are made
            some = jax.tree.map(itemgetter(slice(start, start + batch)), rows)
            with jax.enable_x64(False):  # also in a process that computes in float64
                made.append(devices.call_padded(compiled, weights or self._weights, some, self._mesh, batch=batch))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *made)

    def _batch(self, batch: int | None) -> int:
        """Images in one call: `batch`, or ``config.evaluate.batch`` where it is None."""
        if batch is None:
            return self.config.evaluate.batch
        try:
            number = operator.index(batch)
        except TypeError:
            number = 0
        if number < 1 or isinstance(batch, bool):
            raise UserError(f"batch must be a whole number from 1 on, or None, not {batch!r}")
        return number

    @overload
    def predict(
        self, images: Given | Iterable[Given], *, batch: int | None = None, keep_errors: Literal[False] = False
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self, images: Given | Iterable[Given], *, batch: int | None = None, keep_errors: bool
    ) -> list[Prediction | UserError]: ...

    def predict(
        self, images: Given | Iterable[Given], *, batch: int | None = None, keep_errors: bool = False
    ) -> list[Prediction | UserError]:
        """Scores images of any size.

        Args:
          images: Any iterable of images, whose sizes may differ, or a single one. An image is the path of a file, an
            image of Pillow, or an array uint8 (h, w), (h, w, 1), (h, w, 3) in RGB or (h, w, 4) in RGBA. A detector of
            grey images reduces RGB to OpenCV's luma. What is read or generated is held for one batch.
          batch: Images in one call of the compiled program; by default 1 for one image, else ``config.evaluate.batch``.
          keep_errors: Whether an image that cannot be read has its UserError, which names it, in the place of its
            prediction. By default the first one raises it, and no prediction is returned.

        Returns:
          One prediction per image, in order. A logged warning names files of 16 bits with values above the white level
          of the training images, or all of them where no training image had 16 bits.

        Raises:
          UserError: An image cannot be read or is no such image (see `keep_errors`), or `batch` is below 1.
        """
        geometry, made, deep = self.region.geometry, [], {}
        options = self.read_options | {"keep_errors": keep_errors}
        blank = np.zeros((*geometry.size, self.channels), np.uint8)
        numbered = enumerate(several(images))
        while chunk := list(itertools.islice(numbered, self._batch(batch))):
            seen = [attempt(image, number=number, **options) for number, image in chunk]
            deep |= {
                str(path): (one.clipped, one.peak)
                for (_, path), one in zip(chunk, seen, strict=True)
                if isinstance(one, Decoded) and one.peak is not None
            }
            # What cannot be read keeps its place in the batch, so that no other image changes its own.
            images = [one.image if isinstance(one, Decoded) else blank for one in seen]
            stack = np.stack([geometry.image(image) for image in images])
            alone = batch is None and not made and len(seen) == 1
            boxes = [geometry.box(image.shape[:2]) for image in images]
            scores = self.score(stack, batch=1 if alone else batch, boxes=boxes)
            rows = zip(seen, scores.image, scores.map, strict=True)
            made += [self._prediction(one.image, *row) if isinstance(one, Decoded) else one for one, *row in rows]
        if sentence := levels.clipped_images(deep, self.white_level):
            logging.warning(sentence)
        return made

    def _prediction(self, image: np.ndarray, score: np.floating, scored: np.ndarray) -> Prediction:
        size = image.shape[:2]
        region = self.region
        placed = region.map_at(scored, size), region.peak_at(scored, size), region.judged_at(size)
        decided = self.percentile(float(score)), self.pixel_threshold, self.regions_of(placed[0])
        return Prediction(float(score), self.threshold, self.decide(float(score)), *placed, *decided)

    def decide(self, score: float) -> bool | None:
        """Whether an image with this score is defective; None without a threshold.

        Raises:
          UserError: The score is not finite.
        """
        if not np.isfinite(score):
            raise UserError("the detector's score of an image is not finite; train again with a lower learning rate")
        return None if self.threshold is None else score > self.threshold

    def percentile(self, score: float) -> float | None:
        """See `Prediction`."""
        return None if self.calibration is None else self.calibration.percentile(score)

    def regions_of(self, placed: np.ndarray) -> list[DefectRegion] | None:
        """The regions above the threshold for pixels in a map float32 (h, w), NaN where it is not judged."""
        return None if self.pixel_threshold is None else find_regions(placed, self.pixel_threshold)

    def set_false_alarm_rate(self, rate: float) -> None:
        """Sets `threshold` and `pixel_threshold` for another false-alarm rate, from the good images of the training.

        Args:
          rate: In [0, 1). Of n good images both thresholds have no lower rate than about 1 / (n + 1).

        Raises:
          UserError: The rate lies outside [0, 1), or the detector has no good images to set thresholds by.
        """
        if self.calibration is None:
            raise UserError(f"there is no threshold for a false-alarm rate to be set: {NO_THRESHOLD}")
        self.threshold, self.pixel_threshold = self.calibration.thresholds(rate)
        if rate != self.config.threshold.false_alarm_rate:
            self.calibration = self.calibration._replace(regions=None)

    def _judged(self, maps: np.ndarray, boxes: np.ndarray | None) -> np.ndarray:
        """What is judged of maps (n, h, w); NaN where pixels do not count, see `score`."""
        valid = self._valid(boxes, len(maps))
        return self.region.inside(maps if valid is None else np.where(valid, maps, np.float32(np.nan)))

    def fit_thresholds(self, good: Scores, boxes: np.ndarray | None = None, *, cross_fitted: bool) -> None:
        """Sets `calibration` and both thresholds from scores of good images that the density was not fitted to; for the
        boxes see `score`."""
        if not np.isfinite(good.map).all():
            raise UserError(
                "a good image's map is not finite, so there is no threshold; train with a lower "
                "config.optim.learning_rate, or choose another density"
            )
        rate, maps = self.config.threshold.false_alarm_rate, self._judged(good.map, boxes)
        self.calibration, (self.threshold, self.pixel_threshold) = calibrate(
            good.image, maps, false_alarm_rate=rate, cross_fitted=cross_fitted
        )

    def fit_ranges(self, good: Scores, boxes: np.ndarray | None = None) -> None:
        """Sets `heat_range` and `good_scores` from the scores of good images of the training split; for the boxes see
        `score`."""
        maps, valid = self.region.inside(good.map), self._valid(boxes, len(good.map))
        maps = maps if valid is None else maps[self.region.inside(valid)]
        self.heat_range = (float(np.median(maps)), float(maps.max()))
        image = good.image.astype(np.float64)
        self.good_scores = (float(image.mean()), float(image.std()))

    def normalize(self, scores: Scores) -> Scores:
        """Scores in units that detectors share, so that those of several can be averaged.

        Image scores are counted in standard deviations from the mean of `good_scores`; a map's 0 and 1 are the ends of
        `heat_range`. Where good images all score the same (a single one was held out) or all maps are flat, there is no
        scale to divide by: these are only shifted.

        Returns:
          NumPy scores: image float64 (n,), map float32 (n, h, w).
        """
        mean, std = self.good_scores
        low, high = self.heat_range
        image = (scores.image.astype(np.float64) - mean) / (std or 1.0)
        return Scores(image, (scores.map - np.float32(low)) / np.float32((high - low) or 1.0))

    def save(self, workdir: str | Path) -> None:
        """Writes what `load` needs into a directory, which is made, or which holds a detector of the same config.

        Raises:
          UserError: It cannot be written, or another process works there; the detector before it stays. Or it belongs
            to another config, or holds a training that did not make this detector.
        """
        workdir = Path(workdir)
        if (workdir / "images.json").exists() and (self._origin is None or self._origin[0] != str(workdir.absolute())):
            raise UserError(
                f"{workdir} holds a training, which did not make this detector; choose another folder", about=workdir
            )
        is_there = (workdir / "detector.json").is_file()
        if is_there and self._origin is not None and read_fitted(workdir) != self._origin[2]:
            raise UserError(
                f"{workdir} holds another detector by now than this one was loaded from, as after a refit; choose "
                "another folder, or load it again",
                about=workdir,
            )
        write(self, workdir)


def write(detector: Detector, workdir: Path) -> None:
    """Writes a detector into the workdir of its training, or one that holds no other; errors are `Detector.save`'s."""
    tree = {"variables": detector.variables, "density": detector.density}
    with disk.locked(workdir):
        configs.claim(workdir, detector.config)
        calibration = detector.calibration and detector.calibration._asdict()
        checkpoint.write(workdir / "detector.json", tree, detector._fitted | {"calibration": calibration})
    detector._origin = str(workdir.absolute()), None, detector._fitted


def read_config(workdir: str | Path, overrides: Mapping[str, Value] | None = None) -> ConfigDict:
    """The config that `load` gives a detector, without loading it; arguments and errors are those of `load`."""
    workdir = Path(workdir)
    config = configs.override(configs.read(workdir), overrides or {}, rules_of=methods.rules_of)
    if configs.tile(config) and "score.size" in (overrides or {}):
        raise UserError("config.score.size has no effect in tiles; leave it out", about="score.size")
    if late := [key for key in overrides or {} if not key.startswith(CHANGEABLE)]:
        raise UserError(
            f"config.{late[0]} was settled by the training of {workdir}; what can be changed now is config."
            f"{', config.'.join(CHANGEABLE)}",
            about=late[0],
        )
    if not (workdir / "detector.json").is_file():
        raise UserError(
            f"{workdir} holds no trained detector yet; complete its training with jaxad.train", about=workdir
        )
    return config


def scores_as_trained(config: ConfigDict, trained: ConfigDict, white_level: int | None) -> bool:
    """Whether images have the scores that they had at the end of the training.

    That is decided by ``config.score``, ``config.evaluate.crop`` and the white level, which may come from the training
    images: `white_level` is the one that was trained with (see `read_fitted`).
    """
    now, then = ([one.score.to_dict(), one.evaluate.crop] for one in (config, trained))
    return now == then and (configs.white_level(config) or white_level) == white_level


def read_fitted(workdir: str | Path) -> dict[str, Any]:
    """What a trained detector was fitted with beside its arrays, by the names of `Detector`'s arguments.

    Errors are those of `load`.
    """
    with _told(workdir):
        return _arguments(disk.read_json(Path(workdir) / "detector.json", REWRITE)["values"])


@contextlib.contextmanager
def _told(workdir: str | Path) -> Iterator[None]:
    """Turns what reading a detector raises into a sentence."""
    try:
        yield
    except KeyError as error:
        raise other_version(f"the detector in {workdir}", f"it lacks {first_line(error)}", about=workdir) from error
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the detector in {workdir} is damaged ({first_line(error)}); {REWRITE}", about=workdir
        ) from error


def _arguments(values: dict) -> dict:
    """What `Detector.save` kept beside the arrays, as arguments of `Detector`; what it raises, `_told` explains."""
    (low, high), (mean, std), kept = values["heat_range"], values["good_scores"], values["calibration"]
    if kept is not None:
        kept = Calibration(**{name: tuple(held) if isinstance(held, list) else held for name, held in kept.items()})
    same = {name: values[name] for name in ("threshold", "white_level", "pixel_threshold")}
    return same | {"heat_range": (low, high), "good_scores": (mean, std), "calibration": kept}


def load(workdir: str | Path, overrides: Mapping[str, Value] | None = None) -> Detector:
    """Loads a trained detector.

    Args:
      workdir: A directory that ``jaxad.train`` has completed.
      overrides: Values of its config to change for this use, by dotted key, as `jaxad.config.override` takes them:
        where the test images are, and how they are scored. Where that is not `scores_as_trained`, the thresholds, which
        were fitted so, are None.

    Raises:
      UserError: It is no workdir, its training is not complete, its files were damaged, or an override comes too late.
    """
    refuse_forked()
    workdir = Path(workdir)
    config = read_config(workdir, overrides)
    memory.check_scoring(config)
    with _told(workdir):
        tree, values = checkpoint.load(workdir / "detector.json")
        fitted = _arguments(values)
    if not scores_as_trained(config, configs.read(workdir), fitted["white_level"]):
        fitted |= dict.fromkeys(("threshold", "pixel_threshold", "calibration"))
    detector = Detector(config, tree["variables"], tree["density"], **fitted)
    detector._origin = str(workdir.absolute()), overrides, detector._fitted
    return detector


def _load_again(workdir: str, overrides: Mapping[str, Value] | None, fitted: dict) -> Detector:
    """Loads what was pickled, in another process; `fitted` tells whether the same detector is still there.

    An error in here would end a worker of a `multiprocessing.Pool`, which would start another one and wait for ever. So
    a detector is returned that raises the error when it is used.
    """
    try:
        detector = load(workdir, overrides)
        if detector._fitted != fitted:
            raise UserError(
                f"the detector in {workdir} is another one than was passed to this process; load it again",
                about=workdir,
            )
    except UserError as error:
        detector = object.__new__(Detector)
        detector._error = error
    return detector
