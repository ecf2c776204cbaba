"""An ONNX graph that is written node by node, in which arrays are transposed and repeated only where that is needed.

JAX's networks are written with the channels last, ONNX's operators take them as the second axis. So a tensor remembers
which axis of JAX's array each of its own axes is: a chain of convolutions, normalizations and activations stays in
ONNX's order, and only the ends of the chain are transposed. An axis of length 1, or along which JAX repeats the values,
need not be there at all.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
# The length that the axis of the images has while JAX traces: a prime that no other length is a multiple of.
BATCH = 10_007
_FEW = 1024  # values of a constant that is not worth to be kept in float16


class Tensor(NamedTuple):
    """A tensor of the graph, which stands for an array of JAX's.

    Attributes:
      name: In the graph.
      sizes: Its lengths; multiples of `BATCH` are only known when the graph runs. A length of 1 may stand for a longer
        axis of the array, along which values are repeated.
      axes: Which axis of the array each of its axes is. Axes of the array that are missing have length 1, or values
        that are repeated.
    """

    name: str
    sizes: tuple[int, ...]
    axes: tuple[int, ...]


class Constant(NamedTuple):
    """An array that is known, without what is only repeated, as an operand of an operator.

    Attributes:
      array: Its lengths and axes are those of `Tensor`.
      axes: See `Tensor`.
    """

    array: np.ndarray
    axes: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """As those of `Tensor`."""
        return self.array.shape


class Graph:
    """The nodes and constants of a graph whose input is uint8 (n, h, w, c).

    Args:
      shape: (h, w, c).
    """

    def __init__(self, shape: tuple[int, int, int]):
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._by_digest: dict[str, str] = {}
        self._transposed: dict[tuple[str | int, ...], str] = {}
        self._count: str | None = None
        self.shape = shape
        self.images = Tensor("images", (BATCH, *shape), (0, 1, 2, 3))

    def node(self, kind: str, inputs: Sequence[str], *, outputs: int = 1, **attributes) -> list[str]:
        """Adds a node; returns the names of what it makes."""
        names = [
            f"{kind.lower()}_{len(self.nodes)}_{n}" if n else f"{kind.lower()}_{len(self.nodes)}"
            for n in range(outputs)
        ]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=names[0], **attributes))
        return names

    def constant(self, array: np.ndarray) -> str:
        """The name of a constant; one that is used often is kept once."""
        array = np.asarray(array)
        array = np.ascontiguousarray(array).reshape(array.shape)  # the former makes a number an array of one
        digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()
        if digest not in self._by_digest:
            self._by_digest[digest] = f"constant_{len(self.constants)}"
            self.constants[self._by_digest[digest]] = array
        return self._by_digest[digest]

    def integers(self, *values: int) -> str:
        """The name of a vector of whole numbers, as operators take axes and lengths."""
        return self.constant(np.array(values, np.int64))

    def lengths(self, sizes: Sequence[int]) -> str:
        """The name of a vector of lengths, which are computed where they depend on the number of images."""
        if not any(is_dynamic(size) for size in sizes):
            return self.integers(*sizes)
        if self._count is None:
            (shape,) = self.node("Shape", ["images"])
            self._count = self.node("Slice", [shape, self.integers(0), self.integers(1)])[0]
        parts = []
        for size in sizes:
            if not is_dynamic(size):
                parts.append(self.integers(size))
            elif size == BATCH:
                parts.append(self._count)
            else:
                parts += self.node("Mul", [self._count, self.integers(size // BATCH)])
        return self.node("Concat", parts, axis=0)[0]

    def arranged(self, tensor: Tensor | Constant, axes: Sequence[int]) -> str:
        """The name of a tensor with exactly these axes of the array, in this order; missing ones have length 1."""
        present = [axis for axis in axes if axis in tensor.axes]
        if len(present) != len(tensor.axes):
            raise AssertionError(f"{tensor.axes} are not all among {axes}")
        order = [tensor.axes.index(axis) for axis in present]
        absent = [n for n, axis in enumerate(axes) if axis not in tensor.axes]
        if isinstance(tensor, Constant):
            return self.constant(np.expand_dims(tensor.array.transpose(order), absent))
        name = tensor.name
        if order != sorted(order):
            if (name, *order) not in self._transposed:
                self._transposed[name, *order] = self.node("Transpose", [name], perm=order)[0]
            name = self._transposed[name, *order]
        if absent:
            (name,) = self.node("Unsqueeze", [name, self.integers(*absent)])
        return name

    def whole(self, tensor: Tensor | Constant, axes: Sequence[int], shape: Sequence[int]) -> Tensor:
        """The tensor with these axes, whose lengths are those of the array, of this shape."""
        sizes, name = tuple(shape[axis] for axis in axes), self.arranged(tensor, axes)
        known = dict(zip(tensor.axes, tensor.sizes, strict=True))
        if any(known.get(axis, 1) != size for axis, size in zip(axes, sizes, strict=True)):
            (name,) = self.node("Expand", [name, self.lengths(sizes)])
        return Tensor(name, sizes, tuple(axes))

    def reshaped(self, name: str, sizes: Sequence[int]) -> str:
        """The name of a tensor with other lengths, of which one may depend on the number of images."""
        dynamic = [n for n, size in enumerate(sizes) if is_dynamic(size)]
        if len(dynamic) > 1:
            raise AssertionError(f"several lengths of {sizes} depend on the number of images")
        return self.node(
            "Reshape", [name, self.integers(*(-1 if n in dynamic else size for n, size in enumerate(sizes)))]
        )[0]

    def dropped(self, tensor: Tensor, axes: Sequence[int]) -> Tensor:
        """A tensor without these axes of the array, whose numbers are left as they are; each has length 1."""
        places = [place for place, axis in enumerate(tensor.axes) if axis in axes]
        if not places:
            return tensor
        (name,) = self.node("Squeeze", [tensor.name, self.integers(*places)])
        rest = [place for place in range(len(tensor.axes)) if place not in places]
        return Tensor(name, tuple(tensor.sizes[n] for n in rest), tuple(tensor.axes[n] for n in rest))

    def model(self, outputs: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
        """The graph as a model, of what its outputs need.

        Args:
          outputs: Names in the graph by their names outside, float32 each.
          shapes: Their lengths behind the number of images.
        """
        self.nodes += [helper.make_node("Identity", [inside], [name], name=name) for name, inside in outputs.items()]
        nodes, used = [], set(outputs)
        for node in reversed(self.nodes):
            if used & set(node.output):
                nodes.append(node)
                used |= set(node.input)
        constants = [numpy_helper.from_array(array, name) for name, array in self.constants.items() if name in used]
        images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", *self.shape])
        made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shapes[name]]) for name in outputs]
        graph = helper.make_graph(nodes[::-1], "jaxad", [images], made, constants)
        # The version of the format that goes with the operators; a newer one would shut out older runtimes.
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8, producer_name="jaxad"
        )


def is_dynamic(size: int) -> bool:
    """Whether a length depends on the number of images."""
    return size > 0 and size % BATCH == 0


def compact(array: np.ndarray) -> Constant:
    """A constant without the axes along which its values are repeated."""
    array = np.asarray(array)
    kept = []
    for axis in range(array.ndim):
        first = array.take([0], axis=axis) if array.shape[axis] else array
        if array.shape[axis] == 1 or (array.shape[axis] and np.array_equal(np.broadcast_to(first, array.shape), array)):
            array = first
        else:
            kept.append(axis)
    return Constant(array.reshape([array.shape[axis] for axis in kept]), tuple(kept))


def count(sizes: Sequence[int]) -> int:
    """How many values an array of these lengths has."""
    return math.prod(sizes)


def halve(model: onnx.ModelProto) -> None:
    """Keeps a model's float32 constants in float16, which the runtime widens again when it loads them."""
    nodes = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        array = numpy_helper.to_array(tensor)
        if array.size > _FEW and np.abs(array).max() <= np.finfo(np.float16).max:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), f"{name}_half"))
            nodes.append(helper.make_node("Cast", [f"{name}_half"], [name], name=f"{name}_whole", to=TensorProto.FLOAT))
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
