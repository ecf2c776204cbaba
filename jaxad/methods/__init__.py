"""The methods by name; a new one is a file here and a line below."""

import difflib

from ml_collections import ConfigDict

from jaxad.errors import UserError
from jaxad.methods import baseline, nsa
from jaxad.methods.method import Method

METHODS = {"nsa": nsa.create, "baseline_mean": baseline.create}


def create(config: ConfigDict) -> Method:
    """Fills the record of the method that ``config.method`` names.

    Raises:
      UserError: There is no such method, or a value of the config is none the method can take.
    """
    if config.method not in METHODS:
        near = difflib.get_close_matches(config.method, METHODS, n=1, cutoff=0)
        raise UserError(f"config.method {config.method!r} is unknown; did you mean {near[0]!r}?")
    return METHODS[config.method](config)
