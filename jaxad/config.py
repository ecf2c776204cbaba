"""Experiment files, command-line overrides, and the config.json that a workdir is made with.

An experiment is a Python file with ``get_config(category)`` that returns an `ml_collections.ConfigDict` in which
every value is written out. Overrides change values, never add keys and never change types.
"""

import argparse
import contextlib
import copy
import difflib
import importlib.util
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from jaxad.config_keys import GENERAL, Keys
from jaxad.config_values import PER_CHANNEL, Value, checked, number, types_of
from jaxad.errors import RETRAIN, UserError
from jaxad.guarded_config import guarded
from jaxad.runtime import disk

_REQUIRED = dict.fromkeys(("experiment", "category", "method"), str) | dict.fromkeys(("seed", "epochs"), int)
_REQUIRED |= dict.fromkeys(("data", "score", "threshold", "evaluate"), ConfigDict)
# What a section of an experiment, such as a user's own, need not say.
_OPTIONAL = {
    "data": {
        "white_level": 0, "max_megapixels": 1000, "roi": "", "resize": "squeeze", "aspect": 0.0, "tile": 0,
        "tile_overlap": 0.125,
    },
    "threshold": {"cross_fit_below": 60},
    "evaluate": {"heatmap_sigma": 0.0, "mask_rule": "any"},
    "synthesis": {"size_bounds": "half", "object_test": "source", "tolerance": 1.0},
}  # fmt: skip
RESIZES = ("squeeze", "keep", "pad", "crop")
STEP = 32  # pixels by which a frame's longer side may exceed the shorter one: the coarsest stride of the networks
_SHOWN = 80  # characters of a value
_OTHER_VERSION = f"it was written by another version of jaxad, or edited: restore it, or {RETRAIN}"


def _unknown(method: str) -> Keys:
    """No rules: `jaxad.methods.create` checks the ranges of its method again."""
    return Keys()


def load(
    spec: str,
    overrides: Mapping[str, Value] | None = None,
    *,
    rules_of: Callable[[str], Keys] = _unknown,
    required: Sequence[str] = tuple(_REQUIRED),
) -> ConfigDict:
    """Reads an experiment and applies overrides.

    Args:
      spec: ``FILE`` or ``FILE:CATEGORY``, where the file may be the name of an experiment that comes with jaxad, see
        `experiment_file`; without a category the file's own default is used.
      overrides: Values by dotted key; text is read as what is typed after ``--config.``.
      rules_of: Gives the rules for the config keys of a method by its name, as `jaxad.methods.rules_of` does.
      required: Keys that it must have; by default those of a training.

    Returns:
      The locked config.

    Raises:
      UserError: The file is missing or has no ``get_config``; a key is unknown; a value has the wrong type.
    """
    disk.refuse_nul(spec)
    file, colon, category = split_category(spec)
    if colon and not category:
        raise UserError(
            f"--config {spec} names no category after the colon; write {file}:CATEGORY, or {file} alone",
            about="--config",
        )
    get_config = getattr(_module(file), "get_config", None)
    if get_config is None:
        raise UserError(
            f"config file {file} has no function get_config(category); see experiments/ for examples", about=file
        )
    with _told(file):
        if category and not inspect.signature(get_config).parameters:
            raise UserError(f"config file {file} takes no category, but {category!r} was given", about=file)
        config = get_config(category) if category else get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config in {file} must return an ml_collections.ConfigDict, not {type(config).__name__}", about=file
        )
    if overrides and "category" in overrides:
        raise UserError(
            f"config.category only names what the experiment was made for; write --config {file}:CATEGORY",
            about="category",
        )
    source, remedy = f"the config of {file}", "see experiments/ for examples"
    _check_required(config, required, source, remedy)
    return override(completed(guarded(config, source, remedy)), overrides or {}, rules_of=rules_of)


def completed(config: ConfigDict) -> ConfigDict:
    """Adds to a config what it need not say, such as an experiment of the user's own; the only place that does."""
    with config.unlocked():
        for section, defaults in _OPTIONAL.items():
            for key, value in defaults.items() if isinstance(config.get(section), ConfigDict) else ():
                if key not in config[section]:
                    config[section][key] = value
    return config


def _check_required(config: ConfigDict, required: Sequence[str], source: str, remedy: str) -> None:
    """Refuses a config without the keys and sections that every use of it needs."""
    if missing := [key for key in required if key not in config]:
        raise UserError(f"{source} lacks {', '.join(missing)}; {remedy}", about=source)
    for key in required:
        kind = _REQUIRED.get(key, object)
        if not isinstance(config[key], kind) or (kind is int and isinstance(config[key], bool)):
            what = "a section" if kind is ConfigDict else f"of type {kind.__name__}"
            raise UserError(f"config.{key} in {source} must be {what}, not {config[key]!r}; {remedy}", about=key)


