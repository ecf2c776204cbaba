"""Writes every table of the documentation again, from result files and from the definitions in the code.

    python3 -m docs.tables                            after a change of a file or of a definition
    python3 -m docs.tables [--name NAME] WORKDIR...   takes in the results of trained workdirs first

A workdir's results are kept as results/jax_RELEASE/EXPERIMENT/CATEGORY/NAME/results.json, without what belongs to a
machine. NAME is seed0, seed1, ... where it is not given.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from docs import keys
from jaxad import report
from jaxad.errors import UserError, run
from jaxad.reporting import tables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
CHECKSUMS = "SHA256SUMS"


def _measured(
    release: str, make: Callable = report.flat, *, only: Sequence[str] = (), category: str = ""
) -> Callable[[Path], list[tables.Table]]:
    """A table of the runs with a release of JAX; of these experiments or a category alone where they are named."""

    def those(results: Path) -> list[tables.Table]:
        runs = report.gather([results / release])
        runs = [one for one in runs if not only or one["experiment"] in only]
        return [make([one for one in runs if not category or one["category"] == category])]

    return those


def _benchmarks(results: Path) -> list[tables.Table]:
    files = sorted(results.glob("benchmark_*.json"))
    return [report.benchmark_table([json.loads(file.read_text()) for file in files])]


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
        )
    },
    "docs/results.md": {"jax_0_12": _measured("jax_0.12"), "jax_0_10": _measured("jax_0.10")},
    "docs/performance.md": {
        "dtypes": _measured("jax_0.12", report.summary, only=("nsa_logistic",), category="bottle"),
        "fast": _measured("jax_0.12", report.summary, only=("nsa_fast",)),
        "benchmark": _benchmarks,
    },
    "docs/configuration.md": {"configuration": _keys},
    "docs/nsa.md": {
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
        "published": _published("dla", "dla_static", "dla_global_neg", "dla_global_dense", "dla_global_only")
    },
    "docs/pretrained_weights.md": {
        "levels": _measured("jax_0.12", _levels, only=("lite_levels",)),
        "measured": _measured("jax_0.12", report.summary, only=("lite_pretrained", "lite_finetune")),
        "nsa": _measured("jax_0.12", report.summary, only=("lite", "lite_nsa", "lite_nsa_finetune")),
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


def keep(workdir: str | Path, name: str | None = None, *, results: Path = RESULTS) -> None:
    """Copies the results of a workdir into the results' folder, without what belongs to a machine.

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


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser("python3 -m docs.tables", description="Writes the documentation's tables again.")
    parser.add_argument("workdirs", nargs="*", metavar="W", help="a workdir whose results are taken in")
    parser.add_argument("--name", help="the folder of the results in results/, seed0, seed1, ... by default")
    flags = parser.parse_args(argv)
    for workdir in flags.workdirs:
        keep(workdir, flags.name)
    for page in SECTIONS:
        (ROOT / page).write_text(rendered(page))
    (RESULTS / CHECKSUMS).write_text(checksums())


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
