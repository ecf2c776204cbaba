"""Floating-point operations of a network, counted from its layers and not from how these are computed.

A layer counts as its direct form, 2 operations for each multiply-add: a convolution or fully connected layer has as
many multiply-adds as its kernel has numbers, at every position of its output, and a transposed convolution at every
position of its input. Winograd's and sub-pixel formulations, recomputation in the gradient and the work beside the
kernels (normalisation, activations, losses) change nothing.
"""

from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxad.models.layers import ConvTranspose

_TRANSPOSED = (ConvTranspose, nn.ConvTranspose)


@jax.jit
def _layer_marker(positions: jax.Array, kernel: jax.Array) -> jax.Array:
    """Stands in a traced program for one call of a layer, at so many positions as the first array has numbers."""
    return positions


def _marked(call: Callable, arguments: tuple, keywords: dict, context: nn.module.InterceptorContext) -> Any:
    """Calls a module's method; one of a layer with a kernel also leaves a marker in the program."""
    made = call(*arguments, **keywords)
    kernel = context.module.variables.get("params", {}).get("kernel")
    if context.method_name == "__call__" and kernel is not None:
        counted = arguments[0] if isinstance(context.module, _TRANSPOSED) else made
        _layer_marker(*jax.lax.stop_gradient((counted[..., 0], kernel)))
    return made


def _walk(program: Jaxpr, times: int = 1) -> Iterator[int]:
    """Multiply-adds of each marker in a traced program, which runs `times` times, in the program's order."""
    for equation in program.eqns:
        if equation.params.get("name") == _layer_marker.__name__:
            positions, kernel = (variable.aval for variable in equation.invars)
            yield times * positions.size * kernel.size
            continue
        inner = times * equation.params["length"] if equation.primitive.name == "scan" else times
        for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=_is_program):
            if _is_program(value):
                yield from _walk(getattr(value, "jaxpr", value), inner)


def _is_program(value: Any) -> bool:
    return isinstance(value, Jaxpr | ClosedJaxpr)


def multiply_adds(function: Callable, *arguments: Any) -> list[int]:
    """Multiply-adds of each layer that a function calls, in the order of its calls.

    The function is traced and not run: markers in the program tell what shape a layer has where `jax.vmap` adds
    dimensions, and how often a `jax.lax.scan` repeats it. Both sides of a condition would count, and a loop of unknown
    length once; no network here has either.

    Args:
      function: Applies Flax modules.
      arguments: Its arguments, pytrees of arrays or of ``jax.ShapeDtypeStruct``.

    Returns:
      One number per call; layers are the modules with a parameter ``kernel`` (..., in, out).
    """
    with nn.intercept_methods(_marked):
        traced = jax.make_jaxpr(lambda *given: function(*given))(*arguments)
    return list(_walk(traced.jaxpr))


def forward(function: Callable, *arguments: Any) -> int:
    """Floating-point operations of a forward pass; arguments are those of `multiply_adds`."""
    return 2 * sum(multiply_adds(function, *arguments))


def training(function: Callable, *arguments: Any) -> int:
    """Floating-point operations of a forward pass and its gradient by all kernels.

    The gradients by a layer's kernel and by its input take as many operations as the layer itself. Only the first
    layer, whose input is the image, needs none by its input.
    """
    counts = multiply_adds(function, *arguments)
    return 2 * (3 * sum(counts) - counts[0])
