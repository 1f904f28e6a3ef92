"""Residual blocks: branches that are added to the tensor that they were made from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

from numpy.typing import NDArray

from onnxslim_tk.graph.channel_flow import is_standard
from onnxslim_tk.graph.edit import constant, is_constant, output_names, set_input
from onnxslim_tk.graph.layers import Layer, layers_of
from onnxslim_tk.graph.model import Model, Node, Tensor

Shapes = Mapping[str, tuple[int, ...]]
Moved = tuple[Node, Tensor, Tensor]
"""A node on the way of a tensor: what it reads of it, and what it gives."""
_SUMS: Final = ("Add", "Sum")
_RESHAPING: Final = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A branch that comes into the node ``sum`` by the input ``slot``.

    ``nodes`` are those that nothing but the branch needs, ``layers`` those of them with weights.
    What is added has ``rank`` axes, its channels lie on ``channel_axis``.
    """

    sum: Node
    slot: int
    nodes: tuple[Node, ...]
    layers: tuple[Layer, ...]
    rank: int
    channel_axis: int

    @property
    def key(self) -> tuple[str, ...]:
        """The ids of its layers."""
        return tuple(layer.id for layer in self.layers)

    @property
    def branch(self) -> Tensor:
        """What is added."""
        return self.sum.inputs[self.slot]


def residual_blocks(model: Model, shapes: Shapes) -> list[Block]:
    """The blocks of the outermost graph whose branch has the shape of what it is added to.

    ``shapes`` are by tensor name, as seen in a run; what has none is no block, nor is a branch
    whose channels can't be told.
    """
    given = output_names(model)
    found = []
    for node in model.graph.nodes:
        if node.op not in _SUMS or not is_standard(node) or len(node.inputs) != 2:
            continue
        sizes = [shapes.get(tensor.name) for tensor in (*node.inputs, *node.outputs)]
        constants = any(is_constant(tensor) for tensor in node.inputs)
        if constants or None in sizes or len(set(sizes)) > 1:
            continue
        for slot in range(2):
            skipped, gone = node.inputs[1 - slot], _only_for(node, slot, given)
            nodes = [other for other in model.graph.nodes if id(other) in gone]
            held = [x for n in nodes for x in layers_of(model, n, model.graph, "")]
            if held and any(tensor is skipped for n in nodes for tensor in n.inputs):
                axis = _channel_axis(node.inputs[slot], held, shapes)
                if axis is not None:
                    rank = len(sizes[slot] or ())
                    found.append(Block(node, slot, tuple(nodes), tuple(held), rank, axis))
                break
    return found


def _only_for(reader: Node, slot: int, given: set[str]) -> set[int]:
    """The ``id`` of every node that nothing needs but input ``slot`` of ``reader``."""
    branch = reader.inputs[slot]
    gone: set[int] = set()
    waiting = [] if branch is reader.inputs[1 - slot] else [branch]
    while waiting:
        for maker in waiting.pop().inputs:
            needed = any(
                tensor.name in given
                or any(
                    id(other) not in gone and not (other is reader and tensor is branch)
                    for other in tensor.outputs
                )
                for tensor in maker.outputs
            )
            if id(maker) not in gone and not needed:
                gone.add(id(maker))
                waiting.extend(maker.inputs)
    return gone


def _channel_axis(tensor: Tensor, held: Sequence[Layer], shapes: Shapes) -> int | None:
    """Where in ``tensor`` the channels of the nearest layer behind it lie; None if unknown."""
    kinds = {id(layer.node): layer.kind for layer in held}
    waiting: list[tuple[Tensor, tuple[Moved, ...]]] = [(tensor, ())]
    seen: set[int] = set()
    while waiting:
        given, path = waiting.pop(0)
        for node in given.inputs:
            if id(node) in kinds:
                convolved = kinds[id(node)] in ("Conv", "ConvTranspose")
                axis = 1 if convolved else len(shapes.get(given.name, ())) - 1
                return _moved(axis, path, shapes)
            if id(node) not in seen:
                seen.add(id(node))
                moved = [t for t in node.inputs if not is_constant(t)]
                waiting += [(t, ((node, t, given), *path)) for t in moved]
    return None


def _moved(axis: int, path: Sequence[Moved], shapes: Shapes) -> int | None:
    """Where an axis lies after the nodes of a path."""
    for node, read, given in path:
        before, after = shapes.get(read.name, ()), shapes.get(given.name, ())
        if node.op == "Transpose":
            axis = list(node.attrs.get("perm", range(len(before))[::-1])).index(axis)
        elif node.op in _RESHAPING:
            places = [k for k, n in enumerate(after) if n == before[axis]]
            ahead = prod(before[:axis])
            axis = next((k for k in places if prod(after[:k]) == ahead), -1)
        else:
            axis += len(after) - len(before)
        if not 0 <= axis < len(after):
            return None
    return axis


def drop_block(model: Model, block: Block, mean: NDArray[Any]) -> None:
    """Put a constant in the place of the branch, its mean ``(channels,)``."""
    behind = block.rank - 1 - block.channel_axis
    set_input(block.sum, block.slot, constant(model, mean.reshape(-1, *[1] * behind)))


def nodes_behind(model: Model, tensors: Iterable[Tensor]) -> set[int]:
    """The ``id`` of every node that depends on one of ``tensors``, in bodies or by its bodies."""
    holders = {
        id(inner): node
        for node in model.graph.nodes
        for body in node.subgraphs(recursive=True)
        for inner in body.nodes
    }
    found: set[int] = set()
    waiting = list(tensors)
    while waiting:
        for node in waiting.pop().outputs:
            for each in (node, holders.get(id(node), node)):
                if id(each) not in found:
                    found.add(id(each))
                    waiting.extend(each.outputs)
    return found
