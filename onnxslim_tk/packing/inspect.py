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
        background = single.entries[np.bincount(single.codes).argmax()]
    return Inspection(array, codebooks, background, flat != bits(background)[0])


def _codebooks(flat: NDArray[Any], dtype: np.dtype[Any]) -> dict[int, Codebook]:
    found: dict[int, Codebook] = {}
    # A tensor of 256 groups of eight has at most 2048 distinct values, 1024 distinct pairs...
    values = _distinct(flat, ENTRIES * _WIDEST)
    if values is None:
        return found
    entries, codes, width = values[:, None], np.searchsorted(values, flat).astype(np.int32), 1
    while True:
        if len(entries) <= ENTRIES:
            book = np.ascontiguousarray(entries).view(dtype)
            found[width] = Codebook(book, codes.astype(np.uint8))
        if width == _WIDEST or codes.size % 2:
            return found
        keys = codes[0::2] * np.int32(len(entries)) + codes[1::2]
        pairs = _distinct(keys, ENTRIES * _WIDEST // (2 * width))
        if pairs is None:
            return found
        first, second = np.divmod(pairs, len(entries))
        entries = np.concatenate([entries[first], entries[second]], axis=1)
        codes = np.searchsorted(pairs, keys).astype(np.int32)
        width *= 2


def _distinct(values: NDArray[Any], limit: int) -> NDArray[Any] | None:
    """Return the sorted distinct values, or None where there are more than ``limit``."""
    if len(np.unique(values[:_SAMPLE])) > limit:
        return None
    found = np.unique(values)
    return found if len(found) <= limit else None
