"""The tables of docs/configuration.md: every key of every experiment, from the definitions in the code."""

import functools
import inspect
import re
from collections import Counter
from pathlib import Path

from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad import config_keys, data, detector, methods
from jaxad.augment.cutpaste import CutPasteOptions
from jaxad.augment.dla import LocalOptions, ViewOptions
from jaxad.augment.nsa import Synthesis
from jaxad.augment.nsa.settings import View
from jaxad.data import folder
from jaxad.data.demo import source as demo
from jaxad.errors import UserError
from jaxad.methods import baseline, cutpaste, dla, features, nsa, nsa_features
from jaxad.reporting.tables import Table
from jaxad.synthetic_anomalies.__main__ import SETTINGS
from jaxad.training import step

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
TITLES = {
    "": "Every method",
    "nsa_features": "NSA on features of published weights",
    "nsa": "NSA and its baselines",
    "cutpaste": "CutPaste and published weights",
    "dla": "DLA",
    "features": "Features of published weights",
    "baseline": "The per-pixel mean",
    "synthetic_anomalies": "Synthetic anomalies",
}
# The options of augmentations, by method and section.
RECORDS = {
    "nsa": {"view": View, "synthesis": Synthesis},
    "cutpaste": {"proxy": CutPasteOptions},
    "dla": {"view": ViewOptions, "local": LocalOptions},
}
# Families whose keys another one has beside its own, and in whose tables they are.
_ALSO = {"nsa_features": ("features", "nsa")}
_CATEGORIES = (*demo.CATEGORIES, *folder.TEXTURES, *folder.OBJECTS, "object", "texture", "chest_xray_male")
_SHOWN = 3  # defaults of a key
_LARGE = 10**12
# The experiments that the others derive from.
_BASES = ("nsa_logistic", "cutpaste_3way", "dla", "lite", "baseline_mean")
# What must be set for a key to be looked at.
_WITH = {
    "density.bandwidth": {"density.name": "kernel"},
    "density.covariance": {"density.name": "gaussian_mixture"},
    "density.components": {"density.name": "gaussian_mixture"},
    "density.tolerance": {"density.name": "gaussian_mixture"},
    "proxy.confetti": {"proxy.task": "confetti"},
    "synthesis.object_test": {"synthesis.background": "(200.0, 60.0)"},
}


def family(config: ConfigDict) -> str:
    """The kind of method that an experiment is of."""
    return next((name for name in BY_METHOD if config.get("method", "").startswith(name)), "synthetic_anomalies")


def _attributes(record: type) -> dict[str, str]:
    return config_keys.explained(inspect.getdoc(record).split("Attributes:\n")[1])


_MEANINGS = {
    "nsa_features": nsa_features.OWN.meanings,
    "nsa": nsa.KEYS.meanings,
    "cutpaste": cutpaste.KEYS.meanings,
    "dla": dla.KEYS.meanings,
    "features": features.KEYS.meanings,
    "baseline": baseline.KEYS.meanings,
    "synthetic_anomalies": SETTINGS,
}
BY_METHOD = {
    name: held
    | {
        f"{section}.{leaf}": text
        for section, record in RECORDS.get(name, {}).items()
        for leaf, text in _attributes(record).items()
    }
    for name, held in _MEANINGS.items()
}


@functools.cache
def experiments() -> tuple[ConfigDict, ...]:
    """The configs of every experiment and category, those first that others derive from."""
    found = []
    for file in sorted(EXPERIMENTS.glob("*.py"), key=lambda file: (file.stem not in _BASES, file.stem)):
        found.append(configs.load(str(file), required=()))
        for category in _CATEGORIES:
            try:
                found.append(configs.load(f"{file}:{category}", required=()))
            except UserError:  # the experiment has no such category
                continue
    return tuple(found)


def _shown(value: object) -> str:
    if isinstance(value, list):
        return f"({', '.join(map(_shown, value))})"
    if isinstance(value, str):
        return f"`{value}`" if value else "empty"
    return f"{value:.3g}" if isinstance(value, float) else str(value).lower()


def _defaults(key: str, known: list[dict]) -> str:
    """The values that the experiments have, the most frequent first."""
    counts = Counter(_shown(values[key]) for values in known)
    shown = [value for value, _ in counts.most_common(_SHOWN)]
    return ", ".join(shown + ["..."] * (len(counts) > _SHOWN))


def _refusal(config: ConfigDict, key: str, value: object, *, of_method: bool = True) -> str:
    """What the program says to a value of a key; empty where it takes it."""
    try:
        changed = configs.override(config, {key: value, **_WITH.get(key, {})}, rules_of=methods.rules_of)
        if of_method and "method" in config:
            methods.create(changed)
            data.load(changed)
            if "optim" in config:
                step.make_optimizer(changed, 1)
    except UserError as error:
        return str(error)
    return ""


def _values(config: ConfigDict, key: str, default: object) -> str:
    """What a key takes, as the program says it when it refuses something else; or else the kind of its values."""
    if type(default) is bool:
        return "true or false"
    if isinstance(default, str):
        kind, said = "text", [_refusal(config, key, "?")]
    elif isinstance(default, int | float):
        kind = "whole number" if type(default) is int else "number"
        said = [_refusal(config, key, -1), _refusal(config, key, _LARGE, of_method=False)]
    else:
        numbers = default or [0.0]  # None, where a value is optional
        kind, said = f"{len(numbers)} numbers", [_refusal(config, key, [type(number)(-1) for number in numbers])]
    pattern = rf"config\.{re.escape(key)} must (?:be |lie |hold )?(.+?)(?:, not |, as | and config|, config|;|: |$)"
    rules = [re.search(pattern, sentence) for sentence in said]
    return " and ".join(dict.fromkeys(rule[1] for rule in rules if rule)) or kind


def table(name: str) -> Table:
    """The keys that are explained for one kind of method, or for all where the name is empty.

    Raises:
      ValueError: A key is not explained, or what is explained is no key.
    """
    known: dict[str, list[dict]] = {}
    firsts: dict[str, ConfigDict] = {}
    for config in experiments():
        own, flat = family(config), configs.flatten(config)
        for key in flat:
            places = (one for one in (own, *_ALSO.get(own, ())) if key in BY_METHOD[one])
            where = next(places, "" if key in config_keys.GENERAL.meanings else None)
            if where is None:
                raise ValueError(f"config.{key} of {own} is not explained; see the KEYS of {own}.py, or config_keys.py")
            if where == name:
                known.setdefault(key, []).append(flat)
                firsts.setdefault(key, config)
    if unknown := (_MEANINGS[name] if name else config_keys.GENERAL.meanings).keys() - known.keys():
        raise ValueError(f"no experiment has {', '.join(unknown)}; see jaxad/config_keys.py")
    explained = BY_METHOD[name] if name else config_keys.GENERAL.meanings
    rows = []
    for key in (key for key in explained if key in known):
        late = "yes" if key.startswith(detector.CHANGEABLE) else ""
        rule = _values(firsts[key], key, configs.flatten(firsts[key])[key])
        rows.append([f"`{key}`", _defaults(key, known[key]), rule, late, explained[key]])
    return Table(["key", "defaults", "values", "after training", "meaning"], rows, "lllll", TITLES[name])
