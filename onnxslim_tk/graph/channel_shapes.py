"""What operators that change shapes do to channels; numbers that state shapes are noted."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from onnxslim_tk.graph.channel_flow import Axes, Flow, Inputs, Labels, Outputs, constant_at, stay
from onnxslim_tk.graph.edit import values_of
from onnxslim_tk.graph.model import Node
from onnxslim_tk.graph.shape_numbers import measured_axes, numbers_of


def reshaped(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """Reshape: axes are split and merged, and the numbers asked for rewritten."""
    reason = flow.reason(node)
    if len(node.inputs) < 2 or node.attrs.get("allowzero", 0):
        return flow.hold(node, inputs)
    if not any(labels.any() for labels in inputs[0]):
        return flow.hold(node)
    wanted = numbers_of(flow, node, 1)
    sizes = None if wanted is None else [number.value for number in wanted]
    shape = flow.staying(node.outputs[0]) or _resolved(inputs[0], sizes)
    if wanted is None or shape is None or len(shape) != len(wanted):
        return flow.hold(node, inputs)
    out = _regrouped(flow, inputs[0], [len(labels) for labels in shape], reason)
    if out is None:
        return flow.hold(node, inputs)
    for k, (labels, number) in enumerate(zip(out, wanted, strict=True)):
        if number.value is None and number.measured is not None:
            if labels.any() or number.measured.any():
                flow.tie(labels, number.measured, reason)
        elif number.value == 0:
            flow.tie(labels, inputs[0][k], reason)
        elif number.value != -1:
            flow.state(number.node, labels, reason, slot=number.slot, index=number.index)
    return [tuple(out)]


def regrouped(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """Flatten, Squeeze and Unsqueeze."""
    x = inputs[0]
    shape = flow.staying(node.outputs[0])
    if shape is None and node.op == "Flatten":
        axis = int(node.attrs.get("axis", 1)) % (len(x) + 1)
        shape = stay(*(prod(len(v) for v in part) for part in (x[:axis], x[axis:])))
    if shape is None:
        return flow.hold(node, inputs)
    out = _regrouped(flow, x, [len(labels) for labels in shape], flow.reason(node))
    return flow.hold(node, inputs) if out is None else [tuple(out)]


def _resolved(x: Axes, sizes: Sequence[int | None] | None) -> Axes | None:
    """What a Reshape gives by constant numbers alone."""
    if sizes is None or any(n is None for n in sizes):
        return None
    known = [len(x[k]) if n == 0 else int(n or 0) for k, n in enumerate(sizes)]
    rest = prod(len(labels) for labels in x) // max(prod(n for n in known if n > 0), 1)
    return stay(*(rest if n == -1 else n for n in known))


def _regrouped(flow: Flow, x: Axes, shape: Sequence[int], reason: str) -> list[Labels] | None:
    """Labels after a Reshape to ``shape``; None where an axis would be split unevenly."""
    sizes = [len(labels) for labels in x]
    if prod(sizes) != prod(shape) or not prod(shape):
        return None
    # All boundaries, as strides: an axis is what lies between two of them.
    before, after = ([prod(s[k:]) for k in range(len(s) + 1)] for s in (sizes, shape))
    marks = sorted({*before, *after}, reverse=True)
    factors = [outer // inner for outer, inner in pairwise(marks)]
    if any(outer % inner for outer, inner in pairwise(marks)):
        return None
    atoms: dict[int, Labels] = {}
    for labels, (outer, inner) in zip(x, pairwise(before), strict=True):
        inside = [k for k in range(len(factors)) if marks[k] <= outer and marks[k + 1] >= inner]
        parts = flow.split(labels, [factors[k] for k in inside], reason) if inside else []
        atoms.update(zip(inside, parts, strict=True))
        if not inside:
            flow.fix([labels], reason)
    out = []
    for outer, inner in pairwise(after):
        inside = [k for k in range(len(factors)) if marks[k] <= outer and marks[k + 1] >= inner]
        out.append(flow.merge([atoms[k] for k in inside], reason) if inside else stay(1)[0])
    return out


def expanded(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """Expand: axes of one entry become several that stay alike."""
    x, shape = inputs[0], flow.staying(node.outputs[0])
    moving = any(labels.any() for labels in x)
    wanted = numbers_of(flow, node, 1) if moving else []
    if shape is None or wanted is None:
        return flow.hold(node, inputs[:1])
    reason, lead = flow.reason(node), len(shape) - len(x)
    out = list(shape)
    for k, labels in enumerate(x, start=lead):
        if len(labels) == len(shape[k]):
            out[k] = labels
        else:
            flow.fix([labels], reason)
    for labels, number in zip(out[::-1], wanted[::-1], strict=False):
        if number.measured is not None:
            if len(number.measured) > 1:
                flow.tie(labels, number.measured, reason)
        elif number.value is not None and number.value > 1:
            flow.state(number.node, labels, reason, slot=number.slot, index=number.index)
    return [tuple(out)]


def shaped(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """ConstantOfShape: its axes have as many entries as is asked for, and any may go."""
    shape = flow.staying(node.outputs[0])
    wanted = None if shape is None else numbers_of(flow, node, 0)
    if shape is None or wanted is None or len(wanted) != len(shape):
        return flow.hold(node)
    out = []
    for labels, number in zip(shape, wanted, strict=True):
        if number.measured is not None:
            out.append(number.measured)
            continue
        made = flow.fresh(len(labels))
        flow.state(number.node, made, flow.reason(node), slot=number.slot, index=number.index)
        out.append(made)
    return [tuple(out)]


def resized(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """Resize and Upsample: an axis that keeps its size keeps its channels."""
    x, shape = inputs[0], flow.staying(node.outputs[0])
    if shape is None or "axes" in node.attrs:
        return flow.hold(node, inputs[:1])
    scales = constant_at(node, 1 if node.op == "Upsample" or flow.opset < 11 else 2)
    factors = node.attrs.get("scales") if scales is None else values_of(scales).ravel().tolist()
    sized = factors is None or len(factors) != len(x)
    numbers = None
    if sized and len(node.inputs) > 3 and any(labels.any() for labels in x):
        numbers = numbers_of(flow, node, 3)
    out, reason = list(shape), flow.reason(node)
    for k, labels in enumerate(x):
        if not labels.any():
            continue
        same = len(labels) == len(shape[k])
        if sized and same and numbers is not None and len(numbers) == len(x):
            number = numbers[k]
            if number.measured is not None:
                flow.tie(labels, number.measured, reason)
            else:
                flow.state(number.node, labels, reason, slot=number.slot, index=number.index)
        elif sized or not same or float(factors[k]) != 1.0:
            flow.fix([labels], reason)
        out[k] = labels
        if not same:
            out[k] = shape[k]
    return [tuple(out)]


def measured(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """Shape: channels stay whose number goes into calculations."""
    reason = f"{flow.label(node)} reads the number of channels"
    measured_axes(flow, node, reason)
    return flow.hold(node)
