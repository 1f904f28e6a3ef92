"""What operators of a graph have to do in one run, in the terms of a target's table."""

from collections.abc import Mapping
from math import prod
from typing import Final

from onnxslim_tk.graph.layer import Layer
from onnxslim_tk.graph.model import Node
from onnxslim_tk.plan.targets import Work

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes seen in a run, by tensor name."""

_WINDOWED: Final = ("AveragePool", "MaxPool")


def layer_work(layer: Layer, shapes: Shapes) -> Work | None:
    """The work of a convolution or a matrix product; None where its shapes are unknown."""
    macs, given = layer.macs(shapes), shapes.get(layer.output.name)
    if macs is None or given is None:
        return None
    if layer.kind != "Conv":
        channels = layer.size // max(layer.channels, 1), layer.channels
        return Work(layer.kind, prod(given), macs, weights=layer.size, channels=channels)
    taps = prod(layer.shape[2:])
    places = given[0] * prod(given[2:])
    return Work(
        "Conv",
        prod(given),
        macs,
        places * taps * layer.shape[1] if taps > 1 else 0,
        layer.size,
        (layer.shape[1], layer.channels),
        layer.groups,
    )


def node_work(node: Node, shapes: Shapes) -> Work | None:
    """The work of an operator without weights; None where its shapes are unknown."""
    given = shapes.get(node.outputs[0].name)
    if given is None:
        return None
    looked_at = 0
    if node.op in _WINDOWED:
        looked_at = prod(given) * prod(node.attrs.get("kernel_shape", [1]))
    elif node.op == "GlobalAveragePool":
        looked_at = prod(shapes.get(node.inputs[0].name, ()))
    return Work(node.op, prod(given), looked_at)
