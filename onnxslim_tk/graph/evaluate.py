"""The value of a node whose inputs are all constants, where it is the same on every runtime."""

from collections.abc import Sequence
from math import prod
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.edit import is_constant, values_of
from onnxslim_tk.graph.model import Node

Array = NDArray[Any]

_MOVES: Final = (
    frozenset(("Concat", "ConstantOfShape", "DepthToSpace", "Expand", "Flatten", "Gather"))
    | frozenset(("GatherElements", "GatherND", "Identity", "Reshape", "Slice", "SpaceToDepth"))
    | frozenset(("Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"))
)
_MEASURES: Final = frozenset(("Shape", "Size"))
_TESTS: Final = frozenset(
    ("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Xor")
)
# Rounded correctly by every runtime; sums of floats and the transcendental functions are not.
_ARITHMETIC: Final = frozenset(
    ("Abs", "Add", "Ceil", "Div", "Floor", "Max", "Min", "Mul", "Neg", "Range", "Reciprocal")
) | frozenset(("Sign", "Sqrt", "Sub"))
_INTEGER_SUMS: Final = frozenset(("ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum"))
FOLDED: Final = _MOVES | _MEASURES | _TESTS | _ARITHMETIC | _INTEGER_SUMS | {"Cast"}
"""Operators that are evaluated; never one that decodes quantized values."""

_PLAIN: Final = "iufb"
# A result larger than what it is made of takes no constant's place, so none needs to be computed.
_FREE_ELEMENTS: Final = 1 << 16
_FAILURES: Final = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def node_bytes(node: Node) -> int:
    """Bytes that ``node`` itself takes in the file."""
    return int(OnnxExporter.export_node(node).ByteSize()) + 2


def constant_bytes(name: str, values: Array) -> int:
    """Bytes that a constant of ``values`` takes in the file, not packed."""
    size = int(values.nbytes)
    header = len(name.encode()) + 2 + 2 * values.ndim + 2 + 1 + len(f"{size:b}") // 7 + 4
    return size + header


def evaluate(node: Node, opset: int) -> Array | None:
    """The only output of ``node`` under operator set ``opset``; None where it isn't certain."""
    if node.op not in FOLDED or node.domain not in STANDARD_DOMAINS or len(node.outputs) != 1:
        return None
    feeds: dict[str, Array] = {}
    for tensor in node.inputs:
        if tensor.is_empty():
            continue
        if not is_constant(tensor) or not isinstance(tensor.dtype, np.dtype | type):
            return None
        values = values_of(tensor)
        if values.dtype.kind not in _PLAIN:
            return None
        feeds[tensor.name] = values
    inputs = [feeds[tensor.name] for tensor in node.inputs if not tensor.is_empty()]
    most = _FREE_ELEMENTS + sum(value.size for value in inputs)
    try:
        if not inputs or not _is_exact(node, inputs) or _elements(node, inputs) > most:
            return None
        with np.errstate(all="ignore"):
            (result,) = ReferenceEvaluator(_alone(node, feeds, opset)).run(None, feeds)
    except _FAILURES:
        return None
    value = np.asarray(result)
    return value if value.dtype == _expected(node, feeds) else None


def _elements(node: Node, values: list[Array]) -> int:
    """At most how many elements ``node`` makes of ``values``, told without making them."""
    sizes = [int(value.size) for value in values]
    if node.op == "ConstantOfShape":
        return prod(map(int, values[0].reshape(-1)))
    if node.op == "Tile":
        return sizes[0] * prod(map(int, values[1].reshape(-1)))
    if node.op == "Range":
        start, limit, delta = (float(value.reshape(())) for value in values)
        return int(max((limit - start) / delta, 0))
    if node.op == "Gather":
        along = int(values[0].shape[int(node.attrs.get("axis", 0))])
        return sizes[0] // max(along, 1) * sizes[1]
    if node.op == "GatherND":
        depth = int(values[1].shape[-1])
        return sizes[1] // max(depth, 1) * prod(values[0].shape[depth:])
    if node.op == "Expand":
        shape = tuple(map(int, values[1].reshape(-1)))
        return prod(np.broadcast_shapes(values[0].shape, shape))
    if node.op in _TESTS | _ARITHMETIC | {"Where"}:
        return prod(np.broadcast_shapes(*(value.shape for value in values)))
    return sum(sizes)


def _is_exact(node: Node, values: list[Array]) -> bool:
    kinds = {value.dtype.kind for value in values}
    if node.op in _INTEGER_SUMS:
        return values[0].dtype.kind in "iu"
    if node.op in _ARITHMETIC and any(v.dtype in (np.float16, np.bool_) for v in values):
        return False
    if node.op in ("Max", "Min", "Sign") and "f" in kinds:
        return not any(np.isnan(value).any() for value in values)
    if node.op == "Div" and kinds & set("iu"):
        return bool((values[0] >= 0).all()) and bool((values[1] > 0).all())
    if node.op == "Cast":
        return _casts_exactly(values[0], _target(node))
    return True


def _casts_exactly(value: Array, target: np.dtype[Any]) -> bool:
    if target.kind not in _PLAIN:
        return False
    # Small integers that become floats are stored values on their way to a scale.
    if value.dtype.itemsize == 1 and value.dtype.kind in "iu" and target.kind == "f":
        return False
    if target.kind not in "iu":
        return True
    limits, wide = np.iinfo(target), value.astype(np.float64)
    return bool(((wide > limits.min - 1.0) & (wide < limits.max)).all())


def _target(node: Node) -> np.dtype[Any]:
    to = node.attrs["to"]
    return np.dtype(helper.tensor_dtype_to_np_dtype(to) if isinstance(to, int) else to)


def _expected(node: Node, feeds: dict[str, Array]) -> np.dtype[Any]:
    first: np.dtype[Any] = feeds[node.inputs[1 if node.op == "Where" else 0].name].dtype
    if node.op in _TESTS:
        return np.dtype(np.bool_)
    if node.op in _MEASURES:
        return np.dtype(np.int64)
    if node.op == "Cast":
        return _target(node)
    if node.op == "ConstantOfShape":
        value = node.attrs.get("value")
        return np.dtype(np.float32 if value is None else values_of(value).dtype)
    return first


def _alone(node: Node, feeds: dict[str, Array], opset: int) -> onnx.ModelProto:
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for name, v in feeds.items()
    ]
    output = onnx.ValueInfoProto(name=node.outputs[0].name)
    graph = helper.make_graph([OnnxExporter.export_node(node)], "alone", inputs, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def bytes_of(nodes: Sequence[Node]) -> int:
    """Bytes in the file of those of ``nodes`` that are still there, and of what only they read."""
    there = [node for node in nodes if len(node.outputs)]
    ids = {id(node) for node in there}
    read = {id(t): t for node in there for t in node.inputs if is_constant(t)}
    own = [t for t in read.values() if all(id(reader) in ids for reader in t.outputs)]
    return sum(map(node_bytes, there)) + sum(constant_bytes(t.name, values_of(t)) for t in own)
