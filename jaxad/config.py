"""Experiment files, command-line overrides, and the config.json that a workdir is made with.

An experiment is a Python file with ``get_config(category)`` that returns an `ml_collections.ConfigDict` in which
every value is written out. Overrides change values, never add keys and never change types.
"""

import argparse
import ast
import contextlib
import copy
import difflib
import importlib.util
import inspect
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from jaxad.errors import UserError

# Accepted values, wherever a config has the key: numbers from a bound on, and shares with open or closed ends.
_AT_LEAST = {
    "seed": 0,
    "epochs": 0,
    "steps_per_epoch": 1,
    "steps_per_call": 0,
    "batch": 1,
    "log_every": 1,
    "synthetic_every": 0,
    "data.size": 1,
    "data.workers": 0,
    "data.cache_gib": 0,
    "data.device_gib": 0,
    "model.head_depth": 0,
    "model.head_width": 1,
    "model.width": 1,
    "model.bottleneck": 1,
    "model.dense_hidden": 1,
    "model.dense_width": 1,
    "objective.global_weight": 0,
    "objective.dense_weight": 0,
    "objective.negative_weight": 0,
    "optim.l2": 0,
    "optim.head_epochs": 0,
    "optim.head_learning_rate": 0,
    "optim.weight_decay": 0,
    "patch.chunk": 1,
    "score.size": 1,
    "score.regression_weight": 0,
    "score.uncertainty_weight": 0,
    "evaluate.batch": 1,
    "evaluate.crop": 0,
    "evaluate.heatmap_sigma": 0,
    "checkpoint.every_steps": 1,
    "checkpoint.keep": 1,
}
_SHARES = {
    "data.holdout": "[0, 1)",
    "model.dropout": "[0, 1)",
    "model.stochastic_depth": "[0, 1)",
    "optim.momentum": "[0, 1)",
    "score.top": "(0, 1]",
    "threshold.false_alarm_rate": "[0, 1)",
    "evaluate.pro_limit": "(0, 1]",
}
_PER_CHANNEL = ("normalize.mean", "normalize.std")
_REQUIRED = ("experiment", "category", "method", "seed", "epochs", "data", "score", "threshold", "evaluate")
_OPTIONAL = ("synthesis.background",)  # may be none


def load(spec: str, overrides: dict[str, str] | None = None, *, required: Sequence[str] = _REQUIRED) -> ConfigDict:
    """Reads an experiment and applies overrides.

    Args:
      spec: ``FILE`` or ``FILE:CATEGORY``; without a category the file's own default is used.
      overrides: Text values by dotted key, as typed after ``--config.``.
      required: Keys that it must have; by default those of a training.

    Returns:
      The locked config.

    Raises:
      UserError: The file is missing or has no ``get_config``; a key is unknown; a value has the wrong type.
    """
    file, _, category = spec.partition(":") if not Path(spec).is_file() else (spec, "", "")
    get_config = getattr(_module(file), "get_config", None)
    if get_config is None:
        raise UserError(f"config file {file} has no function get_config(category); see experiments/ for examples")
    with _told(file):
        if category and not inspect.signature(get_config).parameters:
            raise UserError(f"config file {file} takes no category, but {category!r} was given")
        config = get_config(category) if category else get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config in {file} must return an ml_collections.ConfigDict, not {type(config).__name__}")
    if missing := [key for key in required if key not in config]:
        raise UserError(f"the config of {file} lacks {', '.join(missing)}; see experiments/ for examples")
    config.lock()
    return override(config, overrides or {})