def split_category(spec: str) -> tuple[str, str, str]:
    """``FILE:CATEGORY`` as the file, the colon and the category; the last two are empty without a category."""
    return (spec, "", "") if Path(spec).is_file() else spec.partition(":")


def experiment_file(name: str | Path) -> Path:
    """The file of an experiment: the path itself, or the file that comes with jaxad under a name without ``.py``.

    Raises:
      UserError: No experiment of this name comes with jaxad.
    """
    path = Path(name)
    if path.is_file() or path.suffix or len(path.parts) != 1:
        return path
    installed, checkout = (Path(__file__).parents[up] / "experiments" for up in (0, 1))
    known = {file.stem: file for file in (installed if installed.is_dir() else checkout).glob("*.py")}
    if str(name) not in known:
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"the names are {', '.join(sorted(known))}"
        raise UserError(f"there is no experiment {str(name)!r}; {hint}")
    return known[str(name)]


def _module(file: str | Path) -> ModuleType:
    """Runs an experiment file."""
    path = experiment_file(file)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1, cutoff=0.5)
        hint = f"; did you mean {path.parent / near[0]}?" if near else "; give the path of an experiment file"
        raise UserError(f"config file {file} does not exist{hint}", about=file)
    if path.suffix != ".py":
        raise UserError(f"config file {file} is no Python file (.py); see experiments/ for examples", about=file)
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
        raise UserError(f"config file {file} cannot be loaded: {type(error).__name__}: {error}", about=file) from error


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
    raise UserError(
        f"config file {file} has no CATEGORIES, the names that all means; add them or name categories", about=file
    )


def override(
    config: ConfigDict, overrides: Mapping[str, Value], *, rules_of: Callable[[str], Keys] = _unknown
) -> ConfigDict:
    """Returns a locked copy of `config` with values set by dotted key.

    Text is read as a value of the key's type, as typed after ``--config.``. Other values must be of that type: numbers,
    also NumPy's, booleans, sequences of numbers, paths for text, and None for an optional value. `rules_of` is that
    of `load`.

    Raises:
      UserError: A key does not exist (the nearest is named) or would have no effect, or a value is not of the key's
        type or out of its range.
    """
    if not isinstance(overrides, Mapping):
        raise UserError(f"overrides must be a dict of values by key, such as {{'data.size': 64}}, not {overrides!r}")
    config = copy.deepcopy(config)  # ConfigDict's own copy would share its references
    config.unlock()
    for key, given in overrides.items():
        known = flatten(config)
        if key not in known:
            key = str(key)
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            leaf = difflib.get_close_matches(key.split(".")[-1], [k.split(".")[-1] for k in known], n=1)
            near = near or [k for k in known if leaf and k.split(".")[-1] == leaf[0]]
            hint = f"did you mean config.{near[0]}?" if near else f"the keys are {', '.join(sorted(known))}"
            raise UserError(f"config has no key {key!r}; {hint}", about=key)
        parent, _, leaf = key.rpartition(".")
        node = config[parent] if parent else config
        node[leaf] = checked(key, given, types_of(node, leaf), known[key])
    values = flatten(config)
    rules = rules_of(values.get("method", "")).joined_with(GENERAL)
    check_ranges(values, rules)
    for key in overrides.keys() & rules.used_with.keys():
        other, needed = rules.used_with[key]
        if other in values and (not values[other] if needed is None else values[other] not in needed):
            what = "" if needed is None else f" to {' or '.join(map(str, needed))}"
            raise UserError(
                f"config.{key} has no effect while config.{other} is {values[other]}; set config.{other}{what} as "
                f"well, or leave config.{key} out",
                about=key,
            )
    config.lock()
    return config


