"""Scale groups: channels that can be multiplied by numbers that what reads them takes back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.edit import input_at, is_constant, producer, values_of
from onnxslim_tk.graph.layers import Layer, layer_of
from onnxslim_tk.graph.model import Model, Node, Tensor
from onnxslim_tk.graph.order import ordered

Shapes = Mapping[str, tuple[int, ...]]
_STANDARD: Final = (None, "", "ai.onnx")


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
        return all(_is_depthwise(layer) for layer in self.readers)


@dataclass(frozen=True, slots=True)
class _Span:
    """Where a tensor carries a group's channels: ``axis`` from the front."""

    group: int
    axis: int
    block: int = 1


def scale_groups(model: Model, shapes: Shapes) -> list[ScaleGroup]:
    """The groups of the outermost graph, in its order; ``shapes`` are those seen in a run.

    Between layers: over all that keeps factors that are positive (Nagel et al., 2019; Meller et
    al., 2019). Behind a LayerNormalization: from its own scale and bias into the layers that
    read it, other readers getting it as it was (Xiao et al., 2023).
    """
    flow = _Flow(model, shapes)
    for node in ordered(model.graph):
        flow.follow(node)
    normal = [_normalized(flow, node) for node in ordered(model.graph)]
    found = [g for g in flow.groups() if g.readers and g.makers and not g.barred]
    return [*found, *(group for group in normal if group is not None)]


class _Flow:
    """Follows channels through the graph; groups that turn out to be tied are merged."""

    def __init__(self, model: Model, shapes: Shapes) -> None:
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
        self._spans: dict[int, _Span] = {}

    def groups(self) -> list[ScaleGroup]:
        """All groups after merging, barred ones too."""
        return [g for k, g in enumerate(self._groups) if self._root(k) == k]

    def follow(self, node: Node) -> None:
        """Carry the channels of the inputs over to the first output."""
        spans = [self._spans.get(id(tensor)) for tensor in node.inputs]
        rule = _RULES.get(node.op) if node.domain in _STANDARD else None
        known = all(t.name in self.shapes for t in (*node.inputs, *node.outputs[:1]) if _flows(t))
        out = rule(self, node, spans) if rule is not None and known else None
        if out is None:
            self.bar(spans)
            return
        if any(tensor.outputs for tensor in node.outputs[1:]):
            self.bar([*spans, out])
        self._spans[id(node.outputs[0])] = out
        if node.outputs[0].name in self.fixed:
            self.bar([out])

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """The shape of a constant or of a tensor seen in a run."""
        return tuple(tensor.shape) if is_constant(tensor) else self.shapes[tensor.name]

    def open(self, count: int) -> int:
        """A new group of ``count`` channels."""
        self._merged.append(len(self._groups))
        self._groups.append(ScaleGroup(count))
        return len(self._groups) - 1

    def group(self, span: _Span) -> ScaleGroup:
        """The group that ``span`` carries now."""
        return self._groups[self._root(span.group)]

    def edit(self, span: _Span, node: Node, slot: int, axis: int, power: int) -> None:
        """Note that a constant goes with the factors."""
        self.group(span).edits.append(Edit(node, slot, axis, span.block, power))

    def bar(self, spans: Sequence[_Span | None]) -> None:
        """Note that the factors must stay 1."""
        for span in spans:
            if span is not None:
                self.group(span).barred = True

    def tie(self, first: _Span, second: _Span) -> None:
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


Rule = Callable[[_Flow, Node, list[_Span | None]], _Span | None]


def _flows(tensor: Tensor) -> bool:
    return not is_constant(tensor) and not tensor.is_empty()


def _is_depthwise(layer: Layer) -> bool:
    return layer.kind == "Conv" and layer.groups == layer.channels and layer.shape[1] == 1


