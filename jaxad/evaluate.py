"""``python -m jaxad.evaluate``: scores a test set; writes results.json, scores.csv and report.html."""

import argparse
import csv
import json
import time
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad import data, detector, errors, metrics, page, parallel, provenance
from jaxad.data import pipeline
from jaxad.errors import UserError
from jaxad.log import read_history


def category_of(config: ConfigDict) -> str:
    """What the images show: the category, or the folder's name where it has no categories."""
    return config.category if config.data.category else Path(config.data.root).resolve().name


def score_test_set(found: detector.Detector) -> metrics.TestScores:
    """Scores every test image of the detector's dataset once.

    Raises:
      UserError: There are no test images, or one cannot be read.
    """
    config = found.config
    source = data.load(config).test
    if not len(source):
        raise UserError("there are no test images; set config.data.test, or score images with jaxad.predict")
    records = pipeline.read_all(source, config.score.size)
    images = np.stack([record.image for record in records])
    scores = found.score(images, crop=config.evaluate.crop)
    return metrics.TestScores(
        ids=[record.id for record in records],
        labels=np.array([record.label for record in records]),
        defects=[record.defect for record in records],
        images=images,
        masks=[record.mask for record in records],
        image_scores=scores.image,
        maps=scores.map,
    )


def threshold_results(found: detector.Detector, scores: metrics.TestScores) -> dict:
    """How the fitted threshold does on the test set: shares of good and of defective images called defective."""
    if found.threshold is None:
        return {"value": None, "reason": "no good images were held out, or config.score is not what it was fitted with"}
    if found.config.evaluate.crop:
        return {"value": found.threshold, "reason": "fitted on whole images, the test set is scored on a crop"}
    called = scores.image_scores > found.threshold
    rates = {
        name: float(called[scores.labels == label].mean()) if (scores.labels == label).any() else None
        for name, label in (("false_alarm_rate", 0), ("detection_rate", 1))
    }
    return {"value": found.threshold, **rates}


def evaluate(found: detector.Detector, workdir: str | Path, *, command: str | None = None) -> dict:
    """Evaluates a detector on its test set and writes the three files to `workdir`.

    Args:
      found: The detector.
      workdir: Where it was trained.
      command: What the user typed; kept with the results when it changed values of the config.

    Returns:
      The results as results.json holds them.

    Raises:
      UserError: There are no test images, one cannot be read, or a file cannot be written.
    """
    workdir, start = Path(workdir), time.perf_counter()
    scores = score_test_set(found)
    results = metrics.evaluate(scores, pro_limit=found.config.evaluate.pro_limit)
    results["threshold"] = threshold_results(found, scores)
    # With the config that it was trained with, the training command alone makes these numbers.
    command = command if found.config.to_json() != configs.read(workdir).to_json() else None
    history = read_history(workdir)
    made, now = provenance.recorded(workdir), provenance.collect()
    results |= {
        "experiment": found.config.experiment,
        "category": category_of(found.config),
        "seed": found.config.seed,
        "command": made[-1]["command"] if made else None,
        "trained": made,
        "evaluated": {"command": command, **now},
        "commit": provenance.every(made, "commit"),
        "device": provenance.every(made, "device"),
        "date": now["date"],
        "versions": now["versions"],
        "wall_time_s": {
            "train": history[-1]["seconds"] if history else None,
            "evaluate": time.perf_counter() - start,
        },
        "config": json.loads(found.config.to_json()),
    }
    try:
        _write(workdir, results, scores, history)
    except OSError as error:
        raise UserError(
            f"the results cannot be written to {workdir} ({error.strerror}); make that possible and run "
            f"python -m jaxad.evaluate --workdir {workdir}"
        ) from error
    print(summary(results))
    print(f"report: {workdir / 'report.html'}")
    return results


def _write(workdir: Path, results: dict, scores: metrics.TestScores, history: list[dict]) -> None:
    (workdir / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    with open(workdir / "scores.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", "defect", "score"])
        writer.writerows(zip(scores.ids, scores.labels, scores.defects, scores.image_scores.tolist(), strict=True))
    samples = workdir / "samples.png"
    page.write_html(
        workdir / "report.html",
        results=results,
        scores=scores,
        history=history,
        samples_png=samples if samples.is_file() else None,
    )


def summary(results: dict) -> str:
    """One line with the main metrics in percent, n/a and the reason where one cannot be computed."""

    def value(level: str, name: str) -> str:
        number = results[level][name]
        return f"{100 * number:.2f}" if number is not None else f"n/a ({results['reasons'][f'{level}.{name}']})"

    shown = (("image", "auroc", "image AUROC"), ("pixel", "auroc", "pixel AUROC"), ("pixel", "aupro", "AU-PRO"))
    return ", ".join(f"{label} {value(level, name)}" for level, name, label in shown)


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        "python -m jaxad.evaluate",
        description="Scores the test set of a workdir; values of its config can be changed for this evaluation, "
        "such as --config.evaluate.crop=0, --config.score.reduction=max or --config.data.root=DIR.",
    )
    parser.add_argument("--workdir", required=True, help="a directory that jaxad.train completed")
    flags, overrides = configs.arguments(parser, argv)
    parallel.keep_freed_memory()
    found = detector.load(flags.workdir, overrides)
    evaluate(found, flags.workdir, command=provenance.command("jaxad.evaluate", argv))


if __name__ == "__main__":
    errors.run(main)
