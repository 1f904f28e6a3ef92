"""The arrays of big weights, kept beside a model's messages and shared, never copied."""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxslim_tk.errors import ModelError
from onnxslim_tk.graph.mapped import release_pages

Array = NDArray[Any]
Bytes = NDArray[np.uint8]

LARGEST: Final = (1 << 31) - 1
"""Bytes that one protobuf message, and so one file, can hold."""
APART: Final = 4096
"""Bytes from which on the values of a tensor are kept beside the message."""

_CHUNK: Final = 1 << 24
_FIELDS: Final = (
    "raw_data",
    "float_data",
    "int32_data",
    "int64_data",
    "double_data",
    "uint64_data",
)
_PLAIN: Final = frozenset(
    TensorProto.DataType.Value(name)
    for name in [
        "BOOL",
        "DOUBLE",
        "FLOAT",
        "FLOAT16",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
    ]
)
# Element types that share bytes; older versions of onnx don't have them all.
_BITS: Final = {
    TensorProto.DataType.Value(name): bits
    for bits, names in (
        (6, ("FLOAT6E2M3", "FLOAT6E3M2")),
        (4, ("INT4", "UINT4", "FLOAT4E2M1")),
        (2, ("INT2", "UINT2")),
    )
    for name in names
    if name in dict(TensorProto.DataType.items())
}


def is_apart(tensor: TensorProto) -> bool:
    """Whether the values of ``tensor`` lie outside its message."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def is_plain(tensor: TensorProto) -> bool:
    """Whether numpy itself, with no extension type, has the element type of ``tensor``."""
    return tensor.data_type in _PLAIN


def entry(tensor: TensorProto, key: str) -> str:
    """What ``tensor`` says of its external data under ``key``, empty for nothing."""
    return next((item.value for item in tensor.external_data if item.key == key), "")


def raw_size(tensor: TensorProto) -> int:
    """Bytes that the values of ``tensor`` take; raises ModelError for a type or size of none."""
    known = tensor.data_type in TensorProto.DataType.values()
    if not known or tensor.data_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        raise ModelError(f"model: the tensor {tensor.name!r} has no element type that takes bytes")
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"model: the tensor {tensor.name!r} has a negative size")
    bits = _BITS.get(tensor.data_type)
    if bits is None:
        bits = 8 * np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    return -(-prod(tensor.dims) * bits // 8)


class Weights:
    """Raw little-endian bytes of tensors, by what the tensors' messages say of their place.

    Tensors whose values are one array in memory share one entry. ``smallest`` is the size from
    which on :meth:`put` takes values out of a message.
    """

    def __init__(self, smallest: int = APART) -> None:
        self.smallest = smallest
        self._arrays: dict[str, Bytes] = {}
        self._keys: dict[tuple[int, int], str] = {}

    def __len__(self) -> int:
        return len(self._arrays)

    def __reduce__(self) -> tuple[Any, ...]:
        # Places in memory are this process's own.
        return _restored, (self.smallest, {k: np.asarray(a) for k, a in self._arrays.items()})

    def copy(self) -> "Weights":
        """Another table of the same arrays."""
        twin = Weights(self.smallest)
        for key, array in self._arrays.items():
            twin.add(key, array)
        return twin

    @property
    def size(self) -> int:
        """Bytes of all arrays."""
        return sum(int(array.nbytes) for array in self._arrays.values())

    @property
    def arrays(self) -> dict[str, Bytes]:
        """All arrays by key."""
        return dict(self._arrays)

    def add(self, key: str, array: Bytes) -> None:
        """Enter ``array`` under ``key``."""
        self._arrays[key] = array
        self._keys[array.__array_interface__["data"][0], array.nbytes] = key

    def holds(self, tensor: TensorProto) -> bool:
        """Whether the values of ``tensor`` are known: here, or inside its message."""
        return not is_apart(tensor) or place(tensor) in self._arrays

    def raw(self, tensor: TensorProto) -> Bytes:
        """The bytes of a tensor whose values lie here; raises ModelError where they don't."""
        found = self._arrays.get(place(tensor))
        if found is None:
            raise ModelError(
                f"model: the values of the tensor {tensor.name!r} lie in no known file"
            )
        return found

    def values(self, tensor: TensorProto) -> Array:
        """The values of any tensor, shared where they lie here; mustn't be written to.

        Raises ModelError where its data don't fit its dimensions.
        """
        if not is_apart(tensor):
            try:
                return numpy_helper.to_array(tensor)
            except (TypeError, ValueError) as error:
                # Of types that are newer than this package nobody has checked the data before.
                raise ModelError(
                    f"model: the data of the tensor {tensor.name!r} cannot be read: {error}"
                ) from error
        raw = self.raw(tensor)
        if is_plain(tensor):
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
            if raw.nbytes != prod(tensor.dims) * dtype.itemsize:
                raise ModelError(
                    f"model: the data file holds {raw.nbytes} bytes of the tensor {tensor.name!r}, "
                    f"whose dimensions need {prod(tensor.dims) * dtype.itemsize}"
                )
            return raw.view(dtype.newbyteorder("<")).reshape(tuple(tensor.dims))
        return numpy_helper.to_array(self.filled(tensor))

    def filled(self, tensor: TensorProto) -> TensorProto:
        """A copy of ``tensor`` with its values inside."""
        copy = TensorProto()
        copy.CopyFrom(tensor)
        self.fill(copy)
        return copy

    def fill(self, tensor: TensorProto) -> None:
        """Take the values of ``tensor`` into its message."""
        if is_apart(tensor):
            raw = self.raw(tensor).tobytes()
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = raw

    def put(self, tensor: TensorProto, values: Array) -> None:
        """Let ``tensor`` hold ``values``, here where they are big, else in its message."""
        for name in (*_FIELDS, "external_data", "data_location"):
            tensor.ClearField(name)
        if values.nbytes < self.smallest:
            tensor.raw_data = np.asarray(values, order="C").tobytes()
        else:
            self._point(tensor, _bytes_of(values))

    def lift(self, tensor: TensorProto) -> None:
        """Take the values of ``tensor`` out of its message where they are big."""
        big = len(tensor.raw_data) >= self.smallest
        listed = prod(tensor.dims) >= self.smallest and is_plain(tensor)
        if is_apart(tensor) or not (big or (listed and not tensor.raw_data)):
            return
        if big:
            raw = np.frombuffer(tensor.raw_data, np.uint8)
        else:
            raw = _bytes_of(numpy_helper.to_array(tensor))
        if raw.nbytes == raw_size(tensor):
            for name in _FIELDS:
                tensor.ClearField(name)
            self._point(tensor, raw)

    def _point(self, tensor: TensorProto, raw: Bytes) -> None:
        key = self._keys.get((raw.__array_interface__["data"][0], raw.nbytes), "")
        if not key:
            number = len(self._arrays)
            while (key := f"{number}:0:{raw.nbytes}") in self._arrays:
                number += 1
            self.add(key, raw)
        refer(tensor, *key.rsplit(":", 2))

    def stored_size(self, tensor: TensorProto) -> int:
        """Bytes of ``tensor`` in its graph with its values inside, tag and length too."""
        if not is_apart(tensor):
            size = int(tensor.ByteSize())
        else:
            raw = int(self.raw(tensor).nbytes)
            size = int(bare(tensor).ByteSize()) + 1 + varint_size(raw) + raw
        return 1 + varint_size(size) + size

    def chunks(self, tensor: TensorProto) -> Iterator[memoryview]:
        """The bytes of a tensor of here, piece by piece."""
        raw = self.raw(tensor)
        for start in range(0, raw.nbytes, _CHUNK):
            yield raw[start : start + _CHUNK].data
            release_pages()


