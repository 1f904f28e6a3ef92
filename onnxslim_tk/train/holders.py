"""Where a model keeps its constants: which object of the graph library holds which tensor."""

from collections.abc import Collection
from typing import Any

import onnx_graphsurgeon as gs

from onnxslim_tk.graph.edit import is_constant
from onnxslim_tk.graph.model import Graph, Model, bodies


def holders(model: Model, keys: Collection[str]) -> list[tuple[str, Any]]:
    """The constants behind ``keys``, paths and names, each key with every object that holds it.

    The library copies weights of outer graphs into bodies, under their name, and lets bodies
    share an object.
    """
    return [
        (key, holder)
        for path, graph in bodies(model.graph)
        for holder in _of_graph(graph)
        if (key := _key(path, holder.name, keys))
    ]


def _of_graph(graph: Graph) -> list[Any]:
    """The constants of a graph, those in Constant nodes by the name of the output."""
    found = [tensor for tensor in graph.tensors().values() if is_constant(tensor)]
    for node in graph.nodes:
        value = node.attrs.get("value") if node.op == "Constant" else None
        if isinstance(value, gs.Constant) and node.outputs:
            value.name = node.outputs[0].name
            found.append(value)
    return found


def _key(path: str, name: str, keys: Collection[str]) -> str:
    """The key of a constant called ``name`` that a body at ``path`` reads: the innermost."""
    ends = [k + 1 for k, letter in enumerate(path) if letter == "/"]
    outward = (path[:end] + name for end in (*reversed(ends), 0))
    return next((key for key in outward if key in keys), "")
