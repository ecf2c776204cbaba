"""Fits the scorers of features to good images, takes in more images later, and chooses a scorer where none is named.

Two of them are chosen from. Where the position in the image explains most of how features vary, parts are aligned, and
a Gaussian for each position is taken. Elsewhere it can still be the better one, on surfaces with a direction or a
gradient of light. So a part of the good images is kept back, synthetic defects are put into it, and Gaussians are taken
if they tell them from the good ones better, by more than chance could. Then the scorer takes in what was kept back.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
from ml_collections import ConfigDict

from jaxad import metrics
from jaxad.augment import synthetic_defects
from jaxad.data import geometry
from jaxad.data.geometry import Geometry
from jaxad.data.pipeline import Chosen
from jaxad.errors import UserError
from jaxad.methods.features_summary import NEAREST, PER_LOCATION, Summary, empty_summary, restore_summary
from jaxad.scoring.gaussian_statistics import location_share

AUTO = "auto"
# Both were settled on MVTec AD's bottle, magnetic tile and the demo, see docs/pretrained_weights.md.
ALIGNED = 0.5  # share of the variance that the position explains from which nothing else is asked
# Images that are kept back for the choice: at least, at most, and at most one of so many.
_FEWEST, _MOST, _EVERY = 4, 16, 5


class Functions(NamedTuple):
    """What fitting needs of the network, whose variables are bound.

    Attributes:
      features: ``images -> batches`` of float32 (b, rows, columns, channels), of a sequence of uint8 (h, w, c).
      image_scores: ``(scorer, images) -> scores``, float32 (n,), of uint8 (n, h, w, c).
    """

    features: Callable[[Sequence[np.ndarray]], Iterator[np.ndarray]]
    image_scores: Callable[[dict[str, Any], np.ndarray], np.ndarray]


def fit_scorer(
    key: jax.Array, config: ConfigDict, functions: Functions, good_images: Sequence[np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The scorer of ``config.density`` for good images, and what `extend_scorer` needs to take in others."""
    if config.density.name == AUTO:
        summary = _chosen(key, config, functions, good_images)
    else:
        summary = _summary(key, config, functions, config.density.name, good_images)
    return _told(summary, *_fitted(summary, len(good_images)))


