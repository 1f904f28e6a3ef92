"""The chain of nodes that decodes a tensor, in the making."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxslim_tk.graph.weights import varint_size
from onnxslim_tk.packing.scopes import Names

Pool = dict[tuple[str, tuple[int, ...], bytes], str]

_POOLED = 512


def stored_size(message: onnx.NodeProto | TensorProto, raw: int = 0) -> int:
    """Return the bytes that a node or an initializer takes in its graph, tag and length too.

    ``raw`` bytes of data are counted as if they were in the message.
    """
    size = int(message.ByteSize()) + (1 + varint_size(raw) + raw if raw else 0)
    return 1 + varint_size(size) + size


class Chain:
    """Nodes and initializers in the making, for one graph.

    ``table`` gives the name of a shared table by its key. Equal small constants are stored once
    for all the chains that share ``pool``. A ``dry`` chain only counts its bytes: data that take
    work to make are never made.
    """

    def __init__(
        self, names: Names, pool: Pool, table: Callable[[str], str], opset: int, dry: bool = False
    ) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.table = table
        self.opset = opset
        self._names = names
        self._pool = pool
        self._dry = dry
        self._unmade = 0

    def size(self) -> int:
        """Return the bytes that the chain adds to its graph."""
        nodes = sum(stored_size(node) for node in self.nodes)
        return self._unmade + nodes + sum(stored_size(tensor) for tensor in self.initializers)

    def constant(self, array: NDArray[Any]) -> str:
        """Store ``array`` and return its name."""
        if array.nbytes > _POOLED:
            return self._store(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._pool:
            self._pool[key] = self._store(array)
        return self._pool[key]

    def data(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], make: Callable[[], NDArray[Any]]
    ) -> str:
        """Store the array of this shape and type that ``make`` gives, and return its name."""
        if not self._dry:
            return self.constant(make())
        kind: TensorProto.DataType = helper.np_dtype_to_tensor_dtype(dtype)
        bare = TensorProto(name=self._names.new(), data_type=kind, dims=shape)
        self._unmade += stored_size(bare, prod(shape) * dtype.itemsize)
        return str(bare.name)

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Append a node of one output and return the output's name."""
        output = self._names.new()
        self.nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def as_integers(self, stored: str) -> str:
        """Bring a stored value to int32, the type of indices and sums."""
        return self.node("Cast", stored, to=TensorProto.INT32)

    def flat(self, value: str) -> str:
        """Bring a value to one dimension."""
        return self.node("Reshape", value, self.constant(np.array([-1], np.int64)))

    def shaped(self, value: str, size: int, shape: tuple[int, ...]) -> str:
        """Bring a value of ``size`` elements, of which the last may be padding, into ``shape``."""
        if size == prod(shape):
            return self.node("Reshape", value, self.constant(np.array(shape, np.int64)))
        part = self.cut(self.flat(value), (0,), (prod(shape),))
        return part if len(shape) == 1 else self.shaped(part, prod(shape), shape)

    def cut(self, value: str, start: tuple[int, ...], shape: tuple[int, ...]) -> str:
        """Take a tensor of ``shape`` out of a value, from the element ``start`` on."""
        stop = tuple(first + length for first, length in zip(start, shape, strict=True))
        if self.opset < 10:
            return self.node("Slice", value, starts=start, ends=stop)
        bounds = [self.constant(np.array(at, np.int64)) for at in (start, stop)]
        return self.node("Slice", value, *bounds)

    def filled(self, shape: tuple[int, ...], value: NDArray[Any]) -> str:
        """Make a tensor of ``shape`` all of whose elements are the one of ``value``."""
        dims = self.constant(np.array(shape, np.int64))
        return self.node("ConstantOfShape", dims, value=numpy_helper.from_array(value))

    def finish(self, name: str) -> None:
        """Give the output of the last node its final name."""
        self.nodes[-1].output[0] = name

    def _store(self, array: NDArray[Any]) -> str:
        name = self._names.new()
        # np.asarray keeps the rank of a scalar, which np.ascontiguousarray doesn't.
        self.initializers.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name
