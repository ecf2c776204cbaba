"""Convolutions that take in what is multiplied or added to each of their channels, as a normalization does."""

import collections

import numpy as np
import onnx
from onnx import numpy_helper


def fold_into_convolutions(model: onnx.ModelProto) -> None:
    """Changes a model so that no convolution is followed by constants of its channels; they are folded in float64."""
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    readers = collections.Counter(name for node in graph.node for name in node.input)
    made_by = {name: node for node in graph.node for name in node.output}
    removed: set[str] = set()
    folded: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # by the convolution's name
    for node in graph.node:
        found = _folding(node, made_by, constants, readers)
        if found is None:
            continue
        conv, scale, shift = found
        weights, bias = folded.get(conv.name) or _parameters(conv, constants)
        folded[conv.name] = weights * scale[:, None, None, None], bias * scale + shift
        removed.add(node.name)
        conv.output[0] = node.output[0]
        made_by[node.output[0]] = conv
    for node in graph.node:
        if node.name in folded:
            weights, bias = (array.astype(np.float32) for array in folded[node.name])
            graph.initializer.append(numpy_helper.from_array(weights, f"{node.name}_weights"))
            graph.initializer.append(numpy_helper.from_array(bias, f"{node.name}_bias"))
            node.input[:] = [node.input[0], f"{node.name}_weights", f"{node.name}_bias"]
    _keep(graph, removed)


def _parameters(conv: onnx.NodeProto, constants: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    weights = constants[conv.input[1]].astype(np.float64)
    return weights, np.zeros(len(weights))


def _folding(
    node: onnx.NodeProto,
    made_by: dict[str, onnx.NodeProto],
    constants: dict[str, np.ndarray],
    readers: collections.Counter,
) -> tuple[onnx.NodeProto, np.ndarray, np.ndarray] | None:
    """The convolution before a node, and the scale and shift of its channels that the node is; or None."""
    if node.op_type not in ("Add", "Sub", "Mul"):
        return None
    for place in (0, 1):
        conv, other = made_by.get(node.input[place]), constants.get(node.input[1 - place])
        if conv is None or other is None or conv.op_type != "Conv" or readers[node.input[place]] != 1:
            continue
        channels = len(constants[conv.input[1]])
        if other.ndim not in (0, 3, 4) or other.size not in (1, channels) or other.shape[-2:] not in ((), (1, 1)):
            continue
        values, one = np.broadcast_to(other.astype(np.float64).ravel(), channels), np.ones(channels)
        if node.op_type == "Mul":
            return conv, values, 0 * one
        if node.op_type == "Add":
            return conv, one, values
        return conv, (one if place == 0 else -one), (-values if place == 0 else values)
    return None


def _keep(graph: onnx.GraphProto, removed: set[str]) -> None:
    """Drops nodes by name, and the constants that nothing reads any more."""
    nodes = [node for node in graph.node if node.name not in removed]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    tensors = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
