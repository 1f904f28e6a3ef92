"""Constant nodes made initializers."""

from __future__ import annotations

import numpy as np
from onnx import AttributeProto, TensorProto, numpy_helper

from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.packing.scopes import Scope


def store_constants(scope: Scope) -> int:
    """Turn Constant nodes into initializers, in order."""
    outputs = {v.name for v in scope.graph.output}
    gone: set[str] = set()
    for node in scope.graph.node:
        if node.op_type != "Constant" or node.domain not in STANDARD_DOMAINS:
            continue
        if node.output[0] in outputs or len(node.attribute) != 1:
            continue
        tensor = _constant_value(node.attribute[0])
        if tensor is not None:
            tensor.name = node.output[0]
            scope.graph.initializer.append(tensor)
            gone.add(node.output[0])
    delete_nodes(scope, gone)
    return len(gone)


def _constant_value(value: AttributeProto) -> TensorProto | None:
    match value.name:
        case "value" if value.t.data_type != TensorProto.STRING:
            tensor = TensorProto()
            tensor.CopyFrom(value.t)
            return tensor
        case "value_float":
            return numpy_helper.from_array(np.array(value.f, np.float32))
        case "value_floats":
            return numpy_helper.from_array(np.array(value.floats, np.float32))
        case "value_int":
            return numpy_helper.from_array(np.array(value.i, np.int64))
        case "value_ints":
            return numpy_helper.from_array(np.array(value.ints, np.int64))
    return None


def delete_nodes(scope: Scope, outputs: set[str]) -> None:
    """Take away the nodes of a graph whose first output is one of ``outputs``."""
    nodes = scope.graph.node
    for index in reversed(range(len(nodes))):
        if nodes[index].output and nodes[index].output[0] in outputs:
            del nodes[index]
