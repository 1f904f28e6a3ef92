"""Whether the data of a tensor fit its element type and its dimensions."""

from collections.abc import Sequence
from math import prod
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxslim_tk.errors import ModelError

_NAMED: Final = 60
_MOST_AXES: Final = 32
_MOST_BYTES: Final = 1 << 62

_BITS_BY_NAME: Final = {
    **dict.fromkeys(("FLOAT", "INT32", "UINT32"), 32),
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 64),
    **dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 16),
    **dict.fromkeys(("INT8", "UINT8", "BOOL", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ"), 8),
    **dict.fromkeys(("FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"), 8),
    **dict.fromkeys(("FLOAT6E2M3", "FLOAT6E3M2"), 6),
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("INT2", "UINT2"), 2),
    "COMPLEX128": 128,
    "STRING": 8,
}
_TYPES: Final = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
# Older versions of onnx don't know the newest types, and newer ones know others.
_BITS: Final = {
    getattr(TensorProto, name): bits
    for name, bits in _BITS_BY_NAME.items()
    if hasattr(TensorProto, name)
}
_FIELDS: Final[dict[int, tuple[str, int]]] = {
    TensorProto.FLOAT: ("float_data", 1),
    TensorProto.COMPLEX64: ("float_data", 2),
    TensorProto.DOUBLE: ("double_data", 1),
    TensorProto.COMPLEX128: ("double_data", 2),
    TensorProto.INT64: ("int64_data", 1),
    TensorProto.UINT32: ("uint64_data", 1),
    TensorProto.UINT64: ("uint64_data", 1),
    TensorProto.STRING: ("string_data", 1),
}


def check_tensor(tensor: TensorProto) -> None:
    """Raise ModelError where the data don't fit; data in a file of their own aren't looked at."""
    who = f"model: tensor {quoted(tensor.name) if isinstance(tensor.name, str) else ''}"
    if tensor.data_type not in _TYPES:
        raise ModelError(f"{who} has the element type {tensor.data_type}, which ONNX doesn't know")
    bits = _BITS.get(tensor.data_type, 8)
    size = _elements(tensor.dims, bits, who)
    if tensor.HasField("segment"):
        raise ModelError(f"{who} is stored in segments, which no reader supports")
    if tensor.data_location == TensorProto.EXTERNAL or tensor.data_type not in _BITS:
        return
    if tensor.HasField("raw_data") and tensor.data_type != TensorProto.STRING:
        got, needed, unit = len(tensor.raw_data), -(-size * bits // 8), "bytes"
    else:
        field, each = _FIELDS.get(tensor.data_type, ("int32_data", 1))
        packed = 8 // bits if bits < 8 else 1
        got, needed, unit = len(getattr(tensor, field)), -(-size * each // packed), "values"
    if got != needed:
        raise ModelError(
            f"{who} of the dimensions {_dims(tensor.dims)} needs {needed} {unit}, it holds {got}"
        )


def check_sparse(sparse: onnx.SparseTensorProto) -> None:
    """Raise ModelError where values or indices don't fit each other or the dimensions."""
    # The values and the indices are tensors, and the one may come here before the others.
    for tensor in (sparse.values, sparse.indices):
        check_tensor(tensor)
    who = f"model: sparse tensor {quoted(sparse.values.name)}"
    size = _elements(sparse.dims, _BITS.get(sparse.values.data_type, 8), who)
    count, shape = prod(sparse.values.dims), list(sparse.indices.dims)
    if sparse.indices.data_type != TensorProto.INT64 or len(sparse.values.dims) != 1:
        raise ModelError(f"{who} must have a list of values and int64 indices")
    if sparse.indices.data_location == TensorProto.EXTERNAL:
        return
    indices = numpy_helper.to_array(sparse.indices)
    limits: Any = size if shape == [count] else np.array(sparse.dims, np.int64)
    if shape not in ([count], [count, len(sparse.dims)]):
        raise ModelError(f"{who} of {count} values has indices of the shape {_dims(shape)}")
    if indices.size and not ((indices >= 0) & (indices < limits)).all():
        raise ModelError(f"{who} has indices outside its dimensions {_dims(sparse.dims)}")


def _elements(dims: Sequence[int], bits: int, who: str) -> int:
    """Number of elements of a shape that a computer can have."""
    if any(size < 0 for size in dims):
        raise ModelError(f"{who} must have dimensions from 0 up, got {_dims(dims)}")
    if len(dims) > _MOST_AXES:
        raise ModelError(f"{who} must have at most {_MOST_AXES} dimensions, got {len(dims)}")
    # An empty tensor of huge dimensions overflows just the same.
    if prod(max(size, 1) for size in dims) * bits > _MOST_BYTES:
        raise ModelError(f"{who} must fit in memory, its dimensions are {_dims(dims)}")
    return prod(dims)


def _dims(dims: Sequence[int]) -> str:
    return "(" + ", ".join(map(str, dims[:8])) + (", ...)" if len(dims) > 8 else ")")


def quoted(name: str) -> str:
    """A vendor's name in a message: quoted, and no longer than a line bears."""
    return repr(name if len(name) <= _NAMED else f"{name[: _NAMED - 3]}...")
