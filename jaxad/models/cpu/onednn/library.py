"""oneDNN's library: where it is, and what it can on this processor."""

import ctypes
import functools
import importlib.metadata
import os
import threading
import warnings

import jax.numpy as jnp
import llvmlite.binding
from jax.typing import DTypeLike

_DISTRIBUTION, _FILE = "onednn-cpu-gomp", "libdnnl.so.3"
_AVX2, _AVX512, _AVX512_BF16 = 0x7, 0x27, 0xE7  # sets of instructions; without the last oneDNN imitates bfloat16

_lock = threading.Lock()


@functools.cache
def _load() -> ctypes.CDLL | None:
    try:
        files = importlib.metadata.files(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    path = next((str(file.locate()) for file in files if file.name == _FILE), None)
    if path is None:
        return None
    # oneDNN's threads would go on spinning after each call, on the cores that XLA's then need. OpenMP reads the
    # variable when it is loaded; processes that are started later shall not.
    undecided = "OMP_WAIT_POLICY" not in os.environ
    if undecided:
        os.environ["OMP_WAIT_POLICY"] = "passive"
    try:
        found = ctypes.CDLL(path)
    except OSError as error:
        warnings.warn(f"oneDNN cannot be loaded, so XLA computes, several times slower: {error}", stacklevel=2)
        return None
    finally:
        if undecided:
            del os.environ["OMP_WAIT_POLICY"]
    llvmlite.binding.load_library_permanently(path)  # where Numba finds functions
    return found


def load() -> ctypes.CDLL | None:
    """oneDNN; None where pip has not installed it, or the system lacks what it needs, which a warning tells."""
    with _lock:
        return _load()


@functools.cache
def instructions() -> int:
    """The sets of instructions that oneDNN uses on this processor, as bits of its ``dnnl_cpu_isa_t``; 0 without it."""
    found = load()
    return found.dnnl_get_effective_cpu_isa() if found else 0


def has_avx512() -> bool:
    """Whether oneDNN is there and the processor has AVX512."""
    return instructions() & _AVX512 == _AVX512


def multiplies(dtype: DTypeLike) -> bool:
    """Whether oneDNN is there and the processor has instructions for products of this dtype."""
    needed = {jnp.dtype(jnp.float32): _AVX2, jnp.dtype(jnp.bfloat16): _AVX512_BF16}.get(jnp.dtype(dtype))
    return needed is not None and instructions() & needed == needed
