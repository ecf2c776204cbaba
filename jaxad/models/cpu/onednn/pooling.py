"""Max pooling by oneDNN, whose gradient needs one byte for each output instead of the input."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxad.models import cpu
from jaxad.models.cpu.onednn import library, native
from jaxad.runtime import foreign

_NAME = "jaxad_onednn_max_pool"


def takes(x: jax.Array) -> bool:
    """Whether `max_pool` computes with an array of this dtype on this machine and backend."""
    return cpu.preferred() and library.multiplies(x.dtype)


def max_pool(x: jax.Array) -> jax.Array:
    """Max pooling of x (b, h, w, c) by 3x3 with stride 2 and padding 1, which `takes` must have allowed.

    Each window hands its gradient to the first of its maxima. A NaN is passed over if its window has another value, and
    is the lowest number if not. It has no forward-mode derivative.

    Returns:
      (b, ceil(h / 2), ceil(w / 2), c)
    """
    foreign.register(_NAME, _handler)
    return _max_pool(x.shape[1:3], x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _max_pool(sides: tuple[int, int], x: jax.Array) -> jax.Array:
    return _call(native.POOL, x, shape=_pooled(x.shape), dtypes=[x.dtype])[0]


def _forward(sides, x):
    return tuple(_call(native.POOL_WITH_PLACES, x, shape=_pooled(x.shape), dtypes=[x.dtype, jnp.uint8]))


def _backward(sides, places, gradient):
    b, _, _, c = gradient.shape
    return tuple(_call(native.POOL_GRADIENT, gradient, places, shape=(b, *sides, c), dtypes=[gradient.dtype]))


_max_pool.defvjp(_forward, _backward)


def _call(kind: int, *arrays: jax.Array, shape: tuple[int, ...], dtypes: list) -> list[jax.Array]:
    results = [jax.ShapeDtypeStruct(shape, dtype) for dtype in dtypes]
    return foreign.call(_NAME, arrays, results, (kind,), shared=False)


def _pooled(shape: tuple[int, ...]) -> tuple[int, ...]:
    b, h, w, c = shape
    return b, -(-h // 2), -(-w // 2), c


def _handler() -> Any:
    return native.handler(native.pool)
