"""The encodings of a tensor with their exact bytes, and which one is taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxslim_tk.packing.chain import Chain, stored_size
from onnxslim_tk.packing.encode import Encoding, dense
from onnxslim_tk.packing.inspect import Inspection, inspect
from onnxslim_tk.packing.scopes import Names
from onnxslim_tk.packing.sparse import sparse
from onnxslim_tk.packing.tables import Tables

SMALLEST = 256
"""Below so many bytes no chain pays, and the runtime's checks of constant inputs stay happy."""

_WORTH = 0.97
"""A decode of more effort must be this much smaller than the best of less."""


@dataclass(frozen=True)
class Option:
    """An encoding of one tensor, the bytes of its chain, and the shared tables that it reads."""

    encoding: Encoding
    size: int
    tables: frozenset[str]


def encodings(facts: Inspection) -> Iterator[Encoding]:
    """Every encoding that may hold a tensor, under names of their own."""
    yield from dense(facts)
    if facts.alphabet is None or len(facts.alphabet.entries) > 1:
        yield from sparse(facts)


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
            yield Option(encoding, chain.size(), frozenset(needed))


def best(found: Sequence[Option], plain: int) -> Option | None:
    """Return the option to take instead of ``plain`` bytes, or None.

    The smallest one of the least effort, unless one of more effort is clearly smaller.
    """
    chosen, size = None, plain
    for option in sorted(found, key=lambda o: (o.encoding.effort, o.size)):
        dearer = chosen is not None and option.encoding.effort > chosen.encoding.effort
        # Against plain values even a quick decode is an effort, but a small one.
        if option.size < size * (_WORTH if dearer or option.encoding.effort else 1):
            chosen, size = option, option.size
    return chosen


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
    option = best(tuple(options(inspect(array), opset)), plain)
    return plain if option is None else option.size


def choose_tables(tensors: Sequence[tuple[int, Sequence[Option]]], opset: int) -> frozenset[str]:
    """Return the shared tables that pay, for tensors of so many plain bytes and these options.

    All of them at first; then, one by one, those go without which the file is smaller.
    """
    allowed = frozenset(key for _, found in tensors for option in found for key in option.tables)
    smallest, used = _outcome(tensors, allowed, opset)
    while used:
        fewer = [allowed - {key} for key in sorted(used)]
        outcomes = [_outcome(tensors, keys, opset) for keys in fewer]
        sizes = [size for size, _ in outcomes]
        if min(sizes) >= smallest:
            break
        smallest = min(sizes)
        allowed, used = fewer[sizes.index(smallest)], outcomes[sizes.index(smallest)][1]
    return allowed


def allowed_best(found: Sequence[Option], plain: int, allowed: frozenset[str]) -> Option | None:
    """Return the best option that makes do with the tables in ``allowed``."""
    return best([option for option in found if option.tables <= allowed], plain)


def _outcome(
    tensors: Sequence[tuple[int, Sequence[Option]]], allowed: frozenset[str], opset: int
) -> tuple[int, frozenset[str]]:
    """Return the bytes of all tensors and tables, and which tables are read."""
    total, used = 0, set[str]()
    for plain, found in tensors:
        option = allowed_best(found, plain, allowed)
        total += plain if option is None else option.size
        used.update(() if option is None else option.tables)
    tables = Tables(Names(set()), opset)
    for key in sorted(used):
        tables(key)
    return total + tables.chain.size(), frozenset(used)
