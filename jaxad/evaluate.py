"""``python -m jaxad.evaluate``: scores a test set; writes results.json, scores.csv and report.html.

Several workdirs are one ensemble: the mean of their members' scores and maps, each normalised by what the member gave
good images at the end of its training (CutPaste, Table 1, last column; the paper does not say how it normalises).

scores.csv has a row for each image. Its column ``aupimo`` is empty for images without an anomalous pixel, and where
AUPIMO is n/a. Where images are views of samples, its column ``group`` names the sample.

The file is UTF-8. In its names ``\\\\`` is a backslash and ``\\xNN`` a byte that is no UTF-8 (see `Record`).
"""

import argparse
import contextlib
import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad import data, detector, errors, metrics
from jaxad.data import geometry, levels, pipeline
from jaxad.data.image import NO_IMAGES, passed_over
from jaxad.data.record import Record
from jaxad.errors import UserError, counted
from jaxad.methods import memory
from jaxad.methods.method import Scores
from jaxad.reporting import html_report
from jaxad.runtime import devices, disk, processes, provenance
from jaxad.scoring import decisions
from jaxad.training import synthetic_validation
from jaxad.training.log import read_history


def category_of(config: ConfigDict) -> str:
    """What the images show: the category, or the folder's name where it has no categories."""
    return config.category if config.data.category else disk.escaped(Path(config.data.root).resolve().name)


def read_test_set(config: ConfigDict, white_level: int | None) -> list[Record]:
    """Every test image of the dataset, at the size for scoring, 16-bit ones by the white level of the training images.

    Raises:
      UserError: There are no test images, one cannot be read, or there is not enough memory for all.
    """
    source = data.load(config, white_level=white_level).test
    if not len(source):
        raise UserError(
            "there are no test images; set config.data.test, or score images with jaxad.predict", about="data.test"
        )
    memory.check_test_set(config, len(source))
    if source.others and processes.is_main_process():
        print(passed_over(source.others, NO_IMAGES), flush=True)
    records = pipeline.read_all(source, geometry.scored(config), mask_rule=config.evaluate.mask_rule)
    if processes.is_main_process() and (sentence := _on_vanished_masks(records, config)):
        print(sentence, flush=True)
    if sentence := levels.clipped_images(source.deep, configs.white_level(config) or white_level):
        print(sentence, flush=True)
    return records


def _on_vanished_masks(records: Sequence[Record], config: ConfigDict) -> str:
    """What pixel metrics cannot see by the rule of masks or the region of interest; "" where there is nothing."""
    rule = config.evaluate.mask_rule
    vanished = sum(bool(one.label) and one.mask is not None and not (one.mask == 1).any() for one in records)
    if not vanished or (rule == "any" and not configs.roi(config)):
        return ""
    images = counted(vanished, "defective image")
    if configs.roi(config):
        what = f"no pixel of {images} is marked in config.data.roi"
        return f"{what}: image metrics take all of them for defective, pixel metrics for good"
    what = f"no pixel of {images} is marked by config.evaluate.mask_rule={rule}"
    return f"{what}: pixel metrics take all of them for good"


def score_records(found: detector.Detector, records: Sequence[Record]) -> metrics.TestScores:
    """Scores a test set once, each process its share; the images have the size for scoring."""
    processes.assert_equal_across_processes("the list of test images", [record.id for record in records])
    images = np.stack([record.image for record in records])
    mine = processes.local_slice(len(images))
    boxes = None if records[0].box is None else np.array([record.box for record in records])
    shares = processes.gather(found.score(images[mine], boxes=None if boxes is None else boxes[mine]))
    scores = Scores(*map(np.concatenate, zip(*shares, strict=True)))
    groups, singles = ([getattr(record, name) for record in records] for name in ("group", "single_defects"))
    return metrics.TestScores(
        ids=[record.id for record in records],
        labels=np.array([record.label for record in records]),
        defects=[record.defect for record in records],
        images=images,
        masks=[record.mask for record in records],
        image_scores=scores.image,
        maps=scores.map,
        groups=groups if any(groups) else None,
        single_defects=singles if any(own is not None for own in singles) else None,
    )


