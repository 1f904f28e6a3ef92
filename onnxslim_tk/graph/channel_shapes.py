"""What operators that move values do to channels; numbers that state shapes are noted."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import numpy as np

from onnxslim_tk.graph.channel_flow import (
    Axes,
    Flow,
    Labels,
    Picks,
    Sizes,
    constant_at,
    stay,
)
from onnxslim_tk.graph.edit import input_at, is_constant, values_of
from onnxslim_tk.graph.model import Node
from onnxslim_tk.graph.shape_numbers import measured_axes, numbers_of

Inputs = Sequence[Axes]
Outputs = list[Axes | None]


def turned(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """Transpose."""
    x = inputs[0]
    return [tuple(x[k] for k in node.attrs.get("perm", range(len(x))[::-1]))]


def concatenated(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """Concat."""
    axis = int(node.attrs.get("axis", 1)) % max(len(inputs[0]), 1)
    out = list(inputs[0])
    for axes in inputs[1:]:
        for k, labels in enumerate(axes):
            if k != axis:
                flow.tie(out[k], labels, flow.reason(node))
    out[axis] = np.concatenate([axes[axis] for axes in inputs])
    return [tuple(out)]


def divided(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """Split; its sizes are rewritten, so the parts need not stay alike."""
    x, given = inputs[0], constant_at(node, 1)
    axis = int(node.attrs.get("axis", 0)) % len(x)
    if given is None and len(node.inputs) > 1 and input_at(node, 1) is not None:
        return flow.hold(node, inputs)
    sizes = node.attrs.get("split") if given is None else values_of(given).ravel().tolist()
    parts = len(node.outputs)
    step = -(-len(x[axis]) // parts)
    ends = [step * k for k in range(1, parts)] if sizes is None else np.cumsum(sizes)[:-1]
    pieces = tuple(np.split(x[axis], ends))
    flow.sizes.append(Sizes(node, pieces))
    return [(*x[:axis], piece, *x[axis + 1 :]) for piece in pieces]


def sliced(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """Slice by constants; its starts and ends are rewritten."""
    x, reason = inputs[0], flow.reason(node)
    given = [values_of(t).ravel().tolist() for t in node.inputs[1:] if is_constant(t)]
    if len(given) < len(node.inputs) - 1 or not (given or "starts" in node.attrs):
        return flow.hold(node, inputs)
    starts, ends = given[:2] if given else (node.attrs["starts"], node.attrs["ends"])
    axes = given[2] if len(given) > 2 else node.attrs.get("axes", range(len(starts)))
    steps = given[3] if len(given) > 3 else [1] * len(starts)
    out = list(x)
    for k, (axis, step) in enumerate(zip(axes, steps, strict=True)):
        labels = x[axis]
        first, last, stride = slice(starts[k], ends[k], step).indices(len(labels))
        out[axis] = labels[np.arange(first, last, stride)]
        if step != 1 or not given:
            flow.fix([labels], reason)
            continue
        flow.state(node, labels[:first], reason, slot=1, index=k)
        if ends[k] < len(labels):
            flow.state(node, labels[:last], reason, slot=2, index=k)
    return [tuple(out)]


def gathered(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """Gather: of rows by changing indices, as embeddings do, or of channels by constant ones."""
    x, places = inputs
    axis = int(node.attrs.get("axis", 0)) % len(x)
    index = constant_at(node, 1)
    taken: Axes = places
    if index is None or values_of(index).ndim != 1:
        flow.fix([x[axis]], flow.reason(node))
        taken = stay(*(len(labels) for labels in places)) if index is not None else places
    else:
        flow.picks.append(Picks(node, x[axis]))
        taken = (x[axis][values_of(index)],)
    if index is not None:
        flow.fix(places, flow.reason(node))
    for layer in flow.layers(node):
        flow.note("produces", layer, 1, x[1])
    return [(*x[:axis], *taken, *x[axis + 1 :])]


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


def tiled(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """Tile: what is repeated stays."""
    x, repeats, shape = inputs[0], constant_at(node, 1), flow.staying(node.outputs[0])
    if repeats is None or shape is None:
        return flow.hold(node, inputs)
    times = values_of(repeats).ravel().tolist()
    flow.fix([v for v, n in zip(x, times, strict=True) if n != 1], flow.reason(node))
    return [tuple(v if n == 1 else s for v, n, s in zip(x, times, shape, strict=True))]


def padded(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """Pad: what is put before and behind channels may go with others."""
    x, given = inputs[0], constant_at(node, 1)
    amounts = node.attrs.get("pads") if given is None else values_of(given).ravel().tolist()
    axes = constant_at(node, 3)
    if amounts is None or (len(node.inputs) > 3 and input_at(node, 3) is not None and axes is None):
        return flow.hold(node, inputs)
    listed = range(len(x)) if axes is None else values_of(axes).ravel().tolist()
    out, half = list(x), len(amounts) // 2
    plain = given is not None and node.attrs.get("mode", "constant") == "constant"
    for k, axis in enumerate(listed):
        before, behind = amounts[k], amounts[half + k]
        if not (before or behind):
            continue
        if plain and before >= 0 and behind >= 0 and x[axis].any():
            front, back = flow.fresh(before), flow.fresh(behind)
            flow.state(node, front, flow.reason(node), slot=1, index=k)
            flow.state(node, back, flow.reason(node), slot=1, index=half + k)
            out[axis] = np.concatenate([front, x[axis], back])
        else:
            flow.fix([x[axis]], flow.reason(node))
            (out[axis],) = stay(len(x[axis]) + before + behind)
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


def spread(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """DepthToSpace and SpaceToDepth: a channel goes from all places of a block."""
    x, block = inputs[0], int(node.attrs["blocksize"])
    places, reason = block * block, flow.reason(node)
    flow.fix(x[2:], reason)
    if node.op == "SpaceToDepth":
        places_of = stay(places)
        channels = flow.merge([*places_of, x[1]], reason)
    elif node.attrs.get("mode", "DCR") == "DCR":
        rows = x[1].reshape(places, -1)
        flow.tie(rows[1:].ravel(), np.tile(rows[0], places - 1), reason)
        channels = rows[0]
    else:
        rows = x[1].reshape(-1, places).T
        flow.tie(rows[1:].ravel(), np.tile(rows[0], places - 1), reason)
        channels = rows[0]
    grow = block if node.op == "DepthToSpace" else 1 / block
    return [(x[0], channels, *stay(*(int(len(labels) * grow) for labels in x[2:])))]


def measured(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """Shape: channels stay whose number goes into calculations."""
    reason = f"{flow.label(node)} reads the number of channels"
    measured_axes(flow, node, reason)
    return flow.hold(node)
