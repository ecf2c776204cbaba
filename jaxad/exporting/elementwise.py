"""The primitives of JAX that compute each value from those at the same place, as operators of ONNX."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import helper

from jaxad.exporting.graph import Constant, Graph, Tensor, compact

Value = Tensor | np.ndarray
Rule = Callable[..., list[Tensor]]


def operand(value: Value) -> Tensor | Constant:
    """A value as an operand of an operator."""
    return value if isinstance(value, Tensor) else compact(value)


def common_axes(tensors: Sequence[Tensor | Constant]) -> list[int]:
    """All axes that tensors have, in the order of the largest; the more of them are so, the fewer are transposed."""
    lead = max(tensors, key=lambda tensor: (isinstance(tensor, Tensor), len(tensor.axes)))
    order = list(lead.axes)
    for tensor in tensors:
        for axis in tensor.axes:
            if axis not in order:
                order.insert(next((n for n, other in enumerate(order) if other > axis), len(order)), axis)
    return order


def together(g: Graph, kind: str, values: Sequence[Value], **attributes) -> Tensor:
    """One node of several operands, whose shapes are the same, up to what is repeated."""
    tensors = [operand(value) for value in values]
    order, names = common_axes(tensors), []
    sizes = [1] * len(order)
    for tensor in tensors:
        # ONNX broadcasts from the last axis on, so that leading ones may be missing.
        first = min((order.index(axis) for axis in tensor.axes), default=len(order))
        names.append(g.arranged(tensor, order[first:]))
        for axis, size in zip(tensor.axes, tensor.sizes, strict=True):
            if size != 1:
                sizes[order.index(axis)] = size
    return Tensor(g.node(kind, names, **attributes)[0], tuple(sizes), tuple(order))


def _plain(kind: str) -> Rule:
    return lambda g, eqn, *values: [together(g, kind, values)]


def _chain(*kinds: str) -> Rule:
    """Operators one after the other; the first takes all operands."""

    def rule(g, eqn, *values):
        made = together(g, kinds[0], values)
        for kind in kinds[1:]:
            made = together(g, kind, [made])
        return [made]

    return rule


def _by_type(of_numbers: str, of_truths: str) -> Rule:
    def rule(g, eqn, *values):
        return [together(g, of_truths if eqn.invars[0].aval.dtype == bool else of_numbers, values)]

    return rule


def _like(eqn: Any, number: float) -> np.ndarray:
    return np.array(number, eqn.invars[0].aval.dtype)


def _power(g, eqn, x):
    exponent = eqn.params["y"]
    if exponent in (2, 3):
        square = together(g, "Mul", [x, x])
        return [square if exponent == 2 else together(g, "Mul", [square, x])]
    return [together(g, "Reciprocal", [x]) if exponent == -1 else together(g, "Pow", [x, _like(eqn, exponent)])]


def _cast(g, eqn, x):
    if x.name and eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype:
        return [x]
    return [together(g, "Cast", [x], to=helper.np_dtype_to_tensor_dtype(np.dtype(eqn.params["new_dtype"])))]


def _select(g, eqn, which, *cases):
    if len(cases) != 2 or eqn.invars[0].aval.dtype != bool:
        raise NotImplementedError("select_n of more than two cases")
    if not isinstance(which, Tensor) and np.ptp(np.asarray(which, np.int8)) == 0:
        return [cases[int(np.asarray(which).flat[0])]]
    return [together(g, "Where", [which, cases[1], cases[0]])]


def _clamp(g, eqn, low, x, high):
    return [together(g, "Min", [together(g, "Max", [x, low]), high])]


def _expm1(g, eqn, x):
    return [together(g, "Sub", [together(g, "Exp", [x]), _like(eqn, 1)])]


def _log1p(g, eqn, x):
    return [together(g, "Log", [together(g, "Add", [x, _like(eqn, 1)])])]


def _is_finite(g, eqn, x):
    either = together(g, "Or", [together(g, "IsInf", [x]), together(g, "IsNaN", [x])])
    return [together(g, "Not", [either])]


def _same(g, eqn, *values):
    return list(values)


RULES: dict[str, Rule] = {
    "abs": _plain("Abs"),
    "add": _plain("Add"),
    "add_any": _plain("Add"),
    "and": _by_type("BitwiseAnd", "And"),
    "ceil": _plain("Ceil"),
    "clamp": _clamp,
    "convert_element_type": _cast,
    "copy": _same,
    "copy_p": _same,
    "div": _plain("Div"),
    "eq": _plain("Equal"),
    "erf": _plain("Erf"),
    "exp": _plain("Exp"),
    "expm1": _expm1,
    "floor": _plain("Floor"),
    "ge": _plain("GreaterOrEqual"),
    "gt": _plain("Greater"),
    "integer_pow": _power,
    "is_finite": _is_finite,
    "le": _plain("LessOrEqual"),
    "log": _plain("Log"),
    "log1p": _log1p,
    "logistic": _plain("Sigmoid"),
    "lt": _plain("Less"),
    "max": _plain("Max"),
    "min": _plain("Min"),
    "mul": _plain("Mul"),
    "ne": _chain("Equal", "Not"),
    "neg": _plain("Neg"),
    "not": _by_type("BitwiseNot", "Not"),
    "optimization_barrier": _same,
    "or": _by_type("BitwiseOr", "Or"),
    "pow": _plain("Pow"),
    "rsqrt": _chain("Sqrt", "Reciprocal"),
    "select_n": _select,
    "sign": _plain("Sign"),
    "sqrt": _plain("Sqrt"),
    "square": lambda g, eqn, x: [together(g, "Mul", [x, x])],
    "stop_gradient": _same,
    "sub": _plain("Sub"),
    "tanh": _plain("Tanh"),
}
