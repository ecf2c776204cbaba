"""What a training says of its images before it begins: how many, from where, and what is left out."""

import collections
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad.data import pipeline
from jaxad.data.image import NO_IMAGES, passed_over
from jaxad.data.record import Source
from jaxad.errors import counted


def training_images(source: Source, config: ConfigDict, fingerprints: Mapping[str, Mapping[str, Any]]) -> str:
    """The lines that tell which images are trained on, how many are held out, and what lies beside them unused.

    Args:
      source: The training images.
      config: The config.
      fingerprints: What `Source.fingerprint` tells of each, by its id; they tell copies.
    """
    fitted, held = (len(part) for part in pipeline.split_holdout(source.ids, **configs.split_options(config)))
    count, parts = len(source), "all to train on"
    crossed = not held and cross_fits(count, config)
    if pipeline.is_validation(source.ids).any():
        validation = counted(held, "validation image")
        count, parts = fitted, f"{parts}; {validation} for the threshold, in place of config.data.holdout"
    elif held:
        parts = f"{fitted} to train on and {held} held out for the threshold"
    elif crossed:
        parts = f"{parts}; for the threshold each is scored by a density of others"
    lines = [f"training images: {count} from {source.place}, {parts}"]
    lines.append(on_threshold(len(source), len(source) if crossed else held, config))
    lines += [beside(source), repeated(fingerprints)]
    return "\n".join(line for line in lines if line)


def beside(source: Source) -> str:
    """The lines on what lies beside the images of a source and is not used; "" where there is nothing."""
    others = passed_over(source.others, NO_IMAGES) if source.others else ""
    return "\n".join(line for line in (_on_left_out(source), others) if line)


def repeated(fingerprints: Mapping[str, Mapping[str, Any]]) -> str:
    """The line on training images of the same content; "" without any."""
    by_content = collections.defaultdict(list)
    for name, row in fingerprints.items():
        by_content[row["sha256"]].append(name)
    groups = [names for names in by_content.values() if len(names) > 1]
    if not groups:
        return ""
    copies = sum(len(names) - 1 for names in groups)
    what = "is a copy of another one" if copies == 1 else "are copies of other ones"
    return (
        f"WARNING: {counted(copies, 'training image')} {what}, such as '{groups[0][1]}' of '{groups[0][0]}'; remove "
        "copies, since one that is held out makes the threshold too low (python -m jaxad.check FOLDER finds all, and "
        "those that were encoded anew)"
    )


def cross_fits(images: int, config: ConfigDict) -> bool:
    """See `pipeline.cross_fits`."""
    options = configs.split_options(config)
    return pipeline.cross_fits(images, holdout=options["holdout"], cross_fit_below=options["cross_fit_below"])


def on_threshold(images: int, scored: int, config: ConfigDict) -> str:
    """Why there is no threshold, or what one of few images is worth; "" where there is nothing to say.

    Args:
      images: All good images.
      scored: Those that the threshold is fitted to.
      config: The config.
    """
    holdout = config.data.holdout
    if not scored:
        if not holdout:
            return "no images are held out (config.data.holdout=0): no threshold will be fitted, and nothing is decided"
        share = _least_share(images)
        advice = f" or set --config.data.holdout={share:g}, which holds out one" if share else ""
        return (
            f"a share of {holdout:g} (config.data.holdout) of {images} images is less than half a one, so none is held "
            f"out: no threshold will be fitted, and nothing is decided; add good images{advice}, and train again "
            "with --restart (from Python restart=True)"
        )
    return on_few(scored, config.threshold.false_alarm_rate)


def on_few(images: int, rate: float) -> str:
    """What false-alarm rate a threshold from so few good images has, and what to do; "" where it is the asked one."""
    if 1 / (images + 1) <= rate:
        return ""
    told = f"of new good images, about 1 in {images + 1} will exceed a threshold from {images}"
    if not rate:
        return f"{told}, which is the lowest rate that they allow"
    needed = math.ceil(1 / rate - 1e-9) - 1
    return f"{told}; a false-alarm rate of {rate:g} needs {needed} for the threshold: add good images"


def _least_share(images: int) -> float | None:
    """The smallest share in percent that holds out an image and leaves the two that a training needs."""
    shares = (percent / 100 for percent in range(1, 100) if round(images * percent / 100) == 1)
    return next(shares, None) if images > 2 else None


def _on_left_out(source: Source) -> str:
    """What lies beside the training images; a warning where it is more than they are."""
    found = source.left_out()
    if not found:
        return ""
    named = [f"'{name}' ({'cannot be read' if count is None else count})" for name, count in found.items()]
    count = sum(number or 0 for number in found.values())
    rule = f"only the images directly in {source.place} are trained on, since other folders may hold defects"
    if count <= len(source):
        return f"left out, with the number of images: {', '.join(named)}; {rule}"
    return (
        f"WARNING: {count} images beside these {len(source)} are NOT trained on, with their number in each folder: "
        f"{', '.join(named)}; {rule}; to train on them, move them into one folder and name it with --config.data.root"
    )
