"""A trained detector: everything that is needed to score images, in one directory.

The directory is the workdir: config.json, ``detector/`` with variables and density (Orbax), and detector.json with
the threshold, what the scores and maps of good images are like, and the seal of the files in ``detector/``.
"""

import copy
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxad import checkpoint, disk, memory, methods, parallel
from jaxad import config as configs
from jaxad.data.image import resize_image, to_grey
from jaxad.errors import UserError, first_line
from jaxad.methods.method import Scores

REWRITE = "run its training command again to rewrite it"
# What may still be changed in a trained detector's config.
CHANGEABLE = (
    "evaluate.",
    "score.",
    "data.root",
    "data.category",
    "data.test",
    "data.ground_truth",
    "data.source",
    "data.lists",
    "data.white_level",
    "data.max_megapixels",
)


class Prediction(NamedTuple):
    """What a detector says of one image.

    Attributes:
      score: The image score; larger is more anomalous.
      threshold: Scores above it are called defective; None where none was fitted.
      defective: The decision; None without a threshold.
      map: float32 (h, w), the score map at the image's own size.
      peak: (row, column) of the map's highest value, in pixels of the image.
    """

    score: float
    threshold: float | None
    defective: bool | None
    map: np.ndarray
    peak: tuple[int, int]


class Detector:
    """A method with its fitted variables and density.

    Args:
      config: The config that it was trained with. `channels` of it, 3 or 1, is what c stands for below.
      variables: Parameters and batch statistics.
      density: What ``Method.fit`` returned.
      threshold: Image scores of whole images above it are called defective; None without held-out images.
      heat_range: The map's median and highest value on good images; heatmaps run from the one to the other.
      good_scores: Mean and standard deviation of good images' scores.
      white_level: Of the 16-bit training images, for `jaxad.data.image.read_image`; ``config.data.white_level`` goes
        before it. None where no training image has 16 bits.
    """

    def __init__(
        self,
        config: ConfigDict,
        variables,
        density,
        threshold: float | None = None,
        heat_range: tuple[float, float] = (0.0, 1.0),
        good_scores: tuple[float, float] = (0.0, 1.0),
        white_level: int | None = None,
    ):
        self.config, self.channels, self.threshold = config, configs.channels(config), threshold
        self.heat_range, self.good_scores = heat_range, good_scores
        self.white_level = configs.white_level(config) or white_level
        self.variables, self.density = variables, density
        self._mesh = parallel.local_mesh()
        self._weights = parallel.replicate((variables, density), self._mesh)
        method = methods.create(config)
        self._embed = method.embed
        self._score = self._compiled(method.score)
        self._parts = method.parts and self._compiled(method.parts)

    def with_weights(self, variables, density) -> "Detector":
        """A detector with the same config and these weights, for which nothing is compiled again."""
        other = copy.copy(self)
        other.variables, other.density = variables, density
        other._weights = parallel.replicate((variables, density), self._mesh)
        return other

    def _compiled(self, function: Callable) -> Callable:
        """A function of variables, density and images in [0, 1], compiled for uint8 images over all local devices."""
        return parallel.by_rows(lambda weights, images: function(*weights, images / jnp.float32(255)), self._mesh)

    def score(self, images: np.ndarray, *, crop: int = 0, batch: int | None = None) -> Scores:
        """Scores images that have the size for scoring already.

        Args:
          images: uint8 (n, size, size, c), where size is ``config.score.size``.
          crop: Side of the central square that the network sees; the map is zero outside it. 0 for the whole image.
          batch: Images in one call of the compiled program, ``config.evaluate.batch`` by default; the last is padded.

        Returns:
          NumPy scores: image (n,) and map (n, size, size), float32.
        """
        seen = _central(images, crop)
        found = self._call(self._score, seen, batch)
        return found._replace(map=_bordered(found.map, images.shape[1]))

    def parts(self, images: np.ndarray, *, crop: int = 0) -> dict[str, np.ndarray] | None:
        """The terms of which the score map is the sum, for a picture.

        Args:
          images: uint8 (n, size, size, c), where size is ``config.score.size``.
          crop: As in `score`.

        Returns:
          float32 (n, size, size) by name; None where the method's map has none (see `Method`).
        """
        if self._parts is None:
            return None
        found = self._call(self._parts, _central(images, crop))
        return {name: _bordered(maps, images.shape[1]) for name, maps in found.items()}

    def embed(self, images: np.ndarray, *, crop: int = 0) -> dict[str, np.ndarray] | None:
        """Features of images as they are, which come first, and as training changes them, by name, for a picture.

        Args:
          images: uint8 (n, size, size, c), where size is ``config.score.size``.
          crop: As in `score`.

        Returns:
          float32 (n, d) by name; None where the method has none (see `Method`).
        """
        if self._embed is None:
            return None

        def call(weights, rows):
            numbers, images = rows
            keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(self.config.seed), number))(numbers)
            return self._embed(*weights, keys, images / jnp.float32(255))

        return self._call(parallel.by_rows(call, self._mesh), (np.arange(len(images)), _central(images, crop)))

    def prepare(self, batch: int) -> None:
        """Compiles the program for `batch` images, or loads it from the cache, before the first image is there."""
        size = self.config.score.size
        self._call(self._score, np.zeros((1, size, size, self.channels), np.uint8), batch)

    def _call(self, compiled: Callable, rows, batch: int | None = None):
        """What a compiled ``(weights, rows) -> made`` makes of any number of rows, `batch` of them in one call.

        Both are pytrees, of NumPy arrays (n, ...); `batch` is ``config.evaluate.batch`` by default.
        """
        batch, made = batch or self.config.evaluate.batch, []
        for start in range(0, len(jax.tree.leaves(rows)[0]) or 1, batch):  # of no rows the shapes are made
            some = jax.tree.map(itemgetter(slice(start, start + batch)), rows)
            made.append(parallel.call_padded(compiled, self._weights, some, self._mesh, batch=batch))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *made)

    def predict(self, images: np.ndarray | list[np.ndarray], *, batch: int | None = None) -> list[Prediction]:
        """Scores images of any size; the whole image is seen.

        Args:
          images: uint8 RGB arrays (h, w, 3), whose sizes may differ. A detector of grey images takes (h, w, 1), and
            RGB arrays as well, which it reduces to OpenCV's luma as reading a file does.
          batch: Images in one call of the compiled program; by default 1 for one image, else ``config.evaluate.batch``.

        Returns:
          One prediction per image.

        Raises:
          UserError: An array is not uint8 (h, w, 3), nor (h, w, 1) for a detector of grey images.
        """
        for number, image in enumerate(images):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, self.channels):
                shapes = "(h, w, 3)" if self.channels == 3 else "(h, w, 1) or (h, w, 3)"
                raise UserError(f"image {number} must be uint8 {shapes}, not {image.dtype} {image.shape}")
        if not len(images):
            return []
        size = self.config.score.size
        seen = (to_grey(image) if image.shape[2] > self.channels else image for image in images)
        stack = np.stack([resize_image(image, (size, size)) for image in seen])
        scores = self.score(stack, batch=batch or (1 if len(stack) == 1 else None))
        return [self._prediction(*row) for row in zip(images, scores.image, scores.map, strict=True)]

    def _prediction(self, image: np.ndarray, score: np.floating, small: np.ndarray) -> Prediction:
        full = cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        row, column = np.unravel_index(full.argmax(), full.shape)
        defective = None if self.threshold is None else bool(score > self.threshold)
        return Prediction(float(score), self.threshold, defective, full, (int(row), int(column)))

    def fit_ranges(self, good: Scores) -> None:
        """Sets `heat_range` and `good_scores` from the scores of good images, whole and of the training split."""
        self.heat_range = (float(np.median(good.map)), float(good.map.max()))
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

    def save(self, workdir: Path) -> None:
        """Writes ``detector/`` and ``detector.json`` into `workdir`, which already holds config.json.

        Raises:
          UserError: It cannot be written, or another process works there; the detector before it stays.
        """
        tree = {"variables": self.variables, "density": self.density}
        fitted = {"threshold": self.threshold, "heat_range": self.heat_range, "good_scores": self.good_scores}
        fitted["white_level"] = self.white_level
        with disk.locked(workdir):
            checkpoint.write(Path(workdir) / "detector.json", tree, fitted)


