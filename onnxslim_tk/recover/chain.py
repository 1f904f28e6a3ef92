"""A chain of thin nodes in place of one layer: how they are written, and what they have to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.edit import add_node, constant, set_input, variable
from onnxslim_tk.graph.layers import Layer
from onnxslim_tk.graph.model import Model

Floats = NDArray[np.float64]
Shapes = Mapping[str, tuple[int, ...]]
Parts = tuple[Floats, ...]
"""Factors in the order of the data."""
_BIAS_OPTIONAL_OPSET: Final = 11


@dataclass(frozen=True, slots=True)
class Step:
    """One node of a chain: the shape of its weight, and its attributes."""

    shape: tuple[int, ...]
    attrs: Mapping[str, Any]


def conv_geometry(layer: Layer) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations and pads of a convolution, defaults written out."""
    dims = len(layer.shape) - 2
    attrs = layer.node.attrs
    strides = list(attrs.get("strides", [1] * dims))
    dilations = list(attrs.get("dilations", [1] * dims))
    return strides, dilations, list(attrs.get("pads", [0] * 2 * dims))


def write_chain(model: Model, layer: Layer, steps: Sequence[Step], parts: Parts) -> None:
    """Put nodes for all parts but the last before the layer's node, which takes the last.

    The layer keeps its bias, output and id; the ids of the new nodes are the layer's with ``:a``,
    ``:b`` and so on.
    """
    node, taken = layer.node, layer.input
    # What is in the node now counts for the first of two factors of a Gemm.
    own = dict(node.attrs)
    for k, (step, part) in enumerate(zip(steps[:-1], parts[:-1], strict=True)):
        op, attrs, weight = layer.kind, dict(step.attrs), _stored(layer, step, part)
        if op == "Gemm":
            attrs = own
            if model.graph.opset < _BIAS_OPTIONAL_OPSET:
                op, attrs = "MatMul", {}
                weight = weight.T if layer.transposed else weight
        inner = variable(model, layer.output)
        names = (f"{layer.id}:{'abc'[k]}", *layer.names)
        inputs = [taken, constant(model, weight.astype(np.float32))]
        add_node(model, layer.graph, op, inputs, [inner], attrs, names, layer.path)
        _move_before(layer, node)
        taken = inner
    if layer.kind == "Conv":
        node.attrs.clear()
        node.attrs.update(steps[-1].attrs)
    set_input(node, 0, taken)
    last = _stored(layer, steps[-1], parts[-1])
    set_input(node, 1, constant(model, last.astype(np.float32)))


def _move_before(layer: Layer, node: Any) -> None:
    """Put the node that was added last before ``node``."""
    made = layer.graph.nodes.pop()
    place = next(k for k, other in enumerate(layer.graph.nodes) if other is node)
    layer.graph.nodes.insert(place, made)


def _stored(layer: Layer, step: Step, part: Floats) -> Floats:
    whole = part.reshape(step.shape)
    return whole if layer.kind == "Conv" or layer.transposed else whole.T


def step_macs(layer: Layer, steps: Sequence[Step], shapes: Shapes) -> list[tuple[int, int]]:
    """Places that each step gives values at, and its multiply-accumulates, in one run.

    Places count 1 where shapes are unknown, as if nothing were strided.
    """
    taken = None if layer.path else shapes.get(layer.input.name)
    if layer.kind != "Conv":
        rows = prod(taken[:-1]) if taken else 1
        return [(rows, rows * prod(step.shape)) for step in steps]
    found = []
    sizes = list(taken[2:]) if taken and len(taken) == len(layer.shape) else None
    for step in steps:
        if sizes is not None and taken:
            sizes = [_places(step, k, n, len(sizes)) for k, n in enumerate(sizes)]
            places = taken[0] * prod(sizes)
        else:
            places = 1
        found.append((places, places * prod(step.shape)))
    return found


def _places(step: Step, axis: int, size: int, dims: int) -> int:
    """Places along an axis that a kernel is put at."""
    attrs = step.attrs
    pads = attrs.get("pads", [0] * 2 * dims)
    reach = attrs.get("dilations", [1] * dims)[axis] * (step.shape[2 + axis] - 1)
    room = size + pads[axis] + pads[axis + dims] - reach - 1
    return int(room // attrs.get("strides", [1] * dims)[axis] + 1)