def _module(file: str | Path) -> ModuleType:
    """Runs an experiment file."""
    path = Path(file)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1, cutoff=0.5)
        hint = f"; did you mean {path.parent / near[0]}?" if near else "; give the path of an experiment file"
        raise UserError(f"config file {file} does not exist{hint}")
    with _told(file):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _told(file: str | Path) -> Iterator[None]:
    """Turns what an experiment file raises into a sentence: it is the user's own program, which may fail in any way."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"config file {file} cannot be loaded: {type(error).__name__}: {error}") from error


def categories(file: str | Path) -> tuple[str, ...]:
    """All categories of an experiment's table: its ``CATEGORIES``, or those of the file ``BASE`` that it changes.

    Raises:
      UserError: The file is missing, fails, or has neither.
    """
    module = _module(file)
    if hasattr(module, "CATEGORIES"):
        return tuple(module.CATEGORIES)
    if hasattr(module, "BASE"):
        return categories(module.BASE)
    raise UserError(f"config file {file} has no CATEGORIES, the names that all means; add them or name categories")


def override(config: ConfigDict, overrides: dict[str, str]) -> ConfigDict:
    """Returns a locked copy of `config` with text values set by dotted key.

    Raises:
      UserError: A key does not exist (the nearest is named), or a value is not of the key's type or out of its range.
    """
    config = copy.deepcopy(config)  # ConfigDict's own copy would share its references
    config.unlock()
    for key, text in overrides.items():
        known = flatten(config)
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            leaf = difflib.get_close_matches(key.split(".")[-1], [k.split(".")[-1] for k in known], n=1)
            near = near or [k for k in known if leaf and k.split(".")[-1] == leaf[0]]
            hint = f"did you mean config.{near[0]}?" if near else f"the keys are {', '.join(sorted(known))}"
            raise UserError(f"config has no key {key!r}; {hint}")
        parent, _, leaf = key.rpartition(".")
        node = config[parent] if parent else config
        node[leaf] = _parse(key, text, node.get_ref(leaf).get_type(), known[key])
    _check_ranges(flatten(config))
    config.lock()
    return config


def _check_ranges(values: dict) -> None:
    """Refuses values that no run can use, so that a mistake in a late stage costs no training."""
    for key, least in _AT_LEAST.items():
        if key in values and not values[key] >= least:  # NaN is refused too
            raise UserError(f"config.{key} must be at least {least}, not {values[key]}")
    if values.get("seed", 0) >= 2**32:
        raise UserError(f"config.seed must be below 2**32, not {values['seed']}")
    channels = values.get("data.channels", 3)
    if channels not in (1, 3):
        raise UserError(f"config.data.channels must be 3 (RGB) or 1 (grey), not {channels}")
    for key in _PER_CHANNEL:
        if len(values.get(key, [0] * channels)) != channels:
            raise UserError(f"config.{key} must hold config.data.channels={channels} numbers, not {values[key]}")
    for key, share in _SHARES.items():
        value = values.get(key, 0.5)
        if not 0 <= value <= 1 or (share[0] == "(" and value == 0) or (share[-1] == ")" and value == 1):
            raise UserError(f"config.{key} must lie in {share}, not {value}")


def _parse(key: str, text: str, kind: type, old):
    """Reads `text` as a value of type `kind` to replace the value `old`; 'none' empties an optional value."""
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"config.{key} must be true or false, not {text!r}")
        return text.lower() == "true"
    try:
        value = ast.literal_eval("None" if text.lower() == "none" else text)
    except (ValueError, SyntaxError):
        value = text
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind in (tuple, list) and isinstance(value, (tuple, list)):
        value = kind(value)
        numbers = all(type(number) in (int, float) for number in value)
        fixed = old is not None and key not in _PER_CHANNEL
        if not numbers or (fixed and len(value) != len(old)):
            raise UserError(f"config.{key} must hold {len(old) if old else 'only'} numbers, not {text!r}")
    if not (type(value) is kind or (value is None and key in _OPTIONAL)):
        raise UserError(f"config.{key} must be of type {kind.__name__}, not {text!r}")
    return value


def flatten(config: ConfigDict) -> dict:
    """Leaf values by dotted key, in the form they have in JSON (tuples become lists)."""
    flat = {}
    for key, value in json.loads(config.to_json()).items():
        if isinstance(value, dict):
            flat.update({f"{key}.{k}": v for k, v in flatten(ConfigDict(value)).items()})
        else:
            flat[key] = value
    return flat


def read(workdir: Path) -> ConfigDict:
    """Reads the config.json of a workdir.

    Raises:
      UserError: There is none, or it is no JSON object.
    """
    path = Path(workdir) / "config.json"
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{workdir} is no workdir: it has no config.json; train with --workdir {workdir}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is not what jaxad.train writes; restore it or train into another --workdir")
    config = ConfigDict(values)
    config.lock()
    return config


def claim(workdir: Path, config: ConfigDict) -> None:
    """Writes config.json to a fresh workdir, or checks that an existing one was made with the same config.

    What the density is, and of what, may still be changed while none was fitted: a training must not be lost because
    its features suit another density better.

    Raises:
      UserError: The workdir cannot be written, or was made with another config (the differing keys are named).
    """
    path = Path(workdir) / "config.json"
    if path.exists():
        old, new = flatten(read(workdir)), flatten(config)
        differing = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
        if not differing:
            return
        if (path.parent / "detector.json").exists() or not all(
            key.startswith(("density.", "score.level")) for key in differing
        ):
            changes = ", ".join(f"{k} ({old.get(k)!r} there, {new.get(k)!r} now)" for k in differing)
            raise UserError(f"{workdir} was made with another config: {changes}; choose another --workdir")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, json.loads(config.to_json()))
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be written: {error.strerror}; choose another --workdir") from error


def write_json(path: Path, values: dict) -> None:
    """Writes a file at once: a kill or a full disk leaves what was there before. Raises OSError."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values, indent=1) + "\n")
    temporary.replace(path)


def channels(config: ConfigDict) -> int:
    """Channels of the images that a detector sees: 3, or 1 where ``config.data.channels`` says so."""
    return config.data.get("channels", 3)


def steps_per_epoch(config: ConfigDict, images: int) -> int:
    """Optimiser steps in one epoch: ``config.steps_per_epoch`` where a paper fixes it, else once through the images.

    Batches are full, so the last one of such an epoch reaches into the next epoch.
    """
    return config.steps_per_epoch if "steps_per_epoch" in config else math.ceil(images / config.batch)


def arguments(parser: argparse.ArgumentParser, argv: list[str] | None) -> tuple[argparse.Namespace, dict[str, str]]:
    """Parses a command line that may hold ``--config.KEY=VALUE`` or ``--config.KEY VALUE`` anywhere.

    Returns:
      The parsed flags and the overrides by dotted key.

    Raises:
      UserError: An argument is neither a flag of the command nor an override.
    """
    flags, rest = parser.parse_known_args(argv)
    overrides = {}
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if not name.startswith("--config."):
            raise UserError(f"unknown argument {argument!r}; see --help")
        if not equals:
            if not rest:
                raise UserError(f"{name} needs a value: {name}=VALUE")
            value = rest.pop(0)
        overrides[name.removeprefix("--config.")] = value
    return flags, overrides
