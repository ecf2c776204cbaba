"""Writes every table of the documentation again, from result files and from the definitions in the code.

    python3 -m docs.tables                                        after a change of a file or of a definition
    python3 -m docs.tables [--name NAME] [--history] WORKDIR...   takes in the results of trained workdirs first

A workdir's results are kept as results/jax_RELEASE/EXPERIMENT/CATEGORY/NAME/results.json, without what belongs to a
machine. NAME is seed0, seed1, ... where it is not given. With --history its log of the training lies beside them.
"""

import argparse
import hashlib
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from docs import keys
from jaxad import report
from jaxad.config import recorded
from jaxad.errors import UserError, run
from jaxad.reporting import tables
from jaxad.training.log import read_history

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
CHECKSUMS = "SHA256SUMS"


def _measured(
    release: str,
    make: Callable = report.flat,
    *,
    only: Sequence[str] = (),
    names: tuple[str, ...] = ("",),
    **values: object,
) -> Callable[[Path], list[tables.Table]]:
    """A table of the runs with a release of JAX: of these experiments alone where they are named, of those whose NAME
    begins so, and whose configs have these values (``data__size`` for ``data.size``)."""

    def meant(run: dict) -> bool:
        config = recorded(run["config"])
        same = all(config.get(key.replace("__", ".")) == value for key, value in values.items())
        return same and run["path"].parent.name.startswith(names) and (not only or run["experiment"] in only)

    return lambda results: [make([run for run in report.gather([results / release]) if meant(run)])]


SHORT = 40  # epochs of NSA's rows at one budget, docs/nsa.md
DLA_ROWS = ("dla", "dla_static", "dla_global_neg", "dla_global_dense", "dla_global_only")
DLA = (*DLA_ROWS, "dla_untrained", "dla_standardized")
PROGRAM = {"synthesis__size_bounds": "half", "synthesis__object_test": "source", "synthesis__tolerance": 1.0}


def _benchmarks(results: Path) -> list[tables.Table]:
    files = sorted(results.glob("benchmark_*.json"))
    return [report.benchmark_table([json.loads(file.read_text()) for file in files])]


def _trainings(results: Path) -> list[tables.Table]:
    """The training of methods before and after a change: a row for each file of ``jaxad.benchmark --training``."""
    rows = []
    for file in sorted(results.glob("methods_*.json")):
        run = json.loads(file.read_text())
        rates = [run["figures"][name]["images_per_s"]["median"] for name in ("training step", "training loop")]
        peak, compiled = run["memory"]["peak"]["bytes"] / 2**30, run["compile_s"]["training step"]
        what = [run["experiment"], run["commit"], run["dtype"], str(run["batch"])]
        figures = [*(f"{rate:.1f}" for rate in rates), f"{compiled:.0f}", f"{peak:.1f}"]
        rows.append([*what, *figures, run["device"], run["date"]])
    heads = ["experiment", "commit", "dtype", "batch", "step, images/s", "loop, images/s", "compilation, s"]
    return [tables.Table([*heads, "peak memory, GiB", "device", "date"], rows, "lllrrrrrll")]


def _dla_scores(results: Path) -> list[tables.Table]:
    """What scores of DLA find of synthetic defects: three figures for each detector of `docs.dla_scores`."""
    rows: dict[tuple, list[str]] = {}
    heads, keys_of = [], ("score.standardize", "score.channels", "score.stages", "score.uncertainty_weight")
    for file in sorted(results.glob("dla_scores_*.json")):
        name = file.stem.removeprefix("dla_scores_")
        heads += [f"{name}: {title}" for title in ("image AUROC", "pixel AUROC", "AU-PRO")]
        for row in json.loads(file.read_text())["rows"]:
            cells = rows.setdefault(tuple(str(row[key]) for key in keys_of), [])
            cells += ["–"] * (len(heads) - 3 - len(cells))
            cells += [f"{100 * row[key]:.1f}" for key in ("image.auroc", "pixel.auroc", "pixel.aupro")]
    body = [[*settings, *cells, *["–"] * (len(heads) - len(cells))] for settings, cells in rows.items()]
    return [tables.Table([*keys_of, *heads], body, "llll" + "r" * len(heads))]