def score_test_set(found: detector.Detector) -> metrics.TestScores:
    """Scores every test image of the detector's dataset once; raises UserError as `read_test_set`."""
    return score_records(found, read_test_set(found.config, found.white_level))


def embed_test_set(found: detector.Detector, scores: metrics.TestScores) -> dict[str, np.ndarray] | None:
    """Features of good and defective images, and of good ones as training changes them; None where there are none."""
    features = found.embed(scores.images)
    if features is None:
        return None
    (_, normal), *changed = features.items()
    good = scores.labels == 0
    return {"good": normal[good], "defective": normal[~good], **{name: rows[good] for name, rows in changed}}


def example_terms(found: detector.Detector, scores: metrics.TestScores) -> dict[str, dict[int, np.ndarray]] | None:
    """The terms of the score maps of the images that the report shows, by name and index; None where there are none."""
    shown = [i for _, _, indices in html_report.pick_examples(scores) for i in indices]
    terms = found.map_terms(scores.images[shown])
    return None if terms is None else {name: dict(zip(shown, maps, strict=True)) for name, maps in terms.items()}


def threshold_results(found: detector.Detector, scores: metrics.TestScores) -> dict:
    """How the fitted threshold does on the test set: shares of good and of defective images called defective."""
    if found.threshold is None:
        return {"value": None, "reason": detector.NO_THRESHOLD}
    return {"value": found.threshold, **decisions.image_decisions(scores, found.threshold)}


def pixel_threshold_results(found: detector.Detector, scores: metrics.TestScores) -> dict:
    """How the fitted threshold for pixels does on the test set, see `pixel_decisions`."""
    if found.pixel_threshold is None:
        return {"value": None, "seg_f1": None, "reason": detector.NO_THRESHOLD}
    level = found.pixel_threshold
    return {"value": level, **decisions.pixel_decisions(scores, level, found.region)}


def evaluate(found: detector.Detector, workdir: str | Path, *, command: str | None = None) -> dict:
    """Evaluates a detector on its test set and writes the three files to `workdir`.

    Args:
      found: The detector.
      workdir: Where it was trained.
      command: What the user typed; kept with the results when it changed values of the config.

    Returns:
      The results as results.json holds them.

    Raises:
      UserError: There are no test images, one cannot be read, or the workdir is in use or cannot be written.
    """
    workdir = Path(workdir)
    with disk.locked(workdir) if processes.is_main_process() else contextlib.nullcontext():
        return _evaluate(found, workdir, command)


def _evaluate(found: detector.Detector, workdir: Path, command: str | None) -> dict:
    """`evaluate` in a workdir that is locked."""
    start = time.perf_counter()
    scores = score_test_set(found)
    results = metrics.evaluate(scores, pro_limit=found.config.evaluate.pro_limit)
    by_image = results.pop("by_image")  # for scores.csv
    results["threshold"] = threshold_results(found, scores)
    results["pixel_threshold"] = pixel_threshold_results(found, scores)
    results["synthetic"] = synthetic_validation.read(workdir, found.config)
    # With the config that it was trained with, the training command alone makes these numbers.
    command = command if found.config.to_json() != configs.read(workdir).to_json() else None
    results |= origin([workdir], found.config, command=command) | _wall_time([workdir], start=start)
    _write(workdir, results, scores, by_image, read_history(workdir), found)
    print(f"{test_images(results)}\n{summary(results)}\nreport: {workdir / 'report.html'}")
    return results


def origin(workdirs: Sequence[Path], config: ConfigDict, *, command: str | None) -> dict:
    """The part of a file of results that says where the numbers come from.

    Args:
      workdirs: Where the detectors were trained.
      config: What the first is used with.
      command: What makes the numbers of the detectors; None where the training command alone does.
    """
    recorded = [provenance.recorded(workdir) for workdir in workdirs]
    made, now = [row for rows in recorded for row in rows], provenance.collect()
    return {
        "experiment": config.experiment,
        "category": category_of(config),
        "seed": config.seed,
        "command": " && ".join(row["command"] for row in _since_the_training(recorded[0])) or None,
        "trained": made,
        "evaluated": {"command": command, **now},
        "commit": provenance.every(made, "commit"),
        "device": provenance.every(made, "device"),
        "date": now["date"],
        "versions": now["versions"],
        "config": json.loads(config.to_json()),
    }


