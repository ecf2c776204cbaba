"""Scores of good images by densities that were fitted without them, where the images are too few to hold some out.

The images are divided into folds. Each fold is scored by a density of all other folds, and the thresholds are the
conformal quantiles of these scores, as if they were those of held-out images. The detector has the density of all n
images. This is the rule called cross-validation or the jackknife by Barber et al., Predictive inference with the
jackknife+, Annals of Statistics 2021.

What is promised is weaker than with held-out images, for which the asked rate r is an upper bound. It rests on how the
detector scores a new good image beside the densities that lack a fold:

* Where it gives no higher score than any of them, as distances to the nearest of more features are never larger, an
  image above the threshold also lies above the quantile of CV+, and Theorem 4 of the paper bounds the probability: by
  2r, and min(2 (1 - 1/K) / (n/K + 1), (1 - K/n) / (K + 1)) more with K folds.
* Where the scores differ little (a stable fit), the rate is about r, as the paper's Section 5 has it. Fewer images fit
  a density worse, and so score others higher; this makes the thresholds too high rather than too low.

No rule of this kind promises r itself for all densities.
"""

import jax
import numpy as np

from jaxad import methods
from jaxad.augment import synthetic_defects
from jaxad.detector import Detector
from jaxad.methods.method import Method, Scores
from jaxad.training import synthetic_validation

FOLDS = 10


def largest_fold(images: int) -> int:
    """How many of the images a density lacks at most."""
    return -(-images // min(FOLDS, images))


def folds(images: int, *, seed: int) -> list[np.ndarray]:
    """The numbers of the images in each fold, at random, in ascending order; folds differ in size by one at most."""
    order = np.random.default_rng((seed, images)).permutation(images)
    return [np.sort(fold) for fold in np.array_split(order, min(FOLDS, images))]


def cross_fit(
    found: Detector, images: np.ndarray, boxes: np.ndarray | None = None
) -> tuple[Scores, dict[str, float]]:
    """Scores all images that a detector without training was fitted to, each by a density that lacks its fold.

    Args:
      found: The detector. What its density has chosen, the others have too.
      images: uint8 (n, h, w, c), all that it was fitted to.
      boxes: Where they lie in their frames, see `Detector.score`.

    Returns:
      The scores of the images, and what `synthetic_validation.measure` says of synthetic defects in them, scored alike.
    """
    options = {"crop": found.config.evaluate.crop, "boxes": boxes, "geometry": found.region.geometry}
    made = synthetic_defects.make(images, images, **options)
    count, method = len(made.images), methods.create(found.config)  # once, so that it is compiled once
    scores = Scores(np.empty(count, np.float32), np.empty((count, *found.region.size), np.float32))
    for fold in folds(len(images), seed=found.config.seed):
        rows = np.flatnonzero(np.isin(made.sources, fold))
        some = _without(found, method, images, fold).score(
            made.images[rows], boxes=None if made.boxes is None else made.boxes[rows]
        )
        scores.image[rows], scores.map[rows] = some.image, some.map
    good = Scores(*(part[: len(images)] for part in scores))
    return good, synthetic_validation.measure(scores, made)


def _without(found: Detector, method: Method, images: np.ndarray, fold: np.ndarray) -> Detector:
    """The detector with a density of all images but those of a fold."""
    key = jax.random.key(found.config.seed)
    rest = np.delete(images, fold, axis=0)
    if method.hooks.refit is None:
        density = method.fit(found.variables, rest, key)
    else:
        density, _ = method.hooks.refit.again(found.variables, found.density, rest, key)
    return found.with_weights(found.variables, density)