def check_ranges(values: Mapping, rules: Keys) -> None:
    """Refuses values, by dotted key, that no run can use, so that a mistake in a late stage costs no training."""
    for key, value in values.items():
        if not all(math.isfinite(x) for x in (value if isinstance(value, list) else [value]) if isinstance(x, float)):
            raise UserError(f"config.{key} must be finite, not {value}", about=key)
    for key, least in rules.at_least.items():
        if key in values and not number(key, values[key], type(least)) >= least:
            raise UserError(f"config.{key} must be at least {least:g}, not {values[key]}", about=key)
    for key, limit in rules.below.items():
        if key in values and not number(key, values[key], float) < limit:
            raise UserError(f"config.{key} must be below {limit}, not {values[key]}", about=key)
    channels = values.get("data.channels", 3)
    if channels not in (1, 3):
        raise UserError(f"config.data.channels must be 3 (RGB) or 1 (grey), not {channels}", about="data.channels")
    for key in PER_CHANNEL:
        numbers = values.get(key, [0] * channels)
        if not isinstance(numbers, list) or len(numbers) != channels:
            raise UserError(f"config.{key} must hold config.data.channels={channels} numbers, not {numbers}", about=key)
        if key == "normalize.std" and key in values and not min(numbers) > 0:
            raise UserError(f"config.{key} must hold numbers above 0, not {numbers}", about=key)
    for key, share in rules.shares.items():
        value = number(key, values.get(key, 0.5), float)
        if not 0 <= value <= 1 or (share[0] == "(" and value == 0) or (share[-1] == ")" and value == 1):
            raise UserError(f"config.{key} must lie in {share}, not {value}", about=key)


def flatten(config: ConfigDict) -> dict:
    """Leaf values by dotted key, in the form they have in JSON (tuples become lists)."""
    flat = {}
    for key, value in json.loads(config.to_json()).items():
        if isinstance(value, dict):
            flat.update({f"{key}.{k}": v for k, v in flatten(ConfigDict(value)).items()})
        else:
            flat[key] = value
    return flat


def recorded(values: Mapping) -> dict:
    """`flatten` of a config as a file of results holds it."""
    return flatten(completed(ConfigDict(values)))


def read(workdir: Path) -> ConfigDict:
    """Reads the config.json of a workdir.

    Raises:
      UserError: There is none, it is no JSON object, or it is not what this version of jaxad writes. Of a key that it
        lacks the user is told when the key is needed.
    """
    disk.refuse_undecodable(workdir)
    path = Path(workdir) / "config.json"
    try:
        values = disk.read_json(path, "restore it or choose another --workdir")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{workdir} is no workdir: it has no config.json; train with --workdir {workdir}", about=workdir
        ) from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}; check its permissions and its disk", about=path
        ) from error
    config = ConfigDict(values)
    _check_required(config, tuple(_REQUIRED), str(path), _OTHER_VERSION)
    try:
        check_ranges(flatten(config), GENERAL)
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error}; {_OTHER_VERSION}", about=path) from error
    return completed(guarded(config, str(path), _OTHER_VERSION))


def _is_of_training(values: Mapping) -> bool:
    return all(isinstance(values.get(key), str) for key in ("experiment", "method"))


def is_workdir(folder: Path) -> bool:
    """Whether a training, of whatever version of jaxad, has written the config.json of a folder."""
    try:
        return _is_of_training(disk.read_json(Path(folder) / "config.json", ""))
    except (OSError, UserError):
        return False


def refuse_foreign(workdir: Path) -> None:
    """Refuses a workdir's config.json that no training wrote, of whatever version of jaxad, with a UserError."""
    path = Path(workdir) / "config.json"
    if not _is_of_training(disk.read_json(path, "restore it or choose another --workdir")):
        raise UserError(f"{path} was not written by a training; choose another --workdir", about=path)


def claim(
    workdir: Path, config: ConfigDict, *, unfitted: tuple[str, ...] = (), remedy: str = "choose another --workdir"
) -> None:
    """Writes config.json to a fresh workdir, or checks that an existing one was made with the same config.

    The keys that begin with one of `unfitted` may still be changed while no density was fitted: a training must not be
    lost because its features suit another density better. A dtype ``auto`` goes with every other: a training has taken
    its place. `remedy` is what the user can do about another config.

    Raises:
      UserError: The workdir cannot be written, or was made with another config (the differing keys are named).
    """
    path = Path(workdir) / "config.json"
    if path.exists():
        old, new = flatten(read(workdir)), flatten(config)
        differing = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
        if new.get("dtype") == "auto" and "dtype" in differing:
            differing.remove("dtype")
        if not differing:
            return
        unfitted = (*unfitted, "dtype") if old.get("dtype") == "auto" else unfitted
        if (path.parent / "detector.json").exists() or not all(key.startswith(unfitted) for key in differing):
            was, now = ({k: _short(repr(v[k])) if k in v else "absent" for k in differing} for v in (old, new))
            changes = ", ".join(f"{key} ({was[key]} there, {now[key]} now)" for key in differing)
            raise UserError(f"{workdir} was made with another config: {changes}; {remedy}", about=workdir)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.write_json(path, json.loads(config.to_json()))
    except OSError as error:
        raise UserError(
            f"workdir {workdir} cannot be written: {error.strerror}; choose another --workdir", about=workdir
        ) from error


