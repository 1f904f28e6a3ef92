"""What the storage operators compute, in numpy: enough of ONNX to decode a stored constant.

Every function takes ``(node, inputs, limit)`` and returns the node's only output, exactly as the
ONNX specification defines it. Where that isn't possible, or the output would take more than
``limit`` bytes, it raises `UndecodableError` before any memory is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]
Operator = Callable[[onnx.NodeProto, Sequence[Array], int], Array]

LIMIT = 1 << 30
"""Largest output of a node in bytes: beyond it onnxruntime doesn't fold constants."""

_MOST_AXES = 32
_BLOCK = 1 << 20


class UndecodableError(Exception):
    """The node can't be evaluated here; whoever meets it leaves the node as it is."""


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Return the value of a node's attribute, or ``default`` where it isn't set."""
    for candidate in node.attribute:
        if candidate.name == name:
            return helper.get_attribute_value(candidate)
    return default


def _fits(elements: int, itemsize: int, limit: int) -> None:
    if elements * itemsize > limit:
        raise UndecodableError(f"an output of {elements * itemsize} bytes is more than {limit}")


def _ints(node: onnx.NodeProto, inputs: Sequence[Array], name: str, slot: int) -> list[int] | None:
    """Read integers that older operator sets hold in an attribute and newer ones in an input."""
    if len(inputs) > slot:
        return [int(v) for v in inputs[slot].reshape(-1)]
    values = attribute(node, name)
    return None if values is None else [int(v) for v in values]


def _cast(node: onnx.NodeProto, inputs: Sequence[Array], limit: int) -> Array:
    target = np.dtype(helper.tensor_dtype_to_np_dtype(attribute(node, "to")))
    value = inputs[0]
    if target.kind not in "iufb" and target.name != "bfloat16":
        raise UndecodableError(f"no cast to {target}")
    # A float outside the integer's range gives whatever the hardware gives.
    if target.kind in "iu" and value.dtype.kind not in "iub":
        limits = np.iinfo(target)
        wide = value.astype(np.float64)
        if not np.all((wide > limits.min - 1.0) & (wide < limits.max + 1.0)):
            raise UndecodableError(f"a value outside the range of {target}")
    _fits(value.size, target.itemsize, limit)
    with np.errstate(over="ignore", invalid="ignore"):
        return value.astype(target)


def _gather(node: onnx.NodeProto, inputs: Sequence[Array], limit: int) -> Array:
    data, indices = inputs
    axis = attribute(node, "axis", 0)
    _fits(data.size // max(data.shape[axis], 1) * indices.size, data.itemsize, limit)
    if axis % max(data.ndim, 1) or indices.size <= _BLOCK:
        return np.take(data, indices, axis=axis)
    # Block by block: numpy widens all indices.
    flat = indices.reshape(-1)
    result = np.empty((flat.size, *data.shape[1:]), data.dtype)
    for first in range(0, flat.size, _BLOCK):
        np.take(data, flat[first : first + _BLOCK], 0, result[first : first + _BLOCK])
    return result.reshape(*indices.shape, *data.shape[1:])


def _reshape(node: onnx.NodeProto, inputs: Sequence[Array], limit: int) -> Array:
    data, shape = inputs
    dims = [int(d) for d in shape]
    if not attribute(node, "allowzero", 0):
        dims = [data.shape[i] if d == 0 else d for i, d in enumerate(dims)]
    return data.reshape(dims)


def _constant_of_shape(node: onnx.NodeProto, inputs: Sequence[Array], limit: int) -> Array:
    value = attribute(node, "value")
    fill = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    dims = [int(d) for d in inputs[0]]
    _fits(int(np.prod(dims, dtype=object)), fill.itemsize, limit)
    return np.full(dims, fill.reshape(-1)[0], fill.dtype)


def _elementwise(function: Callable[[Array, Array], Array]) -> Operator:
    def apply(node: onnx.NodeProto, inputs: Sequence[Array], limit: int) -> Array:
        shape = np.broadcast_shapes(*(value.shape for value in inputs))
        _fits(int(np.prod(shape, dtype=object)), inputs[0].itemsize, limit)
        with np.errstate(all="ignore"):
            result = inputs[0]
            for value in inputs[1:]:
                result = function(result, value)
        return result

    return apply


def _mod(node: onnx.NodeProto, inputs: Sequence[Array], limit: int) -> Array:
    if not inputs[1].all():
        raise UndecodableError("a division by zero")
    function = np.fmod if attribute(node, "fmod", 0) else np.mod
    result: Array = function(inputs[0], inputs[1])
    return result


def _div(node: onnx.NodeProto, inputs: Sequence[Array], limit: int) -> Array:
    if any(value.dtype.kind not in "iu" for value in inputs) or not inputs[1].all():
        raise UndecodableError("a division of floats, or by zero")
    quotient = _elementwise(np.floor_divide)(node, inputs, limit)
    # Towards zero, where numpy's goes down.
    inexact = quotient * inputs[1] != inputs[0]
    negative = (inputs[0] < 0) != (inputs[1] < 0)
    return np.asarray(quotient + (inexact & negative).astype(quotient.dtype))


def _bit_shift(node: onnx.NodeProto, inputs: Sequence[Array], limit: int) -> Array:
    if attribute(node, "direction") == b"LEFT":
        return np.left_shift(inputs[0], inputs[1])
    return np.right_shift(inputs[0], inputs[1])


def _cum_sum(node: onnx.NodeProto, inputs: Sequence[Array], limit: int) -> Array:
    data, axis = inputs[0], int(inputs[1].reshape(()))
    backwards = attribute(node, "reverse", 0)
    if backwards:
        data = np.flip(data, axis)
    total = np.cumsum(data, axis=axis, dtype=data.dtype)
    if attribute(node, "exclusive", 0):
        total = total - data
    return np.flip(total, axis) if backwards else total


def _scatter_elements(node: onnx.NodeProto, inputs: Sequence[Array], limit: int) -> Array:
    if attribute(node, "reduction", b"none") != b"none":
        raise UndecodableError("a scatter that reduces")
    data, indices, updates = inputs
    axis = attribute(node, "axis", 0) % data.ndim
    place: list[Array] = list(np.indices(indices.shape, sparse=True))
    place[axis] = indices
    result = data.copy()
    result[tuple(place)] = updates
    return result


def _scatter_nd(node: onnx.NodeProto, inputs: Sequence[Array], limit: int) -> Array:
    if attribute(node, "reduction", b"none") != b"none":
        raise UndecodableError("a scatter that reduces")
    data, indices, updates = inputs
    result = data.copy()
    result[tuple(np.moveaxis(indices, -1, 0))] = updates
    return result


def _concat(node: onnx.NodeProto, inputs: Sequence[Array], limit: int) -> Array:
    _fits(sum(value.size for value in inputs), inputs[0].itemsize, limit)
    return np.concatenate(inputs, axis=attribute(node, "axis"))


def _slice(node: onnx.NodeProto, inputs: Sequence[Array], limit: int) -> Array:
    data = inputs[0]
    starts, ends = _ints(node, inputs, "starts", 1), _ints(node, inputs, "ends", 2)
    if starts is None or ends is None:
        raise UndecodableError("a slice with no bounds")
    axes = _ints(node, inputs, "axes", 3) or list(range(len(starts)))
    steps = _ints(node, inputs, "steps", 4) or [1] * len(starts)
    cut = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        length = data.shape[axis]
        start, end = (v + length if v < 0 else v for v in (start, end))
        # Past the front, a backward slice ends at None: -1 would mean the last element.
        stop = None if step < 0 and end < 0 else max(end, 0)
        cut[axis] = slice(max(start, 0) if step > 0 else start, stop, step)
        if step < 0 and start < 0:
            cut[axis] = slice(0, 0, 1)
    return data[tuple(cut)]


def _unsqueeze(node: onnx.NodeProto, inputs: Sequence[Array], limit: int) -> Array:
    axes = _ints(node, inputs, "axes", 1)
    if axes is None:
        raise UndecodableError("no axes")
    return np.expand_dims(inputs[0], tuple(axes))


def _squeeze(node: onnx.NodeProto, inputs: Sequence[Array], limit: int) -> Array:
    axes = _ints(node, inputs, "axes", 1)
    return np.squeeze(inputs[0], None if axes is None else tuple(axes))


def _expand(node: onnx.NodeProto, inputs: Sequence[Array], limit: int) -> Array:
    if inputs[1].size > _MOST_AXES:
        raise UndecodableError(f"more than {_MOST_AXES} axes")
    shape = np.broadcast_shapes(inputs[0].shape, tuple(int(d) for d in inputs[1]))
    _fits(int(np.prod(shape, dtype=object)), inputs[0].itemsize, limit)
    return np.broadcast_to(inputs[0], shape)


def _transpose(node: onnx.NodeProto, inputs: Sequence[Array], limit: int) -> Array:
    return np.transpose(inputs[0], attribute(node, "perm"))


def _identity(node: onnx.NodeProto, inputs: Sequence[Array], limit: int) -> Array:
    return inputs[0]


OPERATORS: dict[str, Operator] = {
    "Add": _elementwise(np.add),
    "BitShift": _bit_shift,
    "BitwiseAnd": _elementwise(np.bitwise_and),
    "BitwiseOr": _elementwise(np.bitwise_or),
    "BitwiseXor": _elementwise(np.bitwise_xor),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "CumSum": _cum_sum,
    "Div": _div,
    "Expand": _expand,
    "Gather": _gather,
    "Identity": _identity,
    "Max": _elementwise(np.maximum),
    "Mod": _mod,
    "Mul": _elementwise(np.multiply),
    "Reshape": _reshape,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _elementwise(np.subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
