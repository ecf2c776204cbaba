"""Convolutions by oneDNN.

In bfloat16 it multiplies with the processor's own instructions (AVX512-BF16 or AMX) and sums in float32; XLA would
widen everything to float32. Only kernels are packed, for each call.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxad.models import cpu
from jaxad.models.cpu.onednn import library, native
from jaxad.runtime import devices, foreign

_NAME = "jaxad_onednn_convolution"


class _Geometry(NamedTuple):
    """What a convolution is, but for its arrays."""

    stride: int
    before: tuple[int, int]  # border of zeros, rows and columns
    after: tuple[int, int]
    groups: int


def takes(x: jax.Array, kernel: jax.Array, *, depthwise: bool = False) -> bool:
    """Whether `conv` computes with arrays of these dtypes on this machine and backend, and is the fastest that can.

    With AVX2 alone XLA is as fast in all but depthwise convolutions, by Winograd's form: a training step of NSA takes
    1.2 times as long by oneDNN there. With AVX512 it takes 0.7 of the time.
    """
    known = cpu.preferred() and kernel.dtype in (x.dtype, jnp.float32) and library.multiplies(x.dtype)
    return known and (depthwise or library.has_avx512())


def conv(x: jax.Array, kernel: jax.Array, *, stride: int, padding: tuple, groups: int = 1) -> jax.Array:
    """Cross-correlates x (b, h, w, in) with a kernel (kh, kw, in / groups, out), which `takes` must have allowed.

    The computation runs in the dtype of x, with sums in float32. The kernel may be float32 with x in bfloat16; then so
    is its gradient. It has no forward-mode derivative.

    Args:
      x: The images.
      kernel: The kernel, no larger than the images with their border.
      stride: Of both axes.
      padding: Zeros before and behind, for rows and columns: ((top, bottom), (left, right)), none below 0.
      groups: Of channels; as many as x has for a depthwise convolution.

    Returns:
      (b, rows, columns, out) in the dtype of x.
    """
    before, after = zip(*padding, strict=True)
    foreign.register(_NAME, _handler)
    return _conv(_Geometry(stride, before, after, groups), *devices.varying_alike(x, kernel))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(geometry: _Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    sides = zip(x.shape[1:3], kernel.shape[:2], geometry.before, geometry.after, strict=True)
    outputs = tuple((n + a + b - k) // geometry.stride + 1 for n, k, a, b in sides)
    return _call(native.FORWARD, geometry, x, kernel, shape=(len(x), *outputs, kernel.shape[-1]), dtype=x.dtype)


def _forward(geometry, x, kernel):
    return _conv(geometry, x, kernel), (x, kernel)


def _backward(geometry, saved, gradient):
    x, kernel = saved
    of_x = _call(native.INPUT_GRADIENT, geometry, gradient, kernel, shape=x.shape, dtype=x.dtype)
    return of_x, _call(native.KERNEL_GRADIENT, geometry, x, gradient, shape=kernel.shape, dtype=kernel.dtype)


_conv.defvjp(_forward, _backward)


def _call(kind: int, geometry: _Geometry, *arrays: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    integers = kind, geometry.stride, *geometry.before, *geometry.after, geometry.groups
    return foreign.call(_NAME, arrays, [jax.ShapeDtypeStruct(shape, dtype)], integers, shared=True)[0]


def _handler() -> Any:
    return native.handler(native.convolve)
