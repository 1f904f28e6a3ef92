"""Where operators keep their weights: which inputs, how they lie, and what stands before them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.edit import input_at, is_constant, producer, values_of
from onnxslim_tk.graph.model import Node, Tensor

Array = NDArray[Any]
RECURRENT: Final = ("LSTM", "GRU", "RNN")
WEIGHT_SLOTS: Final[dict[str, tuple[int, ...]]] = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (1,),
    "MatMul": (1,),
    "Gather": (0,),
    # For the input, and for the node's own last output.
    **dict.fromkeys(RECURRENT, (1, 2)),
}
_SMALLEST_TABLE: Final = 1024
_AUTO_PADS: Final = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
FLOAT: Final = 1
HALF: Final = 10


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """The constant behind a weight slot, and its scale and zero point where it has them.

    A scale is flat: one number per output channel, or a single one.
    """

    stored: Tensor
    scale: Array | None = None
    zero_point: Array | None = None


def held(node: Node, slot: int) -> Held | None:
    """The constant weight in input ``slot`` of ``node``, seen through a decode by a scale.

    None where there is none, and for a rank or attributes with which it is no matrix.
    """
    tensor = input_at(node, slot)
    if tensor is not None and is_turned(node):
        tensor = tensor.inputs[0].inputs[0]
    found = None if tensor is None else _behind(node, tensor)
    return found if found is not None and _fits(node, found.stored) else None


def is_turned(node: Node) -> bool:
    """Whether a MatMul reads its weight through a Transpose, as the head of an embedding does."""
    maker = producer(node.inputs[1]) if node.op == "MatMul" and len(node.inputs) > 1 else None
    if maker is None or maker.op != "Transpose" or maker.domain not in STANDARD_DOMAINS:
        return False
    return list(maker.attrs.get("perm", [1, 0])) == [1, 0]


def is_transposed(node: Node) -> bool:
    """Whether the weight of a Gemm or MatMul lies as (output, input)."""
    return is_turned(node) or (node.op == "Gemm" and bool(node.attrs.get("transB", 0)))


def channel_axis(node: Node) -> int:
    """Axis of a stored weight that counts output channels (rows, for an embedding).

    Of a recurrent weight, ``(directions, gates * hidden, inputs)``, the rows of each direction.
    """
    return 0 if node.op in ("Conv", "Gather") or is_transposed(node) else 1


def scale_shape(node: Node, shape: Sequence[int]) -> tuple[int, ...]:
    """How a scale per output channel lies along a stored weight of ``shape``."""
    axis = channel_axis(node)
    kept = (0, axis) if node.op in RECURRENT else (axis,)
    return tuple(int(n) if k in kept else 1 for k, n in enumerate(shape))


def by_channel(node: Node, values: Array) -> Array:
    """``values`` that lie as the weight of ``node``, as ``(scaled channels, weights)``."""
    if node.op in RECURRENT:
        return values.reshape(-1, values.shape[-1])
    moved = np.moveaxis(values, channel_axis(node), 0)
    return moved.reshape(len(moved), -1)


def from_channels(node: Node, rows: Array, shape: Sequence[int]) -> Array:
    """The inverse of :func:`by_channel` for a weight of ``shape``."""
    if node.op in RECURRENT:
        return rows.reshape(shape)
    axis = channel_axis(node)
    moved = rows.reshape(shape[axis], *shape[:axis], *shape[axis + 1 :])
    return np.ascontiguousarray(np.moveaxis(moved, 0, axis))


def to_matrix(node: Node, values: Array, groups: int) -> Array:
    """``values`` that lie as the weight of ``node``, as ``(groups, rows, inputs)``."""
    if node.op in RECURRENT:
        return values
    if node.op == "Conv":
        return values.reshape(groups, values.shape[0] // groups, -1)
    if node.op == "ConvTranspose":
        split = values.reshape(groups, values.shape[0] // groups, -1)
        return split.transpose(0, 2, 1)
    return values[None] if _lies_by_row(node) else values.T[None]


def from_matrix(node: Node, matrix: Array, shape: Sequence[int]) -> Array:
    """The inverse of :func:`to_matrix` for a weight of ``shape``."""
    if node.op == "Conv" or node.op in RECURRENT or _lies_by_row(node):
        return matrix.reshape(shape)
    if node.op == "ConvTranspose":
        return np.ascontiguousarray(matrix.transpose(0, 2, 1)).reshape(shape)
    return np.ascontiguousarray(matrix[0].T)


def _lies_by_row(node: Node) -> bool:
    return node.op == "Gather" or is_transposed(node)


def _behind(node: Node, slot: Tensor) -> Held | None:
    if is_constant(slot):
        return Held(slot) if slot.dtype in (np.float32, np.float16) else None
    maker = producer(slot)
    if maker is not None and maker.op == "Cast" and maker.attrs.get("to") == HALF:
        slot = maker.inputs[0]
        maker = None if is_constant(slot) else producer(slot)
    if maker is not None and maker.op == "DequantizeLinear":
        return _dequantized(node, maker)
    if maker is not None and maker.op == "Mul":
        return _multiplied(node, maker)
    return None


def _dequantized(node: Node, maker: Node) -> Held | None:
    if not all(is_constant(tensor) for tensor in maker.inputs):
        return None
    values, scale, zero = maker.inputs[0], maker.inputs[1], input_at(maker, 2)
    rank = len(values.shape)
    shape = [1] * rank
    axis = maker.attrs.get("axis", 1)
    if not isinstance(axis, int):
        # Before operator set 13 nothing says what an attribute of that name is.
        return None
    if len(scale.shape) == 1 and rank:
        shape[axis % rank] = scale.shape[0]
    if len(scale.shape) > 1 or maker.attrs.get("block_size", 0):
        return None
    if not _is_per_channel(node, values, scale, shape):
        return None
    return Held(values, values_of(scale), None if zero is None else values_of(zero))


def _multiplied(node: Node, maker: Node) -> Held | None:
    for cast, scale in (maker.inputs, maker.inputs[::-1]):
        before = producer(cast)
        if before is None or before.op != "Cast" or before.attrs.get("to") != FLOAT:
            continue
        values = before.inputs[0]
        if not is_constant(values) or not is_constant(scale):
            continue
        shape = [1] * (len(values.shape) - len(scale.shape)) + list(scale.shape)
        if _is_per_channel(node, values, scale, shape):
            return Held(values, values_of(scale).reshape(-1))
    return None


def _is_per_channel(node: Node, values: Tensor, scale: Tensor, shape: Sequence[int]) -> bool:
    """Whether a float32 ``scale``, laid out as ``shape``, has one number per channel, or one."""
    if scale.dtype != np.float32 or len(shape) != len(values.shape):
        return False
    return prod(shape) == 1 or tuple(shape) == scale_shape(node, values.shape)


def _fits(node: Node, stored: Tensor) -> bool:
    """Whether a weight has the rank that its operator reads as a matrix."""
    rank = len(stored.shape)
    if node.op in ("Conv", "ConvTranspose"):
        groups = int(node.attrs.get("group", 1))
        # The runtime finds out when it runs, and only then.
        if rank < 3 or prod(stored.shape) == 0 or groups < 1 or stored.shape[0] % groups:
            return False
        return node.attrs.get("auto_pad", "NOTSET") in _AUTO_PADS
    if node.op == "Gemm":
        plain = node.attrs.get("alpha", 1.0) == 1.0 and node.attrs.get("beta", 1.0) == 1.0
        return rank == 2 and plain and not node.attrs.get("transA", 0)
    if node.op == "Gather":
        table = rank == 2 and prod(stored.shape) >= _SMALLEST_TABLE and stored.shape[1] > 1
        return table and int(node.attrs.get("axis", 0)) == 0
    return rank == (3 if node.op in RECURRENT else 2)