def _layer(flow: _Flow, node: Node, spans: list[_Span | None]) -> _Span | None:
    """A layer takes factors back on its inputs and may bring others on its outputs."""
    layer = layer_of(flow.model, node, flow.model.graph, "")
    if layer is None or layer.obstacle(0):
        return None
    rank = len(flow.shape(node.inputs[0]))
    axis = 1 if layer.kind == "Conv" else rank - 1
    span = spans[0]
    if span is not None:
        wide = layer.shape[0] if _is_depthwise(layer) else layer.shape[1 - layer.channel_axis]
        fits = span.axis == axis and flow.group(span).count * span.block == wide
        if fits and (layer.groups == 1 or _is_depthwise(layer)):
            across = 0 if _is_depthwise(layer) else 1 - layer.channel_axis
            flow.edit(span, node, 1, across, -1)
            flow.group(span).readers.append(layer)
        else:
            flow.bar([span])
    out = _Span(flow.open(layer.channels), axis)
    flow.edit(out, node, 1, layer.channel_axis, 1)
    flow.group(out).makers.append(layer)
    bias = input_at(node, 2) if layer.kind != "MatMul" else None
    if bias is not None:
        if is_constant(bias) and bias.shape and bias.shape[-1] == layer.channels:
            flow.edit(out, node, 2, len(bias.shape) - 1, 1)
        else:
            flow.bar([out])
    return out


def _same(flow: _Flow, node: Node, spans: list[_Span | None]) -> _Span | None:
    return spans[0]


def _pooled(flow: _Flow, node: Node, spans: list[_Span | None]) -> _Span | None:
    return spans[0] if spans[0] is not None and spans[0].axis == 1 else None


def _clipped(flow: _Flow, node: Node, spans: list[_Span | None]) -> _Span | None:
    """Only a Clip that does as Relu; any other end would have to differ by channel."""
    low, high = input_at(node, 1), input_at(node, 2)
    if "min" in node.attrs or "max" in node.attrs or high is not None or low is None:
        return None
    return spans[0] if is_constant(low) and not values_of(low).any() else None


def _padded(flow: _Flow, node: Node, spans: list[_Span | None]) -> _Span | None:
    span, value = spans[0], input_at(node, 2)
    if value is not None and not (is_constant(value) and not values_of(value).any()):
        return None
    return span if span is not None and _keeps_axis(flow, node, span) else None


def _keeps_axis(flow: _Flow, node: Node, span: _Span) -> bool:
    before, after = flow.shape(node.inputs[0]), flow.shape(node.outputs[0])
    return len(before) == len(after) and before[span.axis] == after[span.axis]


def _resized(flow: _Flow, node: Node, spans: list[_Span | None]) -> _Span | None:
    span = spans[0]
    crops = node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    return span if span is not None and not crops and _keeps_axis(flow, node, span) else None


def _transposed(flow: _Flow, node: Node, spans: list[_Span | None]) -> _Span | None:
    span, perm = spans[0], node.attrs.get("perm")
    if span is None or perm is None:
        return None
    return _Span(span.group, list(perm).index(span.axis), span.block)


def _reshaped(flow: _Flow, node: Node, spans: list[_Span | None]) -> _Span | None:
    """A Reshape that leaves the channels' axis, or flattens it with all axes after it."""
    span = spans[0]
    if span is None or (input_at(node, 1) is not None and not is_constant(node.inputs[1])):
        return None
    before, after = flow.shape(node.inputs[0]), flow.shape(node.outputs[0])
    size, rest = before[span.axis], prod(before[span.axis + 1 :])
    for axis, wide in enumerate(after):
        if prod(after[:axis]) != prod(before[: span.axis]):
            continue
        if wide == size and prod(after[axis + 1 :]) == rest:
            return _Span(span.group, axis, span.block)
        if wide == size * rest and axis == len(after) - 1:
            return _Span(span.group, axis, span.block * rest)
    return None


def _added(flow: _Flow, node: Node, spans: list[_Span | None]) -> _Span | None:
    """Sums and extremes: activations share factors, constants go with them."""
    carried = [span for span in spans if span is not None]
    if not carried:
        return None
    first, rank = carried[0], len(flow.shape(node.outputs[0]))
    count = flow.group(first).count * first.block
    edits = []
    for slot, (tensor, span) in enumerate(zip(node.inputs, spans, strict=True)):
        shape = flow.shape(tensor)
        axis = first.axis - (rank - len(shape))
        if span is None:
            if not is_constant(tensor):
                return None
            if 0 <= axis < len(shape) and shape[axis] == count and count > 1:
                edits.append((slot, axis))
            elif values_of(tensor).any():
                return None
        elif (span.axis, span.block, len(shape), shape[axis]) != (
            first.axis,
            first.block,
            rank,
            count,
        ):
            return None
    for span in carried[1:]:
        flow.tie(first, span)
    for slot, axis in edits:
        flow.edit(first, node, slot, axis, 1)
    return first


