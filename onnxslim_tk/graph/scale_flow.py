"""Channels with a factor each, followed through the graph; groups that are tied are merged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnxslim_tk.graph.edit import is_constant
from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.graph.model import Model, Node, Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """A constant to be multiplied along ``axis`` by the group's factors to the ``power`` ±1.

    It is input ``slot`` of ``node``; each channel is ``block`` consecutive entries.
    """

    node: Node
    slot: int
    axis: int
    block: int
    power: int


@dataclass(slots=True, eq=False)
class ScaleGroup:
    """Channels with one factor each: ``makers`` are multiplied by it, ``readers`` divided.

    ``restored`` are nodes that must get the tensor beside them as it was.
    """

    count: int
    makers: list[Layer] = field(default_factory=list)
    readers: list[Layer] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    restored: list[tuple[Node, Tensor]] = field(default_factory=list)
    barred: bool = False

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every layer whose constants go with the factors, makers first."""
        return (*self.makers, *self.readers)

    @property
    def apart(self) -> bool:
        """Whether all readers keep channels apart, each with a weight grid of its own."""
        return all(is_depthwise(layer) for layer in self.readers)


@dataclass(frozen=True, slots=True)
class Span:
    """Where a tensor carries a group's channels: ``axis`` from the front."""

    group: int
    axis: int
    block: int = 1


class Flow:
    """Follows channels through the graph; groups that turn out to be tied are merged."""

    def __init__(self, model: Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.model = model
        self.shapes = shapes
        inner = {
            tensor.name
            for node in model.graph.nodes
            for body in node.subgraphs(recursive=True)
            for tensor in (*(t for n in body.nodes for t in n.inputs), *body.outputs)
        }
        self.fixed = inner | {tensor.name for tensor in model.graph.outputs}
        self._groups: list[ScaleGroup] = []
        self._merged: list[int] = []
        self._spans: dict[int, Span] = {}

    def groups(self) -> list[ScaleGroup]:
        """All groups after merging, barred ones too."""
        return [g for k, g in enumerate(self._groups) if self._root(k) == k]

    def span(self, tensor: Tensor) -> Span | None:
        """The channels that ``tensor`` carries."""
        return self._spans.get(id(tensor))

    def carry(self, tensor: Tensor, span: Span) -> None:
        """Note that ``tensor`` carries ``span``; what is given out or read by bodies must stay."""
        self._spans[id(tensor)] = span
        if tensor.name in self.fixed:
            self.bar([span])

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """The shape of a constant or of a tensor seen in a run."""
        return tuple(tensor.shape) if is_constant(tensor) else self.shapes[tensor.name]

    def open(self, count: int) -> int:
        """A new group of ``count`` channels."""
        self._merged.append(len(self._groups))
        self._groups.append(ScaleGroup(count))
        return len(self._groups) - 1

    def group(self, span: Span) -> ScaleGroup:
        """The group that ``span`` carries now."""
        return self._groups[self._root(span.group)]

    def edit(self, span: Span, node: Node, slot: int, axis: int, power: int) -> None:
        """Note that a constant goes with the factors."""
        self.group(span).edits.append(Edit(node, slot, axis, span.block, power))

    def bar(self, spans: Sequence[Span | None]) -> None:
        """Note that the factors must stay 1."""
        for span in spans:
            if span is not None:
                self.group(span).barred = True

    def tie(self, first: Span, second: Span) -> None:
        """Merge two groups."""
        one, two = sorted((self._root(first.group), self._root(second.group)))
        if one == two:
            return
        self._merged[two] = one
        kept, gone = self._groups[one], self._groups[two]
        kept.makers += gone.makers
        kept.readers += gone.readers
        kept.edits += gone.edits
        kept.barred |= gone.barred

    def _root(self, number: int) -> int:
        while self._merged[number] != number:
            number = self._merged[number]
        return number


def is_depthwise(layer: Layer) -> bool:
    """Whether a convolution has one filter for each channel that it reads."""
    return layer.kind == "Conv" and layer.groups == layer.channels and layer.shape[1] == 1
