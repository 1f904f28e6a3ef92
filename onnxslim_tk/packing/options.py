"""The encodings of a tensor with their exact bytes, and which one is taken for what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxslim_tk.packing.books import books
from onnxslim_tk.packing.chain import Chain, stored_size
from onnxslim_tk.packing.encode import Encoding, dense
from onnxslim_tk.packing.escapes import escapes
from onnxslim_tk.packing.inspect import Inspection, inspect
from onnxslim_tk.packing.scopes import Names
from onnxslim_tk.packing.sparse import sparse
from onnxslim_tk.packing.tables import Tables

SMALLEST = 256
"""Below so many bytes no chain pays, and the runtime's checks of constant inputs stay happy."""

_WORTH = 128.0
"""A byte less in the file is worth so many bytes more for a while at load."""

_FREE = 8 << 20
"""Bytes at load that nobody minds: they are spent on smaller encodings, whatever these save."""

Tensor = tuple[int, Sequence["Option"]]
"""The bytes of a tensor as it is, and what it can be stored as."""


@dataclass(frozen=True)
class Option:
    """An encoding of one tensor by name, the bytes of its chain, and the shared tables it reads.

    ``load`` is that of the encoding, which itself would keep all codes of the tensor in memory.
    """

    name: str
    load: int
    size: int
    tables: frozenset[str]

    def price(self, worth: float) -> float:
        """Bytes of the chain, and those that its decoding is worth."""
        return self.size + self.load / worth


@dataclass(frozen=True)
class _Choice:
    """What tensors may be stored as: with these tables, at this worth of a byte."""

    tables: frozenset[str]
    worth: float

    def best(self, tensor: Tensor) -> Option | None:
        """Return the option to take, or None for the tensor as it is: the smallest for its load."""
        plain, found = tensor
        return min(
            (o for o in found if o.tables <= self.tables and o.price(self.worth) < plain),
            key=lambda option: (option.price(self.worth), option.size),
            default=None,
        )


def encodings(facts: Inspection) -> Iterator[Encoding]:
    """Every encoding that may hold a tensor, under names of their own."""
    yield from dense(facts)
    if facts.alphabet is None or len(facts.alphabet.entries) > 1:
        yield from sparse(facts)
        yield from escapes(facts)
        yield from books(facts)


def options(facts: Inspection, opset: int) -> Iterator[Option]:
    """Yield what a tensor can be stored as in a model of this operator set."""
    for encoding in encodings(facts):
        if encoding.opset > opset:
            continue
        needed: set[str] = set()

        def table(key: str, needed: set[str] = needed) -> str:
            needed.add(key)
            return "xx"

        # Names of two letters, as nearly all of the real ones will have at most.
        chain = Chain(Names(set(), 2), {}, table, opset, dry=True)
        if encoding.write(chain) is not None:
            yield Option(encoding.name, encoding.load, chain.size(), frozenset(needed))


def packed_bytes(values: NDArray[Any], opset: int = 17) -> int:
    """Return the bytes that a constant of these values takes in a packed file.

    Tables that all tensors of a model share are not counted, aliases of other tensors not seen.
    """
    array = np.ascontiguousarray(values)
    kind: TensorProto.DataType = helper.np_dtype_to_tensor_dtype(array.dtype)
    bare = TensorProto(name="ww", data_type=kind, dims=np.shape(values))
    plain = stored_size(bare, array.nbytes)
    if array.nbytes < SMALLEST:
        return plain
    found = tuple(options(inspect(array), opset))
    tables = frozenset(key for option in found for key in option.tables)
    option = _Choice(tables, _WORTH).best((plain, found))
    return plain if option is None else option.size


def choose(tensors: Sequence[Tensor], opset: int) -> list[Option | None]:
    """Choose for each tensor of a model; None leaves it as it is.

    The smallest of all where decoding them is what nobody minds at load. Else what is smallest for
    its load, and what is left of that is spent where a byte less costs least.
    """
    small = _with_tables(tensors, inf, opset)
    smallest = [small.best(tensor) for tensor in tensors]
    if sum(option.load for option in smallest if option is not None) <= _FREE:
        return smallest
    quick = _with_tables(tensors, _WORTH, opset)
    taken = [quick.best(tensor) for tensor in tensors]
    gains: list[tuple[float, int, int, Option]] = []
    for index, tensor in enumerate(tensors):
        size, load = _cost(tensor, taken[index])
        for option in tensor[1]:
            if option.size < size and option.tables <= small.tables:
                more = option.load - load
                gains.append((more / (size - option.size), index, more, option))
    upgraded, left, done = list(taken), _FREE, set[int]()
    for _, index, more, option in sorted(gains, key=lambda gain: gain[:3]):
        if more <= left and index not in done:
            upgraded[index] = option
            done.add(index)
            left -= more
    return min(upgraded, taken, key=lambda options: _file_bytes(tensors, options, opset))


def _cost(tensor: Tensor, option: Option | None) -> tuple[int, int]:
    """Return the bytes in the file and those at load."""
    return (tensor[0], 0) if option is None else (option.size, option.load)


def _file_bytes(tensors: Sequence[Tensor], taken: Sequence[Option | None], opset: int) -> int:
    sizes = (_cost(tensor, option)[0] for tensor, option in zip(tensors, taken, strict=True))
    used = {key for option in taken if option is not None for key in option.tables}
    return sum(sizes) + _tables_size(used, opset)


def _tables_size(keys: Iterable[str], opset: int) -> int:
    tables = Tables(Names(set()), opset)
    for key in sorted(keys):
        tables(key)
    return tables.chain.size()


def _with_tables(tensors: Sequence[Tensor], worth: float, opset: int) -> _Choice:
    """Return the tables that pay: all at first, then those go without which the file is smaller."""
    every = frozenset(key for _, found in tensors for option in found for key in option.tables)
    choice = _Choice(every, worth)
    smallest, used = _outcome(tensors, choice, opset)
    while used:
        fewer = [_Choice(choice.tables - {key}, worth) for key in sorted(used)]
        outcomes = [_outcome(tensors, other, opset) for other in fewer]
        sizes = [size for size, _ in outcomes]
        if min(sizes) >= smallest:
            break
        smallest = min(sizes)
        choice, used = fewer[sizes.index(smallest)], outcomes[sizes.index(smallest)][1]
    return choice


def _outcome(
    tensors: Sequence[Tensor], choice: _Choice, opset: int
) -> tuple[float, frozenset[str]]:
    """Return the price of all tensors and tables, and which tables are read."""
    total, used = 0.0, set[str]()
    for tensor in tensors:
        option = choice.best(tensor)
        total += tensor[0] if option is None else option.price(choice.worth)
        used.update(() if option is None else option.tables)
    return total + _tables_size(used, opset), frozenset(used)
