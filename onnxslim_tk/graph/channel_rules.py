"""What each operator does to channels: one small function, one line in a table.

A rule gets the labels on the axes of every input, says what they are tied to, and gives those of
the outputs. Entries that it says nothing of would be free, so it holds what it can't follow.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np

from onnxslim_tk.graph.channel_flow import Flow, Inputs, Outputs, constant_at, stay
from onnxslim_tk.graph.channel_layers import convolved, deconvolved, multiplied, product, recurrent
from onnxslim_tk.graph.channel_moves import (
    concatenated,
    divided,
    gathered,
    padded,
    sliced,
    spread,
    tiled,
    turned,
)
from onnxslim_tk.graph.channel_shapes import (
    expanded,
    measured,
    regrouped,
    reshaped,
    resized,
    shaped,
)
from onnxslim_tk.graph.edit import input_at, values_of
from onnxslim_tk.graph.model import Node

Rule = Callable[[Flow, Node, Inputs], Outputs]


def _same(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    # What else they read are single numbers, such as the limits of a Clip.
    flow.hold(node, inputs[1:])
    return [inputs[0] for _ in node.outputs]


def _joined(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """Elementwise, with broadcasting: what meets is tied."""
    reason = f"{flow.label(node)} ties its channels to a tensor that no layer makes"
    out = []
    for back in range(max(len(axes) for axes in inputs), 0, -1):
        met = [axes[-back] for axes in inputs if len(axes) >= back]
        size = max(len(labels) for labels in met)
        whole = [labels for labels in met if len(labels) == size]
        for labels in whole[1:]:
            flow.tie(whole[0], labels, reason)
        # A single channel would be broadcast, and be several after it.
        single = [labels for labels in met if len(labels) != size]
        flow.fix(single, f"{flow.label(node)} joins channels of different numbers")
        out.append(whole[0])
    return [tuple(out)]


def _pooled(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    flow.hold(node, [inputs[0][2:], *inputs[1:]])
    if any(tensor.outputs or tensor.name in flow.outputs for tensor in node.outputs[1:]):
        # Places of the largest values are counted over all channels.
        flow.fix(inputs[0], f"a further output of {flow.label(node)} is read")
    given = flow.hold(node)
    return [None if axes is None else (*inputs[0][:2], *axes[2:]) for axes in given]


def _normalized(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """Normalization of each channel by itself, by statistics given or over the axes behind."""
    vectors = all(len(axes) == 1 for axes in inputs[1:])
    if node.attrs.get("training_mode", 0) or len(inputs[0]) < 2 or not vectors:
        return flow.hold(node, inputs)
    for axes in inputs[1:]:
        flow.tie(inputs[0][1], axes[0], flow.reason(node))
    if node.op == "InstanceNormalization":
        flow.fix(inputs[0][2:], flow.reason(node))
    return [inputs[0], *flow.hold(node)[1:]]


def _normalized_across(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """What takes all of some last axes into account."""
    first = int(node.attrs.get("axis", -1)) % len(inputs[0])
    flow.hold(node, [inputs[0][first:], *inputs[1:]])
    out = *inputs[0][:first], *stay(*(len(labels) for labels in inputs[0][first:]))
    return [out, *flow.hold(node)[1:]]


def _along_axis(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    """What takes all of one axis into account, such as Softmax."""
    x = inputs[0]
    joined = node.op in ("Hardmax", "LogSoftmax", "Softmax") and flow.opset < 13
    given = node.attrs.get("axis", 1 if joined else -1)
    if node.op == "CumSum":
        place = constant_at(node, 1)
        if place is None:
            return flow.hold(node, inputs)
        given = values_of(place).item()
    axis = int(given) % len(x)
    met = range(axis, len(x)) if joined else (axis,)
    flow.fix([x[k] for k in met], flow.reason(node))
    return [tuple(np.zeros_like(v) if k in met else v for k, v in enumerate(x))]


def _reduced(flow: Flow, node: Node, inputs: Inputs) -> Outputs:
    x, given = inputs[0], constant_at(node, 1)
    if given is None and len(node.inputs) > 1 and input_at(node, 1) is not None:
        return flow.hold(node, inputs)
    listed = node.attrs.get("axes") if given is None else values_of(given).ravel().tolist()
    all_axes = [] if node.attrs.get("noop_with_empty_axes", 0) else range(len(x))
    axes = [int(k) % len(x) for k in listed] if listed else all_axes
    flow.fix([x[k] for k in axes], flow.reason(node))
    if node.attrs.get("keepdims", 1):
        (one,) = stay(1)
        return [tuple(one if k in axes else labels for k, labels in enumerate(x))]
    return [tuple(labels for k, labels in enumerate(x) if k not in axes)]


# fmt: off
_ELEMENTWISE: Final = (
    "Abs", "Cast", "Ceil", "Celu", "Clip", "Cos", "Dropout", "Elu", "Erf", "Exp", "Floor",
    "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish",
    "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin",
    "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)
_JOINING: Final = (
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max",
    "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
)
_POOLING: Final = (
    "AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "GridSample", "LpPool",
    "MaxPool", "MaxRoiPool",
)
_REDUCING: Final = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)
_ALONG: Final = ("CumSum", "Hardmax", "LogSoftmax", "LpNormalization", "Softmax")
# fmt: on

RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        **dict.fromkeys(_ELEMENTWISE, _same),
        **dict.fromkeys(_JOINING, _joined),
        **dict.fromkeys(_POOLING, _pooled),
        **dict.fromkeys(_REDUCING, _reduced),
        **dict.fromkeys(_ALONG, _along_axis),
        "BatchNormalization": _normalized,
        "Concat": concatenated,
        "ConstantOfShape": shaped,
        "Conv": convolved,
        "ConvTranspose": deconvolved,
        "DepthToSpace": spread,
        "Expand": expanded,
        "Flatten": regrouped,
        "GRU": recurrent,
        "Gather": gathered,
        "Gemm": multiplied,
        "InstanceNormalization": _normalized,
        "LSTM": recurrent,
        "LayerNormalization": _normalized_across,
        "MatMul": product,
        "Pad": padded,
        "RMSNormalization": _normalized_across,
        "RNN": recurrent,
        "Reshape": reshaped,
        "Resize": resized,
        "Shape": measured,
        "Slice": sliced,
        "SpaceToDepth": spread,
        "Split": divided,
        "Squeeze": regrouped,
        "Tile": tiled,
        "Transpose": turned,
        "Unsqueeze": regrouped,
        "Upsample": resized,
    }
)
"""Rules by operator; one without a rule is a barrier."""
