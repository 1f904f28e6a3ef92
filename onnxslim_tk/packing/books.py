"""A codebook for every row: few distinct values in each channel, too many in all of them.

Weights that were rounded on a grid per channel and kept as floats are of this kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxslim_tk.packing.chain import Chain
from onnxslim_tk.packing.encode import Encoding
from onnxslim_tk.packing.inspect import Alphabet, Inspection, bits
from onnxslim_tk.packing.planes import Planes, choices, write_codes

_MOST = 256
_SHORTEST = 64


@dataclass(frozen=True, eq=False)
class _Books:
    """Value j of row i is ``entries[i, codes[i, j]]``."""

    entries: NDArray[Any]
    codes: NDArray[np.uint8]


def books(facts: Inspection) -> Iterator[Encoding]:
    """Codes into codebooks of the rows (the first axis) of a tensor."""
    found = _find(facts)
    if found is None:
        return
    size = facts.array.size
    for planes in choices(found.entries.shape[1]):
        steps = 8 * len(planes.bases) + 4 * (len(planes.bases) - 1) + 8
        load = steps * size + facts.array.nbytes
        write = partial(_write, facts, found, planes)
        yield Encoding(f"books-{planes}", write, load, 11)


def _find(facts: Inspection) -> _Books | None:
    array = facts.array
    rows = array.shape[0] if array.ndim > 1 else 0
    if rows < 2 or array.size < rows * _SHORTEST:
        return None
    flat = bits(array).reshape(rows, -1)
    # A row's entries must take less than its values, and its codes less than those for all rows.
    most = min(_MOST, flat.shape[1] // 2)
    if facts.alphabet is not None:
        most = min(most, len(facts.alphabet.entries) // 2)
    found: list[NDArray[Any]] = []
    for row in flat:
        distinct = np.unique(row)
        if len(distinct) > most:
            return None
        found.append(distinct)
    entries = np.zeros((rows, max(map(len, found))), flat.dtype)
    codes = np.empty(flat.shape, np.uint8)
    for index, distinct in enumerate(found):
        entries[index, : len(distinct)] = distinct
        codes[index] = np.searchsorted(distinct, flat[index])
    return _Books(entries.view(array.dtype), codes)


def _write(facts: Inspection, found: _Books, planes: Planes, chain: Chain) -> str:
    (rows, columns), width = found.codes.shape, found.entries.shape[1]
    size, shape = facts.array.size, facts.array.shape
    numbers = Alphabet(np.arange(width)[:, None], np.array([size]), lambda: found.codes.reshape(-1))
    codes = chain.shaped(write_codes(chain, numbers, planes), planes.padded(size), (rows, columns))
    steps = chain.filled((rows, 1), np.full(1, width, np.int32))
    starts = chain.node("CumSum", steps, chain.constant(np.array(0, np.int64)), exclusive=1)
    index = chain.node("Add", codes, starts)
    entries = found.entries.reshape(-1)
    book = chain.data(entries.shape, entries.dtype, lambda: entries)
    dense = chain.node("Gather", book, index)
    return dense if shape == (rows, columns) else chain.shaped(dense, size, shape)
