"""A pure function of images as a graph of ONNX: what depends on no image is computed now, the rest written down."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend import core

from jaxad.errors import UserError
from jaxad.exporting import contractions, elementwise, structure
from jaxad.exporting.elementwise import Value
from jaxad.exporting.fusing import fold_into_convolutions
from jaxad.exporting.graph import BATCH, Graph, Tensor, is_dynamic

RULES = elementwise.RULES | structure.RULES | contractions.RULES
# Primitives that only call a function, and the parameter that holds it.
_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def to_onnx(function: Callable, shape: tuple[int, int, int]) -> onnx.ModelProto:
    """The graph of a function of one image.

    Args:
      function: ``image -> {name: array}`` for uint8 (h, w, c), of float32 arrays.
      shape: (h, w, c).

    Returns:
      A model that takes ``images``, uint8 (n, h, w, c) for any n, and gives the arrays by their names, (n, ...).

    Raises:
      UserError: The function computes something that has no form in ONNX.
    """
    # Batched by `jax.vmap`, so that nothing but shapes can depend on the number of images.
    batched = jax.vmap(function)
    given = jax.ShapeDtypeStruct((BATCH, *shape), np.uint8)
    closed, made = jax.make_jaxpr(batched, return_shape=True)(given)
    graph = Graph(shape)
    try:
        values = _run(graph, closed.jaxpr, closed.consts, [graph.images])
    except NotImplementedError as error:
        raise UserError(
            f"this method cannot be exported to ONNX, which has no form of {error}; choose stablehlo"
        ) from error
    names, outputs, shapes = sorted(made), {}, {}
    for name, value in zip(names, values, strict=True):
        array = made[name]
        whole = graph.whole(elementwise.operand(value), range(array.ndim), array.shape)
        outputs[name], shapes[name] = whole.name, array.shape[1:]
    model = graph.model(outputs, shapes)
    fold_into_convolutions(model)
    return model


def _run(g: Graph, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
    """What a program makes: constants where it knows them, else tensors of the graph."""
    known: dict[Any, Value] = dict(zip(jaxpr.constvars, consts, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def read(variable):
        if isinstance(variable, core.Literal):  # Python's numbers, too
            return np.asarray(variable.val, variable.aval.dtype)
        return known[variable]

    for eqn in jaxpr.eqns:
        made = _equation(g, eqn, [read(variable) for variable in eqn.invars])
        known.update(zip(eqn.outvars, made, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _equation(g: Graph, eqn: Any, values: list[Value]) -> Sequence[Value]:
    name = eqn.primitive.name
    if name == "scan":
        return _scan(g, eqn, values)
    inner = next((eqn.params[key] for key in _CALLS if key in eqn.params), None)
    if inner is not None:
        return _run(g, *_opened(inner), values)
    of_images = any(isinstance(value, Tensor) for value in values)
    if not of_images and not any(is_dynamic(size) for variable in eqn.outvars for size in variable.aval.shape):
        made = eqn.primitive.bind(*values, **eqn.params)
        return [_held(value) for value in (made if eqn.primitive.multiple_results else [made])]
    if name not in RULES:
        raise NotImplementedError(name)
    made = RULES[name](g, eqn, *values)
    return made if eqn.primitive.multiple_results else made[:1]


def _opened(inner: Any) -> tuple[Any, Sequence[Any]]:
    """A program inside another one, and its constants."""
    return (inner.jaxpr, inner.consts) if isinstance(inner, core.ClosedJaxpr) else (inner, ())


def _held(value: Any) -> Any:
    """A constant as NumPy's array; keys of random numbers stay JAX's."""
    return value if jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended) else np.asarray(value)


def _scan(g: Graph, eqn: Any, values: list[Value]) -> Sequence[Value]:
    """The steps of a loop one after the other."""
    made, inner, steps = eqn.params, _opened(eqn.params["jaxpr"]), []
    if "ft_in" in made:  # JAX 0.12
        consts, carry, rows = (list(part) for part in made["ft_in"].update(values).unpack())
    else:
        fixed, carried = made["num_consts"], made["num_carry"]
        consts, carry, rows = values[:fixed], values[fixed : fixed + carried], values[fixed + carried :]
    carried = len(carry)
    shapes = [variable.aval.shape for variable in eqn.invars[len(consts) + carried :]]
    order = range(made["length"])
    for number in reversed(order) if made["reverse"] else order:
        row = [_row(g, value, number, shape) for value, shape in zip(rows, shapes, strict=True)]
        results = _run(g, *inner, [*consts, *carry, *row])
        carry = results[:carried]
        steps.append(results[carried:])
    steps = steps[::-1] if made["reverse"] else steps
    stacked = [_stacked(g, parts, eqn.outvars[carried + n].aval) for n, parts in enumerate(zip(*steps, strict=True))]
    return [*carry, *stacked]


def _row(g: Graph, value: Value, number: int, shape: Sequence[int]) -> Value:
    if not isinstance(value, Tensor):
        return value[number]
    part = structure.cut(g, value, {0: (number, number + 1, 1)}, shape)
    return structure.without(g, part, [0], len(shape))


def _stacked(g: Graph, parts: Sequence[Value], aval: Any) -> Value:
    """The values of all steps, along a new first axis."""
    if not any(isinstance(part, Tensor) for part in parts):
        return np.stack(parts)
    moved = [structure.renumbered(structure.graph_tensor(g, part), range(1, aval.ndim)) for part in parts]
    return structure.joined(g, moved, [(1, *aval.shape[1:])] * len(moved), 0, aval.shape)