def _central(images: np.ndarray, crop: int) -> np.ndarray:
    """The central part of images (n, side, side, c) that the network sees; all of them where `crop` is 0."""
    side = images.shape[1]
    if crop > side or crop < 0:
        raise UserError(f"config.evaluate.crop is {crop}, but the images are {side} pixels a side")
    if crop and (side - crop) % 2:
        raise UserError(f"config.evaluate.crop {crop} cannot be centred in {side} pixels; their difference is odd")
    border = (side - crop) // 2 if crop else 0
    return images[:, border : side - border, border : side - border]


def _bordered(maps: np.ndarray, side: int) -> np.ndarray:
    """Maps (n, crop, crop) of what the network has seen of images (n, side, side): zero outside it."""
    border = (side - maps.shape[1]) // 2
    return np.pad(maps, ((0, 0), (border, border), (border, border)))


def fit_threshold(scores: np.ndarray, *, false_alarm_rate: float) -> float | None:
    """The smallest held-out good score that at most a share `false_alarm_rate` of the other held-out scores exceed.

    Args:
      scores: (n,) image scores of good images that were not trained on; None is returned when there are none.
      false_alarm_rate: Target in [0, 1). Below 1 / (n - 1) the threshold is the highest score.

    Raises:
      UserError: The rate lies outside [0, 1).
    """
    if not 0 <= false_alarm_rate < 1:
        raise UserError(f"config.threshold.false_alarm_rate must lie in [0, 1), not {false_alarm_rate}")
    if not len(scores):
        return None
    return float(np.quantile(scores, 1 - false_alarm_rate, method="higher"))


