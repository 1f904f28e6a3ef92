"""The encodings: ways to store a tensor in fewer bytes as a chain that decodes it bit for bit.

Each encoding is one function from what `inspect` found to the name of the decoded value, written
into a `Chain`; it returns None for a tensor that it can't hold. onnxruntime folds all these chains
when it loads a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxslim_tk.kernels.bits import pack_bits
from onnxslim_tk.packing.chain import Chain
from onnxslim_tk.packing.inspect import Inspection, bits

_NARROWER: dict[str, tuple[np.dtype[Any], ...]] = {
    "float32": (np.dtype(np.float16),),
    "int32": (np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int16)),
    "int64": (np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int16), np.dtype(np.int32)),
}

_BLOCK = 1 << 20
_SPARSE = 0.9
"""A tensor that keeps a larger part of its values than this is stored densely."""


@dataclass(frozen=True)
class Encoding:
    """One way to store a tensor.

    ``encode`` writes the chain. ``cheap`` says that decoding costs little at load; ``opset`` is
    the lowest version of the standard operators that has every operator and type of the chain.
    """

    name: str
    encode: Callable[[Inspection, Chain], str | None]
    cheap: bool
    opset: int


def constant(facts: Inspection, chain: Chain) -> str | None:
    """All values equal: the shape and one value."""
    if facts.kept.any():
        return None
    return _filled(chain, facts.array.shape, facts.background)


def narrow(facts: Inspection, chain: Chain) -> str | None:
    """Every value exact in a narrower type of the same kind."""
    array = facts.array
    for dtype in _NARROWER.get(array.dtype.name, ()):
        if _exact(array, dtype):
            return _cast(chain, array.astype(dtype), array.dtype)
    return None


def bfloat16(facts: Inspection, chain: Chain) -> str | None:
    """Every float exact in the upper half of its bits."""
    dtype = np.dtype(ml_dtypes.bfloat16)
    if facts.array.dtype != np.float32 or not _exact(facts.array, dtype):
        return None
    return _cast(chain, facts.array.astype(dtype), facts.array.dtype)


def codes(facts: Inspection, chain: Chain, width: int) -> str | None:
    """At most 2, 4 or 16 distinct values: codes of ``width`` bits, read a byte at a time."""
    book = facts.codebooks.get(1)
    if book is None or len(book.entries) > 1 << width:
        return None
    value, size = _unpacked(chain, book.codes, book.entries[:, 0], width)
    return chain.shaped(value, size, facts.array.shape)


def vectors(facts: Inspection, chain: Chain, width: int) -> str | None:
    """At most 256 distinct groups of ``width`` values: a uint8 code for each group."""
    book = facts.codebooks.get(width)
    if book is None or width * facts.array.itemsize == 1:
        return None
    shape = facts.array.shape
    if width == 1:
        index = chain.integers(book.codes.reshape(shape))
        return chain.node("Gather", chain.constant(book.entries[:, 0]), index)
    groups = chain.node("Gather", chain.constant(book.entries), chain.integers(book.codes))
    return chain.shaped(groups, facts.array.size, shape)


def bitmask(facts: Inspection, chain: Chain) -> str | None:
    """One bit says whether a value differs from the background; those that do follow in order."""
    kept = facts.kept
    if not 0 < np.count_nonzero(kept) < _SPARSE * kept.size:
        return None
    values, _ = _stream(chain, facts.array.reshape(-1)[kept])
    with_background = chain.node("Concat", chain.constant(facts.background), values, axis=0)
    mask = pack_bits(kept, 1)
    read = chain.integers(mask)
    zero = np.array(0, np.int64)
    counts = chain.node("Gather", chain.table("counts"), read)
    before = chain.node("CumSum", counts, chain.constant(zero), exclusive=1)
    ranks = chain.node("Gather", chain.table("ranks"), read)
    index = chain.node("Add", ranks, before)
    index = chain.node("Max", index, chain.constant(np.array(0, np.int32)))
    dense = chain.node("Gather", with_background, index)
    return chain.shaped(dense, 8 * mask.size, facts.array.shape)


def gaps(facts: Inspection, chain: Chain, width: int) -> str | None:
    """The distance from each value that differs from the background to the next, and the values.

    A distance beyond what ``width`` bits hold is bridged with entries of background.
    """
    size = facts.kept.size
    if not 0 < np.count_nonzero(facts.kept) < _SPARSE * size / 2:
        return None
    positions = np.flatnonzero(facts.kept)
    longest = 255 if width == 8 else 1 << width
    distance = np.diff(positions, prepend=-1)
    bridges = (distance - 1) // longest
    at = np.cumsum(bridges + 1) - 1
    # Whole bytes in all streams: pad with entries of background behind the tensor's end.
    length = -(-(at[-1] + 1) // 8) * 8
    steps = np.full(length, longest, np.int64)
    steps[at] = distance - bridges * longest
    steps[at[-1] + 1 :] = 1
    updates = np.full(length, facts.background, facts.array.dtype)
    updates[at] = facts.array.reshape(-1)[positions]
    values, _ = _stream(chain, updates)
    if width == 8:
        walked = chain.integers(steps.astype(np.uint8))
    else:
        book = np.arange(1, longest + 1, dtype=np.int32)
        fields, _ = _unpacked(chain, (steps - 1).astype(np.uint8), book, width)
        walked = chain.node("Reshape", fields, chain.constant(np.array([-1], np.int64)))
    index = chain.node("CumSum", walked, chain.constant(np.array(0, np.int64)))
    # The first step lands on 1 or later: the element 0 is only there to be cut off.
    blank = _filled(chain, (size + 9,), facts.background)
    filled = chain.node("ScatterElements", blank, index, values, axis=0)
    return chain.cut(filled, 1, facts.array.shape)


def tail(facts: Inspection, chain: Chain) -> str | None:
    """Nothing but zero bits from some place of the second axis on: what comes before, and zeros."""
    array = facts.array
    if array.ndim < 2 or not array.size or bits(array[:, -1]).any():
        return None
    columns = bits(np.ascontiguousarray(np.moveaxis(array, 1, 0))).reshape(array.shape[1], -1)
    used = np.flatnonzero(columns.any(axis=1))
    count = int(used[-1]) + 1 if used.size else 0
    if not 0 < count < array.shape[1]:
        return None
    head = np.ascontiguousarray(array[:, :count])
    values, size = _stream(chain, head.reshape(-1))
    shape = (array.shape[0], array.shape[1] - count, *array.shape[2:])
    zeros = _filled(chain, shape, np.zeros(1, array.dtype))
    return chain.node("Concat", chain.shaped(values, size, head.shape), zeros, axis=1)


ENCODINGS: tuple[Encoding, ...] = (
    Encoding("constant", constant, cheap=True, opset=9),
    Encoding("codes-1", partial(codes, width=1), cheap=True, opset=7),
    Encoding("codes-2", partial(codes, width=2), cheap=True, opset=7),
    Encoding("codes-4", partial(codes, width=4), cheap=True, opset=7),
    Encoding("codes-8", partial(vectors, width=1), cheap=True, opset=7),
    Encoding("vectors-2", partial(vectors, width=2), cheap=True, opset=7),
    Encoding("vectors-4", partial(vectors, width=4), cheap=True, opset=7),
    Encoding("vectors-8", partial(vectors, width=8), cheap=True, opset=7),
    Encoding("narrow", narrow, cheap=True, opset=7),
    Encoding("bfloat16", bfloat16, cheap=True, opset=13),
    Encoding("tail", tail, cheap=True, opset=9),
    Encoding("bitmask", bitmask, cheap=False, opset=12),
    Encoding("gaps-4", partial(gaps, width=4), cheap=False, opset=11),
    Encoding("gaps-8", partial(gaps, width=8), cheap=False, opset=11),
)


def _stream(chain: Chain, values: NDArray[Any]) -> tuple[str, int]:
    """Store flat values, as codes where few are distinct; padding may follow them."""
    flat = bits(values)
    distinct = np.unique(flat)
    width = next((w for w in (1, 2, 4, 8) if len(distinct) <= 1 << w), None)
    if width is None or width >= 8 * values.itemsize:
        return chain.constant(values), values.size
    entries = distinct.view(values.dtype)
    picked = np.searchsorted(distinct, flat).astype(np.uint8)
    if width == 8:
        value = chain.node("Gather", chain.constant(entries), chain.integers(picked))
        return value, values.size
    fields, size = _unpacked(chain, picked, entries, width)
    return chain.node("Reshape", fields, chain.constant(np.array([-1], np.int64))), size


def _unpacked(
    chain: Chain, picked: NDArray[np.uint8], entries: NDArray[Any], width: int
) -> tuple[str, int]:
    """Store codes of 1, 2 or 4 bits; return the entries they pick, ``(bytes, 8 / width)``."""
    # The table asks for every code of this width, also for those that no entry has.
    full = np.zeros(1 << width, entries.dtype)
    full[: len(entries)] = entries
    packed = pack_bits(picked, width)
    table = chain.node("Gather", chain.constant(full), chain.table(f"bits{width}"))
    return chain.node("Gather", table, chain.integers(packed)), packed.size * 8 // width


def _filled(chain: Chain, shape: tuple[int, ...], value: NDArray[Any]) -> str:
    dims = chain.constant(np.array(shape, np.int64))
    return chain.node("ConstantOfShape", dims, value=numpy_helper.from_array(value))


def _cast(chain: Chain, array: NDArray[Any], dtype: np.dtype[Any]) -> str:
    to: TensorProto.DataType = helper.np_dtype_to_tensor_dtype(dtype)
    return chain.node("Cast", chain.constant(array), to=to)


def _exact(array: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    # Whether a cast keeps the payload of a NaN is up to the hardware.
    flat = array.reshape(-1)
    with np.errstate(over="ignore"):
        for first in range(0, flat.size, _BLOCK):
            part = flat[first : first + _BLOCK]
            if part.dtype.kind == "f" and not np.isfinite(part).all():
                return False
            if not np.array_equal(bits(part), bits(part.astype(dtype).astype(part.dtype))):
                return False
    return True
