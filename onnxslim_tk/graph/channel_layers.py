"""What operators with weights do to channels: they read some, and make others."""

from typing import Final

import numpy as np

from onnxslim_tk.graph.channel_flow import Axes, Flow, Inputs, Labels, Outputs, stay
from onnxslim_tk.graph.edit import input_at, is_constant
from onnxslim_tk.graph.model import Node

_GATES: Final = {"LSTM": 4, "GRU": 3, "RNN": 1}


def convolved(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """Conv: groups keep their number unless each reads one channel."""
    return _convolved(flow, node, inputs, reads=1)


def deconvolved(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """ConvTranspose, whose weights lie as (in, out, ...)."""
    return _convolved(flow, node, inputs, reads=0)


def _convolved(flow: Flow, node: Node, inputs: Inputs, reads: int) -> Outputs:
    x, weight = inputs[0], inputs[1]
    given, reason = flow.staying(node.outputs[0]), _trouble(flow, node)
    groups = int(node.attrs.get("group", 1))
    if given is None or len(x) < 3 or len(x[1]) % groups:
        return flow.hold(node, inputs)
    flow.fix((*x[2:], *weight[2:]), reason)
    layers = flow.layers(node) if flow.is_fixed(node.inputs[1]) else []
    if groups == 1:
        flow.tie(x[1], weight[reads], reason)
        made = weight[1 - reads]
        for layer in layers:
            flow.note("consumes", layer, reads, weight[reads])
            flow.note("produces", layer, 1 - reads, made)
    elif len(x[1]) == groups:
        made = _depthwise(flow, node, x[1], weight, reason, reads)
        for layer in layers:
            flow.note("passes", layer, 0, weight[0])
    else:
        made = _grouped(flow, x[1], weight, groups, reason, reads)
        for layer in layers:
            flow.note("consumes", layer, reads, weight[reads])
            flow.note("produces", layer, 1 - reads, weight[1 - reads])
    if not layers:
        flow.fix((made, *weight), reason)
    if len(inputs) > 2 and inputs[2]:
        flow.tie(made, inputs[2][0], reason)
    return [(x[0], made, *given[2:])]


def _depthwise(
    flow: Flow, node: Node, read: Labels, weight: Axes, reason: str, reads: int
) -> Labels:
    """A channel goes with the group that reads it, and all that this group makes."""
    flow.state(node, read, reason, attribute="group")
    flow.fix(weight[1:2], reason)
    if reads == 0:
        flow.tie(read, weight[0], reason)
        return np.repeat(weight[0], len(weight[1]))
    made = weight[0].reshape(len(read), -1)
    for column in made.T:
        flow.tie(read, column, reason)
    return weight[0]


def _grouped(
    flow: Flow, read: Labels, weight: Axes, groups: int, reason: str, reads: int
) -> Labels:
    """Every group loses the same places, in what it reads and in what it makes."""
    rows = read.reshape(groups, -1)
    if reads == 1:
        flow.tie(rows.ravel(), np.tile(weight[1], groups), reason)
        made = weight[0].reshape(groups, -1)
        flow.tie(made[1:].ravel(), np.tile(made[0], groups - 1), reason)
        return weight[0]
    flow.tie(read, weight[0], reason)
    flow.tie(rows[1:].ravel(), np.tile(rows[0], groups - 1), reason)
    return np.tile(weight[1], groups)


def multiplied(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """Gemm."""
    x, weight, reason = inputs[0], inputs[1], _trouble(flow, node)
    layers = flow.layers(node) if flow.is_fixed(node.inputs[1]) else []
    if not layers or node.attrs.get("transA", 0):
        return flow.hold(node, inputs)
    reads = 1 if node.attrs.get("transB", 0) else 0
    flow.tie(x[1], weight[reads], reason)
    made = weight[1 - reads]
    for layer in layers:
        flow.note("consumes", layer, reads, weight[reads])
        flow.note("produces", layer, 1 - reads, made)
    bias = inputs[2] if len(inputs) > 2 else ()
    for labels in bias[-1:]:
        if len(labels) == len(made):
            flow.tie(made, labels, reason)
        else:
            flow.fix([labels], reason)
    flow.fix(bias[:-1], reason)
    return [(x[0], made)]


def product(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """MatMul: of activations and weights, or of two activations, as attention has it."""
    a, b = inputs
    reason = _trouble(flow, node)
    first, second = (flow.is_fixed(tensor) for tensor in node.inputs)
    layers = flow.layers(node) if second and len(b) == 2 else []
    if min(len(a), len(b)) < 2 or first or (second and not layers):
        return flow.hold(node, inputs)
    flow.tie(a[-1], b[-2], reason)
    for layer in layers:
        # A weight may lie turned, behind a Transpose.
        reads = 1 if layer.transposed else 0
        flow.note("consumes", layer, reads, b[-2])
        flow.note("produces", layer, 1 - reads, b[-1])
    batch: list[Labels] = []
    for back in range(max(len(a), len(b)), 2, -1):
        met = [axes[-back] for axes in (a, b) if len(axes) >= back]
        size = max(len(labels) for labels in met)
        whole = [labels for labels in met if len(labels) == size]
        for labels in whole[1:]:
            flow.tie(whole[0], labels, reason)
        flow.fix([labels for labels in met if len(labels) != size], reason)
        batch.append(whole[0])
    if not layers:
        for labels in (*batch, a[-1], b[-2], a[-2], b[-1]):
            flow.attend(labels)
    return [(*batch, a[-2], b[-1])]


def recurrent(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """LSTM, GRU and RNN: hidden units go from all gates, states and directions."""
    reason, gates = _trouble(flow, node), _GATES[node.op]
    layers = flow.layers(node)
    if node.attrs.get("layout", 0) or len(layers) < 2 or len(inputs[0]) != 3:
        return flow.hold(node, inputs)
    x, weight, own = inputs[:3]
    units = own[2]
    flow.tie(x[2], weight[2], reason)
    flow.fix((weight[0], own[0]), reason)
    for rows in (weight[1], own[1]):
        flow.tie(rows, np.tile(units, gates), reason)
    # Bias, lengths, both states, peepholes.
    for slot, repeats in ((3, 2 * gates), (7, 3)):
        if len(inputs) > slot and inputs[slot]:
            flow.tie(inputs[slot][1], np.tile(units, repeats), reason)
            flow.fix(inputs[slot][:1], reason)
    for slot in (5, 6):
        if len(inputs) > slot and inputs[slot]:
            flow.tie(inputs[slot][2], units, reason)
            flow.fix(inputs[slot][:1], reason)
    flow.fix(inputs[4] if len(inputs) > 4 else (), reason)
    flow.state(node, units, reason, attribute="hidden_size")
    read, kept = layers
    flow.note("consumes", read, 2, weight[2])
    flow.note("produces", read, 1, weight[1])
    flow.note("produces", kept, 1, own[1])
    flow.note("passes", kept, 2, own[2])
    (directions,) = stay(len(own[0]))
    last = (directions, x[1], units)
    given: Outputs = [(x[0], *last), last, last]
    return given[: len(node.outputs)]


def _trouble(flow: Flow, node: Node) -> str:
    """Why the channels of a layer stay, where they do."""
    if any(not layer.is_dense for layer in flow.layers(node)):
        return f"the weight of {flow.label(node)} is stored behind a scale"
    bias = input_at(node, 2) if node.op in ("Conv", "ConvTranspose", "Gemm") else None
    if bias is not None and not is_constant(bias):
        return f"the bias of {flow.label(node)} is not a constant"
    return f"{flow.label(node)} reads its channels on another axis"
