"""Choice of the smallest encoding for every tensor of a model, and proof that nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from onnxslim_tk.graph.weights import LARGEST, Weights
from onnxslim_tk.packing.alias import alias
from onnxslim_tk.packing.chain import Chain, Pool, Tables, stored_size
from onnxslim_tk.packing.decode import decode
from onnxslim_tk.packing.encode import ENCODINGS, Encoding
from onnxslim_tk.packing.inspect import bits, inspect
from onnxslim_tk.packing.operators import LIMIT, UndecodableError
from onnxslim_tk.packing.scopes import (
    STANDARD_DOMAINS,
    Key,
    Names,
    Scope,
    opset_version,
    scopes,
    taken_names,
)

_TYPES = frozenset(
    (
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.INT8,
        TensorProto.UINT8,
        TensorProto.INT32,
        TensorProto.INT64,
    )
)
_SMALLEST = 256
"""Below so many bytes no chain pays, and the runtime's checks of constant inputs stay happy."""

_WORTH = 0.95
"""A slow decode must be this much smaller than the best quick one."""

# Quantized operators want constants as scales and zero points; their data may be a chain.
_PACKABLE_INPUTS = {
    "QuantizeLinear": (0,),
    "DequantizeLinear": (0,),
    "QLinearConv": (0, 3, 8),
    "QLinearMatMul": (0, 3),
    "ConvInteger": (0, 1),
    "MatMulInteger": (0, 1),
}


@dataclass(frozen=True)
class PackedTensor:
    """One thing that `pack` changed, with the bytes it took in the file before and after.

    ``encoding`` is an encoding's name, ``alias`` for a tensor that another one stands for, or
    ``tables`` for the tables that all decode chains share (nothing before).
    """

    name: str
    encoding: str
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class _Option:
    encoding: Encoding
    size: int
    tables: frozenset[str]


@dataclass(frozen=True, eq=False)
class _Target:
    scope: Scope
    tensor: TensorProto
    size: int
    options: tuple[_Option, ...]

    def best(self, tables: frozenset[str]) -> _Option | None:
        """Return the best option that makes do with ``tables``, or None to leave the tensor."""
        return _best([o for o in self.options if o.tables <= tables], self.size)


def _best(options: Sequence[_Option], plain: int) -> _Option | None:
    """Return the option to take instead of ``plain`` bytes, or None."""
    best, size = None, plain
    for option in options:
        if option.encoding.cheap and option.size < size:
            best, size = option, option.size
    slow = min((o for o in options if not o.encoding.cheap), key=lambda o: o.size, default=None)
    return slow if slow is not None and slow.size <= _WORTH * size else best


def packed_bytes(values: NDArray[Any], opset: int = 17) -> int:
    """Return the bytes that a constant of these values takes in a packed file.

    Tables that all tensors of a model share are not counted, aliases of other tensors not seen.
    """
    array = np.ascontiguousarray(values)
    if array.nbytes < _SMALLEST:
        return stored_size(numpy_helper.from_array(array, "ww"))
    beside, tensor = Weights(), numpy_helper.from_array(array[:0], "ww")
    tensor.dims[:] = array.shape
    beside.put(tensor, array)
    plain = beside.stored_size(tensor)
    option = _best(tuple(_options(array, opset)), plain)
    return plain if option is None else option.size


def pack(model: onnx.ModelProto, weights: Weights | None = None) -> list[PackedTensor]:
    """Store the initializers of ``model`` in fewer bytes, in place, and say what was changed.

    Every tensor becomes, where that saves bytes, a short chain of standard nodes whose last
    output has the tensor's name; decoded, it gives the same bits. Initializers that are inputs or
    outputs of a graph, constants of quantized operators and whatever a custom operator reads stay
    as they are, and so does a model of IR version 3 or opset 6 and below. ``weights`` holds the
    values that lie outside the message.
    """
    weights = Weights(LARGEST) if weights is None else weights
    opset = opset_version(model)
    if opset < 7 or model.ir_version < 4:
        return []
    packed = [
        PackedTensor(m.name, "alias", m.bytes_before, m.bytes_after) for m in alias(model, weights)
    ]
    found = scopes(model)
    targets = list(_targets(found, opset, weights))
    allowed = _choose_tables(targets, opset)
    names = Names(taken_names(model))
    tables = Tables(names, opset)
    chains: list[Chain] = []
    for scope in found:
        bench = _Bench(names, tables, opset, weights)
        for target in (t for t in targets if t.scope is scope):
            option = target.best(allowed)
            size = None if option is None else bench.encode(option.encoding, target.tensor)
            if option is not None and size is not None:
                name = target.tensor.name
                packed.append(PackedTensor(name, option.encoding.name, target.size, size))
        _replace(scope, bench.done, bench.chains)
        chains += bench.chains
    tables.drop_unread(chains)
    if tables.chain.nodes:
        _replace(found[0], set(), [tables.chain])
        shared = tables.chain.initializers[0].name
        packed.append(PackedTensor(shared, "tables", 0, tables.chain.size()))
    return packed


