"""The primitives of JAX that compute one value from many, as operators of ONNX."""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto
from scipy.linalg import lapack

from jaxad.exporting.elementwise import Rule, Value, operand, together
from jaxad.exporting.graph import Graph, Tensor, count
from jaxad.exporting.structure import renumbered


def _reduce(kind: str) -> Rule:
    def rule(g, eqn, x):
        shape, axes = eqn.invars[0].aval.shape, eqn.params["axes"]
        present = [axis for axis in x.axes if axis in axes]
        if kind in ("ReduceSum", "ReduceProd"):  # values that are only repeated count as often as they are
            order = [*x.axes, *(axis for axis in axes if axis not in x.axes)]
            x, present = g.whole(x, order, shape), list(axes)
        return [_reduced(g, kind, x, present, axes, len(shape))]

    return rule


def _reduced(g: Graph, kind: str, x: Tensor, present: Sequence[int], axes: Sequence[int], rank: int) -> Tensor:
    """`x` reduced over the axes that it has, for an array without all of the axes."""
    left = [n for n, axis in enumerate(x.axes) if axis not in present]
    name = x.name
    if present:
        places = g.integers(*(x.axes.index(axis) for axis in present))
        (name,) = g.node(kind, [name, places], keepdims=0)
    made = Tensor(name, tuple(x.sizes[n] for n in left), tuple(x.axes[n] for n in left))
    kept = [axis for axis in range(rank) if axis not in axes]
    return renumbered(made, {old: new for new, old in enumerate(kept)})


def _reduce_truth(kind: str) -> Rule:
    """All or any: the least or the greatest of 0 and 1."""

    def rule(g, eqn, x):
        numbers = together(g, "Cast", [x], to=TensorProto.INT32)
        return [together(g, "Cast", _reduce(kind)(g, eqn, numbers), to=TensorProto.BOOL)]

    return rule


def _arg(kind: str) -> Rule:
    def rule(g, eqn, x):
        (axis,), shape = eqn.params["axes"], eqn.invars[0].aval.shape
        order = x.axes if axis in x.axes else (*x.axes, axis)
        x = g.whole(x, order, shape)
        (name,) = g.node(kind, [x.name], axis=x.axes.index(axis), keepdims=0)
        left = tuple(n for n in x.axes if n != axis)
        made = Tensor(name, tuple(shape[n] for n in left), left)
        kept = [n for n in range(len(shape)) if n != axis]
        return [
            together(g, "Cast", [renumbered(made, {old: new for new, old in enumerate(kept)})], to=TensorProto.INT32)
        ]

    return rule


def _cumulative_sum(g, eqn, x):
    axis = eqn.params["axis"]
    x = g.whole(x, x.axes if axis in x.axes else (*x.axes, axis), eqn.invars[0].aval.shape)
    place = x.axes.index(axis)
    return [x._replace(name=g.node("CumSum", [x.name, g.integers(place)], reverse=int(eqn.params["reverse"]))[0])]


def _dot(g, eqn, left, right):
    (over_left, over_right), (batch_left, batch_right) = eqn.params["dimension_numbers"]
    shapes = [variable.aval.shape for variable in eqn.invars]
    return [_product(g, [left, right], shapes, [over_left, over_right], [batch_left, batch_right])]


