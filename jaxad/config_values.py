"""Values of a config: what an override may be, read and checked as its key's type."""

import ast
import contextlib
import os
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxad.errors import UserError

# What an override may be: text as typed, which is read as the key's type, or a value of that type.
Value = str | os.PathLike | bool | int | float | Sequence[float] | None

PER_CHANNEL = ("normalize.mean", "normalize.std")


def types_of(section: ConfigDict, name: str) -> tuple[type, ...]:
    """The types that a key takes: two where it may be none, as of ``placeholder((tuple, type(None)))``."""
    try:
        types = section.get_ref(name).get_type()
    except ValueError:  # null of a config.json, whose type is not known
        return tuple, type(None)
    return types if isinstance(types, tuple) else (types,)


def number(key: str, value: Any, kind: type) -> Any:
    """The value, which must be an integer where `kind` is int, else any number."""
    if type(value) not in (int, kind):
        raise UserError(f"config.{key} must be of type {kind.__name__}, not {value!r}", about=key)
    return value


def _plain(value: Any) -> Any:
    """A value of NumPy or JAX as Python's own, a path as text, anything else as it is."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.tolist() if hasattr(value, "tolist") else value


def checked(key: str, given: Value, types: tuple[type, ...], old: Any) -> Any:
    """Reads what is given as a value of one of `types` (see `types_of`) to replace the value `old`."""
    value, kind = _plain(given), types[0]
    if isinstance(value, str) and "\0" in value:
        raise UserError(f"config.{key} must hold no NUL character, as {value!r} does", about=key)
    if isinstance(given, str) and kind is not str:
        value = _read_text(given)
    if kind is bool and type(value) is not bool:
        raise UserError(f"config.{key} must be true or false, not {given!r}", about=key)
    if kind is float and type(value) is int:
        with contextlib.suppress(OverflowError):  # an integer beyond every float is refused by its type below
            value = float(value)
    if kind in (tuple, list) and isinstance(value, (tuple, list)):
        value = kind(_plain(number) for number in value)
        numbers = all(type(number) in (int, float) for number in value)
        fixed = old is not None and key not in PER_CHANNEL
        if not numbers or (fixed and len(value) != len(old)):
            raise UserError(f"config.{key} must hold {len(old) if old else 'only'} numbers, not {given!r}", about=key)
    if type(value) not in types:
        raise UserError(f"config.{key} must be of type {kind.__name__}, not {given!r}", about=key)
    return value


def _read_text(text: str) -> Any:
    """Text as the number, boolean, None or sequence that it spells; other text as it is."""
    known = {"none": None, "true": True, "false": False}
    if text.lower() in known:
        return known[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