def _wall_time(workdirs: Sequence[Path], *, start: float) -> dict:
    """The part of results.json that says how long it took; `start` is the evaluation's on the clock."""
    trained = [_train_seconds(workdir) for workdir in workdirs]
    return {
        "wall_time_s": {
            "train": None if None in trained else sum(trained),
            "evaluate": time.perf_counter() - start,
        }
    }


def _train_seconds(workdir: Path) -> float | None:
    """How long the steps of a training took, or the fits of a method without steps; None where it is not known."""
    if history := read_history(workdir):
        return history[-1]["seconds"]
    fits = [row.get("fit_s") for row in _since_the_training(provenance.recorded(workdir))]
    return sum(fits) if fits and None not in fits else None


def _since_the_training(rows: list[dict]) -> list[dict]:
    """The rows of the last command that trained, and of the refits after it."""
    trained = [number for number, row in enumerate(rows) if "refit" not in row]
    return rows[trained[-1] :] if trained else rows


def evaluate_ensemble(
    workdirs: Sequence[str | Path], output: str | Path, *, overrides: dict[str, str] | None = None
) -> dict:
    """Evaluates the mean of several detectors' normalised scores and maps (see `Detector.normalize`).

    Members are loaded and scored one after the other and their maps summed, so memory does not grow with their number.
    What each of them reaches alone is printed and kept as well.

    Args:
      workdirs: Where the members were trained, such as with other seeds.
      output: A directory for the three files, made when it is not there.
      overrides: Values of every member's config to change, by dotted key; none that decides scores.

    Returns:
      The results as results.json holds them: as for one workdir, with ``members``, and with the part of the config that
      the members share.

    Raises:
      UserError: The members are no ensemble, have no common test set, or cannot be loaded; `output` cannot be used.
    """
    workdirs, output, start = [Path(workdir) for workdir in workdirs], Path(output), time.perf_counter()
    settings = _check_members(workdirs, output, overrides or {})
    records = _common_test_set(workdirs, settings)
    members, image, maps = [], 0.0, np.float32(0)
    for workdir in workdirs:
        row, scores = _score_member(workdir, overrides, records)
        members.append(row)
        image, maps = image + scores.image_scores, maps + scores.maps
    scores = scores._replace(image_scores=image / len(members), maps=maps / np.float32(len(members)))
    results = metrics.evaluate(scores, pro_limit=settings[0].evaluate.pro_limit)
    by_image = results.pop("by_image")  # for scores.csv
    reason = "members' thresholds hold for their own scores, not for the mean"
    results["threshold"] = {"value": None, "reason": reason}
    results["pixel_threshold"] = {"value": None, "seg_f1": None, "reason": reason}
    results["synthetic"] = synthetic_validation.unknown("measured of each member alone, at the end of its training")
    typed = [*(f"--workdir={workdir}" for workdir in workdirs), f"--output={output}"]
    command = provenance.command("jaxad.evaluate", typed + [f"--config.{k}={v}" for k, v in (overrides or {}).items()])
    results |= origin(workdirs, settings[0], command=command) | _wall_time(workdirs, start=start)
    experiments = " + ".join(dict.fromkeys(row["experiment"] for row in members))
    results["experiment"] = f"{experiments}, ensemble of {len(members)}"
    results["seed"] = ", ".join(str(row["seed"]) for row in members)
    results |= {"config": _shared([row["config"] for row in members]), "members": members}
    with disk.locked(output, option="--output") if processes.is_main_process() else contextlib.nullcontext():
        _write(output, results, scores, by_image, [])
    print(f"ensemble of {len(members)}: {summary(results)}\nreport: {output / 'report.html'}")
    return results