class _Bench:
    """Writes and proves the chains of one graph."""

    def __init__(self, names: Names, tables: Tables, opset: int, weights: Weights) -> None:
        self.chains: list[Chain] = []
        self.done: set[str] = set()
        self._names = names
        self._tables = tables
        self._opset = opset
        self._weights = weights
        self._pool: Pool = {}
        self._stored: dict[str, TensorProto] = {}

    def encode(self, encoding: Encoding, tensor: TensorProto) -> int | None:
        """Write the chain of ``tensor`` and return its bytes.

        None, and no chain, unless it is smaller than the tensor and decodes to the same bits.
        """
        array = self._weights.values(tensor)
        pool = dict(self._pool)
        chain = Chain(self._names, pool, self._tables, self._opset)
        if encoding.encode(inspect(array), chain) is None:
            return None
        chain.finish(tensor.name)
        plain = self._weights.stored_size(tensor)
        if chain.size() >= plain or not self._is_proven(chain, tensor.name, array):
            return None
        self._pool = pool
        self._stored.update((t.name, t) for t in chain.initializers)
        self.chains.append(chain)
        self.done.add(tensor.name)
        return chain.size()

    def _is_proven(self, chain: Chain, name: str, array: NDArray[Any]) -> bool:
        shared = self._tables.chain
        parts = (*shared.initializers, *chain.initializers)
        stored = self._stored | {t.name: t for t in parts}
        try:
            decoded = decode([*shared.nodes, *chain.nodes], stored, name)
        except UndecodableError:
            return False
        same_kind = decoded.dtype == array.dtype and decoded.shape == array.shape
        return same_kind and np.array_equal(bits(decoded), bits(array))


def _targets(found: list[Scope], opset: int, weights: Weights) -> Iterator[_Target]:
    kept = _unpackable(found)
    for scope in found:
        fixed = scope.interface()
        for tensor in scope.graph.initializer:
            if tensor.name in fixed or (scope, tensor.name) in kept:
                continue
            if tensor.data_type not in _TYPES or not weights.holds(tensor):
                continue
            array = weights.values(tensor)
            # The indices of a decode are int32, whatever the type of the tensor.
            if array.nbytes < _SMALLEST or array.size * max(4, array.itemsize) >= LIMIT:
                continue
            yield _Target(scope, tensor, weights.stored_size(tensor), tuple(_options(array, opset)))


def _unpackable(found: list[Scope]) -> set[Key]:
    """Return the values that some consumer wants as a stored constant."""
    kept: set[Key] = set()
    for scope in found:
        for node in scope.graph.node:
            standard = node.domain in STANDARD_DOMAINS
            allowed = _PACKABLE_INPUTS.get(node.op_type) if standard else ()
            for position, name in enumerate(node.input):
                owner = scope.owner(name)
                if owner is not None and allowed is not None and position not in allowed:
                    kept.add((owner, name))
    return kept


def _options(array: NDArray[Any], opset: int) -> Iterator[_Option]:
    facts = inspect(array)
    for encoding in ENCODINGS:
        if encoding.opset > opset:
            continue
        needed: set[str] = set()

        def table(key: str, needed: set[str] = needed) -> str:
            needed.add(key)
            return "xx"

        # Names of two letters, as nearly all of the real ones will have at most.
        chain = Chain(Names(set(), 2), {}, table, opset)
        if encoding.encode(facts, chain) is not None:
            yield _Option(encoding, chain.size(), frozenset(needed))


def _choose_tables(targets: list[_Target], opset: int) -> frozenset[str]:
    """Return the shared tables that pay: those with which the whole file is smallest."""
    keys = sorted({key for t in targets for o in t.options for key in o.tables})
    best, smallest = frozenset[str](), -1
    for count in range(len(keys) + 1):
        for chosen in combinations(keys, count):
            allowed = frozenset(chosen)
            total = _size_of_tables(allowed, opset)
            for target in targets:
                option = target.best(allowed)
                total += target.size if option is None else option.size
            if smallest < 0 or total < smallest:
                best, smallest = allowed, total
    return best


def _size_of_tables(keys: frozenset[str], opset: int) -> int:
    tables = Tables(Names(set()), opset)
    for key in sorted(keys):
        tables(key)
    return tables.chain.size()


def _replace(scope: Scope, gone: set[str], chains: list[Chain]) -> None:
    """Put chains in front of a graph's nodes and take away the initializers they stand for."""
    graph = scope.graph
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name in gone:
            del graph.initializer[index]
    for chain in chains:
        graph.initializer.extend(chain.initializers)
    # One by one: to assign the whole list would copy the bodies that scopes point at.
    for position, node in enumerate(node for chain in chains for node in chain.nodes):
        graph.node.insert(position, node)