def _product(
    g: Graph,
    values: Sequence[Value],
    shapes: Sequence[Sequence[int]],
    over: Sequence[Sequence[int]],
    batch: Sequence[Sequence[int]],
) -> Tensor:
    """``dot_general``: two arrays multiplied over some axes, one by one over the batch axes; what is left follows."""
    free = [
        [axis for axis in range(len(shape)) if axis not in (*summed, *apart)]
        for shape, summed, apart in zip(shapes, over, batch, strict=True)
    ]
    # The axes of the result that those of each array become.
    ahead = len(batch[0])
    into = [
        {axis: n for n, axis in enumerate((*batch[0], *free[0]))},
        {axis: n for n, axis in enumerate(batch[1])}
        | {axis: ahead + len(free[0]) + n for n, axis in enumerate(free[1])},
    ]
    for side in (0, 1):
        matrix = not batch[0] and len(shapes[side]) == 2 and len(over[0]) == 1 and not isinstance(values[side], Tensor)
        if matrix and isinstance(values[1 - side], Tensor):
            weights = values[side] if over[side][0] == 0 else np.asarray(values[side]).T
            other, axis = values[1 - side], over[1 - side][0]
            return _by_matrix(g, other, shapes[1 - side], axis, weights, into[1 - side], into[side][free[side][0]])
    names = []
    for side, value in enumerate(values):
        parts = [list(batch[side]), free[side], list(over[side])]
        order = [*parts[0], *parts[1], *parts[2]] if side == 0 else [*parts[0], *parts[2], *parts[1]]
        whole = g.whole(operand(value), order, shapes[side])
        merged = [count([shapes[side][n] for n in part]) for part in parts[1:]]
        sizes = (*(shapes[side][n] for n in parts[0]), *(merged if side == 0 else merged[::-1]))
        names.append(whole.name if sizes == whole.sizes else g.reshaped(whole.name, sizes))
    axes = range(ahead + len(free[0]) + len(free[1]))
    sizes = tuple(shapes[0][n] for n in (*batch[0], *free[0])) + tuple(shapes[1][n] for n in free[1])
    (name,) = g.node("MatMul", names)
    if len(free[0]) != 1 or len(free[1]) != 1:
        name = g.reshaped(name, sizes)
    return Tensor(name, sizes, tuple(axes))


def _by_matrix(
    g: Graph, x: Tensor, shape: Sequence[int], axis: int, weights: np.ndarray, into: dict[int, int], made: int
) -> Tensor:
    """`x` multiplied over one axis by a known matrix (length of the axis, m), of whichever side that axis is nearer."""
    x = x if axis in x.axes and x.sizes[x.axes.index(axis)] == shape[axis] else g.whole(x, (*x.axes, axis), shape)
    into, place, rank = into | {axis: made}, x.axes.index(axis), len(x.axes)
    weights = np.asarray(weights)
    sizes = list(x.sizes)
    if rank > 1 and place == rank - 2:
        (name,) = g.node("MatMul", [g.constant(weights.T), x.name])
    elif rank == 4 and place == 1:  # channels of images
        (name,) = g.node("Conv", [x.name, g.constant(weights.T[:, :, None, None])], kernel_shape=[1, 1])
    else:
        axes = [*(n for n in x.axes if n != axis), axis]
        sizes = [x.sizes[x.axes.index(n)] for n in axes]
        (name,) = g.node("MatMul", [g.arranged(x, axes), g.constant(weights)])
        x, place = x._replace(axes=tuple(axes)), rank - 1
    sizes[place] = weights.shape[1]
    return renumbered(Tensor(name, tuple(sizes), x.axes), into)


def _triangular_solve(g, eqn, matrix, x):
    """The product with the inverse, which is computed in float64 while the graph is made."""
    if isinstance(matrix, Tensor) or eqn.params["conjugate_a"] or not isinstance(x, Tensor):
        raise NotImplementedError("triangular_solve with a computed matrix")
    options = {"lower": eqn.params["lower"], "unitdiag": eqn.params["unit_diagonal"]}
    inverse = np.empty(matrix.shape, matrix.dtype)
    for place in np.ndindex(matrix.shape[:-2]):
        found, failed = lapack.dtrtri(np.asarray(matrix[place], np.float64), **options)
        if failed:
            raise NotImplementedError("triangular_solve with a singular matrix")
        inverse[place] = np.tril(found) if eqn.params["lower"] else np.triu(found)
    if eqn.params["transpose_a"]:
        inverse = inverse.swapaxes(-1, -2)
    shape, rank = eqn.invars[1].aval.shape, inverse.ndim
    apart = tuple(range(rank - 2))
    if eqn.params["left_side"]:
        return [_product(g, [inverse, x], [inverse.shape, shape], [(rank - 1,), (rank - 2,)], [apart, apart])]
    return [_product(g, [x, inverse], [shape, inverse.shape], [(rank - 1,), (rank - 2,)], [apart, apart])]


