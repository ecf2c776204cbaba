"""Compares the false-alarm rate that a detector of few good images promises with the one that it has.

    python3 -m docs.false_alarms --config experiments/lite.py:bottle --root DIR FILE.json

Some good images of the category are drawn, and two detectors are made of them: with a part held out, and cross-fitted
(`jaxad.training.cross_fitting`). Good images that were not drawn, and those of the test split, are new to both.
docs/own_images.md shows the file as a table. The labels of test images are counted and choose nothing.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import jaxad
from jaxad import config as configs
from jaxad import data, methods
from jaxad.data import geometry, pipeline
from jaxad.detector import Detector
from jaxad.errors import run
from jaxad.runtime import provenance

WAYS = {"held out": 0, "cross-fitted": 60}  # threshold.cross_fit_below


def counts(found: Detector, images: np.ndarray) -> dict[str, int]:
    """How many images there are, are called defective, and have a region."""
    scores = found.score(images)
    marked = found.region.inside(scores.map).max(axis=(1, 2)) > np.float32(found.pixel_threshold)
    return {"images": len(images), "called": int((scores.image > found.threshold).sum()), "marked": int(marked.sum())}


def compare(spec: str, root: Path, *, images: int, draw: int, rate: float) -> list[dict]:
    """A row for each of `WAYS`, with the same images drawn."""
    rows = []
    for way, below in WAYS.items():
        values = {"data.root": root, "data.holdout": 0.1, "threshold.cross_fit_below": below}
        values |= {"threshold.false_alarm_rate": rate, "seed": draw}
        config = configs.load(spec, values, rules_of=methods.rules_of)
        dataset, framed = data.load(config), {"geometry": geometry.scored(config), "cache_bytes": 0}
        drawn = np.sort(np.random.default_rng(draw).permutation(len(dataset.train))[:images])
        train = pipeline.Images(dataset.train, np.arange(len(dataset.train)), **framed)
        test = pipeline.read_all(dataset.test, framed["geometry"])
        found = jaxad.train(config, train.stack(drawn))
        allowed = len(found.calibration.scores)
        kinds = {label: np.stack([one.image for one in test if one.label == label]) for label in (0, 1)}
        others = train.stack(np.setdiff1d(np.arange(len(dataset.train)), drawn))
        rows.append(
            {
                "way": way,
                "draw": draw,
                "drawn": images,
                "for the threshold": allowed,
                "asked": rate,
                "promised": max(rate, 1 / (allowed + 1)),
                "threshold": found.threshold,
                "good test": counts(found, kinds[0]),
                "good not drawn": counts(found, others),
                "defective test": counts(found, kinds[1]),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser("python3 -m docs.false_alarms", description="Promised and realized false alarms.")
    parser.add_argument("--config", required=True, metavar="FILE:CATEGORY", help="an experiment that trains nothing")
    parser.add_argument("--root", required=True, type=Path, help="the folder of the categories")
    parser.add_argument("--images", type=int, default=50, help="good images that are drawn (default 50)")
    parser.add_argument("--draws", type=int, default=1, help="how often they are drawn (default 1)")
    parser.add_argument("--rate", type=float, default=0.05, help="the rate that is asked (default 0.05)")
    parser.add_argument("output", type=Path, metavar="FILE.json")
    flags = parser.parse_args(argv)
    options = {"images": flags.images, "rate": flags.rate}
    command = f"python -m jaxad.train --config {flags.config} --config.data.root=DIR"
    made = {"command": command, **provenance.collect(), "rows": []}
    for draw in range(flags.draws):
        made["rows"] += compare(flags.config, flags.root, draw=draw, **options)
        flags.output.write_text(json.dumps(made, indent=1) + "\n")  # what is done stays if the command is stopped


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
