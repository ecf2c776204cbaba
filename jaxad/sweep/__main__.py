"""``python -m jaxad.sweep``: an experiment over categories, values of a grid, and seeds, to one table.

Every run is what ``python -m jaxad.train`` does, in a workdir of its own below the sweep's. The same command resumes a
sweep that was stopped or killed, skips what is complete, and tries again what failed.
"""

import argparse
import contextlib
import difflib
import functools
import itertools
import json
import os
import re
import signal
import sys
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad import errors, evaluate, methods, report
from jaxad.data import layouts, tfds
from jaxad.data.demo import source as demo
from jaxad.errors import UserError, counted
from jaxad.runtime import disk, provenance
from jaxad.sweep import launchers
from jaxad.sweep.launchers import Run

_OF_THE_SWEEP = ("seed", "category", "data.category")  # keys that every run has its own value of


def read_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """Reads ``config.KEY=VALUE,VALUE,...`` texts: the values by dotted key. Commas inside brackets belong to a value.

    Raises:
      UserError: A text has another form, or a key comes twice.
    """
    grid = {}
    for text in texts:
        name, _, values = text.partition("=")
        values = re.split(r",(?![^(\[]*[)\]])", values)
        if not name.startswith("config.") or not all(values):
            raise UserError(f"--grid {text!r} must have the form config.KEY=VALUE,VALUE,...", about="--grid")
        key = name.removeprefix("config.")
        if key in grid:
            raise UserError(
                f"--grid names config.{key} twice; give all its values at once: config.{key}=VALUE,VALUE", about=key
            )
        grid[key] = values
    return grid


def expand(
    file: str, categories: Sequence[str], *, seeds: int, grid: dict[str, list[str]], overrides: dict[str, str],
    workdir: str | None,
) -> tuple[Path, list[tuple[Run, ConfigDict]]]:  # fmt: skip
    """Every run of a sweep with its config, category by category, then the grid's points, then seeds from 0 on.

    Args:
      file: An experiment file.
      categories: What it is asked for.
      seeds: Their number.
      grid: Values by dotted key; every combination is run.
      overrides: Values for all runs, by dotted key.
      workdir: Of the sweep; ``runs/<experiment>`` by default.

    Returns:
      The sweep's workdir, and the runs.

    Raises:
      UserError: A category is unknown, a config cannot be made, or two runs would be the same.
    """
    name, colon, category = configs.split_category(file)
    if colon:
        raise UserError(
            f"--config {file} names a category; write --config {name} --categories={category}", about="--config"
        )
    if twice := [key for key in grid if key in overrides]:
        raise UserError(f"config.{twice[0]} is given with --grid and alone; leave one of them out", about=twice[0])
    if own := [key for key in (*grid, *overrides) if key in _OF_THE_SWEEP]:
        raise UserError(f"config.{own[0]} is what a sweep runs over; use --categories and --seeds", about=own[0])
    if "experiment" in grid:
        raise UserError(
            "config.experiment is the sweep's name, one for all runs; leave it out of --grid", about="experiment"
        )
    runs = []
    for category, *point, seed in itertools.product(categories, *grid.values(), range(seeds)):
        values = dict(zip(grid, point, strict=True))
        changed = overrides | values | {"seed": str(seed)}
        config = configs.load(f"{file}:{category}", changed, rules_of=methods.rules_of)
        _check_category(file, category, config)
        root = Path(workdir or f"runs/{config.experiment}")
        parts = [category, ",".join(f"{key}={value}" for key, value in values.items()), f"seed{seed}"]
        name = "/".join(urllib.parse.quote(part, safe="=,.()[] +-") for part in parts if part)
        flags = (f"--config.{key}={value}" for key, value in sorted(changed.items()))
        runs.append((Run(name, root / name, ("--config", f"{file}:{category}", *flags)), config))
    _check_different(runs)
    return root, runs