def _false_alarms(results: Path) -> list[tables.Table]:
    """False alarms that were promised and that were: a row for each way and draw of ``docs.false_alarms``."""
    rows = []
    for file in sorted(results.glob("threshold_*.json")):
        name = file.stem.removeprefix("threshold_")
        for row in json.loads(file.read_text())["rows"]:
            found = [row["good test"], row["good not drawn"], row["defective test"]]
            cells = [f"{part[kind]} of {part['images']}" for part in found for kind in ("called", "marked")]
            promised = f"{100 * row['promised']:.1f}"
            rows.append([name, str(row["draw"]), row["way"], str(row["for the threshold"]), promised, *cells])
    heads = ["detector", "draw", "good images are", "for the threshold", "asked or allowed, %"]
    heads += [
        f"{kind} {what}"
        for kind in ("good test images", "good images not drawn", "defective test images")
        for what in ("called defective", "with a region")
    ]
    return [tables.Table(heads, rows, "lrlrr" + "r" * 6)]


def _exports(results: Path) -> list[tables.Table]:
    """How far exports lie from their detectors: a row for each format and precision of `docs.exports`."""
    rows = []
    for file in sorted(results.glob("export_*.json")):
        made = json.loads(file.read_text())
        for row in made["rows"]:
            share, differ = row["largest_difference"], row["decisions_that_differ"]
            decided = "n/a" if differ is None else str(differ)
            figures = ["n/a" if share[name] is None else f"{share[name]:.1e}" for name in ("scores", "maps")]
            kept = f"{row['bytes'] / 2**20:.1f}"
            named = [file.stem.removeprefix("export_"), row["format"], row["precision"], row["computed_in"]]
            passed = "yes" if row["passed"] else "no"
            rows.append([*named, str(row["images"]), *figures, decided, passed, kept, made["device"], made["date"]])
    heads = ["detector", "format", "precision", "computed in", "images", "scores", "maps", "other decisions", "passed"]
    return [tables.Table([*heads, "MiB", "device", "date"], rows, "llllrrrrlrll")]


def _export_speeds(results: Path) -> list[tables.Table]:
    """How fast exports are: a row for each program of each file of ``docs.export_speed``."""
    rows, notes = [], []
    for file in sorted(results.glob("speed_*.json")):
        made, name = json.loads(file.read_text()), file.stem.removeprefix("speed_")
        for program in made["batches"]["1"]:
            cells = [
                cell
                for of in (made["batches"][count][program] for count in ("1", "8"))
                for cell in (f"{of['images_per_s']:.1f}", f"{of['of_jaxad_float32']:.2f}")
            ]
            rows.append([name, program, *cells])
        folder = [f"{statistics.median(made['folder']['images_per_s'][kind]):.1f}" for kind in ("export", "jaxad")]
        notes.append(
            f"{name}: {made['device']}, {made['date']}; OpenVINO's bfloat16 was computed in {made['computed_in']}. "
            f"`jaxad.predict` with heatmaps: {folder[0]} images/s by the export in bfloat16, {folder[1]} by jaxad in "
            f"{made['trained_in']}, {made['folder']['ratio']:.2f} times."
        )
    heads = ["detector", "program", "images/s, 1 a call", "times jaxad float32", "images/s, 8 a call"]
    return [tables.Table([*heads, "times jaxad float32"], rows, "llrrrr", notes=notes)]


def _tiles(results: Path) -> list[tables.Table]:
    """Large images in tiles: a row for each file of ``docs.tiles``."""
    rows = []
    for file in sorted(results.glob("tiles_*.json")):
        made, name = json.loads(file.read_text()), file.stem.removeprefix("tiles_")
        height, width = made["frame"]
        cells = [f"{width} x {height}", str(made["tile"]), str(made["tiles"])]
        shares = made["speed of the network's pixels"], made["speed of the frame's pixels"]
        cells += [f"{made['seconds']['tiled']:.2f}", *(f"{share:.2f}" for share in shares)]
        rows.append([name, *cells, f"{made['peak memory']['bytes'] / 2**30:.2f}", made["device"], made["date"]])
    heads = ["detector", "image", "tile", "tiles", "seconds", "speed, pixels of tiles", "speed, pixels of the image"]
    return [tables.Table([*heads, "peak, GiB", "device", "date"], rows, "lr" + "r" * 6 + "ll")]


