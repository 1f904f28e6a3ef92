"""What each operator does to the channels it meets: one small function, one line in a table.

A rule gets the channels that every input carries (None: none that a layer of ours made), notes
what a cut would touch, and gives the channels of the first output. What it can't follow it bars.
"""

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType
from typing import Any, Final

from onnxslim_tk.graph.channel_flow import Flow, Span, constant_at
from onnxslim_tk.graph.edit import input_at, is_constant, producer, values_of
from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.graph.model import Node, Tensor

Spans = list[Span | None]
Rule = Callable[[Flow, Node, Spans], Span | None]


def ties(flow: Flow, node: Node, spans: Spans) -> Span | None:
    """The rule of every operator without one: its input channels stay as they are."""
    return _barred(flow, spans, f"{flow.label(node)} ties its channels")


def _barred(flow: Flow, spans: Spans, reason: str) -> Span | None:
    flow.bar(spans, reason)
    return None


def _same(flow: Flow, node: Node, spans: Spans) -> Span | None:
    return spans[0]


def _pooled(flow: Flow, node: Node, spans: Spans) -> Span | None:
    return spans[0] if spans[0] and spans[0].index == 1 else ties(flow, node, spans)


def _normalized(flow: Flow, node: Node, spans: Spans) -> Span | None:
    span = spans[0]
    if span is None or span.index != 1 or any(constant_at(node, k) is None for k in range(1, 5)):
        return ties(flow, node, spans)
    fits = [flow.cut(span, node, slot, 0, "passes") for slot in range(1, 5)]
    return span if all(fits) else ties(flow, node, spans)


def _joined(flow: Flow, node: Node, spans: Spans) -> Span | None:
    """Elementwise: activations are tied, constants cut where they meet the channels."""
    carried = [span for span in spans if span is not None]
    first, label = carried[0], flow.label(node)
    unknown = f"{label} ties its channels to a tensor that no layer makes"
    for tensor, span in zip(node.inputs, spans, strict=True):
        if span is None and not is_constant(tensor):
            return _barred(flow, spans, unknown)
    if any(s.axis != first.axis or flow.count(s) != flow.count(first) for s in carried):
        return _barred(flow, spans, f"{label} joins channels of different numbers")
    for span in carried[1:]:
        flow.tie(first, span)
    ranks = []
    for slot, (tensor, span) in enumerate(zip(node.inputs, spans, strict=True)):
        if span is None and not _vector(flow, first, node, slot):
            return ties(flow, node, spans)
        ranks.append(len(tensor.shape) if span is None else span.rank)
    known = [rank for rank in ranks if rank is not None]
    return Span(first.space, first.axis, max(known) if len(known) == len(ranks) else None)


def _vector(flow: Flow, span: Span, node: Node, slot: int, axis: int | None = None) -> bool:
    """Cut the constant at ``slot`` where broadcasting meets the channels."""
    axis = span.axis if axis is None else axis
    shape = node.inputs[slot].shape
    front = len(shape) + axis
    if front < 0 or shape[front] == 1:
        return True
    # A single channel would be broadcast by the constant, and be several after it.
    return flow.count(span) > 1 and flow.cut(span, node, slot, front, "passes")


def _trouble(flow: Flow, layer: Layer) -> str:
    label = flow.label(layer.node)
    if layer.is_shared:
        return f"the weight of {label} is shared with another layer"
    if not layer.is_dense:
        return f"the weight of {label} is stored behind a scale"
    bias = input_at(layer.node, 2) if layer.kind != "MatMul" else None
    if bias is not None and not is_constant(bias):
        return f"the bias of {label} is not a constant"
    if bias is not None and prod(bias.shape) not in (1, layer.channels):
        return f"the bias of {label} is not one number a channel"
    return ""


