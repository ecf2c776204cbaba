"""``jaxad.configs``: the experiments by name, with values changed by keyword.

config = jaxad.configs.load("nsa_logistic", "object", epochs=40, data={"root": "my_parts"})
"""

import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxad import config as _config


def load(experiment: str | os.PathLike[str], /, category: str = "", **overrides: Any) -> ConfigDict:
    """The config of an experiment.

    Args:
      experiment: The name of one that comes with jaxad, such as ``nsa_logistic``, or the path of an experiment file.
      category: ``object`` or ``texture`` for images of one's own, or a category of the demo or of MVTec AD; by default
        the experiment's own default, a demo.
      overrides: Values to change, as Python values, and a dict for each section: ``epochs=2, data={"root": folder}``.

    Returns:
      The locked config.

    Raises:
      UserError: There is no such experiment, category or key (the nearest is named), or a value is not of its key's
        type or out of its range.
    """
    from jaxad import methods  # starts JAX, which naming `jaxad.configs` must not

    experiment = os.fspath(experiment)
    spec = f"{experiment}:{category}" if category else experiment
    return _config.load(spec, _flat(overrides), rules_of=methods.rules_of)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values by dotted key."""
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
