"""The dense encodings: ways to store all values of a tensor as a chain that gives back their bits.

An encoding is made for one tensor; onnxruntime folds its chain when it loads a model. Sparse ones
are in `sparse`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxslim_tk.packing.chain import Chain
from onnxslim_tk.packing.inspect import Alphabet, Inspection, bits
from onnxslim_tk.packing.planes import Planes, choices, stream, write

_NARROWER: dict[str, tuple[type[np.generic], ...]] = {
    "float32": (np.float16,),
    "int32": (np.int8, np.uint8, np.int16, np.uint16),
    "int64": (np.int8, np.uint8, np.int16, np.uint16, np.int32),
}
_WIDTHS = range(2, 10)
"""Values in a row of a codebook: up to a whole 3x3 kernel."""

_SAMPLE = 1 << 12
_BLOCK = 1 << 20
_NODES = 100
"""Bytes that the nodes of a chain take, about."""


@dataclass(frozen=True)
class Encoding:
    """One way to store a certain tensor.

    ``write`` adds the chain and returns the name of the decoded value, or None where the tensor
    can't be held. ``load`` is the memory, about and in bytes, that decoding takes at load beside
    the result's own: the runtime keeps what every step gives until all is decoded. ``opset`` is
    the lowest version of the standard operators that has every operator and type of the chain.
    """

    name: str
    write: Callable[[Chain], str | None]
    load: int
    opset: int


def dense(facts: Inspection) -> Iterator[Encoding]:
    """The dense encodings of a tensor, as far as a quick look can tell."""
    symbols = facts.alphabet
    if symbols is not None and len(symbols.entries) == 1:
        yield Encoding("constant", partial(_constant, facts), 0, 9)
        return
    if symbols is not None and facts.array.itemsize > 1:
        yield from _coded(facts, symbols, "codes")
    elif symbols is not None:
        below = [p for p in choices(len(symbols.entries)) if p.width < 8]
        yield from (_planes(facts, symbols, planes, "codes") for planes in below)
    yield from _rows(facts)
    yield Encoding("narrow", partial(_narrow, facts), 0, 7)
    yield Encoding("narrow-24", partial(_three_bytes, facts), 3 * facts.array.nbytes, 7)
    yield Encoding("bfloat16", partial(_bfloat16, facts), 0, 13)
    yield Encoding("tail", partial(_tail, facts), facts.array.nbytes, 9)


def _coded(facts: Inspection, symbols: Alphabet, kind: str) -> Iterator[Encoding]:
    for planes in choices(len(symbols.entries)):
        yield _planes(facts, symbols, planes, kind)


def _planes(facts: Inspection, symbols: Alphabet, planes: Planes, kind: str) -> Encoding:
    def encode(chain: Chain) -> str:
        value, size = write(chain, symbols, planes)
        return chain.shaped(value, size * symbols.entries.shape[1], facts.array.shape)

    width = symbols.entries.shape[1]
    load = planes.load(symbols.size, facts.array.itemsize * width)
    return Encoding(f"{kind}-{planes}", encode, load, 7)


def _rows(facts: Inspection) -> Iterator[Encoding]:
    """Codebooks of rows of consecutive values, where they can be smaller than those of one."""
    itemsize, values = facts.array.itemsize, facts.array.size
    smallest = values * itemsize
    if facts.alphabet is not None:
        single = choices(len(facts.alphabet.entries))
        smallest = min(smallest, *(planes.data_size(values) for planes in single))

    def total(width: int, count: int, size: int) -> int:
        planes = min(planes.data_size(size) for planes in choices(count))
        return planes + count * width * itemsize + _NODES

    for width in _WIDTHS:

        def pays(count: int, size: int, width: int = width, below: int = smallest) -> bool:
            return total(width, count, size) < below

        found = facts.rows(width, pays)
        if found is not None:
            smallest = min(smallest, total(width, len(found.entries), found.size))
            yield from _coded(facts, found, f"rows-{width}")


def _constant(facts: Inspection, chain: Chain) -> str:
    """All values equal: the shape and one value."""
    return chain.filled(facts.array.shape, facts.background)


def _narrow(facts: Inspection, chain: Chain) -> str | None:
    """Every value exact in a narrower type of the same kind."""
    array = facts.array
    types = [np.dtype(scalar) for scalar in _NARROWER.get(array.dtype.name, ())]
    dtype = next((d for d in types if _exact(facts, d)), None)
    if dtype is None:
        return None
    return _cast(chain, chain.data(array.shape, dtype, lambda: array.astype(dtype)), array)


def _three_bytes(facts: Inspection, chain: Chain) -> str | None:
    """Integers of at most 24 bits: the lowest byte of each apart from the two above it."""
    array = facts.array
    if array.dtype.name not in ("int32", "int64"):
        return None
    if array.min() < -(1 << 23) or array.max() >= 1 << 23:
        return None
    high = chain.data(array.shape, np.dtype(np.int16), lambda: (array >> 8).astype(np.int16))
    low = chain.data(array.shape, np.dtype(np.uint8), lambda: (array & 255).astype(np.uint8))
    factor = chain.constant(np.array(256, array.dtype))
    shifted = chain.node("Mul", _cast(chain, high, array), factor)
    return chain.node("Add", shifted, _cast(chain, low, array))


def _bfloat16(facts: Inspection, chain: Chain) -> str | None:
    """Every float exact in the upper half of its bits."""
    dtype = np.dtype(ml_dtypes.bfloat16)
    array = facts.array
    if array.dtype != np.float32 or not _exact(facts, dtype):
        return None
    return _cast(chain, chain.data(array.shape, dtype, lambda: array.astype(dtype)), array)


def _tail(facts: Inspection, chain: Chain) -> str | None:
    """Nothing but zero bits from some place of the second axis on: what comes before, and zeros."""
    array = facts.array
    if array.ndim < 2 or not array.size or bits(array[:, -1]).any():
        return None
    columns = bits(np.ascontiguousarray(np.moveaxis(array, 1, 0))).reshape(array.shape[1], -1)
    used = np.flatnonzero(columns.any(axis=1))
    if not used.size:
        return None
    count = int(used[-1]) + 1
    head = np.ascontiguousarray(array[:, :count])
    values, size = _flat(chain, Inspection(head))
    shape = (array.shape[0], array.shape[1] - count, *array.shape[2:])
    zeros = chain.filled(shape, np.zeros(1, array.dtype))
    return chain.node("Concat", chain.shaped(values, size, head.shape), zeros, axis=1)


def _flat(chain: Chain, facts: Inspection) -> tuple[str, int]:
    if facts.alphabet is not None:
        return stream(chain, facts.alphabet)
    flat = facts.array.reshape(-1)
    return chain.data(flat.shape, flat.dtype, lambda: flat), flat.size


def _cast(chain: Chain, stored: str, like: NDArray[Any]) -> str:
    to: TensorProto.DataType = helper.np_dtype_to_tensor_dtype(like.dtype)
    return chain.node("Cast", stored, to=to)


def _exact(facts: Inspection, dtype: np.dtype[Any]) -> bool:
    if facts.alphabet is not None:
        return _survives(facts.alphabet.entries, dtype)
    few = facts.array.reshape(-1)[:_SAMPLE]
    return _survives(few, dtype) and _survives(facts.array, dtype)


def _survives(array: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    flat = array.reshape(-1)
    with np.errstate(over="ignore"):
        for first in range(0, flat.size, _BLOCK):
            part = flat[first : first + _BLOCK]
            # Whether a cast keeps the payload of a NaN is up to the hardware.
            if part.dtype.kind == "f" and not np.isfinite(part).all():
                return False
            if not np.array_equal(bits(part), bits(part.astype(dtype).astype(part.dtype))):
                return False
    return True
