"""A file of NumPy arrays and JSON values: replaced whole, and read only if every byte is as it was written."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxad.errors import first_line
from jaxad.runtime import disk

_VALUES = "values"


def write(path: Path, arrays: dict[str, Any], values: dict[str, Any]) -> None:
    """Writes nested dicts of arrays, and what JSON can hold, in NumPy's format ``npz``.

    Raises:
      OSError: It cannot be written; what was there before still is.
    """
    flat = {f"arrays/{name}": np.asarray(leaf) for name, leaf in flatten_dict(arrays, sep="/").items()}
    with disk.replacing(path, "wb") as file:
        np.savez(file, **flat, **{_VALUES: np.frombuffer(json.dumps(values).encode(), np.uint8)})


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays and the values that `write` was given.

    Raises:
      OSError: It is not there, or cannot be read.
      ValueError: It is damaged, or not such a file.
    """
    data = io.BytesIO(Path(path).read_bytes())
    try:
        with np.load(data, allow_pickle=False) as held:  # which checks the CRC of each array
            flat = {name.removeprefix("arrays/"): held[name] for name in held.files if name != _VALUES}
            values = json.loads(held[_VALUES].tobytes())
    except Exception as error:  # a damaged zip file raises many types
        raise ValueError(first_line(error)) from error
    return unflatten_dict(flat, sep="/"), values
