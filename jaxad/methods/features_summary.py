"""What a scorer of features remembers of the good images: enough to fit it, and to take in more images later.

A scorer is fitted on the summary alone, so a summary that took in some images first and others later gives the scorer
of all of them. Neither kind grows with the number of images beyond a bound.
"""

from typing import Any, Protocol

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxad.scoring import gaussian_statistics, nearest_neighbor
from jaxad.scoring.gaussian_statistics import Statistics

PER_LOCATION, SHARED, NEAREST = "gaussian_per_location", "gaussian", "nearest_neighbor"


class Summary(Protocol):
    """What both kinds of summaries do."""

    def add(self, numbers: np.ndarray, features: np.ndarray) -> None:
        """Takes the features (b, rows, columns, channels) of images with these numbers (b,) in the training set."""

    def fit(self) -> dict[str, np.ndarray]:
        """The scorer: the fields of a `density.Gaussian` or of a `nearest_neighbor.Bank`."""

    def told(self, scorer: dict[str, np.ndarray]) -> str:
        """A sentence on the scorer that it gave, where there is something to say."""

    def arrays(self) -> dict[str, np.ndarray]:
        """The summary itself, for `restore_summary`."""


def empty_summary(key: jax.Array, name: str, config: ConfigDict) -> Summary:
    """The summary of no image, for a scorer by its name."""
    return Candidates(key, config) if name == NEAREST else Moments(config, shared=name == SHARED)


def restore_summary(key: jax.Array, arrays: dict[str, np.ndarray], config: ConfigDict) -> Summary:
    """The summary that had these arrays, made with the same key and config."""
    if "numbers" in arrays:
        return Candidates(key, config, **arrays)
    return Moments(config, shared=arrays["first"].ndim == 1, sums=Statistics.unpacked(arrays))


class Moments:
    """Sums over the features, at each position or over all of them.

    Attributes:
      sums: None as long as there is no image.
    """

    def __init__(self, config: ConfigDict, *, shared: bool, sums: Statistics | None = None):
        self._settings, self._shared, self.sums = config.density, shared, sums

    def add(self, numbers: np.ndarray, features: np.ndarray) -> None:
        """See `Summary.add`."""
        channels = features.shape[-1]
        placed = features.reshape(-1, channels) if self._shared else np.moveaxis(features, 0, -2)
        if self.sums is None:
            self.sums = Statistics.around(placed.mean(axis=-2, dtype=np.float64))
        self.sums.add(placed)

    def fit(self) -> dict[str, np.ndarray]:
        """See `Summary.fit`."""
        options = {"shrinkage": self._settings.shrinkage, "ridge": self._settings.ridge}
        return gaussian_statistics.gaussian(self.sums, **options)._asdict()

    def told(self, scorer: dict[str, np.ndarray]) -> str:
        """See `Summary.told`."""
        return ""

    def arrays(self) -> dict[str, np.ndarray]:
        """See `Summary.arrays`."""
        return self.sums.packed()


class Candidates:
    """Features that a bank is chosen from: a random part of those of all images, however these are divided.

    Each feature draws a number, by its image's number in the training set and its own in the image, and those of the
    smallest numbers are kept.

    Args:
      key: Draws the numbers, and chooses from the candidates.
      config: ``density.patches`` says how many are kept.
      features: float32 (n, channels) that were kept before, with their `numbers`, float64 (n,), and out of how many.
    """

    def __init__(
        self,
        key: jax.Array,
        config: ConfigDict,
        features: np.ndarray | None = None,
        numbers: np.ndarray | None = None,
        seen: Any = 0,
    ):
        self._key, self._settings, self._neighbors = key, config.density, max(1, config.score.reweight)
        self._features, self._numbers, self.seen = features, np.empty(0) if numbers is None else numbers, int(seen)

    def add(self, numbers: np.ndarray, features: np.ndarray) -> None:
        """See `Summary.add`."""
        b, channels, most = len(features), features.shape[-1], self._settings.patches
        flat = features.reshape(-1, channels)
        if self._features is None:
            self._features = np.empty((0, channels), np.float32)
        seed = np.asarray(jax.random.key_data(self._key)).ravel()
        drawn = [np.random.default_rng([*seed, number]).random(len(flat) // b) for number in numbers]
        self.seen += len(flat)
        every, old = np.concatenate([self._numbers, *drawn]), len(self._numbers)
        # Most features of later images are dropped before they are copied.
        rows = np.sort(np.argpartition(every, most)[:most]) if len(every) > most else np.arange(len(every))
        self._features = np.concatenate([self._features[rows[rows < old]], flat[rows[rows >= old] - old]])
        self._numbers = every[rows]

    def features(self) -> np.ndarray:
        """float32 (n, channels), by their numbers."""
        return self._features[np.argsort(self._numbers)]

    def fit(self) -> dict[str, np.ndarray]:
        """See `Summary.fit`."""
        features = self.features()
        count = max(1, round(self._settings.bank * len(features)))
        if count < len(features):
            features = features[nearest_neighbor.greedy_coreset(self._key, features, count=count)]
        return nearest_neighbor.fit_bank(features, neighbors=self._neighbors)._asdict()

    def told(self, scorer: dict[str, np.ndarray]) -> str:
        """See `Summary.told`."""
        drawn = "" if len(self._numbers) == self.seen else f", drawn at random from {self.seen}"
        return f"the bank keeps {len(scorer['points'])} of {len(self._numbers)} features{drawn}"

    def arrays(self) -> dict[str, np.ndarray]:
        """See `Summary.arrays`."""
        return {"features": self._features, "numbers": self._numbers, "seen": np.asarray(self.seen)}
