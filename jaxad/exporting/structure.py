"""The primitives of JAX that move, repeat, join, cut and choose values, as operators of ONNX."""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from jaxad.exporting.elementwise import Rule, Value, common_axes, operand, together
from jaxad.exporting.graph import BATCH, Graph, Tensor, count, is_dynamic


def renumbered(tensor: Tensor, number: Sequence[int] | dict[int, int]) -> Tensor:
    """The same tensor for an array whose axes have other numbers."""
    return tensor._replace(axes=tuple(number[axis] for axis in tensor.axes))


def graph_tensor(g: Graph, value: Value) -> Tensor:
    """A value as a tensor of the graph."""
    found = operand(value)
    return found if isinstance(found, Tensor) else Tensor(g.constant(found.array), found.sizes, found.axes)


def _broadcast(g, eqn, x, *lengths):
    return [renumbered(graph_tensor(g, x), eqn.params["broadcast_dimensions"])]


def _transpose(g, eqn, x):
    return [renumbered(x, {old: new for new, old in enumerate(eqn.params["permutation"])})]


def without(g: Graph, x: Tensor, axes: Sequence[int], rank: int) -> Tensor:
    """`x` for an array that lacks some axes, of length 1, of those that it had."""
    left = [axis for axis in range(rank) if axis not in axes]
    return renumbered(g.dropped(x, axes), {old: new for new, old in enumerate(left)})


