"""A trained detector: everything that is needed to score images, in one directory.

The directory is the workdir: config.json, ``detector/`` with variables and density (Orbax, sealed), and detector.json
with the threshold and the range of the heatmaps' colours.
"""

import json
from pathlib import Path
from typing import NamedTuple

import cv2
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxad import checkpoint, methods, parallel
from jaxad import config as configs
from jaxad.data.image import resize_image
from jaxad.errors import UserError
from jaxad.methods.method import Scores

REWRITE = "run its training command again to rewrite it"
# What may still be changed in a trained detector's config.
CHANGEABLE = ("evaluate.", "score.", "data.root", "data.category", "data.test", "data.ground_truth", "data.source")


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
      config: The config that it was trained with.
      variables: Parameters and batch statistics.
      density: What ``Method.fit`` returned.
      threshold: Image scores of whole images above it are called defective; None without held-out images.
      heat_range: The map's median and highest value on good images; heatmaps run from the one to the other.
    """

    def __init__(
        self,
        config: ConfigDict,
        variables,
        density,
        threshold: float | None = None,
        heat_range: tuple[float, float] = (0.0, 1.0),
    ):
        self.config, self.threshold, self.heat_range = config, threshold, heat_range
        self.variables, self.density = variables, density
        self._mesh = parallel.make_mesh()
        self._weights = parallel.replicate((variables, density), self._mesh)
        method = methods.create(config)
        self._score = parallel.compiled(lambda weights, images: method.score(*weights, images / jnp.float32(255)))

    def score(self, images: np.ndarray, *, crop: int = 0, batch: int | None = None) -> Scores:
        """Scores images that have the size for scoring already.

        Args:
          images: uint8 (n, size, size, 3), where size is ``config.score.size``.
          crop: Side of the central square that the network sees; the map is zero outside it. 0 for the whole image.
          batch: Images in one call of the compiled program, ``config.evaluate.batch`` by default; the last is padded.

        Returns:
          NumPy scores: image (n,) and map (n, size, size), float32.
        """
        side = images.shape[1]
        if crop > side or crop < 0:
            raise UserError(f"config.evaluate.crop is {crop}, but the images are {side} pixels a side")
        border = (side - crop) // 2 if crop else 0
        seen = images[:, border : side - border, border : side - border] if crop else images
        if crop and seen.shape[1] != crop:
            raise UserError(f"config.evaluate.crop {crop} cannot be centred in {side} pixels; their difference is odd")
        batch = batch or self.config.evaluate.batch
        scores = [self._score_batch(seen[start : start + batch], batch) for start in range(0, len(seen), batch)]
        image = np.concatenate([s.image for s in scores])
        maps = np.concatenate([s.map for s in scores])
        return Scores(image, np.pad(maps, ((0, 0), (border, border), (border, border))))

    def prepare(self, batch: int) -> None:
        """Compiles the program for `batch` images, or loads it from the cache, before the first image is there."""
        size = self.config.score.size
        self._score_batch(np.zeros((1, size, size, 3), np.uint8), batch)

    def _score_batch(self, images: np.ndarray, batch: int) -> Scores:
        """Scores up to `batch` images with the program compiled for `batch`, rounded up to the number of devices."""
        devices = self._mesh.size
        padded = -(-batch // devices) * devices
        filled = np.concatenate([images, np.zeros((padded - len(images), *images.shape[1:]), images.dtype)])
        scores = parallel.to_host(self._score(self._weights, parallel.split(filled, self._mesh)))
        return Scores(scores.image[: len(images)], scores.map[: len(images)])

    def predict(self, images: np.ndarray | list[np.ndarray], *, batch: int | None = None) -> list[Prediction]:
        """Scores images of any size; the whole image is seen.

        Args:
          images: uint8 RGB arrays (h, w, 3), whose sizes may differ.
          batch: Images in one call of the compiled program; by default 1 for one image, else ``config.evaluate.batch``.

        Returns:
          One prediction per image.

        Raises:
          UserError: An array is not uint8 (h, w, 3).
        """
        for number, image in enumerate(images):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise UserError(f"image {number} must be uint8 (h, w, 3), not {image.dtype} {image.shape}")
        if not len(images):
            return []
        size = self.config.score.size
        stack = np.stack([resize_image(image, (size, size)) for image in images])
        scores = self.score(stack, batch=batch or (1 if len(stack) == 1 else None))
        return [self._prediction(*row) for row in zip(images, scores.image, scores.map, strict=True)]

    def _prediction(self, image: np.ndarray, score: np.floating, small: np.ndarray) -> Prediction:
        full = cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        row, column = np.unravel_index(full.argmax(), full.shape)
        defective = None if self.threshold is None else bool(score > self.threshold)
        return Prediction(float(score), self.threshold, defective, full, (int(row), int(column)))

    def save(self, workdir: Path) -> None:
        """Writes ``detector/`` and ``detector.json`` into `workdir`, which already holds config.json."""
        tree = {"variables": self.variables, "density": self.density}
        checkpoint.write(Path(workdir) / "detector", tree)
        fitted = {"threshold": self.threshold, "heat_range": self.heat_range}
        (Path(workdir) / "detector.json").write_text(json.dumps(fitted) + "\n")


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
    trained = configs.read(workdir)
    config = configs.override(trained, overrides or {})
    if late := [key for key in overrides or {} if not key.startswith(CHANGEABLE)]:
        raise UserError(
            f"config.{late[0]} was settled by the training of {workdir}; what can be changed now is config."
            f"{', config.'.join(CHANGEABLE)}"
        )
    path = workdir / "detector"
    if not (workdir / "detector.json").is_file():
        raise UserError(f"{workdir} holds no trained detector yet; complete its training with jaxad.train")
    if damage := checkpoint.inspect(path):
        raise UserError(f"the detector in {workdir} is damaged ({damage}); {REWRITE}")
    tree = checkpoint.read(path)
    try:
        fitted = json.loads((workdir / "detector.json").read_text())
        threshold, (low, high) = fitted["threshold"], fitted["heat_range"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{workdir / 'detector.json'} is damaged; {REWRITE}") from error
    threshold = threshold if config.score == trained.score else None
    return Detector(config, tree["variables"], tree["density"], threshold, (low, high))
