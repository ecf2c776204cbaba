"""Packages whose public names live in their modules, each imported when a name of it is first asked for.

Importing a package must not start JAX: data workers import what stands beside its JAX modules.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def exports(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """What a package sets as its ``__all__``, ``__getattr__`` and ``__dir__``.

    Args:
      package: The package's ``__name__``.
      names: Its public names by the module that holds them, relative to the package.
    """
    homes = {name: module for module, held in names.items() for name in held}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return sorted(homes), get, lambda: sorted(homes)