def _check_category(file: str, category: str, config: ConfigDict) -> None:
    """Refuses a name that neither the experiment nor the data has; where only the data lacks it, its run will fail."""
    if config.data.source == "tfds":
        tfds.dataset_of(category, where="--categories")
    root = Path(config.data.root)
    if config.data.source not in layouts.SOURCES or not config.data.category or not root.is_dir():
        return
    known = [*demo.CATEGORIES, *(path.name for path in root.iterdir() if path.is_dir())]
    with contextlib.suppress(UserError):  # a file of the user's own may have no table
        known += configs.categories(file)
    if category not in known:
        near = difflib.get_close_matches(category, known, n=1, cutoff=0)[0]
        raise UserError(
            f"--categories: neither {file} nor {root} has {category!r}; did you mean {near!r}?", about="--categories"
        )


def _check_different(runs: Sequence[tuple[Run, ConfigDict]]) -> None:
    """Refuses runs that the table could not tell apart, such as those of the values 1 and 1.0."""
    report.group_seeds([
        {"experiment": config.experiment, "category": evaluate.category_of(config), "seed": config.seed,
         "config": json.loads(config.to_json()), "path": run.workdir}
        for run, config in runs
    ])  # fmt: skip


def _claim(root: Path, runs: Sequence[tuple[Run, ConfigDict]], command: str) -> None:
    """Keeps in sweep.json what the sweep is; refuses a workdir where other runs have begun.

    A sweep may grow, and lose or change runs that never began.
    """
    path = root / "sweep.json"
    now = {run.name: list(run.arguments) for run, _ in runs}
    if path.exists():
        remedy = "remove it, and name all that the sweep has begun again, or choose another --workdir"
        old = disk.read_json(path, remedy)
        try:
            began = [name for name in dict(old["runs"]) if Run(name, root / name, ()).began()]
            same = all(now.get(name) == old["runs"][name] for name in began)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not what jaxad.sweep writes; {remedy}", about=path) from error
        if not same:
            raise UserError(
                f"{root} holds another sweep, {old['command']}; repeat that one, with more categories, values or seeds "
                "if you like, or choose another --workdir",
                about=root,
            )
    for run, config in runs:
        if (run.workdir / "config.json").exists():
            configs.claim(run.workdir, config, unfitted=methods.rules_of(config.method).unfitted)
    disk.write_json(path, {"command": command, "runs": now})


def table(runs: Sequence[Run]) -> str:
    """The Markdown table of the runs' results, see `report.markdown`, and below it one of those that failed."""
    complete = [run.workdir for run in runs if run.results() is not None]
    failed = [(run.name, str(run.error())) for run in runs if run.workdir not in complete]
    text = report.markdown(report.gather(complete)) if complete else ""
    if failed:
        rows = [" | ".join(("", *(cell.replace("|", "\\|") for cell in row), "")).strip() for row in failed]
        text += "\n".join(["\n| failed run | error |", "|---|---|", *rows, ""])
    return text


def _stop(number: int, _) -> None:
    raise errors.Stopped(number, "the sweep was stopped")


