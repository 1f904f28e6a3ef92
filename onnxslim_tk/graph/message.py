"""What opening and exporting leave to do on a model's message: who owns weights, what is listed."""

from collections.abc import Iterator
from math import prod
from typing import Any, Final

import onnx

from onnxslim_tk.graph.shadows import proto_bodies
from onnxslim_tk.graph.weights import Weights

SEPARATE_WEIGHTS: Final = 4
"""IR version from which on weights need not be inputs, and those that are can be fed."""


def drop_listed_weights(proto: onnx.ModelProto) -> None:
    """Make constants of weights that are listed as inputs by habit, in place.

    Exporters of IR version 3 had to list all weights, and some go on doing so. Where only some
    initializers are inputs too, or the weights proper are constants, they are meant to be
    overridden and stay.
    """
    listed = {tensor.name: prod(tensor.dims) for tensor in proto.graph.initializer}
    inputs = {value.name for value in proto.graph.input}
    if not listed:
        return
    if proto.ir_version >= SEPARATE_WEIGHTS:
        constants = [
            attribute.t
            for node in proto.graph.node
            if node.op_type == "Constant"
            for attribute in node.attribute[:1]
        ]
        others = max((prod(tensor.dims) for tensor in constants), default=0)
        if not listed.keys() <= inputs or others > max(listed.values()):
            return
    proto.ir_version = max(proto.ir_version, SEPARATE_WEIGHTS)
    for index in reversed(range(len(proto.graph.input))):
        if proto.graph.input[index].name in listed:
            del proto.graph.input[index]


def take_defaults(proto: onnx.ModelProto, weights: Weights) -> list[onnx.TensorProto]:
    """Take away the initializers that a run may override, for which they are inputs too.

    What may be another at each run is no constant. Before version 4, runtimes override none.
    """
    if proto.ir_version < SEPARATE_WEIGHTS:
        return []
    inputs = {value.name for value in proto.graph.input}
    taken = []
    for index in reversed(range(len(proto.graph.initializer))):
        if proto.graph.initializer[index].name in inputs:
            taken.append(weights.filled(proto.graph.initializer[index]))
            del proto.graph.initializer[index]
    return taken[::-1]


def weight_names(graph: onnx.GraphProto) -> frozenset[str]:
    """Names of the initializers of ``graph``, dense and sparse."""
    sparse = (tensor.values.name for tensor in graph.sparse_initializer)
    return frozenset((*(tensor.name for tensor in graph.initializer), *sparse))


def inner_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Every body below ``graph``."""
    for node in graph.node:
        for _, body in proto_bodies(node):
            yield body
            yield from inner_graphs(body)


def own_once(outermost: onnx.GraphProto, outer: frozenset[str]) -> None:
    """Give back to outer graphs the weights that the library copies into bodies."""
    top = set(weight_names(outermost))

    def visit(graph: onnx.GraphProto, owned: frozenset[str]) -> None:
        for node in graph.node:
            for _, body in proto_bodies(node):
                back = (weight_names(body) & outer) - top
                _split(body.initializer, back, outermost.initializer, owned | top)
                _split(body.sparse_initializer, back, outermost.sparse_initializer, owned | top)
                top.update(back)
                visit(body, owned | weight_names(body))

    visit(outermost, frozenset())


def _split(weights: Any, back: frozenset[str], outer: Any, owned: frozenset[str]) -> None:
    """Move those of ``weights`` named in ``back`` to ``outer``; drop those ``owned`` already."""
    kept = []
    for weight in weights:
        name = weight.values.name if isinstance(weight, onnx.SparseTensorProto) else weight.name
        if name in back:
            outer.append(weight)
        elif name not in owned:
            kept.append(type(weight).FromString(weight.SerializeToString()))
    if len(kept) < len(weights):
        del weights[:]
        weights.extend(kept)


def drop_inner_types(graph: onnx.GraphProto) -> None:
    """Drop what is said of inner tensors: stale after a cut, and a reader can infer it."""
    del graph.value_info[:]
    for node in graph.node:
        for _, body in proto_bodies(node):
            drop_inner_types(body)
