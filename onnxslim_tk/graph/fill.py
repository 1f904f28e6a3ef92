"""Zeros put in among codes: pads, and channels that an integer kernel is faster with."""

from collections.abc import Mapping

import numpy as np

from onnxslim_tk.graph.edit import (
    add_node,
    constant,
    input_at,
    output_names,
    remove_node,
    rename_key,
    set_input,
    values_of,
    variable,
)
from onnxslim_tk.graph.grids import Affine
from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.graph.model import Model, Node, Tensor
from onnxslim_tk.graph.weight_grid import WeightGrid


def pad_codes(
    model: Model,
    node: Node,
    names: tuple[str, str],
    codes: Mapping[str, Tensor],
    affine: Mapping[str, Affine],
) -> None:
    """Let a Pad work on codes, which no runtime would do by itself: the runtime pads bytes."""
    source, target = (codes[name] for name in names)
    quantizer = target.inputs[0]
    remove_node(model.graph, quantizer)
    rename_key(model, node.outputs[0].name, target.name)
    before, node.inputs[0], node.outputs = node.inputs[0], source, [target]
    _drop_unread(model, before)
    if node.attrs.get("mode", "constant") == "constant":
        set_input(node, 2, constant(model, np.uint8(affine[names[0]].zero_point)))


def widen(model: Model, layer: Layer, weight: WeightGrid, codes: Tensor, extra: int) -> WeightGrid:
    """Give a convolution channels of zeros, put in among the codes; they weigh nothing.

    A depthwise one puts out as many more, which are cut off again.
    """
    rank, node = weight.values.ndim, layer.node
    before = node.inputs[0]
    parameters = before.inputs[0].inputs[1:3]
    ends = np.zeros((2, rank), np.int64)
    ends[1, 1] = extra
    parts = [codes, constant(model, ends.reshape(-1)), parameters[1]]
    wide = add_node(model, layer.graph, "Pad", parts)
    node.inputs[0] = add_node(model, layer.graph, "DequantizeLinear", [wide, *parameters])
    _drop_unread(model, before)
    axis = 1 if layer.groups == 1 else 0
    values = np.pad(weight.values, [(0, extra if k == axis else 0) for k in range(rank)])
    if layer.groups == 1:
        return WeightGrid(values, weight.scales)
    node.attrs["group"] = layer.groups + extra
    bias = input_at(node, 2)
    if bias is not None:
        known = np.broadcast_to(values_of(bias).reshape(-1), layer.channels)
        set_input(node, 2, constant(model, np.pad(known, (0, extra))))
    quantizer = node.outputs[0].outputs[0]
    narrow = quantizer.outputs[0]
    quantizer.outputs = [variable(model, narrow)]
    bounds = [constant(model, np.array([k], np.int64)) for k in (0, layer.channels, 1)]
    add_node(model, layer.graph, "Slice", [quantizer.outputs[0], *bounds], [narrow])
    return WeightGrid(values, np.pad(weight.scales, (0, extra), constant_values=1.0))


def _drop_unread(model: Model, tensor: Tensor) -> None:
    """Remove the node that makes a tensor which nothing reads any more."""
    if not tensor.outputs and tensor.name not in output_names(model):
        remove_node(model.graph, tensor.inputs[0])