def _short(text: str) -> str:
    """The beginning of a text, such as that of a region of interest, where a sentence has no room for all of it."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def channels(config: ConfigDict) -> int:
    """Channels of the images that a detector sees: 3, or 1 where ``config.data.channels`` says so."""
    return config.data.get("channels", 3)


def white_level(config: ConfigDict) -> int:
    """The 16-bit value that is white, as ``config.data.white_level`` gives it; 0 where the images decide."""
    return config.data.white_level


def resize(config: ConfigDict) -> str:
    """How images are brought into their frame, see `jaxad.data.geometry`."""
    return config.data.get("resize", "squeeze")


def roi(config: ConfigDict) -> str:
    """The region of interest as text, see `jaxad.data.roi`; "" for whole images."""
    return config.data.get("roi", "")


def frame(config: ConfigDict, side: int) -> tuple[int, int]:
    """Height and width of the frame whose shorter side has so many pixels.

    It is square, or has the aspect ratio of the training images, ``config.data.aspect``, once that is known. The longer
    side exceeds the shorter one by a multiple of `STEP`, so that both are multiples of a network's stride, or neither.
    """
    aspect = config.data.get("aspect", 0.0)
    if not aspect:
        return side, side
    longer = side + STEP * round(side * (max(aspect, 1 / aspect) - 1) / STEP)
    return (side, longer) if aspect > 1 else (longer, side)


def tile(config: ConfigDict) -> int:
    """Side in pixels of the tiles of a frame that are trained on and scored; 0 where it is the whole frame."""
    return config.data.get("tile", 0)


def seen_size(config: ConfigDict) -> tuple[int, int]:
    """Height and width of the images that a training takes: of a tile, or of a whole frame."""
    side = tile(config)
    return (side, side) if side else frame(config, config.data.size)


def of_tiles(config: ConfigDict) -> ConfigDict:
    """The config by which a method works on tiles, to which a tile is a whole image.

    References are resolved before, so that a config that was read again gives the same.
    """
    side, view = config.data.tile, {}
    if "view" in config and "crop" in config.view:
        view = {"view.crop": min(config.view.crop, side)}
        view |= {"view.center_crop": min(config.view.center_crop, side)}
    plain = guarded(ConfigDict(json.loads(config.to_json())), "the config", "see experiments/ for examples")
    whole = {"data.size": side, "score.size": side, "data.tile": 0, "data.aspect": 0.0, "data.resize": "squeeze"}
    whole |= {"data.roi": ""}  # the detector knows what counts of a tile
    with plain.unlocked():
        for key, value in (whole | view).items():
            section, name = key.split(".")
            plain[section][name] = value
    return plain


def inner(outer: tuple[int, int], side: int, crop: int) -> tuple[int, int]:
    """What is left of a frame whose shorter side has `side` pixels when this becomes `crop`: as much less of both."""
    return outer[0] - (side - crop), outer[1] - (side - crop)


def max_pixels(config: ConfigDict) -> int:
    """The most pixels of an image that are read: ``config.data.max_megapixels`` millions."""
    return config.data.max_megapixels * 10**6


def split_options(config: ConfigDict) -> dict:
    """The options of `jaxad.data.pipeline.split_holdout`; with a network that is trained, or tiles, nothing is
    cross-fitted."""
    below = 0 if config.epochs or tile(config) else config.threshold.cross_fit_below
    return {"holdout": config.data.holdout, "seed": config.seed, "cross_fit_below": below}


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
      UserError: An argument is neither a flag of the command nor an override, or a flag is empty.
    """
    flags, rest = parser.parse_known_args(argv)
    refuse_empty(parser, flags)
    overrides = {}
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if not name.startswith("--config."):
            raise UserError(f"unknown argument {argument!r}; see --help", about=argument)
        if not equals:
            if not rest:
                raise UserError(f"{name} needs a value: {name}=VALUE", about=name)
            value = rest.pop(0)
        overrides[name.removeprefix("--config.")] = value
    return flags, overrides


def refuse_empty(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
    """Refuses flags given as empty text, as an unset variable of the shell makes them: no default is meant by it."""
    for name, value in vars(flags).items():
        if "" in (value if isinstance(value, list) else [value]) and parser.get_default(name) != "":
            raise UserError(f"the value given for {name} is empty; write one, or leave it out", about=name)
