"""Operators that do less: smaller kernels, and Relu in the place of smooth activations."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.channel_flow import is_standard
from onnxslim_tk.graph.edit import is_constant
from onnxslim_tk.graph.layers import Layer, layers
from onnxslim_tk.graph.model import Model, Node, Tensor

Mask = NDArray[np.bool_]
_SMALLEST_KERNEL: Final = 5
_GATES: Final = ("Sigmoid", "HardSigmoid")
# What an activation's input may have gone through since the layer that made it.
_BETWEEN: Final = ("Add", "BatchNormalization", "Mul", "Sub")


@dataclass(frozen=True, slots=True, eq=False)
class Smooth:
    """An activation that Relu could stand for: the node that gives its output, and its input.

    ``maker`` is the layer in front of it, ``readers`` are those behind it.
    """

    node: Node
    input: Tensor
    kind: str
    maker: Layer
    readers: tuple[Layer, ...]

    @property
    def key(self) -> tuple[str, ...]:
        """The ids of the layers around it."""
        return tuple(dict.fromkeys([self.maker.id, *(layer.id for layer in self.readers)]))


def inner_taps(layer: Layer) -> Mask | None:
    """Which taps of a kernel stay where each axis of 5, 7 or more loses its outermost two.

    None for a layer that has no such kernel, or would have to pad by less than nothing.
    """
    if layer.kind != "Conv" or layer.node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    kernel, attrs = layer.shape[2:], layer.node.attrs
    dims = len(kernel)
    pads = attrs.get("pads", [0] * 2 * dims)
    dilations = attrs.get("dilations", [1] * dims)
    stays = np.ones(kernel, bool)
    for axis, size in enumerate(kernel):
        if size < _SMALLEST_KERNEL:
            continue
        if size % 2 == 0 or min(pads[axis], pads[axis + dims]) < dilations[axis]:
            return None
        edge = np.moveaxis(stays, axis, 0)
        edge[[0, -1]] = False
    return None if stays.all() else stays


def shrink_kernel(model: Model, layer: Layer, stays: Mask) -> None:
    """Leave only the inner taps of a convolution, with as much less padding."""
    attrs, kernel, dims = layer.node.attrs, kernel_of(stays), stays.ndim
    dilations = attrs.get("dilations", [1] * dims)
    pads = list(attrs.get("pads", [0] * 2 * dims))
    for axis in range(dims):
        less = dilations[axis] * (stays.shape[axis] - kernel[axis]) // 2
        pads[axis] -= less
        pads[axis + dims] -= less
    weight = layer.weight[..., stays].reshape(*layer.shape[:2], *kernel)
    attrs["kernel_shape"], attrs["pads"] = kernel, pads
    layer.set_dense(model, weight)


def kernel_of(stays: Mask) -> list[int]:
    """The size of the kernel that :func:`inner_taps` leaves."""
    axes = range(stays.ndim)
    return [int(stays.any(axis=tuple(k for k in axes if k != axis)).sum()) for axis in axes]


def smooth_activations(model: Model) -> Iterator[Smooth]:
    """HardSwish and SiLU of the outermost graph between layers: ``x * gate(x)``."""
    held: dict[int, Layer] = {}
    for layer in layers(model):
        held.setdefault(id(layer.node), layer)
    for node in model.graph.nodes:
        if not is_standard(node):
            continue
        tensor, kind = None, node.op
        if node.op == "HardSwish":
            tensor = node.inputs[0]
        elif node.op == "Mul":
            tensor, kind = _gated(node)
        maker = None if tensor is None else _maker(held, tensor)
        readers = tuple(_readers(held, node.outputs[0]))
        if tensor is not None and maker is not None and readers:
            yield Smooth(node, tensor, kind, maker, readers)


def _gated(node: Node) -> tuple[Tensor | None, str]:
    for first, second in (node.inputs, node.inputs[::-1]):
        gate = second.inputs[0] if second.inputs else None
        known = gate is not None and gate.op in _GATES and is_standard(gate)
        if gate is not None and known and gate.inputs[0] is first:
            return first, "SiLU" if gate.op == "Sigmoid" else "HardSwish"
    return None, ""


def _maker(held: Mapping[int, Layer], tensor: Tensor) -> Layer | None:
    while tensor.inputs:
        node = tensor.inputs[0]
        if id(node) in held:
            return held[id(node)]
        read = [t for t in node.inputs if not is_constant(t)]
        if node.op not in _BETWEEN or len(read) != 1:
            return None
        tensor = read[0]
    return None


def _readers(held: Mapping[int, Layer], tensor: Tensor) -> Iterator[Layer]:
    """The layers that read a tensor, or the first behind what reads it; those in bodies too."""
    seen: set[int] = set()
    waiting = [tensor]
    while waiting:
        for node in waiting.pop().outputs:
            if id(node) in seen:
                continue
            seen.add(id(node))
            if id(node) in held:
                yield held[id(node)]
            else:
                waiting.extend(node.outputs)


def to_relu(found: Smooth) -> None:
    """Let Relu take the place of the activation; what made its gate is left behind."""
    found.node.op = "Relu"
    found.node.attrs.clear()
    found.node.inputs.clear()
    found.node.inputs.append(found.input)