def _convolved(flow: Flow, node: Node, spans: Spans) -> Span | None:
    layer, span = flow.layer(node), spans[0]
    if layer is None:
        return ties(flow, node, spans)
    rank = len(layer.shape)
    if layer.groups == 1:
        return _weighted(flow, layer, span, 1 - rank, rank, rank)
    trouble = _trouble(flow, layer)
    if layer.groups == layer.channels and layer.shape[1] == 1 and span and span.index == 1:
        if trouble:
            flow.bar(span, trouble)
        flow.touch(span, "passes", layer)
        flow.cut(span, node, 1, 0, "passes")
        flow.state(span, node, layer.groups, attribute="group")
        if input_at(node, 2) is not None and not trouble:
            _vector(flow, span, node, 2, axis=-1)
        return span
    reason = f"grouped {flow.label(node)} ties its channels"
    flow.bar(spans, reason)
    out = flow.open(layer, 1 - rank, rank)
    flow.bar(out, reason)
    return out


def _multiplied(flow: Flow, node: Node, spans: Spans) -> Span | None:
    layer = flow.layer(node)
    if layer is None:
        return ties(flow, node, spans)
    rank = flow.rank(node.inputs[0]) if node.op == "MatMul" else 2
    return _weighted(flow, layer, spans[0], -1, None, rank)


def _weighted(
    flow: Flow, layer: Layer, span: Span | None, axis: int, rank: int | None, out_rank: int | None
) -> Span:
    """A layer that consumes channels on ``axis`` of its input and makes new ones there."""
    node, trouble = layer.node, _trouble(flow, layer)
    out = flow.open(layer, axis, out_rank)
    if trouble:
        flow.bar([span, out], trouble)
        return out
    if span is not None:
        # Conv weights lie as (out, in, ...); a matrix has its inputs on the other axis.
        inputs = 1 - layer.channel_axis
        flow.touch(span, "consumes", layer)
        met = span.axis == axis and (rank is None or span.rank == rank)
        if not met or not flow.cut(span, node, 1, inputs, "consumes"):
            flow.bar(span, f"{flow.label(node)} reads its channels on another axis")
    flow.cut(out, node, 1, layer.channel_axis, "produces")
    if layer.kind != "MatMul" and input_at(node, 2) is not None:
        _bias(flow, out, node)
    return out


def _bias(flow: Flow, out: Span, node: Node) -> None:
    """Cut the bias of a layer, which has its channels on the last axis."""
    shape = node.inputs[2].shape
    if shape and shape[-1] != 1:
        flow.cut(out, node, 2, len(shape) - 1, "produces")


def _flattened(flow: Flow, node: Node, spans: Spans) -> Span | None:
    span = spans[0]
    axis = int(node.attrs.get("axis", 1))
    if span is None or span.rank is None or span.index != 1:
        return ties(flow, node, spans)
    return Span(span.space, -1, 2) if axis in (1, 1 - span.rank) else ties(flow, node, spans)


def _reshaped(flow: Flow, node: Node, spans: Spans) -> Span | None:
    """A Reshape that does as Flatten: the batch stays, a channel is a run of entries."""
    span, shape = spans[0], flow.shapes.get(node.inputs[0].name)
    wanted = None if node.attrs.get("allowzero", 0) else _wanted_shape(node)
    if span is None or span.index != 1 or wanted is None or len(wanted) != 2:
        return ties(flow, node, spans)
    batch, (size, *place) = wanted[0][0], wanted[1]
    if batch != 0:
        # Only known shapes tell a batch that is kept from one that is merged or split.
        flat = None if shape is None else (shape[0], prod(shape[1:]))
        if flat is None or flow.shapes.get(node.outputs[0].name) != flat:
            return ties(flow, node, spans)
        if batch > 0 and batch != flat[0]:
            return ties(flow, node, spans)
    if size > 0:
        holder, slot, index = place
        if not flow.state(span, holder, size, slot=slot, index=index):
            return ties(flow, node, spans)
    return Span(span.space, -1, 2) if size else ties(flow, node, spans)


_BATCH: Final = -2


def _wanted_shape(node: Node) -> list[tuple[Any, ...]] | None:
    """The numbers that a Reshape asks for, each with node, slot and index that hold it.

    They may be a constant, or be put together as ``[batch of some tensor, constant]``, which is
    how exporters write a flattening of any batch; such a batch is -2.
    """
    if len(node.inputs) > 1 and is_constant(node.inputs[1]):
        values = values_of(node.inputs[1]).ravel()
        return [(int(v), node, 1, k) for k, v in enumerate(values)]
    joint = producer(node.inputs[1]) if len(node.inputs) > 1 else None
    # Another reader would get the changed numbers too.
    if joint is None or joint.op != "Concat" or len(joint.outputs[0].outputs) > 1:
        return None
    found: list[tuple[Any, ...]] = []
    for slot, part in enumerate(joint.inputs):
        if is_constant(part):
            found += [(int(v), joint, slot, k) for k, v in enumerate(values_of(part).ravel())]
        elif _is_batch(part):
            found.append((_BATCH, joint, slot, 0))
        else:
            return None
    return found


