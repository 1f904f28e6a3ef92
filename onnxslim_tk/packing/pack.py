"""Choice of the smallest encoding for every tensor of a model, and proof that nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from onnxslim_tk.graph.domains import STANDARD_DOMAINS
from onnxslim_tk.graph.mapped import release_pages
from onnxslim_tk.graph.weights import LARGEST, Weights
from onnxslim_tk.packing.alias import alias
from onnxslim_tk.packing.chain import Chain, Pool
from onnxslim_tk.packing.decode import decode
from onnxslim_tk.packing.inspect import bits, inspect
from onnxslim_tk.packing.operators import LIMIT, UndecodableError
from onnxslim_tk.packing.options import (
    SMALLEST,
    Option,
    choose,
    encodings,
    options,
)
from onnxslim_tk.packing.products import scale_products
from onnxslim_tk.packing.scopes import (
    Key,
    Names,
    Scope,
    opset_version,
    scopes,
    taken_names,
)
from onnxslim_tk.packing.tables import Tables

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

PLAIN = "plain"

# Quantized operators want constants as scales and zero points; their data may be a chain. What
# DequantizeLinear reads the runtime folds before it looks for integer kernels.
_PACKABLE_INPUTS = {
    "QuantizeLinear": (0,),
    "DequantizeLinear": (0, 1, 2),
    "QLinearConv": (0, 3, 8),
    "QLinearMatMul": (0, 3),
    "ConvInteger": (0, 1),
    "MatMulInteger": (0, 1),
}


@dataclass(frozen=True)
class PackedTensor:
    """One constant as `pack` found and left it, with its bytes in the file before and after.

    ``encoding`` is an encoding's name, ``plain`` for a tensor that stays as it is, ``alias`` for
    one that another stands for, ``product`` for one that a Mul of two others makes, or ``tables``
    for the tables that all decode chains share (nothing before). ``entropy`` is what the values
    alone, each coded by itself, take at least, in bytes; None where the values aren't few.
    """

    name: str
    encoding: str
    bytes_before: int
    bytes_after: int
    entropy: float | None = None


@dataclass(frozen=True, eq=False)
class _Target:
    scope: Scope
    tensor: TensorProto
    size: int
    options: tuple[Option, ...]
    entropy: float | None


def pack(model: onnx.ModelProto, weights: Weights | None = None) -> list[PackedTensor]:
    """Store the initializers of ``model`` in fewer bytes, in place, and say what was changed.

    Every tensor becomes, where that saves bytes, a short chain of standard nodes whose last
    output has the tensor's name; decoded, it gives the same bits. Initializers that are inputs or
    outputs of a graph, constants of integer operators and whatever a custom operator reads stay
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
    packed += [
        PackedTensor(p.name, "product", p.bytes_before, p.bytes_after)
        for p in scale_products(model, weights)
    ]
    found = scopes(model)
    targets = list(_targets(found, opset, weights))
    chosen = choose([(target.size, target.options) for target in targets], opset)
    names = Names(taken_names(model))
    tables = Tables(names, opset)
    chains: list[Chain] = []
    for scope in found:
        bench = _Bench(names, tables, opset, weights)
        for target, option in zip(targets, chosen, strict=True):
            if target.scope is not scope:
                continue
            name = PLAIN if option is None else option.name
            size = None if option is None else bench.encode(name, target.tensor)
            if size is None:
                name, size = PLAIN, target.size
            if name != PLAIN or target.entropy is not None:
                packed.append(
                    PackedTensor(target.tensor.name, name, target.size, size, target.entropy)
                )
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

    def encode(self, encoding: str, tensor: TensorProto) -> int | None:
        """Write the chain of ``tensor`` and return its bytes.

        None, and no chain, unless it is smaller than the tensor and decodes to the same bits.
        """
        array = self._weights.values(tensor)
        pool = dict(self._pool)
        chain = Chain(self._names, pool, self._tables, self._opset)
        found = next(e for e in encodings(inspect(array)) if e.name == encoding)
        if found.write(chain) is None:
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
        # Where tensors lie must not matter: those that a model was unpacked to lie last.
        for tensor in sorted(scope.graph.initializer, key=lambda tensor: tensor.name):
            if tensor.name in fixed or (scope, tensor.name) in kept:
                continue
            if tensor.data_type not in _TYPES or not weights.holds(tensor):
                continue
            array = weights.values(tensor)
            # The indices of a decode are int32, whatever the type of the tensor.
            if array.nbytes < SMALLEST or array.size * max(4, array.itemsize) >= LIMIT:
                continue
            facts = inspect(array)
            size = weights.stored_size(tensor)
            yield _Target(scope, tensor, size, tuple(options(facts, opset)), facts.entropy)
            release_pages()


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
