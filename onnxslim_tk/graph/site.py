"""A layer as a place to fold into: its constants in float64, whatever its operator's layout."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.affine import Affine
from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.edit import input_at, is_constant, sole_reader, values_of
from onnxslim_tk.graph.model import Graph, Node, Tensor

Array = NDArray[Any]


@dataclass(slots=True, eq=False)
class Site:
    """A layer, and what was folded into it: the ids of the nodes, and the bytes saved."""

    node: Node
    graph: Graph
    path: str
    names: tuple[str, ...]
    folded: list[str] = field(default_factory=list)
    operators: list[str] = field(default_factory=list)
    saved: int = 0

    def reader(self, node: Node, outputs: set[str]) -> Node | None:
        """The only reader of what ``node`` gives, where it is a standard one of the same graph.

        ``outputs`` names what graphs give out.
        """
        found = sole_reader(node.outputs[0], outputs)
        known = found is not None and found.domain in STANDARD_DOMAINS
        return found if known and any(found is other for other in self.graph.nodes) else None

    @property
    def weight(self) -> Tensor | None:
        """The weight, where it is a dense float32 constant of a rank that the operator reads."""
        tensor = input_at(self.node, 1)
        if tensor is None or not is_constant(tensor) or tensor.dtype != np.float32:
            return None
        rank = len(tensor.shape)
        return tensor if (rank >= 3 if "Conv" in self.node.op else rank == 2) else None

    @property
    def groups(self) -> int:
        """Groups of a convolution."""
        return int(self.node.attrs.get("group", 1))

    @property
    def is_plain(self) -> bool:
        """Whether a Gemm takes its input as it lies, and weighs its bias."""
        return not self.node.attrs.get("transA", 0) and self.node.attrs.get("beta", 1.0) != 0

    @property
    def channels(self) -> int:
        """Number of output channels."""
        assert self.weight is not None
        shape = self.weight.shape
        if self.node.op == "ConvTranspose":
            return int(shape[1]) * self.groups
        rows = self.node.op == "Conv" or self.node.attrs.get("transB", 0)
        return int(shape[0 if rows else 1])

    @property
    def bias_factor(self) -> float:
        """What the operator multiplies its bias with."""
        return float(self.node.attrs.get("beta", 1.0)) if self.node.op == "Gemm" else 1.0

    def bias(self) -> Array | None:
        """What is added, ``(channels,)`` in float64, zeros without a bias; None if unknown."""
        tensor = input_at(self.node, 2)
        if tensor is None or self.node.op == "MatMul":
            return np.zeros(self.channels)
        if not is_constant(tensor) or tensor.dtype != np.float32:
            return None
        values = values_of(tensor).astype(np.float64) * self.bias_factor
        if values.size == 1:
            return np.full(self.channels, values.reshape(-1)[0])
        fits = values.size == self.channels == values.shape[-1]
        return values.reshape(-1) if fits else None

    def scaled(self, weight: Array, factor: Array) -> Array:
        """``weight`` with its output channels multiplied by ``factor``, ``(channels,)``."""
        if self.node.op == "ConvTranspose":
            split = weight.reshape(self.groups, -1, weight.shape[1], int(np.prod(weight.shape[2:])))
            return (split * factor.reshape(self.groups, 1, -1, 1)).reshape(weight.shape)
        rows = self.node.op == "Conv" or self.node.attrs.get("transB", 0)
        return weight * factor.reshape([-1] + [1] * (weight.ndim - 1) if rows else [1, -1])

    def fed(self, weight: Array, before: Affine) -> tuple[Array, Array]:
        """``weight`` with its input channels multiplied, and the shift's sum per output."""
        if self.node.op == "Conv":
            split = weight.reshape(self.groups, -1, weight.shape[1], int(np.prod(weight.shape[2:])))
            shape = (self.groups, 1, weight.shape[1], 1)
            shift = (split * before.shift.reshape(shape)).sum((2, 3)).reshape(-1)
            return (split * before.factor.reshape(shape)).reshape(weight.shape), shift
        rows = bool(self.node.attrs.get("transB", 0))
        alpha = float(self.node.attrs.get("alpha", 1.0))
        shift = (weight if rows else weight.T) @ before.shift * alpha
        return weight * before.factor.reshape([1, -1] if rows else [-1, 1]), shift


def zero_padding(node: Node, rank: int) -> list[int] | None:
    """The zeros that a Pad puts around spatial dimensions, as a Conv writes them, or None."""
    pads: Any = node.attrs.get("pads")
    value = np.asarray(node.attrs.get("value", 0.0))
    if node.attrs.get("mode", "constant") != "constant":
        return None
    for slot in range(1, 4):
        tensor = input_at(node, slot)
        if tensor is not None and not is_constant(tensor):
            return None
    if pads is None:
        pads = values_of(node.inputs[1]).tolist()
        filler, axes = input_at(node, 2), input_at(node, 3)
        value = value if filler is None else values_of(filler)
        if axes is not None:
            spread = [0] * (2 * rank)
            picked = [int(axis) % rank for axis in values_of(axes)]
            for k, axis in enumerate(picked):
                spread[axis], spread[axis + rank] = pads[k], pads[k + len(picked)]
            pads = spread
    begins, ends = pads[:rank], pads[rank:]
    fits = len(pads) == 2 * rank and min(pads) >= 0 and not np.any(value)
    if not fits or any((*begins[:2], *ends[:2])):
        return None
    return [*begins[2:], *ends[2:]]
