"""Short codes for the frequent values, and one code that says: the next of the rare ones.

Where a value has a code of its own says how often it occurs, so this comes nearer to the entropy
than codes of one length.
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
from onnxslim_tk.packing.inspect import Alphabet, Inspection
from onnxslim_tk.packing.planes import (
    Planes,
    codes_key,
    frontier,
    smallest_size,
    stream,
    write_codes,
    write_groups,
)

_FEWEST = 4
_NODES = 200
"""Bytes that the nodes of an escape take, about."""

_FAR = 1 << 30


@dataclass(frozen=True)
class _Split:
    """Planes whose last code is the escape, and the bytes that all takes, about."""

    planes: Planes
    total: int

    @property
    def common(self) -> int:
        """How many values have codes of their own."""
        return self.planes.entries - 1


def escapes(facts: Inspection) -> Iterator[Encoding]:
    """The smallest split of a tensor's values, and the smallest that is read in groups."""
    symbols = facts.alphabet
    if symbols is None or len(symbols.entries) < _FEWEST:
        return
    order = np.argsort(-symbols.counts, kind="stable")
    size, itemsize = facts.array.size, facts.array.itemsize
    every = list(_splits(symbols.counts[order], itemsize))
    grouped = [split for split in every if split.planes.group(size)]
    least = [min(some, key=lambda split: split.total) for some in (every, grouped) if some]
    for split in dict.fromkeys(least):
        planes = split.planes
        # All steps of int32: four in groups, else five, of which CumSum and Div are slow ones.
        steps = 17 if planes.group(size) else 30
        load = planes.load(size, 4) + steps * size + facts.array.nbytes
        write = partial(_write, facts, symbols, order, split)
        yield Encoding(f"escapes-{planes}", write, load, 12 if planes.group(size) else 11)


def _splits(counts: NDArray[np.int64], itemsize: int) -> Iterator[_Split]:
    """Yield the splits that take fewer bytes than codes of one length; most frequent first."""
    size = int(counts.sum())
    below = np.cumsum(counts)
    whole = smallest_size(len(counts), size, itemsize)
    for planes in frontier():
        common = planes.entries - 1
        if common >= len(counts):
            return
        rare = size - int(below[common - 1])
        total = planes.data_size(size) + smallest_size(len(counts) - common, rare, itemsize)
        if total + _NODES < whole:
            yield _Split(planes, total)


def _write(
    facts: Inspection, symbols: Alphabet, order: NDArray[np.intp], split: _Split, chain: Chain
) -> str:
    counts, entries, common = symbols.counts[order], symbols.entries[order], split.common
    place = np.empty(len(order), np.uint16)
    place[order] = np.arange(len(order))

    def short() -> NDArray[Any]:
        return np.asarray(np.minimum(place[symbols.codes()], np.uint16(common)))

    def others() -> NDArray[Any]:
        ranks = place[symbols.codes()]
        return np.asarray(ranks[ranks >= common] - np.uint16(common))

    numbers = np.arange(common + 1)[:, None]
    codes = Alphabet(numbers, np.append(counts[:common], counts[common:].sum()), short)
    index = (_grouped if split.planes.group(codes.size) else _single)(chain, codes, split)
    values, _ = stream(chain, Alphabet(entries[common:], counts[common:], others))
    # The rare values, in order, follow the others.
    book = chain.constant(entries[:common, 0])
    dense = chain.node("Gather", chain.node("Concat", book, values, axis=0), index)
    return chain.shaped(dense, split.planes.padded(codes.size), facts.array.shape)


def _single(chain: Chain, symbols: Alphabet, split: _Split) -> str:
    """Where each value stands: its code, or what the escapes up to it come to."""
    codes = write_codes(chain, symbols, split.planes)
    escaped = chain.node("Div", codes, _number(chain, split.common))
    ranks = chain.node("CumSum", escaped, chain.constant(np.array(0, np.int64)))
    before = chain.node("Sub", ranks, escaped)
    return chain.node("Add", codes, chain.node("Mul", escaped, before))


def _grouped(chain: Chain, symbols: Alphabet, split: _Split) -> str:
    """The same for groups of codes, whose escapes are counted in a table of all groups."""
    group = split.planes.group(symbols.size)
    codes = chain.table(codes_key(split.planes, group))
    escaped = chain.node("Div", codes, _number(chain, split.common))
    ranks = chain.node("CumSum", escaped, chain.constant(np.array(1, np.int64)))
    counts = chain.node("Gather", ranks, chain.constant(np.array([group - 1])), axis=1)
    # At an escape the place that it has with no other group before it, else far below any code.
    missing = chain.node("Sub", escaped, _number(chain, 1))
    far = chain.node("Mul", missing, _number(chain, _FAR))
    own = chain.node("Add", chain.node("Add", ranks, _number(chain, split.common - 1)), far)
    rows = write_groups(chain, symbols, split.planes, group)
    counted = chain.node("Gather", counts, rows)
    before = chain.node("CumSum", counted, chain.constant(np.array(0, np.int64)), exclusive=1)
    places = chain.node("Add", chain.node("Gather", own, rows), before)
    return chain.node("Max", chain.node("Gather", codes, rows), places)


def _number(chain: Chain, value: int) -> str:
    return chain.constant(np.array(value, np.int32))
