"""What operators that join, pick, repeat and move values do to channels."""

import numpy as np

from onnxslim_tk.graph.channel_flow import (
    Axes,
    Flow,
    Inputs,
    Outputs,
    Picks,
    Sizes,
    constant_at,
    stay,
)
from onnxslim_tk.graph.edit import input_at, is_constant, values_of
from onnxslim_tk.graph.model import Node


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
