"""Channels on their way through a graph: which tensors carry them, and what a cut would touch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.edit import is_constant
from onnxslim_tk.graph.layers import Layer, layer_of
from onnxslim_tk.graph.model import Model, Node, Tensor

Role = Literal["produces", "passes", "consumes"]


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """An axis of a constant that counts channels, ``block`` consecutive entries for each.

    The constant is input ``slot`` of ``node``; other readers of it are not meant.
    """

    node: Node
    slot: int
    axis: int
    block: int
    role: Role

    @property
    def tensor(self) -> Tensor:
        """The constant as it is now."""
        return self.node.inputs[self.slot]


@dataclass(frozen=True, slots=True, eq=False)
class Count:
    """A number that states how many channels there are, ``block`` for each.

    It is the attribute ``attribute`` of ``node``, or else entry ``index`` of constant ``slot``.
    """

    node: Node
    block: int
    attribute: str = ""
    slot: int = 0
    index: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """Where a tensor carries channels: on ``axis``, counted from the end as broadcasting does.

    Each channel may be several consecutive entries there. ``rank`` is None where it is unknown.
    """

    space: int
    axis: int
    rank: int | None

    @property
    def index(self) -> int | None:
        """The axis counted from the front."""
        return None if self.rank is None else self.rank + self.axis


@dataclass(slots=True)
class Space:
    """Channels that must be kept or cut together, with all that a cut would touch."""

    count: int
    layers: list[tuple[int, Role, Layer]] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def of_role(self, role: Role) -> tuple[Layer, ...]:
        """The layers that play ``role``, each once, in graph order."""
        met = sorted((m for m in self.layers if m[1] == role), key=lambda m: m[0])
        return tuple({id(layer.node): layer for _, _, layer in met}.values())


class Flow:
    """What is known while channels are followed through the outermost graph.

    Rules call its verbs; spaces that turn out to be tied are merged. ``shapes`` are by tensor
    name, as far as they are known.
    """

    def __init__(self, model: Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.model = model
        self.shapes = shapes
        self.outputs = {tensor.name for tensor in model.graph.outputs}
        self._inner = _read_by_bodies(model)
        self._spaces: list[Space] = []
        self._merged: list[int] = []
        self._touches = 0
        self._spans: dict[int, Span] = {}

    def spaces(self) -> Iterator[Space]:
        """All spaces after merging, in the order of their first producers."""
        for number, space in enumerate(self._spaces):
            if self._root(number) == number:
                yield space

    def span(self, tensor: Tensor) -> Span | None:
        """The channels that ``tensor`` carries."""
        return self._spans.get(id(tensor))

    def label(self, node: Node) -> str:
        """A node as users know it."""
        name = node.outputs[0].name
        return f"{node.op} '{self.model.origins.get(name, (name,))[0]}'"

    def layer(self, node: Node) -> Layer | None:
        """``node`` as a layer of the outermost graph."""
        return layer_of(self.model, node, self.model.graph, "")

    def rank(self, tensor: Tensor) -> int | None:
        """The number of axes of ``tensor``, if it is known."""
        span, shape = self.span(tensor), self.shapes.get(tensor.name)
        if span is not None and span.rank is not None:
            return span.rank
        return None if shape is None else len(shape)

    def count(self, span: Span) -> int:
        """How many channels ``span`` carries."""
        return self._spaces[self._root(span.space)].count

    def open(self, layer: Layer, axis: int, rank: int | None) -> Span:
        """The channels that ``layer`` makes, on ``axis`` of its output."""
        self._merged.append(len(self._spaces))
        self._spaces.append(Space(layer.channels))
        span = Span(len(self._spaces) - 1, axis, rank)
        self.touch(span, "produces", layer)
        return span

    def carry(self, tensor: Tensor, span: Span) -> None:
        """Note that ``tensor`` carries ``span``; names given out and bodies are barriers."""
        self._spans[id(tensor)] = span
        if tensor.name in self.outputs:
            self.bar(span, f"the channels reach output '{tensor.name}'")
        elif tensor.name in self._inner:
            self.bar(span, f"a body of {self.label(self._inner[tensor.name])} reads the channels")

    def touch(self, span: Span, role: Role, layer: Layer) -> None:
        """Note that a cut changes ``layer``."""
        self._touches += 1
        self._space(span).layers.append((self._touches, role, layer))

    def cut(self, span: Span, node: Node, slot: int, axis: int, role: Role) -> bool:
        """Note that input ``slot`` counts the channels on ``axis`` (from the front).

        False where its size there is no multiple of their number.
        """
        size, count = int(node.inputs[slot].shape[axis]), self.count(span)
        if size % count:
            return False
        self._space(span).cuts.append(Cut(node, slot, axis, size // count, role))
        return True

    def state(
        self, span: Span, node: Node, size: int, attribute: str = "", slot: int = 0, index: int = 0
    ) -> bool:
        """Note a number ``size`` that counts the channels; False where it isn't a multiple."""
        count = self.count(span)
        if size % count:
            return False
        stated = Count(node, size // count, attribute, slot, index)
        self._space(span).counts.append(stated)
        return True

    def bar(self, spans: Span | Sequence[Span | None], reason: str) -> None:
        """Note why the channels can't be cut."""
        for span in [spans] if isinstance(spans, Span) else spans:
            if span is not None:
                self._space(span).reasons.append(reason)

    def tie(self, first: Span, second: Span) -> None:
        """Merge two spaces of the same number of channels."""
        one, two = sorted((self._root(first.space), self._root(second.space)))
        if one == two:
            return
        self._merged[two] = one
        kept, merged = self._spaces[one], self._spaces[two]
        kept.layers += merged.layers
        kept.cuts += merged.cuts
        kept.counts += merged.counts
        kept.reasons += merged.reasons

    def _root(self, number: int) -> int:
        while self._merged[number] != number:
            self._merged[number] = self._merged[self._merged[number]]
            number = self._merged[number]
        return number

    def _space(self, span: Span) -> Space:
        return self._spaces[self._root(span.space)]


def is_standard(node: Node) -> bool:
    """Whether the operator is ONNX's own."""
    return node.domain in STANDARD_DOMAINS


def constant_at(node: Node, slot: int) -> Tensor | None:
    """Input ``slot`` if it is a constant."""
    there = slot < len(node.inputs) and is_constant(node.inputs[slot])
    return node.inputs[slot] if there else None


def _read_by_bodies(model: Model) -> dict[str, Node]:
    """Names that bodies read or give out, with the node that holds the body."""
    owners: dict[str, Node] = {}
    for node in model.graph.nodes:
        for body in node.subgraphs(recursive=True):
            read = (tensor for inner in body.nodes for tensor in inner.inputs)
            owners.update((tensor.name, node) for tensor in (*read, *body.outputs))
    return owners
