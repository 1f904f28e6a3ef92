"""Finding layers: the nodes of a model that hold weights, in its bodies too."""

from collections.abc import Iterator

from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.layer import Layer
from onnxslim_tk.graph.model import Graph, Model, Node, bodies
from onnxslim_tk.graph.notes import first_name
from onnxslim_tk.graph.weight_slot import RECURRENT, WEIGHT_SLOTS, held, is_turned

__all__ = ["Layer", "layer_of", "layers", "layers_of"]


def layers(model: Model) -> Iterator[Layer]:
    """Every layer of the model in graph order, bodies included."""
    for path, graph in bodies(model.graph):
        for node in list(graph.nodes):
            yield from layers_of(model, node, graph, path)


def layer_of(model: Model, node: Node, graph: Graph, path: str) -> Layer | None:
    """``node`` as the one float32 layer that it is; None for recurrent and turned ones too."""
    found = [] if node.op in RECURRENT or is_turned(node) else layers_of(model, node, graph, path)
    return found[0] if found and not found[0].is_half else None


def layers_of(model: Model, node: Node, graph: Graph, path: str) -> list[Layer]:
    """``node`` as layers, one for each of its weights that we rewrite.

    The weights of a recurrent node add ``:W`` and ``:R`` to its id, and answer to its names too.
    """
    if node.op not in WEIGHT_SLOTS or node.domain not in STANDARD_DOMAINS:
        return []
    given = first_name(tensor.name for tensor in node.outputs)
    if not given:
        # The runtime lets a recurrent node give nothing at all.
        return []
    key = path + given
    names = model.origins.get(key, (key,))
    groups = int(node.attrs.get("group", 1)) if node.op in ("Conv", "ConvTranspose") else 1
    found = []
    for slot in WEIGHT_SLOTS[node.op]:
        weight = held(node, slot)
        if weight is None:
            continue
        own = names
        if node.op in RECURRENT:
            own, groups = (f"{names[0]}:{'WR'[slot - 1]}", *names), int(weight.stored.shape[0])
        place = own[0], own, node.op, node, graph, path, slot
        found.append(Layer(*place, weight.stored, weight.scale, weight.zero_point, groups))
    return found
