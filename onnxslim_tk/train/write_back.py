"""Trained tensors back into their model; nothing else of it changes."""

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxslim_tk.errors import TrainingError
from onnxslim_tk.graph.edit import is_constant
from onnxslim_tk.graph.model import Graph, Model, bodies
from onnxslim_tk.train.module import GraphModule


def write_back(module: GraphModule, model: Model) -> int:
    """Put the parameters of ``module`` into ``model``, which it was made of; give their number.

    Tensors keep their names, types and shapes, and what the runtime computes then is what the
    module does. Raises TrainingError where one of them isn't in ``model`` or has another shape.
    """
    values = trained_values(module)
    found = [
        (key, holder)
        for path, graph in bodies(model.graph)
        for holder in _holders(graph)
        if (key := _key(path, holder.name, values))
    ]
    missing = values.keys() - {key for key, _ in found}
    if missing:
        raise TrainingError(f"train: the model has no tensor {min(missing)!r} to write back to")
    for key, holder in found:
        _check(holder, values[key], key)
    for key, holder in found:
        holder.values = values[key]
    return len(values)


def trained_values(module: GraphModule) -> dict[str, NDArray[Any]]:
    """The trained tensors by key, as the file holds them."""
    stored = [weight.stored() for weight in module.weights]
    found = {}
    for key, tie in module.ties.items():
        values = stored[tie.weight]
        if tie.turned:
            values = np.ascontiguousarray(values.T)
        found[key] = values if tie.shape is None else values.reshape(tie.shape)
    return found


def _holders(graph: Graph) -> list[Any]:
    """The constants of a graph, those in Constant nodes by the name of the output."""
    found = [tensor for tensor in graph.tensors().values() if is_constant(tensor)]
    for node in graph.nodes:
        value = node.attrs.get("value") if node.op == "Constant" else None
        if isinstance(value, gs.Constant) and node.outputs:
            value.name = node.outputs[0].name
            found.append(value)
    return found


def _key(path: str, name: str, values: dict[str, NDArray[Any]]) -> str:
    """The key of a constant called ``name`` that a body at ``path`` reads.

    The library copies outer weights into bodies, where they bear the same name.
    """
    if path + name in values:
        return path + name
    ends = [k for k, letter in enumerate(path) if letter == "/"]
    for end in reversed(ends[:-1]):
        if path[: end + 1] + name in values:
            return path[: end + 1] + name
    return name if name in values else ""


def _check(holder: Any, values: NDArray[Any], key: str) -> None:
    if tuple(holder.shape) != values.shape:
        raise TrainingError(
            f"train: the tensor {key!r} has the shape {tuple(holder.shape)} in the model, "
            f"{values.shape} in what was trained"
        )
