"""The methods by name; a new one is a file here and a line below."""

import difflib

from ml_collections import ConfigDict

from jaxad.errors import UserError
from jaxad.methods import baseline, cutpaste, dla, nsa
from jaxad.methods.method import REDUCTIONS, Method, untrained

METHODS = {
    "nsa": nsa.create,
    "cutpaste": cutpaste.create,
    "cutpaste_untrained": lambda config: untrained(cutpaste.create(config)),
    "dla": dla.create,
    "dla_untrained": lambda config: untrained(dla.create(config)),
    "baseline_mean": baseline.create,
}


def create(config: ConfigDict) -> Method:
    """Fills the record of the method that ``config.method`` names.

    Raises:
      UserError: There is no such method, or a value of the config is none the method can take.
    """
    if config.method not in METHODS:
        near = difflib.get_close_matches(config.method, METHODS, n=1, cutoff=0)
        raise UserError(f"config.method {config.method!r} is unknown; did you mean {near[0]!r}?")
    method = METHODS[config.method](config)
    if method.loss is not None and config.epochs < 1:
        raise UserError(f"config.epochs must be at least 1 for {config.method}, not {config.epochs}")
    if method.loss is None and config.epochs:
        raise UserError(f"config.epochs must be 0 for {config.method}, which is not trained, not {config.epochs}")
    # What only scoring needs is refused here too, before a training that it would come too late for.
    if "reduction" in config.score and config.score.reduction not in REDUCTIONS:
        raise UserError(f"config.score.reduction must be mean, max or top, not {config.score.reduction!r}")
    size, crop = config.score.size, config.evaluate.crop
    if crop > size or (crop and (size - crop) % 2):
        raise UserError(
            f"config.evaluate.crop {crop} is no central square of config.score.size {size}; "
            "it must be smaller by an even number"
        )
    return method