def _check_members(workdirs: list[Path], output: Path, overrides: dict[str, str]) -> list[ConfigDict]:
    """Refuses what cannot become an ensemble before anything is scored; makes `output`; returns the configs."""
    for number, workdir in enumerate(workdirs):
        if workdir.resolve() in [other.resolve() for other in workdirs[:number]]:
            raise UserError(
                f"{workdir} is given twice; the members of an ensemble are different workdirs", about=workdir
            )
    if fixed := [key for key in overrides if key.startswith("score.") or key == "evaluate.crop"]:
        raise UserError(
            f"config.{fixed[0]} cannot be changed for an ensemble, whose scores are normalised by what the training "
            "found with the trained value; evaluate the workdirs one by one",
            about=fixed[0],
        )
    settings = [detector.read_config(workdir, overrides) for workdir in workdirs]
    for workdir, config in zip(workdirs, settings, strict=True):
        trained = detector.read_fitted(workdir)["white_level"]
        if (level := configs.white_level(config) or trained) != trained:
            raise UserError(
                f"config.data.white_level={level} cannot be set for an ensemble, whose scores are normalised by what "
                f"the training of {workdir} found {f'at {trained}' if trained else 'in images of 8 bits'}; evaluate "
                "the workdirs one by one",
                about="data.white_level",
            )
    disk.refuse_nul(output)
    if (output / "config.json").exists():
        raise UserError(
            f"{output} is the workdir of a training; choose another --output for the ensemble", about=output
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output} cannot be made ({error.strerror}); choose another --output", about=output) from error
    return settings


def _common_test_set(workdirs: list[Path], settings: list[ConfigDict]) -> list[Record]:
    """The members' test set, which must be the same for all and seen in the same way."""
    flat = [configs.flatten(config) for config in settings]
    records = read_test_set(settings[0], detector.read_fitted(workdirs[0])["white_level"])
    for workdir, config, values in zip(workdirs[1:], settings[1:], flat[1:], strict=True):
        pair = f"{workdirs[0]} and {workdir} cannot be one ensemble"
        for key in ("score.size", "evaluate.crop", "evaluate.pro_limit", "evaluate.mask_rule"):
            if flat[0][key] != values[key]:
                raise UserError(
                    f"{pair}: config.{key} is {flat[0][key]} in the one and {values[key]} in the other", about=key
                )
        level = detector.read_fitted(workdir)["white_level"]
        if config.data == settings[0].data and level == detector.read_fitted(workdirs[0])["white_level"]:
            continue  # the very files that were read
        others = read_test_set(config, level)
        if len(records) != len(others):
            raise UserError(f"{pair}: the one has {counted(len(records), 'test image')}, the other {len(others)}")
        for one, other in zip(records, others, strict=True):
            if one.id != other.id:
                raise UserError(f"{pair}: test image {one.id!r} of the one is {other.id!r} in the other")
            if not (np.array_equal(one.image, other.image) and np.array_equal(one.mask, other.mask)):
                raise UserError(f"{pair}: test image {one.id!r} or its mask is not the same in both")
    return records


def _score_member(
    workdir: Path, overrides: dict[str, str] | None, records: list[Record]
) -> tuple[dict, metrics.TestScores]:
    """What results.json says of a member, and its normalised scores."""
    found = detector.load(workdir, overrides)
    scores = score_records(found, records)
    own = metrics.evaluate(scores, pro_limit=found.config.evaluate.pro_limit)
    print(f"{workdir}: {summary(own)}", flush=True)
    row = {
        "workdir": str(workdir),
        "experiment": found.config.experiment,
        "seed": found.config.seed,
        "image": own["image"],
        "pixel": own["pixel"],
        "good_scores": found.good_scores,
        "heat_range": found.heat_range,
        "config": json.loads(found.config.to_json()),
    }
    normalized = found.normalize(Scores(scores.image_scores, scores.maps))
    return row, scores._replace(image_scores=normalized.image, maps=normalized.map)


def _shared(members: list[dict]) -> dict:
    """The values that are the same in every member's config."""
    first, shared = members[0], {}
    for key, value in first.items():
        others = [member.get(key) for member in members]
        if all(isinstance(other, dict) for other in others):
            shared[key] = _shared(others)
        elif all(other == value for other in others):
            shared[key] = value
    return shared