def _conv(g, eqn, x, kernel):
    made, shapes = eqn.params, [variable.aval.shape for variable in eqn.invars]
    if isinstance(kernel, Tensor) or made["batch_group_count"] != 1 or any(n != 1 for n in made["lhs_dilation"]):
        raise NotImplementedError("a convolution with a computed kernel, or a gradient's")
    numbers, padding = made["dimension_numbers"], made["padding"]
    if any(side < 0 for sides in padding for side in sides):
        raise NotImplementedError("a convolution with negative padding")
    whole = g.whole(x, numbers.lhs_spec, shapes[0])
    weights = g.constant(np.asarray(kernel).transpose(numbers.rhs_spec))
    attributes = {
        "kernel_shape": [shapes[1][n] for n in numbers.rhs_spec[2:]],
        "strides": list(made["window_strides"]),
        "dilations": list(made["rhs_dilation"]),
        "pads": [sides[k] for k in (0, 1) for sides in padding],
        "group": made["feature_group_count"],
    }
    (name,) = g.node("Conv", [whole.name, weights], **attributes)
    out = eqn.outvars[0].aval.shape
    return [Tensor(name, tuple(out[n] for n in numbers.out_spec), tuple(numbers.out_spec))]


def _pool(kind: str) -> Rule:
    def rule(g, eqn, x):
        made, shape, out = eqn.params, eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        window, strides, padding = (made[name] for name in ("window_dimensions", "window_strides", "padding"))
        if any(n != 1 for name in ("base_dilation", "window_dilation") for n in made[name]):
            raise NotImplementedError("pooling with dilation")
        spatial = [n for n in range(len(shape)) if window[n] != 1 or strides[n] != 1 or tuple(padding[n]) != (0, 0)]
        others = [n for n in x.axes if n not in spatial] + [
            n for n in range(len(shape)) if n not in x.axes and n not in spatial and shape[n] != 1
        ]
        whole = g.whole(x, [*others, *spatial], shape)
        name = whole.name
        if len(others) != 2:  # ONNX pools images with channels
            sizes = (count([shape[n] for n in others]), 1, *(shape[n] for n in spatial))
            name = g.reshaped(name, sizes)
        attributes = {
            "kernel_shape": [window[n] for n in spatial],
            "strides": [strides[n] for n in spatial],
            "pads": [padding[n][k] for k in (0, 1) for n in spatial],
        }
        if kind == "AveragePool":
            attributes["count_include_pad"] = 1
        (name,) = g.node(kind, [name], **attributes)
        sizes = tuple(out[n] for n in whole.axes)
        if len(others) != 2:
            name = g.reshaped(name, sizes)
        pooled = Tensor(name, sizes, whole.axes)
        if kind == "MaxPool":
            return [pooled]
        return [together(g, "Mul", [pooled, np.array(count(window), eqn.outvars[0].aval.dtype)])]

    return rule


RULES: dict[str, Rule] = {
    "argmax": _arg("ArgMax"),
    "argmin": _arg("ArgMin"),
    "conv_general_dilated": _conv,
    "cumsum": _cumulative_sum,
    "dot_general": _dot,
    "reduce_and": _reduce_truth("ReduceMin"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_or": _reduce_truth("ReduceMax"),
    "reduce_prod": _reduce("ReduceProd"),
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_window_max": _pool("MaxPool"),
    "reduce_window_sum": _pool("AveragePool"),
    "triangular_solve": _triangular_solve,
}