def _multiplied(flow: _Flow, node: Node, spans: list[_Span | None]) -> _Span | None:
    """One factor carries the channels on; a gate beside it must stay as it is."""
    whole = flow.shape(node.outputs[0])
    fits = [
        s is not None and flow.shape(t) == whole for t, s in zip(node.inputs, spans, strict=True)
    ]
    if not any(fits) or (node.op == "Div" and not fits[0]):
        return None
    kept = fits.index(True)
    flow.bar([span for k, span in enumerate(spans) if k != kept])
    return spans[kept]


def _rectified(flow: _Flow, node: Node, spans: list[_Span | None]) -> _Span | None:
    return spans[0] if is_constant(node.inputs[1]) else None


_RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        **dict.fromkeys(("Abs", "Identity", "LeakyRelu", "Neg", "Relu"), _same),
        **dict.fromkeys(("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"), _pooled),
        **dict.fromkeys(("Add", "Max", "Min", "Sub", "Sum"), _added),
        **dict.fromkeys(("Mul", "Div"), _multiplied),
        **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _reshaped),
        **dict.fromkeys(("Conv", "Gemm", "MatMul"), _layer),
        "Clip": _clipped,
        "PRelu": _rectified,
        "Pad": _padded,
        "Resize": _resized,
        "Transpose": _transposed,
    }
)


def _normalized(flow: _Flow, node: Node) -> ScaleGroup | None:
    """The group behind a LayerNormalization, fused or written as Mul and Add of vectors."""
    tensor = node.outputs[0] if node.outputs else None
    vectors = None if tensor is None else _vectors(node)
    if tensor is None or vectors is None or tensor.name in flow.fixed:
        return None
    shape = flow.shapes.get(tensor.name, ())
    sizes = {prod(holder.inputs[slot].shape) for holder, slot in vectors}
    if len(shape) < 2 or sizes != {shape[-1]}:
        return None
    group = ScaleGroup(shape[-1])
    for holder, slot in vectors:
        group.edits.append(Edit(holder, slot, len(holder.inputs[slot].shape) - 1, 1, 1))
    for reader in {id(n): n for n in tensor.outputs}.values():
        layer = layer_of(flow.model, reader, flow.model.graph, "")
        matrix = layer is not None and layer.kind in ("Gemm", "MatMul") and not layer.obstacle(0)
        if layer is not None and matrix and reader.inputs[0] is tensor:
            group.readers.append(layer)
            group.edits.append(Edit(reader, 1, 1 - layer.channel_axis, 1, -1))
        elif reader.op != "Shape":
            group.restored.append((reader, tensor))
    return group if group.readers else None


def _vectors(node: Node) -> list[tuple[Node, int]] | None:
    """Where the scale and the bias of a normalization stand, as node and slot."""
    if node.domain not in _STANDARD:
        return None
    if node.op == "LayerNormalization":
        slots = [k for k in (1, 2) if input_at(node, k) is not None]
        single = len(node.outputs) == 1 and int(node.attrs.get("axis", -1)) == -1
        return [(node, k) for k in slots] if single and _constant(node, slots) else None
    if node.op != "Add":
        return None
    for slot in (0, 1):
        maker = producer(node.inputs[1 - slot])
        if not is_constant(node.inputs[slot]) or maker is None or maker.op != "Mul":
            continue
        lone = len(maker.outputs[0].outputs) == 1
        place = next((k for k in (0, 1) if is_constant(maker.inputs[k])), None)
        if lone and place is not None and _is_normal(maker.inputs[1 - place]):
            return [(maker, place), (node, slot)]
    return None


def _constant(node: Node, slots: Sequence[int]) -> bool:
    return all(is_constant(node.inputs[k]) for k in slots)


def _is_normal(tensor: Tensor) -> bool:
    """Whether ``tensor`` was divided by a deviation: Div by, or Mul with one over, a Sqrt."""
    maker = producer(tensor)
    if maker is None or maker.op not in ("Div", "Mul"):
        return False
    divisor = producer(maker.inputs[1])
    if divisor is not None and divisor.op == "Reciprocal":
        divisor = producer(divisor.inputs[0])
    return divisor is not None and divisor.op == "Sqrt"


def rescaled(edit: Edit, factors: NDArray[np.float64]) -> NDArray[np.float32]:
    """The constant of ``edit`` with its channels multiplied by ``factors``, float32."""
    values = values_of(edit.node.inputs[edit.slot])
    shape = [1] * values.ndim
    shape[edit.axis] = -1
    wide = np.repeat(factors**edit.power, edit.block).reshape(shape)
    return np.asarray(values * wide, np.float32)
