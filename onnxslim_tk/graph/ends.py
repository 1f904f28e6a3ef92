"""The ends of a model: layers that meet its inputs, and layers that make its outputs."""

from collections.abc import Callable, Iterable, Sequence

from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.graph.model import Model, Node, Tensor


def end_nodes(model: Model, layers: Sequence[Layer]) -> set[int]:
    """The ``id`` of the first and of the last nodes with weights on every way through the graph.

    Only nodes of the model's own graph, for what bodies read comes from it.
    """
    weighted = {id(layer.node) for layer in layers if not layer.path}
    first = _met(model.graph.inputs, lambda tensor: tensor.outputs, lambda n: n.outputs, weighted)
    last = _met(model.graph.outputs, lambda tensor: tensor.inputs, lambda n: n.inputs, weighted)
    return first | last


def _met(
    start: Iterable[Tensor],
    nodes_of: Callable[[Tensor], Iterable[Node]],
    tensors_of: Callable[[Node], Iterable[Tensor]],
    weighted: set[int],
) -> set[int]:
    """Weighted nodes that are met from ``start`` without passing one."""
    pending, seen, met = list(start), set[int](), set[int]()
    while pending:
        for node in nodes_of(pending.pop()):
            if id(node) in seen:
                continue
            seen.add(id(node))
            if id(node) in weighted:
                met.add(id(node))
            else:
                pending.extend(tensors_of(node))
    return met
