"""The methods by name; a new one is a file here and a line below, or a file of the user's own."""

import difflib
import functools
import importlib
import sys
from collections.abc import Callable
from types import ModuleType

from ml_collections import ConfigDict

from jaxad import config as configs
from jaxad.config_keys import GENERAL, Keys
from jaxad.data import MIN_SIDE, roi
from jaxad.data.mask import MASK_RULES
from jaxad.errors import UserError, first_line
from jaxad.methods import baseline, cutpaste, dla, features, nsa, nsa_features
from jaxad.methods.method import REDUCTIONS, Method, check_choices, untrained


def _untrained(create: Callable[[ConfigDict], Method]) -> Callable[[ConfigDict], Method]:
    """`create` of the same method without its training; its module, and so its ``KEYS``, are the same."""

    @functools.wraps(create)
    def create_untrained(config: ConfigDict) -> Method:
        return untrained(create(config))

    return create_untrained


METHODS = {
    "nsa": nsa.create,
    "cutpaste": cutpaste.create,
    "cutpaste_untrained": _untrained(cutpaste.create),
    "dla": dla.create,
    "dla_untrained": _untrained(dla.create),
    "baseline_mean": baseline.create,
    "features": features.create,
    "nsa_features": nsa_features.create,
}


def create(config: ConfigDict) -> Method:
    """Fills the record of the method that ``config.method`` names.

    ``package.module:create`` names a method outside jaxad: a function ``create(config) -> Method`` of a module that
    Python finds. Whoever loads a detector of such a method runs that module. Its ``KEYS``, if it has any, are rules
    for its config keys, see `jaxad.config_keys.Keys`.

    Raises:
      UserError: There is no such method, or a value of the config is none the method can take.
    """
    create = _creator(config.method)
    configs.check_ranges(configs.flatten(config), rules_of(config.method).joined_with(GENERAL))
    check_choices({"data.resize": (configs.resize(config), configs.RESIZES)})
    roi.check(configs.roi(config))
    in_tiles = configs.tile(config) > 0
    if in_tiles:
        _check_tiles(config)
        config = configs.of_tiles(config)
    method = create(config)
    if not isinstance(method, Method):
        raise UserError(
            f"config.method {config.method} must return a jaxad.methods.method.Method, not {method!r}", about="method"
        )
    if in_tiles and method.hooks.per_position:  # its density is one for each tile
        method = method._replace(hooks=method.hooks._replace(refit=None))
    if method.loss is not None and config.epochs < 1:
        raise UserError(f"config.epochs must be at least 1 for {config.method}, not {config.epochs}", about="epochs")
    if method.loss is None and config.epochs:
        raise UserError(
            f"config.epochs must be 0 for {config.method}, which is not trained, not {config.epochs}", about="epochs"
        )
    # What only scoring needs is refused here too, before a training that it would come too late for.
    if "reduction" in config.score and config.score.reduction not in REDUCTIONS:
        raise UserError(
            f"config.score.reduction must be mean, max or top, not {config.score.reduction!r}", about="score.reduction"
        )
    check_choices({"evaluate.mask_rule": (config.evaluate.mask_rule, MASK_RULES)})
    size, crop = config.score.size, config.evaluate.crop
    if crop and configs.resize(config) in ("keep", "pad"):
        raise UserError(
            f"config.evaluate.crop {crop} judges a part of what config.data.resize={configs.resize(config)} shows "
            "whole; set config.evaluate.crop=0, or config.data.resize to squeeze or crop",
            about="evaluate.crop",
        )
    if crop and configs.roi(config):
        raise UserError(
            f"config.evaluate.crop {crop} judges a part of what config.data.roi shows; set config.evaluate.crop=0",
            about="evaluate.crop",
        )
    if crop > size or (crop and (size - crop) % 2):
        raise UserError(
            f"config.evaluate.crop {crop} is no central square of config.score.size {size}; "
            "it must be smaller by an even number",
            about="evaluate.crop",
        )
    return method


def _check_tiles(config: ConfigDict) -> None:
    """Refuses tiles that a frame has no room for, or of which a part alone would be judged."""
    data = config.data
    if not MIN_SIDE <= data.tile <= data.size:
        raise UserError(
            f"config.data.tile is {data.tile}, but a tile has at least {MIN_SIDE} pixels a side and at most "
            f"config.data.size={data.size}",
            about="data.tile",
        )
    if data.tile_overlap > 0.5:
        raise UserError(
            f"config.data.tile_overlap must lie in [0, 0.5], not {data.tile_overlap}", about="data.tile_overlap"
        )
    if "density" in config and config.density.get("name") == "auto":
        raise UserError(
            "config.density.name=auto compares scorers of whole images, not of tiles; set it to nearest_neighbor, or "
            "to gaussian_per_location for parts in the same position in every image",
            about="density.name",
        )
    if config.evaluate.crop:
        raise UserError(
            f"config.evaluate.crop is {config.evaluate.crop}, but tiles cover whole images; set config.evaluate.crop=0",
            about="evaluate.crop",
        )


def rules_of(name: str) -> Keys:
    """The rules for the config keys that a method has: ``KEYS`` of its module, if there are any.

    Raises:
      UserError: The method lies outside jaxad and cannot be imported, or its ``KEYS`` are something else.
    """
    if ":" in name:
        module = _outside(name)
    else:
        module = sys.modules[METHODS[name].__module__] if name in METHODS else None
    rules = getattr(module, "KEYS", Keys())
    if not isinstance(rules, Keys):
        raise UserError(
            f"config.method {name}: KEYS of its module must be a jaxad.config_keys.Keys, not {rules!r}", about="method"
        )
    return rules


def _creator(name: str) -> Callable[[ConfigDict], Method]:
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0)
        raise UserError(f"config.method {name!r} is unknown; did you mean {near[0]!r}?", about="method")
    module = _outside(name)
    if not callable(getattr(module, "create", None)):
        raise UserError(
            f"config.method {name}: module {module.__name__} has no function create(config)", about="method"
        )
    return module.create


def _outside(name: str) -> ModuleType:
    """The module of a method outside jaxad."""
    module, _, function = name.partition(":")
    if function != "create":  # a config may come from anywhere, and not every function may be called with one
        raise UserError(f"config.method {name} must name a function create: write {module}:create", about="method")
    try:
        return importlib.import_module(module)
    except Exception as error:  # it is the user's own program, which may fail in any way
        raise UserError(
            f"config.method {name} cannot be imported ({type(error).__name__}: {first_line(error)}); check the module, "
            "its name and PYTHONPATH",
            about="method",
        ) from error
