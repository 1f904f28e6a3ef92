"""A layer: a node that holds a weight, seen as one matrix per group."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.edit import (
    add_node,
    constant,
    input_at,
    is_constant,
    rename_key,
    set_input,
    sole_reader,
    values_of,
    variable,
)
from onnxslim_tk.graph.model import Graph, Model, Node, Tensor
from onnxslim_tk.graph.weight_slot import (
    HALF,
    RECURRENT,
    by_channel,
    channel_axis,
    from_channels,
    from_matrix,
    is_transposed,
    is_turned,
    scale_shape,
    to_matrix,
)

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A node with a constant weight; a recurrent node is two, for its input and its own output.

    The weight is input ``slot`` of ``node``. ``stored`` holds the values as the file has them;
    where ``scale`` is given (one number per output channel, or a single one) the weight is
    ``(stored - zero_point) * scale``.
    """

    id: str
    names: tuple[str, ...]
    kind: str
    node: Node
    graph: Graph
    path: str
    slot: int
    stored: Tensor
    scale: Array | None
    zero_point: Array | None
    groups: int

    @property
    def input(self) -> Tensor:
        """The activation that the node reads (for an embedding, the indices)."""
        return self.node.inputs[1 if self.kind == "Gather" else 0]

    @property
    def is_recurrent(self) -> bool:
        """Whether the weight is one of an LSTM, GRU or RNN."""
        return self.kind in RECURRENT

    @property
    def meets_input(self) -> bool:
        """Whether the weight multiplies :attr:`input`, so that samples can show its rows."""
        return self.kind != "Gather" and not (self.is_recurrent and self.slot > 1)

    @property
    def output(self) -> Tensor:
        """What the node gives, before a bias that a separate Add brings."""
        return next(tensor for tensor in self.node.outputs if tensor.name)

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
        return max(len(t.outputs) for t in (self.stored, self.node.inputs[self.slot])) > 1

    @property
    def is_dense(self) -> bool:
        """Whether the weight is a plain float array, not values behind a scale."""
        return self.scale is None

    @property
    def is_half(self) -> bool:
        """Whether the node computes in float16, and takes a weight of that type."""
        if self.is_dense:
            return bool(self.stored.dtype == np.float16)
        slot = self.node.inputs[self.slot]
        decoded = slot.inputs[0].inputs[0] if self.is_turned else slot
        return bool(decoded.inputs[0].op == "Cast")

    @property
    def _kind(self) -> type[np.floating[Any]]:
        """The type that the node computes in."""
        return np.float16 if self.is_half else np.float32

    @property
    def transposed(self) -> bool:
        """Whether the weight of a Gemm or MatMul lies as (output, input)."""
        return is_transposed(self.node)

    @property
    def is_turned(self) -> bool:
        """Whether a Transpose stands between the weight and a MatMul."""
        return is_turned(self.node)

    @property
    def is_multiplied(self) -> bool:
        """Whether the weight is small integers times a scale, not behind a DequantizeLinear."""
        tensor = self.node.inputs[self.slot]
        while tensor.inputs and tensor.inputs[0].op in ("Transpose", "Cast"):
            tensor = tensor.inputs[0].inputs[0]
        return bool(tensor.inputs) and tensor.inputs[0].op == "Mul"

    @property
    def channel_axis(self) -> int:
        """Axis of the stored weight that counts output channels (rows, for an embedding).

        A recurrent weight counts those of one direction there.
        """
        return channel_axis(self.node)

    @property
    def channels(self) -> int:
        """Number of output channels over all groups or directions."""
        count = self.shape[self.channel_axis]
        return count * self.groups if self.kind == "ConvTranspose" or self.is_recurrent else count

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """Shape in which one number per scaled channel lies along the stored weight."""
        return scale_shape(self.node, self.shape)

    def along(self, numbers: Array) -> Array:
        """``numbers``, one per scaled channel or a single one, laid along the stored weight."""
        return numbers.reshape(self.scale_shape if numbers.size > 1 else [1] * len(self.shape))

    def by_channel(self, values: Array) -> Array:
        """``values`` of the weight's shape as ``(scaled channels, weights)``."""
        return by_channel(self.node, values)

    def from_channels(self, rows: Array) -> Array:
        """The inverse of :meth:`by_channel`."""
        return from_channels(self.node, rows, self.shape)

    @property
    def weight(self) -> Array:
        """The weight in its stored shape, float32, with the scale multiplied out."""
        values = values_of(self.stored)
        if self.scale is None:
            return values.astype(np.float32, copy=False)
        dense = values.astype(np.float32)
        if self.zero_point is not None:
            dense = dense - self.along(self.zero_point.astype(np.float32))
        return np.asarray(dense * self.along(self.scale.astype(np.float32)))

    def to_matrix(self, values: Array) -> Array:
        """``values`` of the weight's shape as ``(groups, rows, inputs)``.

        A row is an output channel (a token, for an embedding; an output channel at one kernel
        position, for ConvTranspose); columns are what it multiplies. The groups of a recurrent
        weight are its directions.
        """
        return to_matrix(self.node, values, self.groups)

    def from_matrix(self, matrix: Array) -> Array:
        """The inverse of :meth:`to_matrix`."""
        return from_matrix(self.node, matrix, self.shape)

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
        by_input = self.kind == "ConvTranspose" or self.is_recurrent
        shape = shapes.get(self.input.name if by_input else self.output.name)
        if self.path or shape is None:
            return None
        if self.is_recurrent:
            return self.size * prod(shape[:2])
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
            return tensor if fits and tensor.dtype == self._kind else None
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
        self._fill(model, constant(model, weight.astype(self._kind)))

    def set_scaled(self, model: Model, values: Array, scale: Array) -> None:
        """Store int8 ``values`` and ``scale`` (per output channel), multiplied at load."""
        cast = add_node(
            model, self.graph, "Cast", [constant(model, values.astype(np.int8))], attrs={"to": 1}
        )
        scales = constant(model, scale.astype(np.float32).reshape(self.scale_shape))
        scaled = add_node(model, self.graph, "Mul", [cast, scales])
        if self.is_half:
            scaled = add_node(model, self.graph, "Cast", [scaled], attrs={"to": HALF})
        self._fill(model, scaled)

    def _fill(self, model: Model, weight: Tensor) -> None:
        if self.is_turned:
            turn = {"perm": [1, 0]}
            weight = add_node(model, self.graph, "Transpose", [weight], attrs=turn)
        set_input(self.node, self.slot, weight)

    def shift_bias(self, model: Model, shift: Array, outputs: set[str]) -> bool:
        """Add ``shift``, one number per output channel, to the bias; False without a place."""
        current, kind = self.bias(outputs), self._kind
        if self.kind in ("Conv", "ConvTranspose", "Gemm"):
            if current is None and input_at(self.node, 2) is not None:
                return False
            base = np.zeros(1) if current is None else values_of(current).reshape(-1)
            set_input(self.node, 2, constant(model, (base + shift).astype(kind)))
            return True
        if self.kind != "MatMul":
            return False
        add = self._bias_add(outputs)
        if add is not None and current is not None:
            base = values_of(current)
            moved = constant(model, (base + shift.reshape(base.shape)).astype(kind))
            add.inputs[next(k for k, t in enumerate(add.inputs) if t is current)] = moved
            return True
        target, inner = self.output, variable(model, self.output)
        self.node.outputs[0] = inner
        rename_key(model, self.path + target.name, self.path + inner.name)
        add_node(model, self.graph, "Add", [inner, constant(model, shift.astype(kind))], [target])
        return True
