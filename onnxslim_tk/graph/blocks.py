"""Residual blocks: branches that are added to the tensor that they were made from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from numpy.typing import NDArray

from onnxslim_tk.graph.channel_flow import is_standard
from onnxslim_tk.graph.edit import constant, is_constant, output_names, set_input
from onnxslim_tk.graph.layers import Layer, layers_of
from onnxslim_tk.graph.model import Model, Node, Tensor

_SUMS: Final = ("Add", "Sum")


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A branch that comes into the node ``sum`` by the input ``slot``.

    ``nodes`` are those that nothing but the branch needs, ``layers`` those of them with weights.
    """

    sum: Node
    slot: int
    nodes: tuple[Node, ...]
    layers: tuple[Layer, ...]

    @property
    def key(self) -> tuple[str, ...]:
        """The ids of its layers."""
        return tuple(layer.id for layer in self.layers)

    @property
    def branch(self) -> Tensor:
        """What is added."""
        return self.sum.inputs[self.slot]

    @property
    def channel_axis(self) -> int:
        """The axis of the branch on which its channels lie."""
        return 1 if any(layer.kind == "Conv" for layer in self.layers) else -1


def residual_blocks(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> list[Block]:
    """The blocks of the outermost graph whose branch has the shape of what it is added to.

    ``shapes`` are by tensor name, as seen in a run; what has none is no block.
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
                found.append(Block(node, slot, tuple(nodes), tuple(held)))
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


def drop_block(model: Model, block: Block, mean: NDArray[Any], rank: int) -> None:
    """Put a constant in the place of the branch of ``rank`` axes, its mean ``(channels,)``."""
    behind = rank - 2 if block.channel_axis == 1 else 0
    set_input(block.sum, block.slot, constant(model, mean.reshape(-1, *[1] * behind)))


def nodes_behind(tensors: Iterable[Tensor]) -> set[int]:
    """The ``id`` of every node that depends on one of ``tensors``."""
    found: set[int] = set()
    waiting = list(tensors)
    while waiting:
        for node in waiting.pop().outputs:
            if id(node) not in found:
                found.add(id(node))
                waiting.extend(node.outputs)
    return found