def _is_batch(tensor: Tensor) -> bool:
    maker = producer(tensor)
    while maker is not None and maker.op in ("Unsqueeze", "Squeeze", "Cast", "Identity"):
        maker = producer(maker.inputs[0])
    if maker is None or not _takes_first(maker):
        return False
    source = producer(maker.inputs[0])
    return source is not None and source.op == "Shape" and not source.attrs.get("start", 0)


def _takes_first(node: Node) -> bool:
    """Whether ``node`` takes only the first number of a shape."""
    if any(not is_constant(t) and not t.is_empty() for t in node.inputs[1:]):
        return False
    rest = [values_of(t).ravel().tolist() for t in node.inputs[1:] if not t.is_empty()]
    if node.op == "Gather":
        return len(rest) == 1 and rest[0] == [0]
    return node.op == "Slice" and len(rest) >= 2 and rest[:2] == [[0], [1]]


def _measured(flow: Flow, node: Node, spans: Spans) -> Span | None:
    """Shape: nothing is tied where readers take only the batch."""
    given_out = node.outputs[0].name in flow.outputs
    first = not given_out and all(_takes_first(reader) for reader in node.outputs[0].outputs)
    if not first or node.attrs.get("start", 0):
        flow.bar(spans, f"{flow.label(node)} reads the number of channels")
    return None


def _padded(flow: Flow, node: Node, spans: Spans) -> Span | None:
    span, pads = spans[0], constant_at(node, 1)
    if span is None or span.index is None or pads is None or input_at(node, 3) is not None:
        return ties(flow, node, spans)
    amounts = values_of(pads).ravel()
    whole = len(amounts) == 2 * (span.rank or 0)
    touched = not whole or amounts[span.index] or amounts[span.index + len(amounts) // 2]
    return ties(flow, node, spans) if touched else span


def _resized(flow: Flow, node: Node, spans: Spans) -> Span | None:
    """Resize by scales of all axes, that of the channels 1, or to constant sizes."""
    span, scales, sizes = spans[0], constant_at(node, 2), constant_at(node, 3)
    if span is None or span.index is None or "axes" in node.attrs:
        return ties(flow, node, spans)
    if sizes is not None and len(values_of(sizes)) == span.rank:
        size = int(values_of(sizes)[span.index])
        fits = size == flow.count(span) and flow.state(span, node, size, slot=3, index=span.index)
        return span if fits else ties(flow, node, spans)
    by_scale = scales is not None and len(values_of(scales)) == span.rank
    if not by_scale or float(values_of(scales)[span.index]) != 1.0:
        return ties(flow, node, spans)
    return span


# fmt: off
_ELEMENTWISE: Final = (
    "Abs", "Cast", "Ceil", "Celu", "Clip", "Cos", "Dropout", "Elu", "Erf", "Exp", "Floor",
    "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg",
    "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign",
    "Sqrt", "Swish", "Tanh", "ThresholdedRelu",
)
# fmt: on
_JOINING: Final = ("Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum")

RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        **dict.fromkeys(_ELEMENTWISE, _same),
        "AveragePool": _pooled,
        "BatchNormalization": _normalized,
        "Conv": _convolved,
        "Flatten": _flattened,
        "Gemm": _multiplied,
        "GlobalAveragePool": _pooled,
        "GlobalMaxPool": _pooled,
        "MatMul": _multiplied,
        "MaxPool": _pooled,
        "Pad": _padded,
        "Reshape": _reshaped,
        "Resize": _resized,
        "Shape": _measured,
    }
)
"""Rules of operators whose channels come in by their first input."""

JOINT_RULES: Final[Mapping[str, Rule]] = MappingProxyType(dict.fromkeys(_JOINING, _joined))
"""Rules of operators to which every input may bring channels."""
