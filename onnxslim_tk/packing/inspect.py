"""What a tensor's bits look like: how few values it holds, alone or in groups, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ENTRIES = 256
"""Most entries that a codebook read by uint8 codes can have."""

_WIDEST = 8
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_SAMPLE = 1 << 14
_BLOCK = 1 << 20


@dataclass(frozen=True, eq=False)
class Codebook:
    """Entries ``(k, width)``, k <= 256, and the uint8 code ``(n / width,)`` of every group."""

    entries: NDArray[Any]
    codes: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Inspection:
    """Facts about one tensor; values are told apart by their bits, so -0.0 isn't 0.0.

    ``codebooks`` maps the width of a group (1, 2, 4 or 8 consecutive values) to its codebook,
    where there are at most 256 distinct groups. ``background`` (shape ``(1,)``) is the most
    frequent value, or zero where distinct values are too many to count; ``kept`` ``(n,)`` is true
    wherever the value is another one.
    """

    array: NDArray[Any]
    codebooks: dict[int, Codebook]
    background: NDArray[Any]
    kept: NDArray[np.bool_]


def bits(array: NDArray[Any]) -> NDArray[Any]:
    """Return the values of ``array``, flat, as unsigned integers of the same width."""
    return np.ascontiguousarray(array).reshape(-1).view(_UNSIGNED[array.dtype.itemsize])


def inspect(array: NDArray[Any]) -> Inspection:
    """Inspect a tensor of at least one value."""
    flat = bits(array)
    codebooks = _codebooks(flat, array.dtype)
    background = np.zeros(1, array.dtype)
    if 1 in codebooks:
        single = codebooks[1]
        background = single.entries[_counts(single.codes).argmax()]
    return Inspection(array, codebooks, background, flat != bits(background)[0])


def _counts(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each code stands there; block by block, for they are widened to be counted."""
    counts = np.zeros(ENTRIES, np.int64)
    for first in range(0, codes.size, _BLOCK):
        counts += np.bincount(codes[first : first + _BLOCK], minlength=ENTRIES)
    return counts


def _codebooks(flat: NDArray[Any], dtype: np.dtype[Any]) -> dict[int, Codebook]:
    found: dict[int, Codebook] = {}
    # A tensor of 256 groups of eight has at most 2048 distinct values, 1024 distinct pairs...
    values = _distinct(flat, ENTRIES * _WIDEST)
    if values is None:
        return found
    entries, codes, width = values[:, None], _places(values, flat), 1
    while True:
        if len(entries) <= ENTRIES:
            book = np.ascontiguousarray(entries).view(dtype)
            found[width] = Codebook(book, codes.astype(np.uint8, copy=False))
        limit = ENTRIES * _WIDEST // (2 * width)
        if width == _WIDEST or codes.size % 2 or _exceeds(_keys(codes[:_SAMPLE], entries), limit):
            return found
        keys = _keys(codes, entries)
        pairs = _distinct(keys, limit)
        if pairs is None:
            return found
        first, second = np.divmod(pairs, len(entries))
        entries = np.concatenate([entries[first], entries[second]], axis=1)
        codes = _places(pairs, keys)
        width *= 2


def _keys(codes: NDArray[Any], entries: NDArray[Any]) -> NDArray[np.int32]:
    """One number for each two neighbouring codes."""
    keys: NDArray[np.int32] = codes[0::2].astype(np.int32) * np.int32(len(entries))
    keys += codes[1::2]
    return keys


def _places(values: NDArray[Any], flat: NDArray[Any]) -> NDArray[Any]:
    """Return where in the sorted ``values`` each of ``flat`` stands, which are all among them."""
    kind = np.min_scalar_type(len(values) - 1)
    if flat.itemsize == 1:
        table = np.zeros(256, kind)
        table[values] = np.arange(len(values))
        return np.asarray(table[flat])
    codes = np.empty(flat.shape, kind)
    for first in range(0, flat.size, _BLOCK):
        part = slice(first, first + _BLOCK)
        codes[part] = np.searchsorted(values, flat[part])
    return codes


def _exceeds(values: NDArray[Any], limit: int) -> bool:
    return len(np.unique(values)) > limit


def _distinct(values: NDArray[Any], limit: int) -> NDArray[Any] | None:
    """Return the sorted distinct values, or None where there are more than ``limit``."""
    if _exceeds(values[:_SAMPLE], limit):
        return None
    found = values[:0]
    for first in range(0, values.size, _BLOCK):
        found = np.union1d(found, _unique(values[first : first + _BLOCK]))
        if len(found) > limit:
            return None
    return found


def _unique(values: NDArray[Any]) -> NDArray[Any]:
    if values.itemsize > 1:
        return np.unique(values)
    return np.flatnonzero(_counts(values)).astype(values.dtype)