def fit_named(
    key: jax.Array, config: ConfigDict, functions: Functions, name: str, good_images: Sequence[np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """As `fit_scorer`, for a scorer by its name, and without a word."""
    return _fitted(_summary(key, config, functions, name, good_images), len(good_images))


def extend_scorer(
    key: jax.Array, config: ConfigDict, functions: Functions, kept: dict[str, Any], images: Sequence[np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The scorer for the images of before and some more, and what the next call needs; what was chosen stays."""
    before, summary = int(kept["images"]), restore_summary(key, kept["summary"], config)
    _take([summary], functions, images, np.arange(len(images)), before=before)
    return _told(summary, *_fitted(summary, before + len(images)))


def _summary(
    key: jax.Array, config: ConfigDict, functions: Functions, name: str, good_images: Sequence[np.ndarray]
) -> Summary:
    """The summary of all good images for a scorer by its name."""
    summary = empty_summary(key, name, config)
    _take([summary], functions, good_images, np.arange(len(good_images)))
    return summary


def _fitted(summary: Summary, images: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What all return for a summary of so many images."""
    return summary.fit(), {"images": np.asarray(images), "summary": summary.arrays()}


def _told(summary: Summary, scorer: dict[str, np.ndarray], kept: dict[str, Any]) -> tuple:
    """What `_fitted` returned, after a sentence on it."""
    if told := summary.told(scorer):
        print(told, flush=True)
    return scorer, kept


def _take(
    into: Iterable[Summary],
    functions: Functions,
    images: Sequence[np.ndarray],
    rows: np.ndarray,
    *,
    before: int = 0,
) -> None:
    """Adds the features of some of the images, which come after `before` others."""
    at = 0
    for features in functions.features(Chosen(images, rows)):
        numbers = before + rows[at : at + len(features)]
        for summary in into:
            summary.add(numbers, features)
        at += len(features)


def _chosen(key: jax.Array, config: ConfigDict, functions: Functions, good_images: Sequence[np.ndarray]) -> Summary:
    """The summary of all good images for the scorer that suits them, which is said with the reason."""
    n = len(good_images)
    count = min(_MOST, n // _EVERY)
    back = np.linspace(0, n - 1, count if count >= _FEWEST else 0).round().astype(int)
    rest = np.setdiff1d(np.arange(n), back)
    candidates = {name: empty_summary(key, name, config) for name in (PER_LOCATION, NEAREST)}
    _take(candidates.values(), functions, good_images, rest)
    sums, framed = candidates[PER_LOCATION].sums, geometry.scored(config)
    share = location_share(sums, _counted(framed, sums.shift.shape[:2]))
    if share >= ALIGNED:
        name, reason = PER_LOCATION, "so the parts are aligned"
    elif not len(back):
        name, reason = NEAREST, f"and with {n} images, below {_FEWEST * _EVERY}, nothing else is compared"
    else:
        found = _aurocs(candidates, functions, Chosen(good_images, back), Chosen(good_images, rest), framed)
        name, reason = _better(found, len(back))
    if config.score.reweight and name == PER_LOCATION:
        raise UserError(
            f"config.score.reweight is {config.score.reweight}, but density.name=auto takes {name}, which has no "
            "neighbors; set it to 0, or config.density.name=nearest_neighbor",
            about="score.reweight",
        )
    explains = f"the position in the image explains {share:.0%} of the variance of the good images' features"
    print(f"density.name=auto is {name}: {explains}, {reason}", flush=True)
    _take([candidates[name]], functions, good_images, back)
    return candidates[name]


def _better(found: dict[str, float], images: int) -> tuple[str, str]:
    """The scorer to take by the image AUROC of each on synthetic defects in so many images, and the reason."""
    if not found:
        return NEAREST, f"and too few of {images} images show a synthetic defect for a comparison"
    # The largest standard error that the AUROC of so many good images can have.
    margin = 0.5 / images**0.5
    name = PER_LOCATION if found[PER_LOCATION] >= found[NEAREST] + margin else NEAREST
    told = ", ".join(f"{100 * value:.1f} by {one}" for one, value in found.items())
    reason = f"and synthetic defects in {images} of them have an image AUROC of {told}"
    close = name == NEAREST and found[PER_LOCATION] > found[NEAREST]
    return name, f"{reason}, less than the {100 * margin:.1f} apart that count" if close else reason


def _counted(framed: Geometry, grid: tuple[int, int]) -> np.ndarray | None:
    """Which positions of a grid lie in the region of interest; None where all do.

    What is painted beside it is at the same place in every image, whatever the parts do.
    """
    valid = framed.valid(None)
    if valid is None:
        return None
    share = cv2.resize(valid[0].astype(np.float32), grid[::-1], interpolation=cv2.INTER_AREA)
    return share == share.max()


def _aurocs(
    candidates: dict[str, Summary],
    functions: Functions,
    kept_back: Sequence[np.ndarray],
    others: Sequence[np.ndarray],
    framed: Geometry,
) -> dict[str, float]:
    """How well each scorer tells images that were kept back from the same with a synthetic defect, from 0 to 1.

    Empty where fewer defects than images can be seen.
    """
    good = np.stack([kept_back[n] for n in range(len(kept_back))])
    boxes = np.tile((0, 0, *framed.size), (len(good), 1))
    made = synthetic_defects.make(good, others, boxes=boxes, geometry=framed)
    if made.labels.sum() < len(kept_back):
        return {}
    found = {}
    for name, summary in candidates.items():
        ranking = metrics.rank_images(made.labels, functions.image_scores(summary.fit(), made.images))
        found[name] = metrics.auroc(metrics.select(ranking, np.ones(len(made.labels), bool)))
    return found