def _run(runs: Sequence[Run], engine: Callable[[Sequence[Run]], Iterator[Run]]) -> None:
    """Runs what is not complete, and says of each run how it ended and how many are left.

    Raises:
      KeyboardInterrupt: Ctrl-C stopped the sweep.
      Stopped: SIGTERM did.
    """
    waiting = [run for run in runs if run.results() is None]
    print(f"{counted(len(runs), 'run')}, {len(runs) - len(waiting)} of them complete", flush=True)
    for run in waiting:
        (run.workdir / "error.txt").unlink(missing_ok=True)  # it is tried again
    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        for left, run in zip(range(len(waiting) - 1, -1, -1), engine(waiting), strict=True):
            results = run.results()
            outcome = f"failed: {run.error()}" if results is None else evaluate.summary(results)
            print(f"{run.name}: {outcome}; {left} left", flush=True)
    except KeyboardInterrupt:
        complete = sum(run.results() is not None for run in runs)
        print(f"stopped with {complete} of {counted(len(runs), 'run')} complete; the same command resumes", flush=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def _number(flag: str, text: str, *, whole: bool) -> float:
    """Reads a flag's number above zero; whole, or whole where it is above one."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf") or (value != int(value) and (whole or value > 1)):
        kind = "a whole number from 1 on" if whole else "a number up to 1, or a whole one above"
        raise UserError(f"{flag} must be {kind}, not {text!r}", about=flag)
    return int(value) if whole else value


def _engine(flags: argparse.Namespace) -> Callable[[Sequence[Run]], Iterator[Run]]:
    """The engine that the flags ask for.

    Raises:
      UserError: There is no such engine, or a flag is for another one.
    """
    others = {"local": ("ray_address", "devices_per_run"), "ray": ("processes",)}
    if flags.engine not in others:
        raise UserError(f"--engine must be {' or '.join(others)}, not {flags.engine!r}", about="--engine")
    if wrong := [name for name in others[flags.engine] if getattr(flags, name) is not None]:
        raise UserError(f"--{wrong[0]} is not for --engine {flags.engine}; leave one of them out", about="--engine")
    if flags.engine == "ray":
        devices = _number("--devices_per_run", flags.devices_per_run or "1", whole=False)
        address = flags.ray_address or os.environ.get("RAY_ADDRESS") or "auto"
        return functools.partial(launchers.on_ray, address=address, devices=devices)
    if flags.processes is None:
        return launchers.in_this_process
    return functools.partial(launchers.side_by_side, processes=_number("--processes", flags.processes, whole=True))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m jaxad.sweep",
        description="Trains and evaluates an experiment for several categories, values and seeds, and makes the table "
        "of the results; the same command resumes. Any value of the config, for all runs: --config.KEY=VALUE.",
    )
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="an experiment or its name")
    add("--categories", default="demo", metavar="all|demo|A,B,...", help="the experiment's own, the demo's (default)")
    add("--seeds", default="1", metavar="N", help="seeds 0 to N-1")
    grid_help = "every combination of these values is run; several are given one after the other"
    add("--grid", nargs="+", action="extend", default=[], metavar="config.KEY=VALUE,VALUE", help=grid_help)
    add("--workdir", metavar="W", help="holds every run's workdir, and table.md; default: runs/<experiment>")
    add("--engine", default="local", metavar="local|ray", help="this machine, or a running Ray cluster")
    add("--processes", metavar="N", help="local: this many runs at a time; default: one, in this process")
    add("--ray_address", metavar="HOST:PORT", help="ray: the cluster; default: RAY_ADDRESS, or this machine's")
    devices_help = "ray: GPUs of a run, such as 0.5 (or TPU chips, or CPU cores); default: 1"
    add("--devices_per_run", metavar="F", help=devices_help)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Runs the command; exits with status 1 when a run failed."""
    flags, overrides = configs.arguments(_parser(), argv)
    engine, seeds = _engine(flags), _number("--seeds", flags.seeds, whole=True)
    names = {"all": configs.categories, "demo": lambda file: demo.CATEGORIES}
    chosen = names.get(flags.categories, lambda file: dict.fromkeys(flags.categories.split(",")))(flags.config)
    grid = read_grid(flags.grid)
    if not all(chosen):
        raise UserError(
            f"--categories {flags.categories!r} holds an empty name; write them as A,B", about="--categories"
        )
    root, planned = expand(
        flags.config, list(chosen), seeds=seeds, grid=grid, overrides=overrides, workdir=flags.workdir
    )
    runs = [run for run, _ in planned]
    with disk.locked(root):
        _claim(root, planned, provenance.command("jaxad.sweep", argv))
        print(f"workdir: {root}", flush=True)
        _run(runs, engine)
        text = table(runs)
        disk.write_text(root / "table.md", text)
    print(f"\n{text}\ntable: {root / 'table.md'}")
    if any(run.results() is None for run in runs):
        sys.exit(1)


if __name__ == "__main__":
    errors.run(main)