def _write(
    folder: Path,
    results: dict,
    scores: metrics.TestScores,
    by_image: dict[str, list[float | None]],
    history: list[dict],
    found: detector.Detector | None = None,
) -> None:
    """Writes scores.csv, report.html with features and terms of maps of a single detector, and results.json.

    This one comes last and at once: where it is there, the evaluation is complete.
    """
    if not processes.is_main_process():
        return
    try:
        with disk.replacing(folder / "scores.csv", newline="") as file:
            writer = csv.writer(file)
            own = by_image if scores.groups is None else by_image | {"group": scores.groups}
            writer.writerow(["id", "label", "defect", "score", *own])
            columns = scores.ids, scores.labels, scores.defects, scores.image_scores.tolist(), *own.values()
            writer.writerows(zip(*columns, strict=True))  # a value that there is none of is written as nothing
        samples = folder / "samples.png"
        html_report.write_html(
            folder / "report.html",
            results=results,
            scores=scores,
            history=history,
            samples_png=samples if samples.is_file() else None,
            features=embed_test_set(found, scores) if found else None,
            terms=example_terms(found, scores) if found else None,
            unseen=found.calibration.scores if found and found.calibration else (),
        )
        disk.write_json(folder / "results.json", results)
    except OSError as error:
        again = results["evaluated"]["command"] or f"python -m jaxad.evaluate --workdir {folder}"
        raise UserError(
            f"the results cannot be written to {folder} ({error.strerror}); make that possible and run {again}",
            about=folder,
        ) from error


def test_images(results: dict) -> str:
    """One line of what was evaluated on, by which a folder of good images of another name is seen."""
    counts, types = results["counts"], [f"{name} {row['images']}" for name, row in results["by_defect"].items()]
    parts = [f"{counts['good']} good", f"{counts['defective']} defective"]
    if types:
        parts[1] += f" ({', '.join(types)}), {counts['with_mask']} of them with masks"
    return f"test images: {', '.join(parts)}"


def summary(results: dict) -> str:
    """One line with the main metrics in percent, n/a and the reason where one cannot be computed."""

    def value(level: str, name: str) -> str:
        number = results[level][name]
        return f"{100 * number:.2f}" if number is not None else f"n/a ({results['reasons'][f'{level}.{name}']})"

    shown = [("image", "auroc", "image AUROC"), ("pixel", "auroc", "pixel AUROC"), ("pixel", "aupro", "AU-PRO")]
    if "sample" in results:
        shown.insert(0, ("sample", "auroc", "sample AUROC"))
    parts = [f"{label} {value(level, name)}" for level, name, label in shown]
    if "over_types" in results and (mean := results["over_types"]["pixel"]["auspro_005"]) is not None:
        parts.append(f"AU-sPRO(0.05) {100 * mean:.2f}")
    return ", ".join(parts)


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        "python -m jaxad.evaluate",
        description="Scores the test set of a workdir; values of its config can be changed for this evaluation, "
        "such as --config.evaluate.pro_limit=0.05, --config.score.reduction=max or --config.data.root=DIR.",
    )
    parser.add_argument(
        "--workdir",
        required=True,
        nargs="+",
        action="extend",
        metavar="W",
        help="a directory that jaxad.train completed; several are evaluated as one ensemble",
    )
    parser.add_argument("--output", metavar="DIR", help="where an ensemble's results go")
    processes.add_flags(parser)
    flags, overrides = configs.arguments(parser, argv)
    devices.set_up_process()
    with processes.run_distributed(flags, overrides):
        _run(flags, overrides, provenance.command("jaxad.evaluate", argv))


def _run(flags: argparse.Namespace, overrides: dict[str, str], command: str) -> None:
    if len(flags.workdir) > 1:
        if not flags.output:
            raise UserError("the results of an ensemble belong into none of its workdirs; add --output DIR")
        evaluate_ensemble(flags.workdir, flags.output, overrides=overrides)
        return
    if flags.output:
        raise UserError("the results of one workdir are written into it; --output is for several workdirs")
    (workdir,) = flags.workdir
    detector.read_config(workdir, overrides)  # refuses what is no workdir, where a lock would make one
    # Locked, so that nobody trains another detector meanwhile.
    with disk.locked(workdir) if processes.is_main_process() else contextlib.nullcontext():
        evaluate(detector.load(workdir, overrides), workdir, command=command)


if __name__ == "__main__":
    errors.run(main)
