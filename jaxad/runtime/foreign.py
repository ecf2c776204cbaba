"""Calls of native functions, handlers of XLA's foreign function interface, from JAX's programs on CPU."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxad.runtime import devices

_lock = threading.Lock()
_registered: dict[str, Any] = {}  # handlers, which must not be collected


def register(name: str, make: Callable[[], Any]) -> None:
    """Registers what `make` returns, a function of Numba's ``cfunc``, for `call`; once, however often it is called."""
    with _lock:
        if name not in _registered:
            handler = make()
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler.ctypes), platform="cpu")
            _registered[name] = handler


def call(
    name: str,
    arrays: Sequence[jax.Array],
    results: Sequence[jax.ShapeDtypeStruct],
    integers: tuple[int, ...],
    *,
    shared: bool,
) -> list[jax.Array]:
    """Calls a handler, from compiled programs too. There are no derivatives.

    Under `jax.vmap` all arrays and results have a further axis in front.

    Args:
      name: The name that the handler was registered with.
      arrays: Its arguments.
      results: Shapes and dtypes of what it returns.
      integers: The only attribute of the call, int64.
      shared: Whether that axis has the length one in an array that is the same for all; else it is repeated.
    """
    method = "expand_dims" if shared else "broadcast_all"
    target = jax.ffi.ffi_call(name, results, vmap_method=method)
    made = target(*arrays, integers=np.array(integers, np.int64))
    # Foreign calls forget which mapped axes of `jax.shard_map` their arguments vary over.
    return [devices.varying_alike(each, *arrays)[0] for each in made]