def bare(tensor: TensorProto) -> TensorProto:
    """A copy of a tensor whose values lie apart, without a word of where."""
    copy = TensorProto()
    copy.CopyFrom(tensor)
    copy.ClearField("external_data")
    copy.ClearField("data_location")
    return copy


def _bytes_of(values: Array) -> Bytes:
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8)


def tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor in a model: initializers, dense and sparse, and attributes, bodies included.

    Those of the outermost graph's ``initializer`` come first.
    """
    waiting = [proto.graph]
    nodes = [node for function in proto.functions for node in function.node]
    while waiting or nodes:
        if waiting:
            graph = waiting.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
        while nodes:
            for attribute in nodes.pop().attribute:
                yield from _of_attribute(attribute)
                waiting.extend(attribute.graphs)
                if attribute.HasField("g"):
                    waiting.append(attribute.g)


def _of_attribute(attribute: onnx.AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
    for found in (*sparse, *attribute.sparse_tensors):
        yield from (found.values, found.indices)


def varint_size(value: int) -> int:
    """Bytes of a number of protobuf's."""
    return max(1, -(-value.bit_length() // 7))


def place(tensor: TensorProto) -> str:
    """Where the values of ``tensor`` lie, as one text."""
    location, offset, length = (entry(tensor, key) for key in ("location", "offset", "length"))
    return f"{location}:{offset or 0}:{length or raw_size(tensor)}"


def refer(tensor: TensorProto, location: str, offset: str, length: str) -> None:
    """Let ``tensor`` say that its values lie there."""
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)


def _restored(smallest: int, arrays: Mapping[str, Bytes]) -> Weights:
    """A table that came from another process."""
    weights = Weights(smallest)
    for key, array in arrays.items():
        weights.add(key, array)
    return weights