def _load(results: Path) -> list[tables.Table]:
    """A server under load beside predict: a row for each file of ``docs.serve_load``."""
    rows, notes = [], []
    for file in sorted(results.glob("serve_*.json")):
        found, name = json.loads(file.read_text()), file.stem.removeprefix("serve_")
        predict, loads = found["images/s of predict around them"], found["load of the machine before each round"]
        cells = [str(found[key]) for key in ("clients", "requests", "failed")]
        cells += [f"{found['images/s']:.2f}"]
        cells += [f"{sum(predict) / len(predict):.2f} ({min(predict):.2f} to {max(predict):.2f})"]
        figures = found["share of predict"], found["seconds"]["p50"], found["seconds"]["p95"]
        memory = f"{found['memory after each round'][-1] / 2**20:.0f}", f"{100 * found['growth of memory']:.2f}"
        rows.append([name, *cells, *(f"{figure:.2f}" for figure in figures), *memory])
        busy = f"{sum(loads) / len(loads):.1f} processes wanted to run on {found['processors']} processors"
        notes.append(f"{name}: {found['device']}, {found['date']}; {busy}.")
    heads = ["detector", "clients", "requests", "failed", "images/s", "of predict", "share", "p50, s", "p95, s"]
    heads += ["memory, MiB", "grown by, %"]
    return [tables.Table(heads, rows, "l" + "r" * 10, notes=notes)]


def _levels(runs: Sequence[dict]) -> tables.Table:
    """Scorers of features by levels, each category with its figures and the seconds of the fit."""
    categories = sorted({one["category"] for one in runs})
    figures = (("image", "auroc", "image AUROC"), ("pixel", "auroc", "pixel AUROC"), ("pixel", "aupro", "AU-PRO"))
    rows: dict[tuple, dict[str, list[str]]] = {}
    for one in runs:
        settings = one["config"]["density"]
        patches = settings["patches"] if settings["name"] == "nearest_neighbor" else 0
        cells = [f"{100 * one[level][metric]:.1f}" for level, metric, _ in figures]
        own = rows.setdefault((settings["name"], settings["levels"], patches), {})
        if one["category"] in own:
            raise UserError(f"{one['path']} has the scorer, levels and patches of another run")
        seconds = one["wall_time_s"]["train"]
        own[one["category"]] = [*cells, "n/a" if seconds is None else f"{seconds:.0f}"]
    heads = ["density.name", "density.levels", "density.patches"]
    heads += [f"{category}: {title}" for category in categories for title in (*(row[2] for row in figures), "seconds")]
    missing = ["–"] * (len(figures) + 1)
    body = []
    for (name, levels, patches), own in sorted(rows.items()):
        kept = f"{patches:,}" if patches else "–"
        body.append([name, levels, kept, *(cell for category in categories for cell in own.get(category, missing))])
    made = sorted({(one["device"], one["date"]) for one in runs})
    note = "; ".join(f"{device}, {date}" for device, date in made)
    return tables.Table(heads, body, "ll" + "r" * (len(heads) - 2), notes=[f"Measured on {note}."])


def _synthetic(runs: Sequence[dict]) -> tables.Table:
    """What runs find of synthetic defects in held-out good images: a row for each that held some out."""
    rows = []
    for row, group in zip(report.flat(runs).rows, report.group_seeds(runs), strict=True):
        if len(group) > 1:
            raise UserError(f"{group[1]['path']} is another seed of a row; the table has a column for one alone")
        found = [group[0]["synthetic"][f"synthetic_{level}_auroc"] for level in ("image", "pixel")]
        if None not in found:
            rows.append([row[0], row[1], str(group[0]["config"]["epochs"]), *(f"{100 * value:.1f}" for value in found)])
    heads = ["experiment", "category", "epochs", "image AUROC, synthetic", "pixel AUROC, synthetic"]
    return tables.Table(heads, rows, "llrrr")


def _published(*experiments: str) -> Callable[[Path], list[tables.Table]]:
    return lambda results: [tables.published_table(experiments, "bottle")]


def _keys(results: Path) -> list[tables.Table]:
    return [keys.table(name) for name in keys.TITLES]


