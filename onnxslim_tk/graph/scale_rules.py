"""What each operator does to the factors of the channels it meets, one line a rule in a table.

A rule gets the channels that every input carries (None: none with factors), notes the constants
that go with the factors, and gives the channels of the first output; None where it can't follow.
"""

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType
from typing import Final

from onnxslim_tk.graph.edit import input_at, is_constant, values_of
from onnxslim_tk.graph.layers import layer_of
from onnxslim_tk.graph.model import Node
from onnxslim_tk.graph.scale_flow import Flow, Span, is_depthwise

Spans = list[Span | None]
Rule = Callable[[Flow, Node, Spans], Span | None]


def _layer(flow: Flow, node: Node, spans: Spans) -> Span | None:
    """A layer takes factors back on its inputs and may bring others on its outputs."""
    layer = layer_of(flow.model, node, flow.model.graph, "")
    if layer is None or layer.obstacle(0):
        return None
    rank = len(flow.shape(node.inputs[0]))
    axis = 1 if layer.kind == "Conv" else rank - 1
    span = spans[0]
    if span is not None:
        wide = layer.shape[0] if is_depthwise(layer) else layer.shape[1 - layer.channel_axis]
        fits = span.axis == axis and flow.group(span).count * span.block == wide
        if fits and (layer.groups == 1 or is_depthwise(layer)):
            across = 0 if is_depthwise(layer) else 1 - layer.channel_axis
            flow.edit(span, node, 1, across, -1)
            flow.group(span).readers.append(layer)
        else:
            flow.bar([span])
    out = Span(flow.open(layer.channels), axis)
    flow.edit(out, node, 1, layer.channel_axis, 1)
    flow.group(out).makers.append(layer)
    bias = input_at(node, 2) if layer.kind != "MatMul" else None
    if bias is not None:
        if is_constant(bias) and bias.shape and bias.shape[-1] == layer.channels:
            flow.edit(out, node, 2, len(bias.shape) - 1, 1)
        else:
            flow.bar([out])
    return out


def _same(flow: Flow, node: Node, spans: Spans) -> Span | None:
    return spans[0]


def _pooled(flow: Flow, node: Node, spans: Spans) -> Span | None:
    return spans[0] if spans[0] is not None and spans[0].axis == 1 else None


def _clipped(flow: Flow, node: Node, spans: Spans) -> Span | None:
    """Only a Clip that does as Relu; any other end would have to differ by channel."""
    low, high = input_at(node, 1), input_at(node, 2)
    if "min" in node.attrs or "max" in node.attrs or high is not None or low is None:
        return None
    return spans[0] if is_constant(low) and not values_of(low).any() else None


def _padded(flow: Flow, node: Node, spans: Spans) -> Span | None:
    span, value = spans[0], input_at(node, 2)
    if value is not None and not (is_constant(value) and not values_of(value).any()):
        return None
    return span if span is not None and _keeps_axis(flow, node, span) else None


def _keeps_axis(flow: Flow, node: Node, span: Span) -> bool:
    before, after = flow.shape(node.inputs[0]), flow.shape(node.outputs[0])
    return len(before) == len(after) and before[span.axis] == after[span.axis]


def _resized(flow: Flow, node: Node, spans: Spans) -> Span | None:
    span = spans[0]
    crops = node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    return span if span is not None and not crops and _keeps_axis(flow, node, span) else None


def _transposed(flow: Flow, node: Node, spans: Spans) -> Span | None:
    span, perm = spans[0], node.attrs.get("perm")
    if span is None or perm is None:
        return None
    return Span(span.group, list(perm).index(span.axis), span.block)


def _reshaped(flow: Flow, node: Node, spans: Spans) -> Span | None:
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
            return Span(span.group, axis, span.block)
        if wide == size * rest and axis == len(after) - 1:
            return Span(span.group, axis, span.block * rest)
    return None


def _added(flow: Flow, node: Node, spans: Spans) -> Span | None:
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


def _multiplied(flow: Flow, node: Node, spans: Spans) -> Span | None:
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


def _rectified(flow: Flow, node: Node, spans: Spans) -> Span | None:
    return spans[0] if is_constant(node.inputs[1]) else None


RULES: Final[Mapping[str, Rule]] = MappingProxyType(
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
"""Rules by operator; every other one bars the channels that it meets."""