def read_config(workdir: str | Path, overrides: dict[str, str] | None = None) -> ConfigDict:
    """The config that `load` gives a detector, without loading it; arguments and errors are those of `load`."""
    workdir = Path(workdir)
    config = configs.override(configs.read(workdir), overrides or {})
    if late := [key for key in overrides or {} if not key.startswith(CHANGEABLE)]:
        raise UserError(
            f"config.{late[0]} was settled by the training of {workdir}; what can be changed now is config."
            f"{', config.'.join(CHANGEABLE)}"
        )
    if not (workdir / "detector.json").is_file():
        raise UserError(f"{workdir} holds no trained detector yet; complete its training with jaxad.train")
    return config


def read_white_level(workdir: str | Path) -> int | None:
    """The white level of a trained detector's 16-bit training images (see `Detector`); errors are those of `load`."""
    try:
        return _arguments(disk.read_json(Path(workdir) / "detector.json", REWRITE)["values"])["white_level"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the detector in {workdir} is damaged ({first_line(error)}); {REWRITE}") from error


def _arguments(values: dict) -> dict:
    """What `Detector.save` kept beside the arrays, as arguments of `Detector`; what it raises says damage."""
    (low, high), (mean, std) = values["heat_range"], values["good_scores"]
    pairs = {"heat_range": (low, high), "good_scores": (mean, std)}
    return {"threshold": values["threshold"], "white_level": values["white_level"], **pairs}


def load(workdir: str | Path, overrides: dict[str, str] | None = None) -> Detector:
    """Loads a trained detector.

    Args:
      workdir: A directory that ``jaxad.train`` has completed.
      overrides: Values of its config to change for this use, as text by dotted key: where the test images are, and how
        they are scored. With other values in ``config.score`` the threshold is None, since it was fitted with these.

    Raises:
      UserError: It is no workdir, its training is not complete, its files were damaged, or an override comes too late.
    """
    parallel.use_compilation_cache()
    workdir = Path(workdir)
    config = read_config(workdir, overrides)
    memory.check_scoring(config)
    try:
        tree, values = checkpoint.load(workdir / "detector.json")
        fitted = _arguments(values)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"the detector in {workdir} is damaged ({first_line(error)}); {REWRITE}") from error
    if config.score != configs.read(workdir).score:
        fitted["threshold"] = None
    return Detector(config, tree["variables"], tree["density"], **fitted)
