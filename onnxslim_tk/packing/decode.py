"""Evaluation of a constant-only chain of nodes: the proof of `pack` and the work of `unpack`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
from onnx import numpy_helper

from onnxslim_tk.packing.operators import LIMIT, OPERATORS, Array, UndecodableError


def evaluate(node: onnx.NodeProto, inputs: list[Array], limit: int = LIMIT) -> Array:
    """Return the output of one storage operator; raises `UndecodableError` where it has none.

    More than ``limit`` bytes count as none, and are never taken.
    """
    function = OPERATORS.get(node.op_type)
    if function is None:
        raise UndecodableError(f"{node.op_type} isn't a storage operator")
    try:
        result = function(node, inputs, limit)
    except (LookupError, TypeError, ValueError) as error:
        raise UndecodableError(f"{node.op_type}: {error}") from error
    if result.nbytes > limit:
        raise UndecodableError(f"{node.op_type}: an output of {result.nbytes} bytes")
    return result


def decode(
    nodes: Iterable[onnx.NodeProto],
    initializers: Mapping[str, onnx.TensorProto],
    name: str,
) -> Array:
    """Return the value ``name`` that ``nodes``, in order, make of ``initializers``.

    What no later node reads is let go: values on the way are larger than the last.
    """
    steps = list(nodes)
    last = {source: place for place, node in enumerate(steps) for source in node.input}
    values: dict[str, Array] = {}
    for place, node in enumerate(steps):
        for source in node.input:
            if source not in values:
                values[source] = numpy_helper.to_array(initializers[source])
        values[node.output[0]] = evaluate(node, [values[s] for s in node.input])
        for source in set(node.input):
            if last[source] == place and source != name:
                del values[source]
    return values[name]
