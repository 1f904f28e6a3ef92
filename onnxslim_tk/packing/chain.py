"""The chain of nodes that decodes a tensor, in the making, and the tables that chains share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxslim_tk.kernels.bits import bit_table
from onnxslim_tk.packing.scopes import Names

Pool = dict[tuple[str, tuple[int, ...], bytes], str]

_POOLED = 512


def stored_size(message: onnx.NodeProto | TensorProto) -> int:
    """Return the bytes that a node or an initializer takes in its graph, tag and length too."""
    size = int(message.ByteSize())
    return 1 + max(1, -(-size.bit_length() // 7)) + size


class Chain:
    """Nodes and initializers in the making, for one graph.

    ``table`` gives the name of a shared table by its key. Equal small constants are stored once
    for all the chains that share ``pool``.
    """

    def __init__(self, names: Names, pool: Pool, table: Callable[[str], str], opset: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.table = table
        self.opset = opset
        self._names = names
        self._pool = pool

    def size(self) -> int:
        """Return the bytes that the chain adds to its graph."""
        nodes = sum(stored_size(node) for node in self.nodes)
        return nodes + sum(stored_size(tensor) for tensor in self.initializers)

    def constant(self, array: NDArray[Any]) -> str:
        """Store ``array`` and return its name."""
        if array.nbytes > _POOLED:
            return self._store(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._pool:
            self._pool[key] = self._store(array)
        return self._pool[key]

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Append a node of one output and return the output's name."""
        output = self._names.new()
        self.nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def integers(self, values: NDArray[Any]) -> str:
        """Store ``values`` and return them as int32, the type of indices and sums."""
        return self.node("Cast", self.constant(values), to=TensorProto.INT32)

    def shaped(self, value: str, size: int, shape: tuple[int, ...]) -> str:
        """Bring a value of ``size`` elements, of which the last may be padding, into ``shape``."""
        wanted = int(np.prod(shape))
        if size == wanted:
            return self.node("Reshape", value, self.constant(np.array(shape, np.int64)))
        flat = self.node("Reshape", value, self.constant(np.array([-1], np.int64)))
        return self.cut(flat, 0, shape)

    def cut(self, flat: str, start: int, shape: tuple[int, ...]) -> str:
        """Take a tensor of ``shape`` out of a flat value, from the element ``start`` on."""
        stop = start + int(np.prod(shape))
        if self.opset < 10:
            part = self.node("Slice", flat, starts=[start], ends=[stop])
        else:
            bounds = [self.constant(np.array([at], np.int64)) for at in (start, stop)]
            part = self.node("Slice", flat, *bounds)
        return part if len(shape) == 1 else self.shaped(part, stop - start, shape)

    def finish(self, name: str) -> None:
        """Give the output of the last node its final name."""
        self.nodes[-1].output[0] = name

    def _store(self, array: NDArray[Any]) -> str:
        name = self._names.new()
        # np.asarray keeps the rank of a scalar, which np.ascontiguousarray doesn't.
        self.initializers.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name


class Tables:
    """The tables that decode chains share: one small table is stored, nodes derive the others.

    Keys and int32 shapes: ``bits4`` (256, 2), ``bits2`` (256, 4) and ``bits1`` (256, 8) hold the
    fields of every byte value; ``ranks`` (256, 8) holds at a set bit how many are set up to it,
    and a very negative number at others; ``counts`` (256, 1) how many are set.
    """

    def __init__(self, names: Names, opset: int) -> None:
        self.chain = Chain(names, {}, self, opset)
        self._made: dict[str, str] = {}

    def __call__(self, key: str) -> str:
        """Return the name of a table, made at its first use."""
        if key not in self._made:
            self._made[key] = _BUILDERS[key](self.chain)
        return self._made[key]

    def drop_unread(self, readers: Iterable[Chain]) -> None:
        """Take away what no chain reads in the end."""
        read = {name for chain in readers for node in chain.nodes for name in node.input}
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.chain.nodes):
            if node.output[0] in read:
                kept.insert(0, node)
                read.update(node.input)
        self.chain.nodes = kept
        self.chain.initializers = [t for t in self.chain.initializers if t.name in read]


def _nibbles(chain: Chain) -> str:
    return chain.integers(bit_table(4))


def _fields(width: int) -> Callable[[Chain], str]:
    def build(chain: Chain) -> str:
        # A byte's fields are those of its two nibbles, the lower one first.
        half = chain.integers(bit_table(width)[:16, : 4 // width])
        whole = chain.node("Gather", half, chain.table("bits4"))
        return chain.shaped(whole, 256 * 8 // width, (256, 8 // width))

    return build


def _sums(chain: Chain) -> str:
    return chain.node("CumSum", chain.table("bits1"), chain.constant(np.array(1, np.int64)))


def _ranks(chain: Chain) -> str:
    below = chain.node("Sub", chain.table("bits1"), chain.constant(np.array(1, np.int32)))
    far = chain.node("Mul", below, chain.constant(np.array(1 << 30, np.int32)))
    return chain.node("Add", far, chain.table("sums"))


def _counts(chain: Chain) -> str:
    return chain.node("Gather", chain.table("sums"), chain.constant(np.array([7])), axis=1)


_BUILDERS: dict[str, Callable[[Chain], str]] = {
    "bits4": _nibbles,
    "bits2": _fields(2),
    "bits1": _fields(1),
    "sums": _sums,
    "ranks": _ranks,
    "counts": _counts,
}
