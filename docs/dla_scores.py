"""Compares scores of a trained DLA detector on synthetic defects in its held-out good images, and on nothing else.

    python3 -m docs.dla_scores WORKDIR FILE.json

docs/dla.md shows the file as a table. Test images are not read.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxad import config as configs
from jaxad import data, detector, report
from jaxad.augment import synthetic_defects
from jaxad.data import pipeline
from jaxad.errors import UserError, run
from jaxad.methods.method import Scores, reduce_map
from jaxad.runtime import provenance
from jaxad.training import synthetic_validation

SCORES = {
    "score.standardize": (False, True),
    "score.channels": ("sum", "mean"),
    "score.stages": ("layer1,layer2,layer3", "layer1,layer2", "layer2,layer3"),
}
WEIGHTS = (0.0, 0.1)  # of the uncertainty, beside 1 of the regression error, whatever the training had


def held_out(found: detector.Detector) -> synthetic_defects.SyntheticSet:
    """The synthetic set that the training measured its detector by.

    Raises:
      UserError: The training held no images out.
    """
    config = found.config
    source = data.load(config, white_level=found.white_level).train
    fitted, held = pipeline.split_holdout(source.ids, **configs.split_options(config))
    if not len(held):
        raise UserError("the training held no good images out; train with config.data.holdout=0.1")
    return synthetic_validation.held_out(config, source, fitted, held)


def compare(workdir: Path) -> Iterator[dict]:
    """A row for each score of `SCORES` and `WEIGHTS`: its values, and what it reaches, in [0, 1]."""
    trained = detector.load(workdir)
    if trained.config.method not in ("dla", "dla_untrained") or not trained.config.score.regression_weight:
        raise UserError(f"{workdir} was not trained as DLA with a regression error; name another one", about=workdir)
    made = held_out(trained)
    for values in itertools.product(*SCORES.values()):
        settings = dict(zip(SCORES, values, strict=True))
        found = detector.load(workdir, {key: str(value) for key, value in settings.items()})
        terms, config = found.map_terms(made.images), found.config.score
        for weight in WEIGHTS if "uncertainty" in terms else (0.0,):
            maps = terms["regression error"] / config.regression_weight
            if weight:
                maps = maps + weight / config.uncertainty_weight * terms["uncertainty"]
            scores = np.asarray(reduce_map(maps, reduction=config.reduction, top=config.top))
            reached = synthetic_validation.evaluate(Scores(scores, np.float32(maps)), made)
            figures = {"image.auroc": reached["image"]["auroc"]}
            figures |= {f"pixel.{name}": reached["pixel"][name] for name in ("auroc", "aupro")}
            yield settings | {"score.uncertainty_weight": weight} | figures


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser("python3 -m docs.dla_scores", description="Compares scores of a detector of DLA.")
    parser.add_argument("workdir", type=Path, help="where it was trained, with data.holdout above 0")
    parser.add_argument("output", type=Path, metavar="FILE.json")
    flags = parser.parse_args(argv)
    rows = list(compare(flags.workdir))
    trained = json.loads((flags.workdir / "provenance.json").read_text())[-1]
    command = report.portable(trained["command"])
    made = {"command": command, "trained": trained["commit"], **provenance.collect(), "rows": rows}
    flags.output.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
