"""Channels on their way through a graph: labels on the axes of tensors, and what ties them.

Every entry on every axis of a constant gets a label of its own. Rules of operators say which
labels an output bears and which labels must be kept or cut together; label 0 is for entries that
stay. Ties have no direction, so channels are followed forwards and backwards alike.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.edit import is_constant
from onnxslim_tk.graph.layers import Layer, layers_of
from onnxslim_tk.graph.model import Model, Node, Tensor

Labels = NDArray[np.int64]
Axes = tuple[Labels, ...]
"""One array of labels for each axis of a tensor."""
Inputs = Sequence[Axes]
Outputs = list[Axes | None]
Role = Literal["produces", "passes", "consumes"]


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """An axis of the constant in input ``slot`` of ``node``, and the labels of its entries."""

    node: Node
    slot: int
    axis: int
    labels: Labels


@dataclass(frozen=True, slots=True, eq=False)
class Count:
    """A number in the graph that states how many of ``labels`` there are.

    It is the attribute ``attribute`` of ``node``, or else entry ``index`` of constant ``slot``.
    """

    node: Node
    labels: Labels
    attribute: str = ""
    slot: int = 0
    index: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Sizes:
    """The sizes of the parts that a Split gives, with the labels of each."""

    node: Node
    parts: tuple[Labels, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Picks:
    """The constant indices with which a Gather picks from an axis of these labels."""

    node: Node
    labels: Labels


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What a layer does to channels: the labels on ``axis`` of its stored weight."""

    role: Role
    layer: Layer
    axis: int
    labels: Labels


