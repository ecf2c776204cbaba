"""A trained detector: everything that is needed to score images, in one directory.

The directory is the workdir: config.json, ``detector/`` with variables and density (Orbax, sealed), and detector.json
with the threshold and what the scores and maps of good images are like.
"""

import copy
import json
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxad import checkpoint, methods, parallel, regions
from jaxad import config as configs
from jaxad.data.image import resize_image, to_grey
from jaxad.errors import UserError
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
)


class Prediction(NamedTuple):
    """What a detector says of one image.

    Attributes:
      score: The image score; larger is more anomalous.
      threshold: Scores above it are called defective; None where none was fitted.
      defective: The decision; None without a threshold.
      map: float32 (h, w), the score map at the image's own size; NaN outside of what was judged.
      peak: (row, column) of the highest value of the map as it was scored, in pixels of the image.
      judged: (top, left, bottom, right) of the part of the image that was judged, in its pixels; the last two are not
        in it. It is the whole image unless ``config.evaluate.crop`` is set.
    """

    score: float
    threshold: float | None
    defective: bool | None
    map: np.ndarray
    peak: tuple[int, int]
    judged: tuple[int, int, int, int]


class Detector:
    """A method with its fitted variables and density.

    Args:
      config: The config that it was trained with. `channels` of it, 3 or 1, is what c stands for below.
      variables: Parameters and batch statistics.
      density: What ``Method.fit`` returned.
      threshold: Image scores above it are called defective; None without held-out images.
      heat_range: The map's median and highest value on good images; heatmaps run from the one to the other.
      good_scores: Mean and standard deviation of good images' scores.
    """

    def __init__(
        self,
        config: ConfigDict,
        variables,
        density,
        threshold: float | None = None,
        heat_range: tuple[float, float] = (0.0, 1.0),
        good_scores: tuple[float, float] = (0.0, 1.0),
    ):
        self.config, self.channels, self.threshold = config, configs.channels(config), threshold
        self.heat_range, self.good_scores = heat_range, good_scores
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

    def score(self, images: np.ndarray, *, batch: int | None = None) -> Scores:
        """Scores images that have the size for scoring already.

        The network sees the central square of side ``config.evaluate.crop``, and the map is zero outside it; with 0 it
        sees the whole image.

        Args:
          images: uint8 (n, size, size, c), where size is ``config.score.size``.
          batch: Images in one call of the compiled program, ``config.evaluate.batch`` by default; the last is padded.

        Returns:
          NumPy scores: image (n,) and map (n, size, size), float32.
        """
        found = self._call(self._score, self.central(images), batch)
        return found._replace(map=_bordered(found.map, images.shape[1]))

    def parts(self, images: np.ndarray) -> dict[str, np.ndarray] | None:
        """The terms of which the score map is the sum, for a picture.

        Args:
          images: uint8 (n, size, size, c), as in `score`.

        Returns:
          float32 (n, size, size) by name; None where the method's map has none (see `Method`).
        """
        if self._parts is None:
            return None
        found = self._call(self._parts, self.central(images))
        return {name: _bordered(maps, images.shape[1]) for name, maps in found.items()}

    def embed(self, images: np.ndarray) -> dict[str, np.ndarray] | None:
        """Features of images as they are, which come first, and as training changes them, by name, for a picture.

        Args:
          images: uint8 (n, size, size, c), as in `score`.

        Returns:
          float32 (n, d) by name; None where the method has none (see `Method`).
        """
        if self._embed is None:
            return None

        def call(weights, rows):
            numbers, images = rows
            keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(self.config.seed), number))(numbers)
            return self._embed(*weights, keys, images / jnp.float32(255))

        return self._call(parallel.by_rows(call, self._mesh), (np.arange(len(images)), self.central(images)))

    def prepare(self, batch: int) -> None:
        """Compiles the program for `batch` images, or loads it from the cache, before the first image is there."""
        size = self.config.score.size
        self.score(np.zeros((1, size, size, self.channels), np.uint8), batch=batch)

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
        """Scores images of any size, or their central part where ``config.evaluate.crop`` is set.

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
        stack = np.stack([self.resized(image) for image in images])
        scores = self.score(stack, batch=batch or (1 if len(stack) == 1 else None))
        made = []
        for image, *row in zip(images, *scores, strict=True):
            one = self.prediction(image.shape[:2], *row)
            made.append(one._replace(map=regions.at_size(one.map, image.shape[:2])))
        return made

    def resized(self, image: np.ndarray) -> np.ndarray:
        """An image (h, w, 3 or c) as `score` takes it: uint8 (size, size, c)."""
        size = self.config.score.size
        return resize_image(to_grey(image) if image.shape[2] > self.channels else image, (size, size))

    def prediction(self, shape: tuple[int, int], score: np.floating, map: np.ndarray) -> Prediction:
        """What is said of an image of a shape (h, w) by its score and its map (size, size), which keeps its size."""
        crop = self.config.evaluate.crop
        defective = None if self.threshold is None else bool(score > self.threshold)
        peak, judged = regions.peak(map, crop, shape), regions.judged(len(map), crop, shape)
        return Prediction(float(score), self.threshold, defective, regions.outside_nan(map, crop), peak, judged)

    def central(self, images: np.ndarray) -> np.ndarray:
        """The part of images or maps (n, size, size, ...) that is judged."""
        return _central(images, self.config.evaluate.crop)

    def fit_ranges(self, good: Scores) -> None:
        """Sets `heat_range` and `good_scores` from the scores of good images of the training split."""
        judged = self.central(good.map)
        self.heat_range = (float(np.median(judged)), float(judged.max()))
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
        """Writes ``detector/`` and ``detector.json`` into `workdir`, which already holds config.json."""
        tree = {"variables": self.variables, "density": self.density}
        checkpoint.write(Path(workdir) / "detector", tree)
        fitted = {"threshold": self.threshold, "heat_range": self.heat_range, "good_scores": self.good_scores}
        (Path(workdir) / "detector.json").write_text(json.dumps(fitted) + "\n")


def _central(images: np.ndarray, crop: int) -> np.ndarray:
    """The central part of images (n, side, side, ...) that the network sees; all of them where `crop` is 0."""
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


def load(workdir: str | Path, overrides: dict[str, str] | None = None) -> Detector:
    """Loads a trained detector.

    Args:
      workdir: A directory that ``jaxad.train`` has completed.
      overrides: Values of its config to change for this use, as text by dotted key: where the test images are, and how
        they are scored. With other values in ``config.score``, or another ``config.evaluate.crop``, the threshold is
        None, since it was fitted with these.

    Raises:
      UserError: It is no workdir, its training is not complete, its files were damaged, or an override comes too late.
    """
    parallel.use_compilation_cache()
    workdir = Path(workdir)
    config = read_config(workdir, overrides)
    path = workdir / "detector"
    if damage := checkpoint.inspect(path):
        raise UserError(f"the detector in {workdir} is damaged ({damage}); {REWRITE}")
    tree = checkpoint.read(path)
    try:
        fitted = json.loads((workdir / "detector.json").read_text())
        threshold, (low, high), (mean, std) = (fitted[key] for key in ("threshold", "heat_range", "good_scores"))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{workdir / 'detector.json'} is damaged; {REWRITE}") from error
    trained = configs.read(workdir)
    if (config.score, config.evaluate.crop) != (trained.score, trained.evaluate.crop):
        threshold = None
    return Detector(config, tree["variables"], tree["density"], threshold, (low, high), (mean, std))
