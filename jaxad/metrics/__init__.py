"""Image-level and pixel-level AUROC, AP and F1-max, AU-PRO and AUPIMO: exact, with ties, from one sort.

Everything follows from the same few numbers: at each threshold, how many good and how many anomalous samples score at
least as much. Only thresholds that admit an anomalous sample matter (between them the true positive rate is flat), so
the pixels of a whole test set are sorted once and reduced to `Thresholds`, for the full set and again for each
defect type; every metric is then a short sum.

    ranking = rank_pixels(masks, maps)
    thresholds = select(ranking, np.ones(len(maps), bool))
    auroc(thresholds), aupro(thresholds, limit=0.3)
    aupimo(ranking, labels == 0)
"""

import functools
from typing import NamedTuple

import numpy as np

from jaxad.errors import UserError
from jaxad.metrics.ranking import IGNORED, Ranking, Thresholds, rank_images, rank_pixels, select
from jaxad.metrics.samples import by_sample
from jaxad.metrics.saturated import LIMITS as SPRO_LIMITS
from jaxad.metrics.saturated import Defects, over_types, select_saturated

IMAGE_METRICS = ("auroc", "ap", "f1_max")
PIXEL_METRICS = ("auroc", "ap", "f1_max", "aupro", "aupro_005", "aupimo")
PIMO_BOUNDS = (1e-5, 1e-4)  # the false positive rates between which AUPIMO integrates, as published


class TestScores(NamedTuple):
    """What a detector said about a test set of n images, at evaluation size, with the truth beside it."""

    __test__ = False  # pytest takes classes named Test* for test cases

    ids: list[str]
    labels: np.ndarray  # (n,) 0 good, 1 defective
    defects: list[str]  # "good" or the defect type
    images: np.ndarray  # uint8 (n, h, w, 3) RGB, or (n, h, w, 1) grey
    masks: list[np.ndarray | None]  # uint8 (h, w) 0/1, or `IGNORED`; None: pixel truth unknown
    image_scores: np.ndarray  # (n,) higher is more anomalous
    maps: np.ndarray  # float32 (n, h, w) higher is more anomalous
    groups: list[str] | None = None  # the sample that each image is a view of, "" for its own; None without samples
    single_defects: list[Defects | None] | None = None  # see `select_saturated`; None for data without saturations


def _need_both(thresholds: Thresholds) -> None:
    if not thresholds.good or not thresholds.anomalous:
        raise ValueError("need good and anomalous samples")


