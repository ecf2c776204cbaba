"""Functions of Python as handlers of XLA's foreign function interface on CPU, by way of ctypes: no compiler is needed.

A handler gets the addresses of its arguments and results, and works on them in place. The structures are those of
XLA's C interface (``xla/ffi/api/c_api.h``, in the folder that ``jax.ffi.include_dir()`` tells), as far as they are
read. New fields are only ever added behind, which is why each release can still read them.
"""

import ctypes
import math
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxad.runtime import devices

_INTERNAL = 13  # XLA_FFI_Error_Code_INTERNAL
_METADATA = 1  # XLA_FFI_Extension_Metadata
_DTYPES = {6: jnp.dtype(jnp.uint8), 11: jnp.dtype(jnp.float32), 16: jnp.dtype(jnp.bfloat16)}  # by XLA_FFI_DataType


class Buffer(NamedTuple):
    """An array in memory, in row-major order."""

    shape: tuple[int, ...]
    dtype: jnp.dtype
    address: int

    def merged(self) -> "Buffer":
        """The same images (..., b, h, w, c) as one batch."""
        *leading, h, w, c = self.shape
        return self._replace(shape=(math.prod(leading), h, w, c))


Handler = Callable[[list[Buffer], list[Buffer], tuple[int, ...]], None]


class _Version(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
    ]


class _ErrorArguments(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("message", ctypes.c_char_p),
        ("code", ctypes.c_int),
    ]


class _Api(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("version", _Version),
        ("internal", ctypes.c_void_p),
        ("create_error", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_ErrorArguments))),
    ]


class _Metadata(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("version", _Version), ("traits", ctypes.c_uint32)]


class _Extension(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("metadata", ctypes.POINTER(_Metadata)),
    ]


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("dtype", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("sides", ctypes.POINTER(ctypes.c_int64)),
    ]


class _Buffers(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("items", ctypes.POINTER(ctypes.POINTER(_Buffer))),
    ]


class _Numbers(ctypes.Structure):
    _fields_ = [("dtype", ctypes.c_int), ("count", ctypes.c_size_t), ("data", ctypes.POINTER(ctypes.c_int64))]


class _Attributes(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("names", ctypes.c_void_p),
        ("items", ctypes.POINTER(ctypes.POINTER(_Numbers))),
    ]


class _Call(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", ctypes.POINTER(_Extension)),
        ("api", ctypes.POINTER(_Api)),
        ("context", ctypes.c_void_p),
        ("stage", ctypes.c_int),
        ("arguments", _Buffers),
        ("results", _Buffers),
        ("attributes", _Attributes),
    ]


_Function = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_Call))
_registered: list = []  # functions of C that must not be collected


def register(name: str, handler: Handler) -> None:
    """Registers a handler for `call`.

    Args:
      name: The handler's name; once in a process.
      handler: Gets arguments and results, of uint8, float32 or bfloat16, and the numbers of the call. It runs in
        threads of XLA. What it raises ends the program that called it with an error.
    """

    @_Function
    def function(pointer):
        call = pointer.contents
        if call.extension and call.extension.contents.type == _METADATA:  # XLA asks for the version, once
            told = call.extension.contents.metadata.contents
            told.version.major, told.version.minor = call.api.contents.version.major, call.api.contents.version.minor
            told.traits = 0
            return None
        try:
            numbers = call.attributes.items[0].contents
            handler(_buffers(call.arguments), _buffers(call.results), tuple(numbers.data[: numbers.count]))
        except BaseException:  # nothing may pass through the frames of XLA
            message = f"{name}: {traceback.format_exc()}".encode()
            error = _ErrorArguments(ctypes.sizeof(_ErrorArguments), None, message, _INTERNAL)
            return call.api.contents.create_error(ctypes.byref(error))
        return None

    _registered.append(function)
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(function), platform="cpu")


def call(
    name: str, arrays: Sequence[jax.Array], results: Sequence[jax.ShapeDtypeStruct], numbers: tuple[int, ...]
) -> list[jax.Array]:
    """Calls a handler, from compiled programs too.

    Under `jax.vmap` all arrays and results have a further axis in front, of length one for an array that all share.
    There are no derivatives.

    Args:
      name: The name that the handler was registered with.
      arrays: Its arguments.
      results: Shapes and dtypes of what it returns.
      numbers: Integers that it gets.
    """
    made = jax.ffi.ffi_call(name, results, vmap_method="expand_dims")(*arrays, numbers=np.array(numbers, np.int64))
    # Foreign calls forget which mapped axes of `jax.shard_map` their arguments vary over.
    return [devices.varying_alike(each, *arrays)[0] for each in made]


def _buffers(given: _Buffers) -> list[Buffer]:
    found = (given.items[n].contents for n in range(given.count))
    return [Buffer(tuple(item.sides[: item.rank]), _DTYPES[item.dtype], item.data or 0) for item in found]
