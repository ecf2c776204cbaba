"""Sums of large arrays, forward and in gradients, written so that XLA's CPU backend adds fast.

Left to itself, that backend adds one channel after another and reads memory in strides: 4 to 30 times as long as here
on two cores. What is added up into one number, it computes on one core, number by number. YNNPACK, to which XLA can
hand its reductions, takes up to twice as long as here, and gives wrong numbers in jaxlib 0.10.2 (see
`jaxad.runtime.devices`). Sums in parts also round less than one long chain of additions.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxad.models import cpu
from jaxad.runtime import devices

_PARTS = 12  # read side by side; with 16, three to four times as slow
_FEW = 64  # rows that are added up by XLA


@jax.custom_vjp
def channel_sum(x: jax.Array) -> jax.Array:
    """Adds up x (..., c) over all axes but the last: (c,). It has no forward-mode derivative."""
    rows, rest = x.reshape(-1, x.shape[-1]), []
    while cpu.preferred() and len(rows) > _FEW:
        length = len(rows) // _PARTS
        rest.append(rows[_PARTS * length :])
        parts = (rows[part * length : (part + 1) * length] for part in range(_PARTS))
        # The barrier keeps the next stage from being fused into this one, at its many short pieces of memory.
        rows = lax.optimization_barrier(sum(parts))
    return jnp.concatenate([rows, *rest]).sum(0) if rest else rows.sum(0)


def _sum_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return channel_sum(x), x


def _sum_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    return (jnp.broadcast_to(gradient, x.shape),)


channel_sum.defvjp(_sum_forward, _sum_backward)


def total(x: jax.Array) -> jax.Array:
    """Adds up all of x, of one axis or more."""
    return channel_sum(x).sum()


def mean(x: jax.Array) -> jax.Array:
    """The mean of all of x, of one axis or more."""
    return total(x) / x.size


def norm(tree: Any) -> jax.Array:
    """The Euclidean norm of a pytree's values."""
    return jnp.sqrt(sum(total(jnp.square(leaf)) if leaf.ndim else jnp.square(leaf) for leaf in jax.tree.leaves(tree)))


def centered_square_sum(x: jax.Array, mean: jax.Array) -> jax.Array:
    """Adds up ``(x - mean) ** 2`` of x (..., c) by channel: (c,).

    The gradient takes `mean` for constant, as it may where that is the mean of x: deviations from it add up to zero. It
    keeps x alone, not the deviations. It has no forward-mode derivative.
    """
    return _centered_square_sum(*devices.varying_alike(x, mean))


@jax.custom_vjp
def _centered_square_sum(x: jax.Array, mean: jax.Array) -> jax.Array:
    return channel_sum(jnp.square(x - mean))


def _square_forward(x, mean):
    return _centered_square_sum(x, mean), (x, mean)


def _square_backward(saved, gradient):
    x, mean = saved
    return (2 * gradient * (x - mean)).astype(x.dtype), jnp.zeros_like(mean)


_centered_square_sum.defvjp(_square_forward, _square_backward)


def scale_centered(x: jax.Array, mean: jax.Array, factor: jax.Array, shift: jax.Array) -> jax.Array:
    """``(x - mean) * factor + shift`` of x (..., c) by channel, whose gradients are sums of this module.

    The mean is taken off first: ``x * factor - mean * factor`` would lose the digits that a channel with a mean far
    from zero differs in. It has no forward-mode derivative.
    """
    return _scale_centered(*devices.varying_alike(x, mean, factor, shift))


@jax.custom_vjp
def _scale_centered(x: jax.Array, mean: jax.Array, factor: jax.Array, shift: jax.Array) -> jax.Array:
    return (x - mean) * factor + shift


def _scale_forward(x, mean, factor, shift):
    return _scale_centered(x, mean, factor, shift), (x, mean, factor)


def _scale_backward(saved, gradient):
    x, mean, factor = saved
    of_shift = channel_sum(gradient)
    of_factor = channel_sum(gradient * (x - mean))
    return (gradient * factor).astype(x.dtype), -factor * of_shift, of_factor, of_shift


_scale_centered.defvjp(_scale_forward, _scale_backward)
