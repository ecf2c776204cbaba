"""``python -m jaxad.report``: gathers the results of workdirs into one Markdown table, also inside a README."""

import argparse
import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxad.config import flatten
from jaxad.errors import UserError, run

# Values that change no result.
_NO_NUMBER = ("seed", "data.root", "data.workers", "data.cache_gib", "log_every", "evaluate.batch",
              "patch.chunk", "model.remat", "checkpoint.every_steps", "checkpoint.keep")  # fmt: skip
START, END = "<!-- {}:start -->", "<!-- {}:end -->"  # a section's name between


def gather(workdirs: Sequence[str | Path]) -> list[dict]:
    """Reads every results.json in and below the given directories, each once.

    Raises:
      UserError: A directory holds none, or a file is not what `jaxad.evaluate` writes.
    """
    paths = []
    for workdir in workdirs:
        found = sorted(Path(workdir).rglob("results.json"))
        if not found:
            raise UserError(f"{workdir} holds no results.json; run python -m jaxad.evaluate --workdir {workdir} first")
        paths += found
    return [_read_results(path) for path in dict.fromkeys(path.resolve() for path in paths)]


def _read_results(path: Path) -> dict:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        keys = ("experiment", "category", "seed", "config", "image", "pixel")
        missing = [key for key in keys if key not in results]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); run python -m jaxad.evaluate again") from error
    if missing:
        raise UserError(f"{path} has no {missing[0]!r}; run python -m jaxad.evaluate again")
    return results | {"path": path}


def group_seeds(runs: Sequence[dict]) -> list[list[dict]]:
    """Puts runs together whose configs differ in nothing but the seed and what changes no result.

    Groups are sorted by experiment and category, runs by seed.

    Raises:
      UserError: Two runs of a group have the same seed, which would make the standard error too small.
    """
    groups = {}
    for entry in runs:
        config = {key: value for key, value in flatten(ConfigDict(entry["config"])).items() if key not in _NO_NUMBER}
        key = (str(entry["experiment"]), str(entry["category"]), json.dumps(config, sort_keys=True))
        seeds = groups.setdefault(key, {})
        if entry["seed"] in seeds:
            raise UserError(
                f"{seeds[entry['seed']]['path']} and {entry['path']} are the same experiment with the same "
                f"seed {entry['seed']}; leave one of them out"
            )
        seeds[entry["seed"]] = entry
    return [[seeds[seed] for seed in sorted(seeds)] for _, seeds in sorted(groups.items())]


def _mean_and_error(values: Sequence[float | None]) -> str:
    """Mean and standard error over seeds in percent; n/a where a seed has no value."""
    if any(value is None for value in values):
        return "n/a"
    mean = f"{100 * np.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * np.std(values, ddof=1) / math.sqrt(len(values)):.1f}"


def _portable(command: str) -> str:
    """The command without what belongs to one machine: data folders are called DIR, the workdir is left out.

    An ensemble's workdirs are called W... and its folder OUT.
    """
    words, kept = shlex.split(command), []
    while words:
        name, equals, value = words.pop(0).partition("=")
        takes_value = name in ("--workdir", "--output") or name.startswith("--config")
        if takes_value and not equals and words:
            value = words.pop(0)
        if name == "--workdir":
            continue
        if name == "--output":
            kept.append("--workdir W... --output OUT")
            continue
        if name in ("--config.data.root", "--config.data.test", "--config.data.ground_truth"):
            value = "DIR"
        elif name == "--config" and value.startswith("/"):
            value = f"experiments/{Path(value).name}"
        joint = " " if name == "--config" else "="
        kept.append(f"{name}{joint}{shlex.quote(value)}" if takes_value or equals else shlex.quote(name))
    return " ".join(kept)


def _commands(entry: dict) -> str:
    """How a row is made: the training command, and the evaluation's where it changed the config."""
    commands = [entry.get("command"), entry.get("evaluated", {}).get("command")]
    return ", then ".join(f"`{_portable(command)}`" for command in commands if command) or "n/a"


def _names(groups: Sequence[list[dict]]) -> list[str]:
    """Each group's experiment, and in what its config differs from the first one of the same name and category."""
    named, names = {}, []
    for first in (group[0] for group in groups):
        config = flatten(ConfigDict(first["config"]))
        base = named.setdefault((first["experiment"], first["category"]), config)
        changed = [key for key in sorted(config) if config[key] != base.get(key) and key not in _NO_NUMBER]
        names.append(", ".join([str(first["experiment"]), *(f"{key}={config[key]}" for key in changed)]))
    return names


def markdown(runs: Sequence[dict]) -> str:
    """A Markdown table with a row for each experiment, category and config: mean ± standard error over seeds."""
    titles = [
        "experiment",
        "category",
        "seeds",
        "image AUROC",
        "pixel AUROC",
        "AU-PRO",
        "epochs",
        "device",
        "date",
        "commit",
        "command",
    ]
    lines = ["| " + " | ".join(titles) + " |", "|---|---|" + "---:|" * 5 + "---|" * 4]
    groups = group_seeds(runs)
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
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def insert(text: str, table: str, name: str, *, section: str = "results") -> str:
    """Replaces what stands between the two markers of a section in a text.

    Raises:
      UserError: The markers are missing from `text`, the content of file `name`, or in the wrong order.
    """
    first, last = START.format(section), END.format(section)
    start, end = text.find(first), text.find(last)
    if start < 0 or end < start:
        raise UserError(f"{name} lacks the lines {first} and {last}, in this order; add them where the table belongs")
    return f"{text[: start + len(first)]}\n{table}{text[end:]}"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        "python -m jaxad.report", description="Gathers results.json files into a Markdown table, metrics in percent."
    )
    parser.add_argument("workdirs", nargs="+", metavar="W", help="directory searched for results.json, also below")
    parser.add_argument("--output", metavar="FILE.md", help="write the table to this file")
    parser.add_argument("--readme", metavar="README.md", help="replace what stands between a section's markers")
    parser.add_argument(
        "--section",
        default="results",
        help=f"the section's name, results by default: {START.format('NAME')} and {END.format('NAME')}",
    )
    flags = parser.parse_args(argv)
    table = markdown(gather(flags.workdirs))
    try:
        if flags.output:
            Path(flags.output).write_text(table, encoding="utf-8")
        if flags.readme:
            readme = Path(flags.readme)
            text = insert(readme.read_text(encoding="utf-8"), table, flags.readme, section=flags.section)
            readme.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{error.filename or flags.output or flags.readme}: {error.strerror}") from error
    if not flags.output and not flags.readme:
        print(table, end="")


if __name__ == "__main__":
    run(main)
