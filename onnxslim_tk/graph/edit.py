"""The few verbs that passes use on a graph; node and tensor identity is by ``is`` throughout."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxslim_tk.graph.model import Graph, Model, Node, Tensor, bodies


def is_constant(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a dense constant whose values can be read as an array."""
    return isinstance(tensor, gs.Constant) and not isinstance(
        tensor._values, gs.ir.tensor.SparseValues
    )


def values_of(tensor: Tensor) -> NDArray[Any]:
    """The array of a constant; the caller must not write into it."""
    return np.asarray(tensor.values)


def constant(model: Model, values: Any) -> Tensor:
    """A new constant with a fresh name; rank 0 stays rank 0."""
    array = np.asarray(values)
    if array.ndim:
        array = np.ascontiguousarray(array)
    return gs.Constant(model.fresh_name(), array)


def variable(model: Model, like: Tensor | None = None) -> Tensor:
    """A new inner tensor, of the type of ``like`` where that is given."""
    return gs.Variable(model.fresh_name(), dtype=None if like is None else like.dtype)


def add_node(
    model: Model,
    graph: Graph,
    op: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor] | None = None,
    attrs: dict[str, Any] | None = None,
    origin: tuple[str, ...] = (),
    path: str = "",
) -> Tensor:
    """Add a node and give its first output; ``origin`` says which original node it stands for."""
    outputs = [variable(model)] if outputs is None else list(outputs)
    node = gs.Node(op, name="", attrs=attrs or {}, inputs=list(inputs), outputs=outputs)
    graph.nodes.append(node)
    if origin:
        model.origins[path + outputs[0].name] = origin
    return outputs[0]


def remove_node(graph: Graph, node: Node) -> None:
    """Take ``node`` out of ``graph`` and cut its ties."""
    for k, other in enumerate(graph.nodes):
        if other is node:
            del graph.nodes[k]
            break
    node.inputs.clear()
    node.outputs.clear()


def set_input(node: Node, index: int, tensor: Tensor) -> None:
    """Make ``tensor`` the input number ``index``, which may be one past the present end."""
    if index == len(node.inputs):
        node.inputs.append(tensor)
    else:
        node.inputs[index] = tensor


def input_at(node: Node, index: int) -> Tensor | None:
    """Input number ``index``, or None where the node has none or leaves it out."""
    if index >= len(node.inputs) or node.inputs[index].is_empty():
        return None
    return node.inputs[index]


def output_names(model: Model) -> set[str]:
    """Names that a graph or body gives out; their tensors must keep their names."""
    return {tensor.name for _, graph in bodies(model.graph) for tensor in graph.outputs}


def replace_uses(tensor: Tensor, replacement: Tensor, keep: Sequence[Node] = ()) -> None:
    """Let every reader of ``tensor`` but those in ``keep`` read ``replacement``."""
    for node in list(tensor.outputs):
        if any(node is kept for kept in keep):
            continue
        for k, value in enumerate(node.inputs):
            if value is tensor:
                node.inputs[k] = replacement


def producer(tensor: Tensor) -> Node | None:
    """The node that makes ``tensor``, or None for inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


def sole_reader(tensor: Tensor, outputs: set[str]) -> Node | None:
    """The only node that reads ``tensor``, if there is just one and no graph gives it out."""
    if tensor.name in outputs or len(tensor.outputs) != 1:
        return None
    reader: Node = tensor.outputs[0]
    return reader if sum(value is tensor for value in reader.inputs) == 1 else None


def take_over(model: Model, first: Node, last: Node, graph: Graph, path: str = "") -> None:
    """Let ``first`` give ``last``'s output under its name, and remove ``last``.

    The tensor between must have ``last`` as its only reader; ``first`` answers to both names.
    """
    tensor = last.outputs[0]
    rename_key(model, path + first.outputs[0].name, path + tensor.name)
    remove_node(graph, last)
    first.outputs[0] = tensor


def rename_key(model: Model, old: str, new: str) -> None:
    """After an output was renamed, let the node of key ``old`` be known under ``new``.

    All that lies in its bodies moves with it.
    """
    names = (*model.origins.pop(old, (old,)), *model.origins.get(new, ()))
    model.origins[new] = tuple(dict.fromkeys(names))
    if old in model.notes:
        model.notes[new] = model.notes.pop(old)
    inner = old + "/"
    tables: tuple[dict[str, Any], ...] = (model.origins, model.notes)
    for table in tables:
        for key in [key for key in table if key.startswith(inner)]:
            table[f"{new}/{key[len(inner) :]}"] = table.pop(key)


def bypass(model: Model, node: Node, graph: Graph, path: str = "") -> bool:
    """Remove a node that passes its first input through; False where the names forbid it."""
    source, target = node.inputs[0], node.outputs[0]
    if any(target is output for output in graph.outputs):
        maker = producer(source)
        given_out = source.name in output_names(model)
        if maker is None or given_out or not any(maker is n for n in graph.nodes):
            return False
        index = next(k for k, t in enumerate(maker.outputs) if t is source)
        if index == 0:
            rename_key(model, path + source.name, path + target.name)
        remove_node(graph, node)
        maker.outputs[index] = target
        replace_uses(source, target)
        return True
    replace_uses(target, source)
    remove_node(graph, node)
    return True


def constants(model: Model) -> Iterator[Tensor]:
    """Every dense constant that some node reads, once, bodies included."""
    seen: set[int] = set()
    for _, graph in bodies(model.graph):
        for node in graph.nodes:
            for tensor in node.inputs:
                if is_constant(tensor) and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield tensor


def drop_unused(model: Model) -> None:
    """Remove nodes and constants that no output needs; inputs stay as they were."""
    before = [node for _, graph in bodies(model.graph) for node in graph.nodes]
    model.graph.cleanup(remove_unused_graph_inputs=False)
    kept = {id(node) for _, graph in bodies(model.graph) for node in graph.nodes}
    for node in before:
        # The library lets the nodes inside a removed body go on reading outer tensors.
        if id(node) not in kept:
            node.inputs.clear()
            node.outputs.clear()
