"""A model as files hold it, and as one file that is never put together in memory."""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import onnx
from onnx import TensorProto

from onnxslim_tk.errors import ModelError
from onnxslim_tk.graph.weights import LARGEST, Weights, bare, is_apart, place, tensors, varint_size

# Fields of protobuf by number: in a model, in its graph, in a tensor.
_GRAPH: Final = 7
_INITIALIZER: Final = 5
_RAW_DATA: Final = 9


class Stored:
    """A model as files hold it: its ONNX file, and the weights that lie in data files beside it.

    ``head`` is the content of the ONNX file, whose external data are in ``weights``. ``path`` is
    where the model lies; None where it lies nowhere yet. Of a model that is ``joined``, all is one
    file, and the weights are put into the head as they are written.
    """

    def __init__(
        self,
        head: bytes,
        weights: Weights | None = None,
        path: Path | None = None,
        joined: bool = False,
    ) -> None:
        self.head, self.path, self.joined = head, path, joined
        self.weights = Weights() if weights is None else weights

    def __len__(self) -> int:
        """Bytes of the ONNX file and of all weights beside it."""
        return self._length

    @cached_property
    def _length(self) -> int:
        return sum(map(len, self.pieces()))

    def __eq__(self, other: object) -> bool:
        """Whether two models are the same bytes."""
        if not isinstance(other, Stored):
            return NotImplemented
        return len(self) == len(other) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    @property
    def is_single(self) -> bool:
        """Whether the head is all of the model."""
        return not len(self.weights)

    def proto(self) -> onnx.ModelProto:
        """The ONNX file's message."""
        return onnx.ModelProto.FromString(self.head)

    def pieces(self) -> Iterator[bytes | memoryview]:
        """All bytes: those of the ONNX file, then each array's once, in the order of use."""
        if self.joined:
            yield from _spliced(self.proto(), self.weights)
            return
        yield self.head
        for tensor in self.apart():
            yield from self.weights.chunks(tensor)

    def apart(self) -> list[TensorProto]:
        """Tensors that lie outside the ONNX file, one for each array, in the order of use."""
        if self.is_single:
            return []
        found = [tensor for tensor in tensors(self.proto()) if is_apart(tensor)]
        return list({place(tensor): tensor for tensor in found}.values())

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of all bytes; that of the file where there is just one."""
        found = hashlib.sha256()
        for piece in self.pieces():
            found.update(piece)
        return found.hexdigest()


def joined(proto: onnx.ModelProto, weights: Weights) -> onnx.ModelProto:
    """``proto`` with all values inside, in place; raises ModelError where it takes over 2 GB."""
    size = joined_size(proto, weights)
    if size > LARGEST:
        raise ModelError(f"model: it takes {size} bytes, more than the 2 GB of one file")
    for tensor in proto.graph.initializer:
        weights.fill(tensor)
    return proto


def joined_size(proto: onnx.ModelProto, weights: Weights) -> int:
    """Bytes that ``proto`` takes with all values inside."""
    apart = [tensor for tensor in proto.graph.initializer if is_apart(tensor)]
    return int(proto.ByteSize()) + sum(
        weights.stored_size(tensor) - 1 - varint_size(tensor.ByteSize()) - tensor.ByteSize()
        for tensor in apart
    )


def _spliced(proto: onnx.ModelProto, weights: Weights) -> Iterator[bytes | memoryview]:
    """The bytes of ``proto`` with all values inside, as protobuf would write them, by and by."""
    before, after = _around(proto, _GRAPH)
    first, last = _around(proto.graph, _INITIALIZER)
    inside = sum(map(weights.stored_size, proto.graph.initializer))
    size = len(first) + inside + len(last)
    yield before + _opening(_GRAPH, size) + first
    for tensor in proto.graph.initializer:
        if not is_apart(tensor):
            data = bytes(tensor.SerializeToString(deterministic=True))
            yield _opening(_INITIALIZER, len(data)) + data
            continue
        raw = int(weights.raw(tensor).nbytes)
        name, rest = _around(bare(tensor), _RAW_DATA)
        name += _opening(_RAW_DATA, raw)
        yield _opening(_INITIALIZER, len(name) + raw + len(rest)) + name
        yield from weights.chunks(tensor)
        yield rest
    yield last + after


def _around(message: Any, number: int) -> tuple[bytes, bytes]:
    """What of a message stands before the field ``number``, and what behind it."""
    parts = []
    for is_part in (number.__gt__, number.__lt__):
        part = type(message)()
        part.CopyFrom(message)
        for descriptor, _ in message.ListFields():
            if not is_part(descriptor.number):
                part.ClearField(descriptor.name)
        parts.append(bytes(part.SerializeToString(deterministic=True)))
    return parts[0], parts[1]


def _opening(number: int, size: int) -> bytes:
    """The tag of a field of ``size`` bytes, and its length."""
    found = bytearray([number << 3 | 2])
    while size > 127:
        found.append(size & 127 | 128)
        size >>= 7
    return bytes([*found, size])