# What makes the tables of each section, by page.
SECTIONS: dict[str, dict[str, Callable[[Path], list[tables.Table]]]] = {
    "README.md": {
        "results": _measured(
            "jax_0.12",
            report.summary,
            only=("baseline_mean", "cutpaste_untrained", "dla_untrained", "lite", "nsa_fast", "nsa_logistic"),
            names=("seed", "full"),
        )
    },
    "docs/results.md": {"jax_0_12": _measured("jax_0.12"), "jax_0_10": _measured("jax_0.10")},
    "docs/performance.md": {
        "dtypes": _measured(
            "jax_0.12", report.summary, only=("nsa_logistic",), category="bottle", epochs=SHORT, **PROGRAM
        ),
        "fast": _measured("jax_0.12", report.summary, only=("nsa_fast",)),
        "benchmark": _benchmarks,
        "methods": _trainings,
    },
    "docs/configuration.md": {"configuration": _keys},
    "docs/own_images.md": {
        "aspect": _measured("jax_0.12", report.summary, only=("lite",), category="tile"),
        "tiles": _tiles,
        "false_alarms": _false_alarms,
    },
    "docs/export.md": {"exports": _exports, "export_speeds": _export_speeds},
    "docs/serving.md": {"load": _load},
    "docs/nsa.md": {
        "full": _measured("jax_0.12", report.summary, only=("nsa_logistic",), category="bottle", epochs=320),
        "text": _measured(
            "jax_0.12", report.summary, only=("nsa_logistic", "nsa_continuous"), category="bottle", epochs=SHORT,
            dtype="bfloat16",
        ),
        "published": _published(
            "nsa_logistic", "nsa_binary", "nsa_continuous", "cutpaste_end_to_end", "fpi", "pii",
            "nsa_no_constraints", "nsa_one_patch", "nsa_cutpaste_shapes", "nsa_ellipses",
        )
    },
    "docs/cutpaste.md": {
        "published": _published(
            "cutpaste_3way", "cutpaste_patch", "cutpaste", "cutpaste_scar", "cutpaste_union", "rotation", "cutout",
            "cutout_mean", "cutout_random", "scar", "confetti",
        )
    },
    "docs/dla.md": {
        "untrained": _measured("jax_0.12", report.summary, only=("dla_untrained",), data__size=224),
        "measured": _measured("jax_0.12", report.summary, only=DLA, category="bottle", data__size=128),
        "synthetic": _measured("jax_0.12", _synthetic, only=DLA, category="bottle", data__size=128),
        "scores": _dla_scores,
        "published": _published(*DLA_ROWS),
    },
    "docs/pretrained_weights.md": {
        "levels": _measured("jax_0.12", _levels, only=("lite_levels",)),
        "measured": _measured("jax_0.12", report.summary, only=("lite_pretrained", "lite_finetune")),
        "nsa": _measured(
            "jax_0.12", report.summary, only=("lite", "lite_nsa", "lite_nsa_finetune"), names=("seed", "emphasis")
        ),
        "published": _published(
            "efficientnet_pretrained", "efficientnet_pretrained, score.level=level7",
            "efficientnet_finetune", "efficientnet_finetune, score.level=level7",
        )
    },
}  # fmt: skip


def rendered(page: str, results: Path = RESULTS) -> str:
    """The text of a page with the tables that the files give."""
    text = (ROOT / page).read_text()
    for section, make in SECTIONS[page].items():
        text = report.insert(text, tables.markdown(make(results)), page, section=section)
    return text


def checksums(results: Path = RESULTS) -> str:
    """The SHA-256 of every result file, as ``sha256sum`` prints them."""
    files = sorted(results.rglob("*.json"))
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(results)}\n" for path in files)


def keep(workdir: str | Path, name: str | None = None, *, history: bool = False, results: Path = RESULTS) -> None:
    """Copies the results of a workdir into the results' folder, without what belongs to a machine.

    With `history` the rows of its metrics.jsonl are kept too, as `docs.pictures` needs them.

    Raises:
      UserError: The workdir holds no results or those of several runs, or other results have this name.
    """
    runs = report.gather([workdir])
    if len(runs) > 1:
        raise UserError(f"{workdir} holds the results of {len(runs)} runs; name the workdir of one")
    (kept,) = runs
    del kept["path"]
    for made in (kept, *kept["trained"], kept["evaluated"]):
        made["command"] = made["command"] and report.portable(made["command"])
    for key in report.FOLDERS:
        section, _, leaf = key.rpartition(".")
        if kept["config"].get(section, {}).get(leaf):
            kept["config"][section][leaf] = "DIR"
    release = ".".join(kept["versions"]["jax"].split(".")[:2])
    folder = results / f"jax_{release}" / kept["experiment"] / kept["category"] / (name or f"seed{kept['seed']}")
    file, text = folder / "results.json", json.dumps(kept, indent=1) + "\n"
    if file.exists() and file.read_text() != text:
        raise UserError(f"{file} holds other results; choose another --name, or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    if history:
        rows = [{key: float(f"{value:.5g}") for key, value in row.items()} for row in read_history(Path(workdir))]
        (folder / "history.json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser("python3 -m docs.tables", description="Writes the documentation's tables again.")
    parser.add_argument("workdirs", nargs="*", metavar="W", help="a workdir whose results are taken in")
    parser.add_argument("--name", help="the folder of the results in results/, seed0, seed1, ... by default")
    parser.add_argument("--history", action="store_true", help="keep the log of the training too")
    flags = parser.parse_args(argv)
    for workdir in flags.workdirs:
        keep(workdir, flags.name, history=flags.history)
    for page in SECTIONS:
        (ROOT / page).write_text(rendered(page))
    (RESULTS / CHECKSUMS).write_text(checksums())


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
