"""Tensors of the same bits are stored once, and whoever reads a copy reads the first instead."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx
from onnx import TensorProto, numpy_helper

from onnxslim_tk.graph.mapped import release_pages
from onnxslim_tk.graph.weights import LARGEST, Weights, is_apart
from onnxslim_tk.packing.scopes import Scope, scopes

_WEIGHT = 256
"""Smaller tensors stay in their graph: there, shape inference needs their values."""


@dataclass(frozen=True)
class Merged:
    """A tensor that ``alias`` took away, and the bytes of its entry and names before and after."""

    name: str
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, eq=False)
class _Copy:
    scope: Scope
    tensor: TensorProto


def alias(model: onnx.ModelProto, weights: Weights | None = None) -> list[Merged]:
    """Merge equal initializers, in place, where that saves bytes.

    Equal tensors of one graph become the first of them. Weights (256 bytes and more) do so across
    graphs too: the first one moves to the innermost graph around all of its copies. Initializers
    that are also inputs or outputs of a graph stay, and so do names that several graphs define.
    ``weights`` holds the values that lie outside the message.
    """
    weights = Weights(LARGEST) if weights is None else weights
    found = scopes(model)
    slots = _slots(found)
    merged: list[Merged] = []
    gone: set[str] = set()
    for copies in _copies(found, weights):
        first = copies[0]
        stays = first.tensor.name.encode()
        dropped: list[Scope] = []
        for copy in copies[1:]:
            name = copy.tensor.name
            readers = slots.get(name, [])
            before = weights.stored_size(copy.tensor) + len(readers) * len(name.encode())
            after = len(readers) * len(stays)
            if after >= before:
                continue
            for node, position in readers:
                node.input[position] = first.tensor.name
            merged.append(Merged(name, before, after))
            gone.add(name)
            dropped.append(copy.scope)
        home = _common(first.scope, dropped)
        if home is not first.scope:
            home.graph.initializer.add().CopyFrom(first.tensor)
            _remove(first.scope, {first.tensor.name})
    for scope in found:
        _remove(scope, gone & scope.defined)
    return merged


def _copies(found: list[Scope], weights: Weights) -> Iterator[list[_Copy]]:
    """Yield the groups of two and more equal tensors, each in the order of the model."""
    counts = Counter(name for scope in found for name in scope.defined)
    fixed = {name for scope in found for name in scope.interface()}
    fixed.update(a.tensor_name for scope in found for a in scope.graph.quantization_annotation)
    groups: dict[tuple[Scope, bytes], list[_Copy]] = {}
    for scope in found:
        for tensor in scope.graph.initializer:
            if tensor.name in fixed or counts[tensor.name] > 1:
                continue
            if tensor.data_type == TensorProto.STRING or not weights.holds(tensor):
                continue
            data = _data(tensor, weights)
            header = f"{tensor.data_type} {list(tensor.dims)} ".encode()
            reach = scope if len(data) < _WEIGHT else found[0]
            found_bits = hashlib.sha256(header)
            found_bits.update(data)
            key = (reach, found_bits.digest())
            groups.setdefault(key, []).append(_Copy(scope, tensor))
            release_pages()
    return (copies for copies in groups.values() if len(copies) > 1)


def _data(tensor: TensorProto, weights: Weights) -> memoryview:
    if is_apart(tensor):
        return weights.raw(tensor).data
    return memoryview(tensor.raw_data or numpy_helper.to_array(tensor).tobytes())


def _slots(found: list[Scope]) -> dict[str, list[tuple[onnx.NodeProto, int]]]:
    slots: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for scope in found:
        for node in scope.graph.node:
            for position, name in enumerate(node.input):
                slots.setdefault(name, []).append((node, position))
    return slots


def _common(scope: Scope, others: Iterable[Scope]) -> Scope:
    """Return the innermost graph that holds ``scope`` and ``others``."""
    around = _around(scope)
    for other in others:
        inner = set(_around(other))
        around = [outer for outer in around if outer in inner]
    return around[0]


def _around(scope: Scope) -> list[Scope]:
    chain = [scope]
    while (outer := chain[-1].parent) is not None:
        chain.append(outer)
    return chain


def _remove(scope: Scope, names: set[str]) -> None:
    for entries in (scope.graph.initializer, scope.graph.value_info):
        for index in reversed(range(len(entries))):
            if entries[index].name in names:
                del entries[index]