class Flow:
    """What is known while labels are followed through a model; rules call its verbs.

    ``shapes`` are by tensor name. ``outer`` says which factor keeps its labels where an axis is
    split in several: the last but one (whole heads), or the last (positions in all heads).
    """

    def __init__(
        self, model: Model, shapes: Mapping[str, tuple[int, ...]], outer: bool = False
    ) -> None:
        self.model, self.shapes, self.outer = model, shapes, outer
        self.outputs = {tensor.name for tensor in model.graph.outputs}
        self.opset = int(model.graph.opset)
        self.graph, self.path = model.graph, ""
        self.cuts: list[Cut] = []
        self.counts: dict[tuple[int, str, int, int], Count] = {}
        self.sizes: list[Sizes] = []
        self.picks: list[Picks] = []
        self.parts: list[Part] = []
        self.attended: list[Labels] = []
        self._axes: dict[int, Axes | None] = {}
        self._named: dict[str, Axes | None] = {}
        self._weights: dict[str | int, Axes] = {}
        self._fixed_tensors: set[int] = set()
        self._next = 1
        self._ties: list[tuple[Labels, Labels]] = []
        self._fixed: list[tuple[Labels, str]] = []

    # Tensors and their labels.

    def fresh(self, count: int) -> Labels:
        """Labels that nothing bears yet."""
        first, self._next = self._next, self._next + count
        return np.arange(first, self._next, dtype=np.int64)

    def read(self, node: Node, slot: int) -> Axes | None:
        """Labels of an input; None where its shape is unknown. One left out has no axes."""
        tensor = node.inputs[slot]
        return self._constant(node, slot, tensor) if is_constant(tensor) else self.of(tensor)

    def of(self, tensor: Tensor) -> Axes | None:
        """Labels of a tensor that isn't constant; None where its shape is unknown."""
        if tensor.is_empty():
            return ()
        if id(tensor) in self._axes:
            return self._axes[id(tensor)]
        # A body may hold tensors of its own for what it reads from outside.
        return self._named.get(tensor.name)

    def write(self, tensor: Tensor, axes: Axes | None) -> None:
        """Note the labels of a tensor; those of the model's outputs stay."""
        self._axes[id(tensor)] = self._named[tensor.name] = axes
        if axes is not None and not self.path and tensor.name in self.outputs:
            self.fix(axes, f"the channels reach output '{tensor.name}'")

    def staying(self, tensor: Tensor) -> Axes | None:
        """Axes that no channels lie on, by the shape of ``tensor``; None where that is unknown."""
        shape = self.shapes.get(tensor.name)
        return None if shape is None else stay(*shape)

    def settle(self, node: Node) -> None:
        """Note whether the outputs of ``node`` follow from constants alone."""
        if node.inputs and all(self.is_fixed(t) for t in node.inputs if not t.is_empty()):
            self._fixed_tensors.update(id(tensor) for tensor in node.outputs)

    def is_fixed(self, tensor: Tensor) -> bool:
        """Whether the values of ``tensor`` are the same in every run."""
        return is_constant(tensor) or id(tensor) in self._fixed_tensors

    def _constant(self, node: Node, slot: int, tensor: Tensor) -> Axes:
        shape = [int(n) for n in tensor.shape]
        # Vectors may be shared by chance, such as biases of zeros; weights are so on purpose.
        shared = sum(n > 1 for n in shape) > 1
        key: str | int = tensor.name if tensor.name in self.model.outer else id(tensor)
        axes = self._weights.get(key) if shared else None
        if axes is None:
            axes = tuple(self.fresh(n) for n in shape)
            if shared:
                self._weights[key] = axes
        self.cuts += [Cut(node, slot, k, labels) for k, labels in enumerate(axes)]
        return axes

    # What rules say.

    def label(self, node: Node) -> str:
        """A node as users know it."""
        name = self.path + next((t.name for t in node.outputs if t.name), "")
        return f"{node.op} '{self.model.origins.get(name, (name,))[0]}'"

    def layers(self, node: Node) -> list[Layer]:
        """``node`` as layers."""
        return layers_of(self.model, node, self.graph, self.path)

    def reason(self, node: Node) -> str:
        """That ``node`` lets no channel go."""
        return f"{self.label(node)} ties its channels"

    def hold(self, node: Node, inputs: Iterable[Axes | None] = ()) -> list[Axes | None]:
        """Let all that ``inputs`` bear stay; outputs without channels."""
        for axes in inputs:
            self.fix(axes or (), self.reason(node))
        return [self.staying(tensor) for tensor in node.outputs]

    def tie(self, first: Labels, second: Labels, reason: str) -> None:
        """Entries are kept or cut together; with one that stays the other does for ``reason``."""
        if len(first) != len(second):
            self.fix((first, second), reason)
            return
        moving = (first != 0) & (second != 0)
        if moving.any():
            self._ties.append((first[moving], second[moving]))
        self.fix((np.where(moving, 0, first), np.where(moving, 0, second)), reason)

    def fix(self, axes: Iterable[Labels], reason: str) -> None:
        """Entries of these labels stay."""
        for labels in axes:
            if labels.any():
                self._fixed.append((labels[labels != 0], reason))

    def note(self, role: Role, layer: Layer, axis: int, labels: Labels) -> None:
        """Note what ``layer`` does to channels."""
        self.parts.append(Part(role, layer, axis, labels))

    def attend(self, labels: Labels) -> None:
        """Note that a product of two activations meets these channels."""
        if labels.any():
            self.attended.append(labels[labels != 0])

    def state(
        self,
        node: Node,
        labels: Labels,
        reason: str,
        attribute: str = "",
        slot: int = 0,
        index: int = 0,
    ) -> None:
        """Note a number that counts ``labels``; one that counts others too ties both."""
        if not labels.any():
            return
        key = (id(node), attribute, slot, index)
        known = self.counts.setdefault(key, Count(node, labels, attribute, slot, index))
        if known.labels is not labels:
            self.tie(known.labels, labels, reason)

    def split(self, labels: Labels, sizes: Sequence[int], reason: str) -> list[Labels]:
        """Labels of the axes that an axis is split in; one of them keeps the channels."""
        found = [np.zeros(n, np.int64) for n in sizes]
        if not labels.any():
            return found
        wide = [k for k, n in enumerate(sizes) if n > 1] or [0]
        kept = wide[-2] if self.outer and len(wide) > 1 else wide[-1]
        rows = np.moveaxis(labels.reshape(sizes), kept, -1).reshape(-1, sizes[kept])
        self.tie(rows[1:].ravel(), np.tile(rows[0], len(rows) - 1), reason)
        found[kept] = rows[0]
        return found

    def merge(self, axes: Sequence[Labels], reason: str) -> Labels:
        """Labels of the axis that several are merged to; one of them keeps its channels."""
        moving = [k for k, labels in enumerate(axes) if labels.any()]
        sizes = [len(labels) for labels in axes]
        if not moving:
            return np.zeros(int(np.prod(sizes)), np.int64)
        kept = moving[-2] if self.outer and len(moving) > 1 else moving[-1]
        self.fix([axes[k] for k in moving if k != kept], reason)
        place = [n if k == kept else 1 for k, n in enumerate(sizes)]
        return np.broadcast_to(axes[kept].reshape(place), sizes).ravel()

    # What comes of it.

    def channels(self) -> tuple[NDArray[Any], Mapping[int, str]]:
        """The number of the channel that each label belongs to, and why some of them stay."""
        ties = self._ties or [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
        first, second = (np.concatenate(side) for side in zip(*ties, strict=True))
        links = coo_array((np.ones(len(first), bool), (first, second)), (self._next, self._next))
        _, roots = connected_components(links, directed=False)
        reasons: dict[int, str] = {int(roots[0]): "it has no channels of its own"}
        for labels, reason in self._fixed:
            for root in np.unique(roots[labels]).tolist():
                reasons.setdefault(root, reason)
        return roots, reasons


def stay(*sizes: int) -> Axes:
    """Axes of these sizes that no channels lie on."""
    return tuple(np.zeros(n, np.int64) for n in sizes)


def is_standard(node: Node) -> bool:
    """Whether the operator is ONNX's own."""
    return node.domain in STANDARD_DOMAINS


def constant_at(node: Node, slot: int) -> Any:
    """Input ``slot`` if it is a constant, else None."""
    there = slot < len(node.inputs) and is_constant(node.inputs[slot])
    return node.inputs[slot] if there else None
