"""oneDNN's C interface by way of ctypes: the library, descriptions of arrays, and the execution of primitives."""

import ctypes
import functools
import importlib.metadata
import os
import threading

import jax.numpy as jnp
import numpy as np

_DISTRIBUTION, _FILE = "onednn-cpu-gomp", "libdnnl.so.3"
_ALIGNMENT = 64  # bytes
_UNIMPLEMENTED = 3  # dnnl_unimplemented

# Values of oneDNN's enumerations.
_CPU, _IN_ORDER, _USER_SCRATCHPAD, _ANY = 1, 1, 1, 1
TRAINING, INFERENCE = 64, 96
DTYPES = {jnp.dtype(jnp.bfloat16): 2, jnp.dtype(jnp.float32): 3}
WEIGHTS_OF, WEIGHTS_GRADIENT_OF, WORKSPACE_OF, SCRATCHPAD_OF = 131, 132, 135, 136  # queries of a primitive
SOURCE, DESTINATION, WEIGHTS, WORKSPACE, SCRATCHPAD = 1, 17, 33, 64, 80  # arguments of a primitive
GRADIENT = 128  # added to one of them

Pointer = ctypes.c_void_p
Sides = ctypes.c_int64 * 12
_own = threading.local()  # the stream of each thread


class _Argument(ctypes.Structure):
    _fields_ = [("number", ctypes.c_int), ("memory", Pointer)]


@functools.cache
def load() -> ctypes.CDLL | None:
    """oneDNN, or None where pip has not installed it or the system cannot load it."""
    try:
        files = importlib.metadata.files(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    path = next((file.locate() for file in files if file.name == _FILE), None)
    # oneDNN's threads would go on spinning after each call, on the cores that XLA's then need. Its OpenMP reads the
    # variable when it is loaded; other libraries shall not.
    undecided = "OMP_WAIT_POLICY" not in os.environ
    if undecided:
        os.environ["OMP_WAIT_POLICY"] = "passive"
    try:
        found = ctypes.CDLL(str(path)) if path else None
    except OSError:  # for another system, or without the OpenMP that it needs
        return None
    finally:
        if undecided:
            del os.environ["OMP_WAIT_POLICY"]
    if found:
        found.dnnl_primitive_desc_query_md.restype = Pointer
        found.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
    return found


def made(name: str, *arguments: object) -> Pointer:
    """What a function of oneDNN makes, which it writes to its first argument.

    Raises:
      NotImplementedError: oneDNN has no such thing for this processor.
      RuntimeError: The function failed otherwise.
    """
    result = Pointer()
    _check(name, getattr(load(), f"dnnl_{name}")(ctypes.byref(result), *arguments))
    return result


def _check(name: str, status: int) -> None:
    if status == _UNIMPLEMENTED:
        raise NotImplementedError(f"oneDNN has no {name} for this processor and these arrays")
    if status:
        raise RuntimeError(f"oneDNN's {name} failed with status {status}")


@functools.cache
def engine() -> Pointer:
    """The processor."""
    return made("engine_create", _CPU, ctypes.c_size_t(0))


@functools.cache
def user_scratchpad() -> Pointer:
    """The attribute of primitives that get their scratch memory from the caller; oneDNN's own serves one thread."""
    attribute = made("primitive_attr_create")
    _check("scratchpad_mode", load().dnnl_primitive_attr_set_scratchpad_mode(attribute, _USER_SCRATCHPAD))
    return attribute


def described(sides: tuple[int, ...], dtype: jnp.dtype, strides: tuple[int, ...] | None) -> Pointer:
    """A description of an array of these sides, in oneDNN's order, and strides; None lets oneDNN choose the layout."""
    given = len(sides), Sides(*sides), DTYPES[dtype]
    if strides is None:
        return made("memory_desc_create_with_tag", *given, _ANY)
    return made("memory_desc_create_with_strides", *given, Sides(*strides))


def images(shape: tuple[int, ...], dtype: jnp.dtype) -> Pointer:
    """A description of images (b, h, w, c)."""
    b, h, w, c = shape
    return described((b, c, h, w), dtype, (h * w * c, 1, w * c, c))


def asked(description: Pointer, query: int) -> Pointer:
    """The description of one of a primitive's arrays."""
    return Pointer(load().dnnl_primitive_desc_query_md(description, query, 0))


def size(description: Pointer) -> int:
    """How many bytes an array takes."""
    return load().dnnl_memory_desc_get_size(description)


class Scratch:
    """Memory for as long as the object lives, at ``address``."""

    def __init__(self, count: int):
        self._bytes = np.empty(count + _ALIGNMENT, np.uint8)
        self.address = -(-self._bytes.ctypes.data // _ALIGNMENT) * _ALIGNMENT


def execute(primitive: Pointer, arrays: dict[int, tuple[Pointer, int]]) -> None:
    """Runs a primitive on arrays, each a description and an address, by their numbers as arguments."""
    if not hasattr(_own, "stream"):
        _own.stream = made("stream_create", engine(), _IN_ORDER)
    memories = [
        made("memory_create", description, engine(), Pointer(address)) for description, address in arrays.values()
    ]
    given = (_Argument * len(arrays))(*(_Argument(n, memory.value) for n, memory in zip(arrays, memories, strict=True)))
    try:
        _check("primitive_execute", load().dnnl_primitive_execute(primitive, _own.stream, len(given), given))
        _check("stream_wait", load().dnnl_stream_wait(_own.stream))
    finally:
        for memory in memories:
            load().dnnl_memory_destroy(memory)
