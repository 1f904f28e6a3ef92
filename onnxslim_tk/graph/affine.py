"""Nodes that scale and shift channels by constants, as one factor and one shift per channel."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.graph.edit import input_at, is_constant, values_of
from onnxslim_tk.graph.model import Node, Tensor

Array = NDArray[Any]
_EPSILON: Final = 1e-5


@dataclass(frozen=True, slots=True)
class Affine:
    """``x * factor + shift``, one float64 number of each per channel, ``(channels,)``."""

    factor: Array
    shift: Array


def normalization(node: Node) -> Affine | str:
    """An inferring BatchNormalization as an affine map, or why it isn't one."""
    if node.attrs.get("training_mode", 0) or node.attrs.get("spatial", 1) == 0:
        return "it normalizes by the batch, not by constants"
    if any(not tensor.is_empty() for tensor in node.outputs[1:]):
        return "its statistics are outputs too"
    found = [input_at(node, k) for k in range(1, 5)]
    values = [_floats(tensor) for tensor in found if tensor is not None]
    scale, bias, mean, variance = (*values, *[None] * 4)[:4]
    if scale is None or bias is None or mean is None or variance is None:
        return "its statistics are not float32 constants"
    epsilon = float(node.attrs.get("epsilon", _EPSILON))
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + epsilon)
        shift = bias - mean * factor
    if not (np.isfinite(factor).all() and np.isfinite(shift).all()):
        return "its statistics are not finite"
    return Affine(factor, shift)


def arithmetic(node: Node, source: Tensor, channels: int, axis: int, rank: int) -> Affine | None:
    """An Add, Sub, Mul or Div of ``source`` and a constant as an affine map over ``axis``.

    ``axis`` counts from the front of ``rank`` dimensions. None where the other side isn't a
    constant that has one number, or one per channel, and leaves the shape as it is.
    """
    if node.op not in ("Add", "Sub", "Mul", "Div") or len(node.inputs) != 2:
        return None
    slot = 0 if node.inputs[0] is source else 1
    values = _floats(node.inputs[1 - slot])
    number = None if values is None else _per_channel(values, channels, axis, rank)
    if number is None:
        return None
    ones, zeros = np.ones(channels), np.zeros(channels)
    if node.op == "Add":
        return Affine(ones, number)
    if node.op == "Sub":
        return Affine(ones, -number) if slot == 0 else Affine(-ones, number)
    if node.op == "Mul":
        return Affine(number, zeros)
    return Affine(1.0 / number, zeros) if slot == 0 and number.all() else None


def _floats(tensor: Tensor) -> Array | None:
    if not is_constant(tensor) or tensor.dtype != np.float32:
        return None
    values: Array = values_of(tensor).astype(np.float64)
    return values


def _per_channel(values: Array, channels: int, axis: int, rank: int) -> Array | None:
    """``values`` as ``(channels,)`` numbers if they broadcast to the channel axis and no other."""
    if values.ndim > rank or not np.isfinite(values).all():
        return None
    if values.size == 1:
        return np.full(channels, values.reshape(-1)[0])
    shape = [1] * (rank - values.ndim) + list(values.shape)
    alone = all(size == 1 for k, size in enumerate(shape) if k != axis)
    return values.reshape(-1) if alone and shape[axis] == channels else None