def _curve(thresholds: Thresholds, rises: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The polyline (false positive rate, rise) from (0, 0) to (1, 1): flat between thresholds, slanted across ties."""
    _need_both(thresholds)
    x = np.stack([thresholds.fp_above, thresholds.fp], 1).ravel() / thresholds.good
    y = np.stack([np.concatenate([[0.0], rises[:-1]]), rises], 1).ravel()
    return np.concatenate([[0.0], x, [1.0]]), np.concatenate([[0.0], y, [1.0]])


def roc_curve(thresholds: Thresholds) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates in [0, 1], ascending. Raises ValueError if either class is empty."""
    return _curve(thresholds, thresholds.tp / max(thresholds.anomalous, 1))


def pro_curve(thresholds: Thresholds, *, limit: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """False positive rate up to `limit` and per-region overlap (mean covered fraction of the components), in [0, 1].

    The last point lies at `limit` exactly, interpolated. Raises ValueError if either class is empty, or for a limit
    outside (0, 1].
    """
    if not 0 < limit <= 1:
        raise ValueError(f"the limit of the false positive rate must be in (0, 1], not {limit}")
    fpr, overlap = _curve(thresholds, thresholds.overlap)
    inside = fpr <= limit
    return np.append(fpr[inside], limit), np.append(overlap[inside], np.interp(limit, fpr, overlap))


def auroc(thresholds: Thresholds) -> float:
    """Area under the ROC curve: the chance that an anomalous sample outscores a good one, ties counting half."""
    fpr, tpr = roc_curve(thresholds)
    return float(np.trapezoid(tpr, fpr))


def average_precision(thresholds: Thresholds) -> float:
    """Precision averaged over the anomalous samples: sum of (recall step) * precision, without interpolation.

    Raises ValueError if either class is empty; so do all metrics here.
    """
    _need_both(thresholds)
    tp = thresholds.tp
    return float(np.sum(np.diff(tp, prepend=0) * (tp / (tp + thresholds.fp))) / thresholds.anomalous)


def f1_max(thresholds: Thresholds) -> float:
    """The largest F1 over all thresholds; always at one that admits an anomalous sample.

    The labels choose this threshold, so it is an upper bound of what a threshold reaches that is chosen without them.
    """
    _need_both(thresholds)
    return float(np.max(2 * thresholds.tp / (thresholds.tp + thresholds.fp + thresholds.anomalous)))


def aupro(thresholds: Thresholds, *, limit: float = 0.3) -> float:
    """Area under the per-region-overlap curve up to the false positive rate `limit`, divided by it, in [0, 1]."""
    area = float(np.trapezoid(*pro_curve(thresholds, limit=limit)[::-1]) / limit)
    return min(area, 1.0)  # the sum of a perfect curve may exceed 1 by its rounding


def aupimo(ranking: Ranking, good: np.ndarray, *, bounds: tuple[float, float] = PIMO_BOUNDS) -> np.ndarray:
    """Area under the per-image overlap curve of each image (AUPIMO: Bertoldo et al., BMVC 2024).

    The curve is an image's overlap, the share of its anomalous pixels that score at least a threshold, over the
    logarithm of the false positive rate at that threshold. The rate is the same for all images: that of all pixels of
    the good images, which is the mean of their rates where they are equally large. The area between the bounds
    is divided by the width of their logarithms.

    All scores are thresholds. The curve is straight between two neighboring ones, as in the authors' program, which
    takes thresholds at equal distances. This matters only where anomalous and good pixels have the same score. Below
    the smallest rate above 0, the overlap is the one that is reached without a false positive.

    Args:
      ranking: The pixels of n images.
      good: bool (n,), which images have no defect.
      bounds: The lowest and the highest false positive rate, in (0, 1].

    Returns:
      float64 (n,), in [0, 1]; NaN for images without an anomalous pixel.

    Raises:
      ValueError: The bounds are no ascending rates, or the lower one is less than one pixel of the good images.
    """
    if not 0 < bounds[0] < bounds[1] <= 1:
        raise ValueError(f"the bounds of the false positive rate must ascend in (0, 1], not {bounds}")
    is_component = np.zeros(len(ranking.component_image), bool)
    good_scores = ranking.scores[np.concatenate([good, is_component])[ranking.codes]]
    if len(good_scores) * bounds[0] < 1:
        raise ValueError(f"{len(good_scores)} pixels of good images resolve no false positive rate of {bounds[0]:g}")

    at = np.flatnonzero(ranking.codes >= ranking.images)
    ranks = [np.searchsorted(good_scores, ranking.scores[at], side) for side in ("right", "left")]
    low, high = np.log(bounds)
    with np.errstate(divide="ignore"):  # log(0) is minus infinity, below every bound
        above, reached = (np.log((len(good_scores) - rank) / len(good_scores)) for rank in ranks)
    # A pixel is covered from the rate `reached` on. Good pixels of the same score make it rise to that from `above` on.
    area = high - np.clip(reached, low, high)
    tied = (above < reached) & np.isfinite(above)
    above, reached = above[tied], reached[tied]
    start, end = np.clip(above, low, high), np.clip(reached, low, high)
    area[tied] += (end - start) * ((start + end) / 2 - above) / (reached - above)

    image = ranking.component_image[ranking.codes[at] - ranking.images]
    sizes = np.bincount(image, minlength=ranking.images)
    areas = np.bincount(image, area / (high - low), minlength=ranking.images)
    return np.divide(areas, sizes, out=np.full(ranking.images, np.nan), where=sizes > 0)


def known_masks(scores: TestScores) -> tuple[np.ndarray, list[np.ndarray]]:
    """The images that pixel-level metrics use, bool (n,), and their masks.

    A good image has no anomalous pixel by definition, so it counts with or without a mask. A defective image
    without a mask is left out.
    """
    known = np.array(
        [mask is not None or label == 0 for mask, label in zip(scores.masks, scores.labels, strict=True)], bool
    )
    blank = np.zeros(scores.maps.shape[1:], np.uint8)
    return known, [blank if mask is None else mask for mask, k in zip(scores.masks, known, strict=True) if k]


def evaluate(scores: TestScores, *, pro_limit: float = 0.3) -> dict:
    """All metrics of a test set, in [0, 1], over everything and by defect type.

    A defect type's metrics compare its own images with all good images. Pixel-level metrics take all pixels of
    these images. A metric that can't be computed is None, and `reasons` says why under its dotted key.

    AU-PRO goes up to `pro_limit`, "aupro_005" up to 0.05. AUPIMO is the mean over the images with an anomalous pixel.

    Returns:
      {"image": {"auroc", "ap", "f1_max"}, "pixel": {"auroc", "ap", "f1_max", "aupro", "aupro_005", "aupimo"},
      "pro_limit": float, "counts": {"good", "defective", "with_mask"},
      "reasons": {"image.auroc": "no anomalous test images", ...},
      "by_defect": {type: {"images": int, "image": {...}, "pixel": {...}}},
      "by_image": {"aupimo": [float or None for each image]}}.
      With samples also "sample": {"auroc", "ap", "f1_max"} and counts "good_samples" and "defective_samples". With
      saturations also AU-sPRO in every "pixel", by the names of `SPRO_LIMITS`, and "over_types", see `over_types`.

    Raises:
      UserError: A score or a map is not finite.
      ValueError: A good image's mask marks anomalous pixels; shapes differ; the limit is outside (0, 1].
    """
    _check(scores)
    labels, defects = np.asarray(scores.labels), np.array(scores.defects, dtype=str)
    measure = _Measure(scores, pro_limit)
    result = {
        "counts": {
            "good": int((labels == 0).sum()),
            "defective": int(labels.sum()),
            "with_mask": int((measure.known & (labels == 1)).sum()),
        },
        "pro_limit": pro_limit,
        "reasons": measure.reasons,
        **measure(np.ones(len(labels), bool), ""),
        "by_defect": {},
    }
    for defect in sorted(set(defects[labels == 1].tolist())):
        own = (defects == defect) & (labels == 1)
        made = measure(own | (labels == 0), f"by_defect.{defect}.")
        result["by_defect"][defect] = {"images": int(own.sum()), **made}
    if scores.single_defects is not None:
        result["over_types"] = over_types(result["by_defect"])
    if scores.groups is not None:
        of_samples = by_sample(scores.groups, labels, scores.image_scores)
        result["sample"] = measure.of_images(select_all(rank_images(*of_samples)), "sample")
        bad = int(of_samples[0].sum())
        result["counts"] |= {"good_samples": len(of_samples[0]) - bad, "defective_samples": bad}
    result["by_image"] = {"aupimo": [None if np.isnan(value) else value for value in measure.overlaps.tolist()]}
    return result


def select_all(ranking: Ranking) -> Thresholds:
    """Counts at every threshold over all images."""
    return select(ranking, np.ones(ranking.images, bool))


class _Measure:
    """Measures some images of a test set; `reasons` takes why a metric is None, by its dotted key."""

    def __init__(self, scores: TestScores, pro_limit: float):
        self.reasons: dict[str, str] = {}
        self._labels = np.asarray(scores.labels)
        self.known, masks = known_masks(scores)
        self._images = rank_images(self._labels, scores.image_scores)
        self._maps = scores.maps if self.known.all() else scores.maps[self.known]
        self._pixels = rank_pixels(masks, self._maps)
        good = np.flatnonzero(self._labels[self.known] == 0)
        self._unresolved = _unresolved(sum(int((masks[n] != IGNORED).sum()) for n in good))
        self.overlaps = np.full(len(self._labels), np.nan)
        if not self._unresolved:
            self.overlaps[self.known] = aupimo(self._pixels, self._labels[self.known] == 0)
        one_by_one = scores.single_defects
        self._defects = one_by_one and [own for own, known in zip(one_by_one, self.known, strict=True) if known]
        self._pro_limits = {"aupro": pro_limit, "aupro_005": 0.05}

    def __call__(self, chosen: np.ndarray, prefix: str) -> dict[str, dict[str, float | None]]:
        """The metrics of the images chosen, bool (n,); `prefix` begins the keys of `reasons`."""
        image = self.of_images(select(self._images, chosen), f"{prefix}image")
        pixel = self._of_pixels(chosen, f"{prefix}pixel")
        return {"image": image, "pixel": pixel}

    def of_images(self, thresholds: Thresholds, prefix: str) -> dict[str, float | None]:
        """The metrics of images, or of samples of several images."""
        functions = {name: (f, thresholds) for name, f in _OF_IMAGES.items()}
        return self._told(functions, dict.fromkeys(functions, _missing(thresholds)), prefix)

    def _of_pixels(self, chosen: np.ndarray, prefix: str) -> dict[str, float | None]:
        pixel = select(self._pixels, chosen[self.known])
        functions = {name: (f, pixel) for name, f in _OF_IMAGES.items()}
        functions |= {name: (functools.partial(aupro, limit=limit), pixel) for name, limit in self._pro_limits.items()}
        functions["aupimo"] = (lambda overlaps: float(np.nanmean(overlaps))), self.overlaps[chosen]
        missing = _missing_pixels(pixel, self._labels[chosen], self._labels[chosen & self.known])
        reasons = dict.fromkeys(functions, missing) | {"aupimo": missing or self._unresolved}
        if self._defects is not None:
            found = select_saturated(self._pixels, self._maps, self._defects, chosen[self.known])
            functions |= {n: (functools.partial(aupro, limit=limit), found) for n, limit in SPRO_LIMITS.items()}
            reasons |= dict.fromkeys(SPRO_LIMITS, missing or ("" if found.anomalous else _VANISHED))
        return self._told(functions, reasons, prefix)

    def _told(self, functions: dict, reasons: dict[str, str], prefix: str) -> dict[str, float | None]:
        self.reasons |= {f"{prefix}.{name}": reason for name, reason in reasons.items() if reason}
        return {name: None if reasons[name] else function(of) for name, (function, of) in functions.items()}


_OF_IMAGES = {"auroc": auroc, "ap": average_precision, "f1_max": f1_max}
_VANISHED = "no pixel of any defect is left at this size"


def _missing(thresholds: Thresholds) -> str:
    """Why image-level metrics can't be computed; empty if they can."""
    if not thresholds.good and not thresholds.anomalous:
        return "no test images"
    if not thresholds.anomalous:
        return "no anomalous test images"
    return "" if thresholds.good else "no good test images"


def _missing_pixels(thresholds: Thresholds, labels: np.ndarray, known_labels: np.ndarray) -> str:
    """Why pixel-level metrics can't be computed; empty if they can."""
    if not len(labels):
        return "no test images"
    if not labels.any():
        return "no anomalous test images"
    if not known_labels.any():
        return "no ground-truth masks for the anomalous test images"
    if not thresholds.anomalous:
        return "the ground-truth masks mark no anomalous pixel"
    return "" if thresholds.good else "no good pixels"


def _unresolved(pixels: int) -> str:
    """Why AUPIMO can't be computed with so many pixels of good images; empty if it can."""
    if not pixels:
        return "no good test images"
    if pixels * PIMO_BOUNDS[0] < 1:
        return f"{PIMO_BOUNDS[0]:g} of the {pixels:,} pixels of the good test images is less than one pixel"
    return ""


def _check(scores: TestScores) -> None:
    finite = np.isfinite(scores.image_scores) & np.isfinite(scores.maps).all(axis=(1, 2))
    if not finite.all():
        id_ = scores.ids[int(np.argmin(finite))]
        raise UserError(
            f"test image {id_!r}: the detector's score or map is not finite; "
            "evaluate an earlier checkpoint or train again with a lower learning rate"
        )
    for id_, label, mask in zip(scores.ids, scores.labels, scores.masks, strict=True):
        if label == 0 and mask is not None and not np.isin(mask, (0, IGNORED)).all():
            raise ValueError(f"{id_!r} is labelled good but its mask marks anomalous pixels")
