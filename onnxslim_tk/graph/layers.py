"""Layers: the nodes that hold weights, each seen as one matrix per group."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.edit import (
    add_node,
    constant,
    input_at,
    is_constant,
    producer,
    rename_key,
    set_input,
    sole_reader,
    values_of,
    variable,
)
from onnxslim_tk.graph.model import Graph, Model, Node, Tensor, bodies

Array = NDArray[Any]
KINDS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather")
_WEIGHT_SLOT: Final = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "Gather": 0}
_SMALLEST_TABLE: Final = 1024
_FLOAT: Final = 1


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A node with a constant weight.

    ``stored`` holds the values as the file has them; where ``scale`` is given (one number per
    output channel, or a single one) the weight is ``(stored - zero_point) * scale``.
    """

    id: str
    names: tuple[str, ...]
    kind: str
    node: Node
    graph: Graph
    path: str
    stored: Tensor
    scale: Array | None
    zero_point: Array | None
    groups: int

    @property
    def input(self) -> Tensor:
        """The activation that the weight meets (for an embedding, the indices)."""
        return self.node.inputs[1 if self.kind == "Gather" else 0]

    @property
    def output(self) -> Tensor:
        """What the node gives, before a bias that a separate Add brings."""
        return self.node.outputs[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight as stored."""
        return tuple(int(n) for n in self.stored.shape)

    @property
    def size(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def is_shared(self) -> bool:
        """Whether another node reads the same stored weight."""
        readers = {id(node) for node in self.stored.outputs}
        slot = self.node.inputs[_WEIGHT_SLOT[self.kind]]
        return len(readers) > 1 or (slot is not self.stored and len(slot.outputs) > 1)

    @property
    def is_dense(self) -> bool:
        """Whether the weight is a plain float array, not values behind a scale."""
        return self.scale is None

    @property
    def transposed(self) -> bool:
        """Whether a Gemm's weight lies as (output, input)."""
        return self.kind == "Gemm" and bool(self.node.attrs.get("transB", 0))

    @property
    def channel_axis(self) -> int:
        """Axis of the stored weight that counts output channels (rows, for an embedding)."""
        return _channel_axis(self.node)

    @property
    def channels(self) -> int:
        """Number of output channels over all groups."""
        count = self.shape[self.channel_axis]
        return count * self.groups if self.kind == "ConvTranspose" else count

    @property
    def weight(self) -> Array:
        """The weight in its stored shape, float32, with the scale multiplied out."""
        values = values_of(self.stored)
        if self.scale is None:
            return values
        shape = [1] * values.ndim
        if self.scale.size > 1:
            shape[self.channel_axis] = -1
        dense = values.astype(np.float32)
        if self.zero_point is not None:
            dense = dense - self.zero_point.astype(np.float32).reshape(shape)
        return dense * self.scale.astype(np.float32).reshape(shape)

    def to_matrix(self, values: Array) -> Array:
        """``values`` of the weight's shape as ``(groups, rows, inputs)``.

        A row is an output channel (a token, for an embedding; an output channel at one kernel
        position, for ConvTranspose); columns are what it multiplies.
        """
        if self.kind == "Conv":
            return values.reshape(self.groups, values.shape[0] // self.groups, -1)
        if self.kind == "ConvTranspose":
            split = values.reshape(self.groups, values.shape[0] // self.groups, -1)
            return split.transpose(0, 2, 1)
        if self.kind == "Gather" or self.transposed:
            return values[None]
        return values.T[None]

    def from_matrix(self, matrix: Array) -> Array:
        """The inverse of :meth:`to_matrix`."""
        if self.kind == "Conv" or self.kind == "Gather" or self.transposed:
            return matrix.reshape(self.shape)
        if self.kind == "ConvTranspose":
            return np.ascontiguousarray(matrix.transpose(0, 2, 1)).reshape(self.shape)
        return np.ascontiguousarray(matrix[0].T)

    def matrix(self) -> Array:
        """The weight as ``(groups, rows, inputs)``, float64."""
        return self.to_matrix(self.weight).astype(np.float64)

    def per_channel(self, rows: Array) -> Array:
        """One number per output channel from ``(groups, rows)`` numbers, for a bias.

        Every output of a ConvTranspose meets kernel positions / stride rows of its channel.
        """
        if self.kind != "ConvTranspose":
            return rows.reshape(-1)
        positions = prod(self.shape[2:])
        strides = prod(self.node.attrs.get("strides", [1]))
        by_channel: Array = rows.reshape(self.channels, positions).sum(1)
        return np.asarray(by_channel / strides)

    def macs(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        """Multiply-accumulates of one run given tensor ``shapes``; None where they are unknown."""
        if self.kind == "Gather":
            return 0
        shape = shapes.get(self.input.name if self.kind == "ConvTranspose" else self.output.name)
        if self.path or shape is None:
            return None
        if self.kind in ("Conv", "ConvTranspose"):
            return self.size * shape[0] * prod(shape[2:])
        return self.size * prod(shape[:-1])

    def bias(self, outputs: set[str]) -> Tensor | None:
        """The constant float bias: the third input, or that of a sole Add behind a MatMul.

        One number per output channel, or a single one; None for what differs from row to row.
        """
        if self.kind in ("Conv", "ConvTranspose", "Gemm"):
            tensor = input_at(self.node, 2)
            if tensor is None or not is_constant(tensor):
                return None
            last = tensor.shape[-1] if len(tensor.shape) else 1
            fits = prod(tensor.shape) == last and last in (1, self.channels)
            return tensor if fits and tensor.dtype == np.float32 else None
        add = self._bias_add(outputs)
        return None if add is None else next(t for t in add.inputs if is_constant(t))

    def _bias_add(self, outputs: set[str]) -> Node | None:
        reader = sole_reader(self.output, outputs)
        if self.kind != "MatMul" or reader is None or reader.op != "Add":
            return None
        values = [values_of(t) for t in reader.inputs if is_constant(t)]
        if len(values) != 1 or values[0].shape[-1:] != (self.channels,):
            return None
        return reader if values[0].size == self.channels else None

    def obstacle(self, smallest: int) -> str:
        """Why no method may put another dense weight in place; empty where one may.

        ``smallest`` is the least number of weights that is worth a method's while.
        """
        if self.size < smallest:
            return f"fewer than {smallest} weights"
        if not self.is_dense:
            return "the weight is stored behind a scale"
        if self.is_shared:
            return "the weight is shared with another node"
        if not np.isfinite(self.weight).all():
            return "the weight holds values that are not finite"
        return ""

    def set_dense(self, model: Model, weight: Array) -> None:
        """Put a float weight of any shape in the slot; other readers of the old one keep it."""
        set_input(self.node, _WEIGHT_SLOT[self.kind], constant(model, weight.astype(np.float32)))

    def set_scaled(self, model: Model, values: Array, scale: Array) -> None:
        """Store int8 ``values`` and ``scale`` (per output channel), multiplied at load."""
        shape = [1] * values.ndim
        shape[self.channel_axis] = -1
        cast = add_node(
            model, self.graph, "Cast", [constant(model, values.astype(np.int8))], attrs={"to": 1}
        )
        scales = constant(model, scale.astype(np.float32).reshape(shape))
        scaled = add_node(model, self.graph, "Mul", [cast, scales])
        set_input(self.node, _WEIGHT_SLOT[self.kind], scaled)

    def shift_bias(self, model: Model, shift: Array, outputs: set[str]) -> bool:
        """Add ``shift``, one number per output channel, to the bias; False without a place."""
        current = self.bias(outputs)
        if self.kind in ("Conv", "ConvTranspose", "Gemm"):
            if current is None and input_at(self.node, 2) is not None:
                return False
            base = np.zeros(1) if current is None else values_of(current).reshape(-1)
            set_input(self.node, 2, constant(model, (base + shift).astype(np.float32)))
            return True
        if self.kind == "Gather":
            return False
        add = self._bias_add(outputs)
        if add is not None and current is not None:
            base = values_of(current)
            moved = constant(model, (base + shift.reshape(base.shape)).astype(np.float32))
            add.inputs[next(k for k, t in enumerate(add.inputs) if t is current)] = moved
            return True
        target, inner = self.output, variable(model, self.output)
        self.node.outputs[0] = inner
        rename_key(model, self.path + target.name, self.path + inner.name)
        add_node(
            model, self.graph, "Add", [inner, constant(model, shift.astype(np.float32))], [target]
        )
        return True


def layers(model: Model) -> Iterator[Layer]:
    """Every layer of the model in graph order, bodies included."""
    for path, graph in bodies(model.graph):
        for node in list(graph.nodes):
            layer = layer_of(model, node, graph, path)
            if layer is not None:
                yield layer


def layer_of(model: Model, node: Node, graph: Graph, path: str) -> Layer | None:
    """``node`` as a layer, or None if it isn't one that we rewrite."""
    if node.op not in KINDS or node.domain not in (None, "", "ai.onnx"):
        return None
    slot = input_at(node, _WEIGHT_SLOT[node.op])
    found = None if slot is None else _stored(slot, _channel_axis(node))
    if found is None or not _fits(node, found[0]):
        return None
    key = path + node.outputs[0].name
    names = model.origins.get(key, (key,))
    groups = int(node.attrs.get("group", 1)) if node.op in ("Conv", "ConvTranspose") else 1
    return Layer(names[0], names, node.op, node, graph, path, *found, groups)


def _channel_axis(node: Node) -> int:
    """Axis of a layer's stored weight that counts output channels."""
    if node.op == "Gemm":
        return 0 if node.attrs.get("transB", 0) else 1
    return 0 if node.op in ("Conv", "Gather") else 1


def _stored(slot: Tensor, axis: int) -> tuple[Tensor, Array | None, Array | None] | None:
    """The constant behind a weight slot with its scale and zero point, seen through a decode.

    ``axis`` is where a scale per channel must lie; None for any other scale.
    """
    if is_constant(slot):
        return (slot, None, None) if slot.dtype == np.float32 else None
    node = producer(slot)
    if node is None:
        return None
    if node.op == "DequantizeLinear" and all(is_constant(t) for t in node.inputs):
        values, scale, zero = node.inputs[0], node.inputs[1], input_at(node, 2)
        rank = len(values.shape)
        along = int(node.attrs.get("axis", 1)) % max(rank, 1)
        shape = [1] * rank
        if len(scale.shape) == 1 and rank:
            shape[along] = scale.shape[0]
        plain = len(scale.shape) <= 1 and not node.attrs.get("block_size", 0)
        if plain and _is_per_channel(values, scale, shape, axis):
            return values, values_of(scale), None if zero is None else values_of(zero)
    if node.op == "Mul":
        for cast, scale in (node.inputs, node.inputs[::-1]):
            maker = producer(cast)
            if maker is None or maker.op != "Cast" or maker.attrs.get("to") != _FLOAT:
                continue
            values = maker.inputs[0]
            if not is_constant(values) or not is_constant(scale):
                continue
            shape = [1] * (len(values.shape) - len(scale.shape)) + list(scale.shape)
            if _is_per_channel(values, scale, shape, axis):
                return values, values_of(scale).reshape(-1), None
    return None


def _is_per_channel(values: Tensor, scale: Tensor, shape: Sequence[int], axis: int) -> bool:
    """Whether a float32 ``scale``, laid out as ``shape``, has one number per channel, or one."""
    if scale.dtype != np.float32 or len(shape) != len(values.shape):
        return False
    return all(n == 1 or (k == axis and n == values.shape[k]) for k, n in enumerate(shape))


def _fits(node: Node, stored: Tensor) -> bool:
    """Whether a weight has the rank that its operator reads as a matrix."""
    rank = len(stored.shape)
    if node.op in ("Conv", "ConvTranspose"):
        groups = int(node.attrs.get("group", 1))
        # The runtime finds out when it runs, and only then.
        if rank < 3 or prod(stored.shape) == 0 or groups < 1 or stored.shape[0] % groups:
            return False
        return node.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    if node.op == "Gemm":
        plain = node.attrs.get("alpha", 1.0) == 1.0 and node.attrs.get("beta", 1.0) == 1.0
        return rank == 2 and plain and not node.attrs.get("transA", 0)
    if node.op == "Gather":
        table = rank == 2 and prod(stored.shape) >= _SMALLEST_TABLE and stored.shape[1] > 1
        return table and int(node.attrs.get("axis", 0)) == 0
    return rank == 2