def _squeeze(g, eqn, x):
    rank = eqn.invars[0].aval.ndim
    return [without(g, x, [axis % rank for axis in eqn.params["dimensions"]], rank)]


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Which axes of a shape become which of another one, in the smallest groups; axes of length 1 are left out."""
    before = [axis for axis, size in enumerate(old) if size != 1]
    after = [axis for axis, size in enumerate(new) if size != 1]
    groups = []
    while before or after:
        left, right = [before.pop(0)], [after.pop(0)]
        while (a := count([old[n] for n in left])) != (b := count([new[n] for n in right])):
            if a < b:
                left.append(before.pop(0))
            else:
                right.append(after.pop(0))
        groups.append((left, right))
    return groups


def reshape_tensor(g: Graph, x: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """`x`, of an array of shape `old`, for that array in the shape `new`.

    Axes that are split or merged stay where they are in the tensor, which is transposed only where axes that are merged
    do not lie one behind the other.
    """
    x = g.dropped(x, [axis for axis, size in enumerate(old) if size == 1])
    groups = _groups(old, new)
    if all(len(left) == len(right) == 1 for left, right in groups):
        return renumbered(x, {left[0]: right[0] for left, right in groups})
    place = {axis: n for n, axis in enumerate(x.axes)}
    groups.sort(key=lambda group: place.get(group[0][0], -1))
    order = [axis for left, _ in groups for axis in left]
    axes = tuple(axis for _, right in groups for axis in right)
    sizes = tuple(new[axis] for axis in axes)
    return Tensor(g.reshaped(g.whole(x, order, old).name, sizes), sizes, axes)


def _reshape(g, eqn, x, *lengths):
    return [reshape_tensor(g, x, eqn.invars[0].aval.shape, eqn.params["new_sizes"])]


def joined(
    g: Graph, values: Sequence[Value], shapes: Sequence[Sequence[int]], axis: int, shape: Sequence[int]
) -> Tensor:
    """Values, of arrays of these shapes, one behind the other along an axis, which makes an array of `shape`."""
    tensors = [operand(value) for value in values]
    order = common_axes(tensors)
    if axis not in order:
        order.insert(next((n for n, other in enumerate(order) if other > axis), len(order)), axis)
    names = [g.whole(tensor, order, own).name for tensor, own in zip(tensors, shapes, strict=True)]
    (name,) = g.node("Concat", names, axis=order.index(axis))
    return Tensor(name, tuple(shape[n] for n in order), tuple(order))


def _concatenate(g, eqn, *values):
    shapes = [variable.aval.shape for variable in eqn.invars]
    return [joined(g, values, shapes, eqn.params["dimension"], eqn.outvars[0].aval.shape)]


def _split(g, eqn, x):
    made, first = [], 0
    for size in eqn.params["sizes"]:
        made.append(cut(g, x, {eqn.params["axis"]: (first, first + size, 1)}, eqn.invars[0].aval.shape))
        first += size
    return made


def cut(g: Graph, x: Tensor, ranges: dict[int, tuple[int, int, int]], shape: Sequence[int]) -> Tensor:
    """The part of `x`, of an array of this shape, from start to stop in steps along some axes.

    Where values are repeated, they are in the part too.
    """
    ranges = {axis: part for axis, part in ranges.items() if part != (0, shape[axis], 1)}
    places = [n for n, (axis, size) in enumerate(zip(x.axes, x.sizes, strict=True)) if axis in ranges and size != 1]
    if not places:
        return x
    starts, stops, steps = (g.integers(*(ranges[x.axes[n]][k] for n in places)) for k in range(3))
    (name,) = g.node("Slice", [x.name, starts, stops, g.integers(*places), steps])
    sizes = list(x.sizes)
    for n in places:
        sizes[n] = len(range(*ranges[x.axes[n]]))
    return Tensor(name, tuple(sizes), x.axes)


def _slice(g, eqn, x):
    names = ("start_indices", "limit_indices", "strides")
    start, stop, step = (eqn.params[name] for name in names)
    step = step or (1,) * len(start)
    return [cut(g, x, dict(enumerate(zip(start, stop, step, strict=True))), eqn.invars[0].aval.shape)]


def _dynamic_slice(g, eqn, x, *starts):
    shape, sizes = eqn.invars[0].aval.shape, eqn.params["slice_sizes"]
    if any(isinstance(start, Tensor) for start in starts):
        raise NotImplementedError("dynamic_slice at a place that depends on the image")
    first = [min(max(int(start), 0), n - size) for start, n, size in zip(starts, shape, sizes, strict=True)]
    return [cut(g, x, {n: (a, a + size, 1) for n, (a, size) in enumerate(zip(first, sizes, strict=True))}, shape)]


def _rev(g, eqn, x):
    places = [n for n, axis in enumerate(x.axes) if axis in eqn.params["dimensions"] and x.sizes[n] != 1]
    if not places:
        return [x]
    ends = -np.iinfo(np.int64).max  # behind the first one, whatever the length
    starts, stops, steps = (g.integers(*[value] * len(places)) for value in (-1, ends, -1))
    return [Tensor(g.node("Slice", [x.name, starts, stops, g.integers(*places), steps])[0], x.sizes, x.axes)]


def _pad(g, eqn, x, value):
    edges = eqn.params["padding_config"]
    if isinstance(value, Tensor) or any(between or min(before, after) < 0 for before, after, between in edges):
        raise NotImplementedError("pad with a computed value, between values, or by less than nothing")
    shape, padded = eqn.invars[0].aval.shape, [axis for axis, edge in enumerate(edges) if edge != (0, 0, 0)]
    found = operand(x)
    order = common_axes([found])
    order += [axis for axis in padded if axis not in order]
    tensor = g.whole(found, order, shape)
    pads = [edges[axis][k] for k in (0, 1) for axis in order]
    (name,) = g.node("Pad", [tensor.name, g.integers(*pads), g.constant(np.asarray(value))])
    out = eqn.outvars[0].aval.shape
    return [Tensor(name, tuple(out[axis] for axis in order), tensor.axes)]


def _iota(g, eqn, *lengths):
    axis, shape, dtype = (eqn.params[name] for name in ("dimension", "shape", "dtype"))
    if is_dynamic(shape[axis]):
        raise NotImplementedError("numbers of images")
    return [Tensor(g.constant(np.arange(shape[axis], dtype=dtype)), (shape[axis],), (axis,))]


def _gather(g, eqn, x, indices):
    if isinstance(indices, Tensor):
        return [_gather_computed(g, eqn, x, indices)]
    return [_gather_known(g, eqn, x, indices)]


def _gather_known(g: Graph, eqn, x: Tensor, indices: np.ndarray) -> Tensor:
    """Values at known places: which they are is told by gathering their numbers with JAX."""
    shape, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    one = [1 if is_dynamic(size) else size for size in shape]
    numbers = np.arange(count(one), dtype=np.int32).reshape(one)
    sizes = tuple(1 if is_dynamic(size) else size for size in eqn.params["slice_sizes"])
    found = np.asarray(eqn.primitive.bind(numbers, np.asarray(indices), **{**eqn.params, "slice_sizes": sizes}))
    if (found < 0).any():
        raise NotImplementedError("gather outside the array")
    if np.array_equal(found, numbers):
        return x
    if found.ndim == numbers.ndim:
        for axis in (n for n in range(found.ndim) if not is_dynamic(shape[n])):
            rest = tuple(slice(None) if n == axis else slice(0, 1) for n in range(found.ndim))
            along = found[rest].ravel() // count(one[axis + 1 :])
            if along.max(initial=0) < one[axis] and np.array_equal(numbers.take(along, axis), found):
                return _along(g, x, axis, along)
    images = [axis for axis, size in enumerate(shape) if is_dynamic(size)]
    into = [axis for axis, size in enumerate(out) if is_dynamic(size)]
    if len(images) != 1 or len(into) != 1:
        raise NotImplementedError("gather over several images")
    order = [*images, *(axis for axis in range(len(shape)) if axis not in images)]
    flat = g.reshaped(g.whole(x, order, shape).name, (BATCH, count(one)))
    (name,) = g.node("Gather", [flat, g.constant(np.moveaxis(found, into[0], 0)[0].ravel().astype(np.int64))], axis=1)
    axes = (*into, *(axis for axis in range(len(out)) if axis not in into))
    made = tuple(out[axis] for axis in axes)
    return Tensor(g.reshaped(name, made), made, axes)


def _along(g: Graph, x: Tensor, axis: int, numbers: np.ndarray) -> Tensor:
    """The values of `x` with these numbers along an axis."""
    if axis not in x.axes or x.sizes[x.axes.index(axis)] == 1:
        return x
    place = x.axes.index(axis)
    (name,) = g.node("Gather", [x.name, g.constant(numbers.astype(np.int64))], axis=place)
    return Tensor(name, (*x.sizes[:place], len(numbers), *x.sizes[place + 1 :]), x.axes)


def _gather_computed(g: Graph, eqn, x: Value, indices: Tensor) -> Tensor:
    """Rows along one axis, by numbers that depend on the image.

    Other axes are taken whole, so that it does not matter where along them the gather is told to begin.
    """
    made, shape, out = eqn.params["dimension_numbers"], eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    sizes, given, apart = eqn.params["slice_sizes"], eqn.invars[1].aval.shape, made.operand_batching_dims
    moved = [n for n in made.start_index_map if sizes[n] != shape[n]]
    axis = (moved or made.start_index_map)[0] if len(moved) < 2 else None
    rest = [n for n in range(len(shape)) if n != axis and n not in apart]
    if axis is None or sizes[axis] != 1 or any(sizes[n] != shape[n] for n in rest):
        raise NotImplementedError("gather of parts by computed numbers")
    rest = [n for n in rest if n not in made.collapsed_slice_dims]  # of length 1
    found, last = operand(x), len(given) - 1
    if isinstance(found, Tensor):
        found = g.dropped(found, [n for n in made.collapsed_slice_dims if n != axis])
    rows = g.whole(found, [*apart, axis, *rest], shape).name
    column = made.start_index_map.index(axis)
    indices = without(g, cut(g, indices, {last: (column, column + 1, 1)}, given), [last], len(given))
    beside = made.start_indices_batching_dims
    order = [*beside, *(n for n in range(last) if n not in beside)]
    places = g.whole(indices, order, given[:last]).name
    (places,) = g.node("Clip", [places, g.constant(np.int32(0)), g.constant(np.int32(shape[axis] - 1))])
    if apart:
        (places,) = g.node("Unsqueeze", [places, g.integers(last)])
        (name,) = g.node("GatherND", [rows, g.node("Cast", [places], to=TensorProto.INT64)[0]], batch_dims=len(apart))
    else:
        (name,) = g.node("Gather", [rows, places], axis=0)
    numbered = [n for n in range(len(out)) if n not in made.offset_dims]
    left = [n for n in range(len(shape)) if n not in (*apart, *made.collapsed_slice_dims)]
    beyond = dict(zip(left, made.offset_dims, strict=True))
    axes = (*(numbered[n] for n in order), *(beyond[n] for n in rest))
    return Tensor(name, tuple(out[n] for n in axes), axes)


def _sort_like(g: Graph, x: Tensor, eqn, axis: int, k: int, *, largest: int) -> list[Tensor]:
    shape = eqn.invars[0].aval.shape
    whole = g.whole(x, x.axes if axis in x.axes else (*x.axes, axis), shape)
    place = whole.axes.index(axis)
    values, numbers = g.node("TopK", [whole.name, g.integers(k)], outputs=2, axis=place, largest=largest)
    sizes = (*whole.sizes[:place], k, *whole.sizes[place + 1 :])
    made = Tensor(values, sizes, whole.axes), Tensor(numbers, sizes, whole.axes)
    return [made[0], together(g, "Cast", [made[1]], to=TensorProto.INT32)]


def _top_k(g, eqn, x):
    axis = eqn.params.get("axis", -1) % eqn.invars[0].aval.ndim
    return _sort_like(g, x, eqn, axis, eqn.params["k"], largest=1)


def _sort(g, eqn, *values):
    if len(values) != 1:
        raise NotImplementedError("sort of several arrays together")
    axis = eqn.params["dimension"]
    return _sort_like(g, values[0], eqn, axis, eqn.invars[0].aval.shape[axis], largest=0)[:1]


RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "iota": _iota,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _rev,
    "slice": _slice,
    "sort": _sort,
    "split": _split,
    "squeeze": _squeeze,
    "top_k": _top_k,
    "transpose": _transpose,
}
