"""A score without labels: how well a detector finds synthetic defects in good images that it was not trained on.

A user without any defective image can compare settings by it. `jaxad.augment.synthetic_defects` makes the defects.
Two rules make the figures mean something:

* They measure defects of its three kinds only, and say nothing of how well other defects are found.
* Compare settings on one category, with the same ``config.data.holdout`` and ``config.seed``, which choose the images
  that are held out. Figures of different categories, or of different held-out images, do not compare.

Nothing is chosen by them.
"""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad import metrics
from jaxad.augment import synthetic_defects
from jaxad.augment.synthetic_defects import SyntheticSet
from jaxad.data import geometry, pipeline
from jaxad.data.record import Source
from jaxad.detector import read_fitted, scores_as_trained
from jaxad.errors import UserError
from jaxad.methods.method import Scores
from jaxad.runtime import disk

_FILE = "synthetic.json"


def held_out(config: ConfigDict, source: Source, fitted: np.ndarray, held: np.ndarray) -> SyntheticSet:
    """The set of a training: defects in the images that it held out, made from those that it fits.

    Args:
      config: Its config.
      source: The training images.
      fitted: Numbers of the images to fit, see `pipeline.split_holdout`.
      held: Numbers of those that are held out, at least one.
    """
    framed = geometry.scored(config)
    good, others = (pipeline.Images(source, numbers, geometry=framed, cache_bytes=0) for numbers in (held, fitted))
    images, boxes = good.framed()
    return synthetic_defects.make(images, others, crop=config.evaluate.crop, boxes=boxes, geometry=framed)


def evaluate(scores: Scores, made: SyntheticSet) -> dict:
    """What `metrics.evaluate` says of a detector's scores of ``made.images``, whole and in order.

    Raises:
      UserError: A score or a map is not finite.
    """
    return metrics.evaluate(
        metrics.TestScores(
            ids=[f"number {number} of the synthetic set ({kind})" for number, kind in enumerate(made.kinds)],
            labels=made.labels,
            defects=made.kinds,
            images=made.images,
            masks=list(made.masks),
            image_scores=scores.image,
            maps=scores.map,
        )
    )


def measure(scores: Scores, made: SyntheticSet) -> dict[str, float]:
    """Image and pixel AUROC of the set, in [0, 1], over everything and by kind against all good images.

    Args:
      scores: What the detector says of ``made.images``, whole and in order.
      made: The set.

    Returns:
      ``synthetic_image_auroc``, ``synthetic_pixel_auroc`` and both again with ``_<kind>`` behind, for each kind that
      the set holds; empty where it holds no defect.

    Raises:
      UserError: A score or a map is not finite.
    """
    found = evaluate(scores, made)
    rows = {"": found} | {f"_{kind}": own for kind, own in found["by_defect"].items()}
    return {
        f"synthetic_{level}_auroc{suffix}": row[level]["auroc"]
        for suffix, row in rows.items()
        for level in ("image", "pixel")
        if row[level]["auroc"] is not None
    }


def write(workdir: str | Path, figures: dict[str, float]) -> None:
    """Keeps what `measure` says of a detector beside it, since its held-out images may be gone later."""
    disk.write_json(Path(workdir) / _FILE, figures)


def read(workdir: str | Path, config: ConfigDict) -> dict[str, float | str | None]:
    """What results.json says: the figures of `measure`, or None for the two main ones, and the ``reason``.

    Args:
      workdir: Where the detector was trained.
      config: The config that the detector is used with now.

    Raises:
      UserError: The file was damaged.
    """
    path, fitted = Path(workdir) / _FILE, read_fitted(workdir)
    if not path.is_file() and fitted["threshold"] is None:
        return unknown("no good images were held out (config.data.holdout)")
    if not path.is_file():
        return unknown(f"there is no {_FILE}, which a training in this folder would have written")
    if not scores_as_trained(config, configs.read(workdir), fitted["white_level"]):
        changed = "config.score, config.evaluate.crop or the white level"
        return unknown(f"{changed} is not what it was measured with, after the training")
    remedy = "run the training command again to rewrite it"
    figures = disk.read_json(path, remedy)
    try:
        return {name: float(value) for name, value in figures.items()} or unknown("no synthetic defect could be seen")
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged; {remedy}", about=path) from error


def summary(figures: dict[str, float | str | None]) -> str:
    """One line of what `read` returns: the two main figures in percent, or n/a and the reason."""
    if "reason" in figures:
        return f"synthetic defects in held-out good images: n/a ({figures['reason']})"
    image, pixel = (100 * figures[f"synthetic_{level}_auroc"] for level in ("image", "pixel"))
    return f"synthetic defects in held-out good images: image AUROC {image:.2f}, pixel AUROC {pixel:.2f}"


def unknown(reason: str) -> dict[str, float | str | None]:
    """What results.json says where there are no figures."""
    return {"synthetic_image_auroc": None, "synthetic_pixel_auroc": None, "reason": reason}
